//! Idempotency keys in the SQLite file: there with what was published under them, and gone when they are old.

use crate::sqlite::{killed, query, wait_until};
use crate::stores::{
    GivenSessionChange, GivenStreamChange, LATE, LIMITS, PATIENCE, give, key, lasting, opened,
    reopen, save, sqlite, trimmed,
};
use _tantor::adapters::sqlite::{Limits, SqliteStore};
use _tantor::base::clock::WallTime;
use _tantor::core::history::StreamPosition;
use _tantor::core::idempotency::LostFlag;
use _tantor::ports::durability::{KeyResult, UsedKey};
use _tantor::ports::saved_sessions::SessionChange;
use _tantor::ports::store::Store;
use _tantor::ports::stream_log::{StreamChange, StreamLog};
use _tantor::wire::messages::Stamp;
use std::path::Path;
use std::time::Duration;

/// An empty store that is open, with a durable stream "a".
fn opened_store(folder: &Path, limits: Limits) -> SqliteStore {
    let store = SqliteStore::new(&folder.join("tantor.db"), limits);
    assert!(store.open().unwrap().used_keys.is_empty());
    give(&store, opened("a", 1, true), None);
    store
}

const MINUTE: Duration = Duration::from_secs(60);

/// The later, the higher the number.
fn late(number: u64) -> WallTime {
    LATE + Duration::from_micros(number)
}

fn published(name: &str, by_client: bool, offset: u64, expires: WallTime) -> UsedKey {
    UsedKey {
        client: by_client.then(|| "client_1".into()),
        target: "a".into(),
        key: name.into(),
        expires,
        result: KeyResult::Published {
            position: StreamPosition { epoch: 1, offset },
            recipients: 7,
        },
        lost_flag: LostFlag::default(),
    }
}

fn sent(name: &str) -> UsedKey {
    UsedKey {
        client: None,
        target: "client_1".into(),
        key: name.into(),
        expires: LATE,
        result: KeyResult::Sent(Stamp {
            id: u64::MAX - 1,
            at: WallTime::from_micros(5),
        }),
        lost_flag: LostFlag::default(),
    }
}

fn publication(offset: u64, used: UsedKey) -> GivenStreamChange {
    StreamChange::Published {
        stream: key("a"),
        position: StreamPosition { epoch: 1, offset },
        at: WallTime::from_micros(offset),
        expires: LATE,
        is_durable: false,
        frame: lasting("{}"),
        used_key: Some(Box::new(used)),
    }
}

fn letter(used: UsedKey) -> GivenSessionChange {
    SessionChange::Mailed {
        client: "client_1".into(),
        number: 0,
        message: u64::MAX - 1,
        expires: LATE,
        is_emergency: false,
        frame: lasting("{}"),
        used_key: Some(Box::new(used)),
    }
}

#[test]
fn keys_come_back_with_what_they_gave() {
    let folder = tempfile::tempdir().unwrap();
    let store = sqlite(folder.path());
    assert!(store.open().unwrap().used_keys.is_empty());
    give(&store, opened("a", 1, true), None);
    let keys = [
        published("one", false, 1, LATE),
        // of another kind, the same key is another
        published("one", true, 2, LATE),
        sent("one"),
    ];
    give(&store, publication(1, keys[0].clone()), None);
    give(&store, publication(2, keys[1].clone()), None);
    give(&store, letter(keys[2].clone()), None);
    assert_eq!(reopen(&store).used_keys, keys);
    // it outlives its publication
    give(&store, opened("a", 1, true), None);
    save(&store, trimmed("a", 2)).unwrap();
    assert_eq!(reopen(&store).used_keys, keys);
    store.close(PATIENCE);
}

#[test]
fn a_key_that_is_used_again_has_its_latest_result() {
    let folder = tempfile::tempdir().unwrap();
    let store = opened_store(folder.path(), LIMITS);
    for offset in 1..=3 {
        let used = published("one", false, offset, late(offset));
        give(&store, publication(offset, used), None);
    }
    assert_eq!(
        reopen(&store).used_keys,
        [published("one", false, 3, late(3))]
    );
    store.close(PATIENCE);
}

/// Whatever the moment of the kill: a key without its publication would lose it, a publication without its key would
/// double it.
#[test]
fn a_kill_leaves_a_key_and_its_publication_or_neither() {
    let folder = tempfile::tempdir().unwrap();
    let store = opened_store(folder.path(), LIMITS);
    let mut seen = std::collections::BTreeSet::new();
    std::thread::scope(|scope| {
        // few enough for the log not to be moved to the file while it is copied
        let publisher = scope.spawn(|| {
            for offset in 1..=900 {
                let used = published(&format!("key {offset}"), true, offset, late(offset));
                let change = publication(offset, used);
                if offset % 30 == 0 {
                    save(&store, change).unwrap();
                } else {
                    give(&store, change, None);
                }
            }
        });
        while !publisher.is_finished() {
            let (_copy, left) = killed(folder.path());
            let saved = left.open().unwrap();
            let streams = saved.streams.iter();
            let offsets: Vec<u64> = streams
                .flat_map(|stream| stream.publications.iter().map(|kept| kept.offset))
                .collect();
            let keys = saved.used_keys.iter();
            let of_keys: Vec<u64> = keys
                .filter_map(|used| match used.result {
                    KeyResult::Published { position, .. } => Some(position.offset),
                    KeyResult::Sent(_) => None,
                })
                .collect();
            assert_eq!(of_keys, offsets);
            seen.insert(offsets.len());
            left.close(PATIENCE);
        }
    });
    assert!(seen.len() > 1, "it was looked at while it grew: {seen:?}");
    store.close(PATIENCE);
}

#[test]
fn old_keys_go_while_the_file_is_open() {
    let folder = tempfile::tempdir().unwrap();
    let store = opened_store(folder.path(), Limits { keys: 3, ..LIMITS });
    let soon = WallTime::now() + Duration::from_millis(100);
    for offset in 1..=5 {
        let used = published(&format!("short {offset}"), false, offset, soon);
        give(&store, publication(offset, used), None);
    }
    for offset in 6..=10 {
        let used = published(&format!("long {offset}"), true, offset, late(offset));
        give(&store, publication(offset, used), None);
    }
    save(&store, letter(sent("one"))).unwrap();
    let path = folder.path().join("tantor.db");
    let count = || query::<i64>(&path, "SELECT count(*) FROM idempotency_keys");
    wait_until("the short ones have expired", || count() <= 6);
    let names: Vec<_> = reopen(&store)
        .used_keys
        .into_iter()
        .map(|used| used.key)
        .collect();
    assert_eq!(
        names,
        ["long 6", "long 7", "long 8", "long 9", "long 10", "one"].map(Box::from)
    );
    store.close(PATIENCE);
}

/// Of each kind the oldest go first, and there are never many more than the bound.
#[test]
fn keys_of_one_kind_are_bounded_by_number() {
    let folder = tempfile::tempdir().unwrap();
    let store = opened_store(folder.path(), Limits { keys: 3, ..LIMITS });
    let first = published("the application's", false, 1, LATE);
    give(&store, publication(1, first), None);
    let path = folder.path().join("tantor.db");
    for offset in 2..=500 {
        let used = published(&format!("key {offset}"), true, offset, late(offset));
        let change = publication(offset, used);
        if offset % 50 == 0 {
            save(&store, change).unwrap();
            let count: i64 = query(&path, "SELECT count(*) FROM idempotency_keys");
            assert!((4..50).contains(&count), "{count} at {offset}");
        } else {
            give(&store, change, None);
        }
    }
    let kept = reopen(&store).used_keys;
    assert_eq!(&*kept[0].key, "the application's");
    assert_eq!(
        kept.last(),
        Some(&published("key 500", true, 500, late(500)))
    );
    store.close(PATIENCE);
}

#[test]
fn a_client_has_only_its_own_saved_keys_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let store = opened_store(folder.path(), Limits { keys: 3, ..LIMITS });
    let of_client = |client: &str, offset| UsedKey {
        client: Some(client.into()),
        ..published(&format!("key {offset}"), true, offset, late(offset))
    };
    let publish = |used, offset| give(&store, publication(offset, used), None);
    publish(of_client("honest", 1), 1);
    publish(of_client("gone", 2), 2);
    for offset in 3..=500 {
        publish(of_client("flood", offset), offset);
    }
    give(
        &store,
        SessionChange::ClientForgotten { id: "gone".into() },
        None,
    );
    let kept = reopen(&store).used_keys;
    let of = |client: &str| {
        let is_of = |used: &&UsedKey| used.client.as_deref() == Some(client);
        kept.iter().filter(is_of).count()
    };
    assert_eq!((of("honest"), of("gone")), (1, 0));
    assert!(of("flood") < 50);
    store.close(PATIENCE);
}

#[test]
fn keys_that_have_expired_are_not_opened() {
    let folder = tempfile::tempdir().unwrap();
    let store = opened_store(folder.path(), LIMITS);
    for (offset, expires) in [(1, WallTime::from_micros(2)), (2, LATE)] {
        let used = published(&format!("key {offset}"), false, offset, expires);
        give(&store, publication(offset, used), None);
    }
    assert_eq!(
        reopen(&store).used_keys,
        [published("key 2", false, 2, LATE)]
    );
    store.close(PATIENCE);
}

/// After an unclean end a stream that was not durable has another epoch, and what is left of it is told in that one.
#[test]
fn positions_are_told_in_the_epoch_that_the_stream_has_now() {
    let folder = tempfile::tempdir().unwrap();
    let store = sqlite(folder.path());
    store.open().unwrap();
    give(&store, opened("a", 1, false), None);
    store.note_published("a", false);
    save(&store, publication(1, published("one", false, 1, LATE))).unwrap();
    let (_copy, left) = killed(folder.path());
    let saved = left.open().unwrap();
    assert_ne!(saved.streams[0].epoch, 1);
    let KeyResult::Published { position, .. } = saved.used_keys[0].result else {
        panic!("it is a publication's")
    };
    assert_eq!(position.epoch, saved.streams[0].epoch);
    left.close(PATIENCE);
    // what was published in an epoch that is over is not told in another
    give(
        &store,
        StreamChange::StreamForgotten {
            stream: key("a"),
            channel: "a".into(),
        },
        None,
    );
    save(&store, opened("a", 2, false)).unwrap();
    let (_copy, left) = killed(folder.path());
    let KeyResult::Published { position, .. } = left.open().unwrap().used_keys[0].result else {
        panic!("it is a publication's")
    };
    assert_eq!(position.epoch, 1);
    left.close(PATIENCE);
    store.close(PATIENCE);
}

/// Else keys of a time in which they were known for longer would push out those of now.
#[test]
fn keys_are_known_for_no_longer_than_keys_are_now() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tantor.db");
    let store = opened_store(folder.path(), LIMITS);
    let used = published("old", false, 1, LATE);
    give(&store, publication(1, used), None);
    store.close(PATIENCE);
    let limits = Limits {
        key_ttl: MINUTE,
        ..LIMITS
    };
    let store = SqliteStore::new(&path, limits);
    let expires = store.open().unwrap().used_keys[0].expires;
    assert!((WallTime::now()..=WallTime::now() + MINUTE).contains(&expires));
    store.close(PATIENCE);
}
