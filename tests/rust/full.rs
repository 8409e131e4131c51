//! A file that has no room: what is refused, what goes on, and how it recovers.

use crate::sqlite::{query, wait_until};
use crate::stores::{
    GivenSessionChange, LATE, LIMITS, PATIENCE, client, give, key, lasting, mailed, offsets,
    opened, publish_and_wait, publish_text, reopen, save, trimmed, waiting,
};
use _tantor::adapters::sqlite::{Limits, SqliteStore};
use _tantor::core::history::StreamPosition;
use _tantor::core::idempotency::LostFlag;
use _tantor::ports::durability::{Durability, KeyResult, UsedKey};
use _tantor::ports::saved_sessions::SessionChange;
use _tantor::ports::store::Store;
use _tantor::ports::stream_log::StreamChange;
use std::path::Path;

const FILE_BYTES: u64 = 4 << 20;

fn small(folder: &Path) -> SqliteStore {
    let limits = Limits {
        file_bytes: FILE_BYTES,
        keys: 512,
        ..LIMITS
    };
    let store = SqliteStore::new(&folder.join("tantor.db"), limits);
    store.open().unwrap();
    store
}

fn used_key(number: u64) -> UsedKey {
    UsedKey {
        client: None,
        target: "a".into(),
        key: format!("{number:0>200}").into(),
        expires: LATE,
        result: KeyResult::Published {
            position: StreamPosition {
                epoch: 1,
                offset: number,
            },
            recipients: 0,
        },
        lost_flag: LostFlag::default(),
    }
}

type Add = fn(u64) -> GivenSessionChange;
type Free = fn(u64) -> Vec<GivenSessionChange>;

fn mail_of(number: u64) -> GivenSessionChange {
    let SessionChange::Mailed {
        client,
        message,
        expires,
        is_emergency,
        ..
    } = mailed("client_1", number, false)
    else {
        unreachable!()
    };
    SessionChange::Mailed {
        client,
        number,
        message,
        expires,
        is_emergency,
        frame: lasting(&"x".repeat(500)),
        used_key: number.is_multiple_of(2).then(|| Box::new(used_key(number))),
    }
}

/// Each way to fill a file, and what frees it again.
const WAYS: [(&str, Add, Free); 2] = [
    ("mail and keys", mail_of, |count| {
        vec![SessionChange::Unmailed {
            client: "client_1".into(),
            numbers: (0..count).collect(),
        }]
    }),
    (
        "clients",
        |number| {
            let mut saved = client(&format!("client_{number}"));
            saved.user_data = Some(bytes::Bytes::from(format!("\"{}\"", "x".repeat(500))));
            SessionChange::ClientSaved {
                client: Box::new(saved),
            }
        },
        |count| {
            let forgotten = |number| SessionChange::ClientForgotten {
                id: format!("client_{number}").into(),
            };
            (0..count).map(forgotten).collect()
        },
    ),
];

fn is_full(store: &SqliteStore) -> bool {
    let health = store.health();
    health.is_degraded
        && health
            .error
            .unwrap_or_default()
            .contains("database_bytes is 4194304")
}

#[test]
fn deletions_make_room_however_the_file_was_filled() {
    for (way, add, free) in WAYS {
        let folder = tempfile::tempdir().unwrap();
        let store = small(folder.path());
        give(&store, opened("a", 1, true), None);
        let count = 20_000;
        for number in 0..count {
            give(&store, add(number), None);
        }
        wait_until(way, || is_full(&store));
        let error = publish_and_wait(&store, "a", 1).unwrap_err().to_string();
        assert!(error.contains("database_bytes"), "{way}: {error}");
        assert!(store.health().queued_changes > 0, "{way}: the rest waits");
        for change in free(count) {
            give(&store, change, None);
        }
        wait_until(way, || !store.health().is_degraded);
        publish_and_wait(&store, "a", 2).unwrap();
        let saved = reopen(&store);
        assert_eq!(offsets(&saved, "a"), [2], "{way}");
        assert_eq!((saved.mail.len(), saved.clients.len()), (0, 0), "{way}");
        store.close(PATIENCE);
    }
}

#[test]
fn more_than_the_file_takes_passes_through_it() {
    let text = "x".repeat(500);
    for is_durable in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let store = small(folder.path());
        give(&store, opened("a", 1, is_durable), None);
        let count = 20_000;
        for offset in 1..=count {
            let (committed, told) = waiting();
            let is_awaited = is_durable && offset % 100 == 0;
            publish_text(&store, "a", offset, &text, is_awaited.then_some(committed));
            if offset % 100 == 0 {
                if is_awaited {
                    told.recv_timeout(PATIENCE).unwrap().unwrap();
                }
                give(&store, trimmed("a", offset - 100), None);
            }
        }
        wait_until("all is saved", || store.health().queued_changes == 0);
        wait_until("it has room", || !store.health().is_degraded);
        publish_and_wait(&store, "a", count + 1).unwrap();
        assert_eq!(store.health().changes_lost, 0);
        let kept = offsets(&reopen(&store), "a");
        assert_eq!(kept, (count - 99..=count + 1).collect::<Vec<_>>());
        store.close(PATIENCE);
    }
}

/// All of it waits before the first transaction begins, so the first transactions cannot fit.
#[test]
fn a_backlog_of_more_than_the_file_takes_is_saved() {
    let folder = tempfile::tempdir().unwrap();
    let store = small(folder.path());
    let path = folder.path().join("tantor.db");
    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    give(&store, opened("a", 1, false), None);
    give(&store, opened("b", 2, false), None);
    let count = 20_000;
    for offset in 1..=count {
        publish_text(&store, "a", offset, &"x".repeat(500), None);
        publish_text(&store, "b", offset, &"x".repeat(500), None);
    }
    give(&store, trimmed("a", count - 100), None);
    give(
        &store,
        StreamChange::StreamForgotten {
            stream: key("b"),
            channel: "b".into(),
        },
        None,
    );
    other.execute_batch("COMMIT").unwrap();
    wait_until("all is saved", || store.health().queued_changes == 0);
    wait_until("it has room", || !store.health().is_degraded);
    publish_and_wait(&store, "a", count + 1).unwrap();
    assert_eq!(store.health().changes_lost, 0);
    let saved = reopen(&store);
    assert_eq!(
        offsets(&saved, "a"),
        (count - 99..=count + 1).collect::<Vec<_>>()
    );
    assert_eq!(saved.streams.len(), 1);
    store.close(PATIENCE);
}

#[test]
fn a_large_message_that_does_not_fit_holds_up_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let store = small(folder.path());
    give(&store, opened("a", 1, false), None);
    let half = "x".repeat(usize::try_from(FILE_BYTES).unwrap() / 2);
    save(&store, opened("b", 1, true)).unwrap();
    publish_text(&store, "a", 1, &half, None);
    publish_text(&store, "a", 2, &half, None);
    publish_and_wait(&store, "b", 1).unwrap();
    wait_until("the second half waits", || is_full(&store));
    let (committed, told) = waiting();
    publish_text(&store, "b", 2, &half, Some(committed));
    assert!(told.recv_timeout(PATIENCE).unwrap().is_err());
    publish_and_wait(&store, "b", 3).unwrap();
    give(&store, trimmed("a", 1), None);
    wait_until("there is room", || !store.health().is_degraded);
    let saved = reopen(&store);
    assert_eq!(
        (offsets(&saved, "a"), offsets(&saved, "b")),
        (vec![2], vec![1, 3])
    );
    store.close(PATIENCE);
}

/// A limit that was lowered, or a file of a version that reserved nothing.
#[test]
fn a_file_that_is_larger_than_it_may_be_still_deletes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tantor.db");
    let store = SqliteStore::new(&path, LIMITS);
    store.open().unwrap();
    give(&store, opened("a", 1, false), None);
    for offset in 1..=20_000 {
        publish_text(&store, "a", offset, &"x".repeat(500), None);
    }
    store.close(PATIENCE);
    let store = small(folder.path());
    give(&store, opened("a", 1, false), None);
    let (committed, told) = waiting();
    publish_text(&store, "a", 20_001, &"x".repeat(20_000), Some(committed));
    told.recv_timeout(PATIENCE).unwrap().unwrap_err();
    give(&store, trimmed("a", 20_000), None);
    wait_until("there is room", || !store.health().is_degraded);
    publish_and_wait(&store, "a", 20_002).unwrap();
    let rows = || query::<i64>(&path, "SELECT count(*) FROM publications");
    wait_until("the rows are gone", || rows() == 1);
    store.close(PATIENCE);
}

/// The trigger makes each deletion of a stream need more than the file may take, as a full disk does.
#[test]
fn deletions_that_find_no_room_fail_durable_publications_and_hold_up_no_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tantor.db");
    let store = small(folder.path());
    for channel in ["a", "b", "c"] {
        save(&store, opened(channel, 1, true)).unwrap();
    }
    let run = |sql: &str| {
        let other = rusqlite::Connection::open(&path).unwrap();
        other.busy_timeout(PATIENCE).unwrap();
        other.execute_batch(sql).unwrap();
    };
    let fill = format!(
        "CREATE TRIGGER full AFTER DELETE ON streams
         BEGIN INSERT INTO ballast VALUES (zeroblob({FILE_BYTES})); END"
    );
    let forget = |channel: &str| {
        let change = StreamChange::StreamForgotten {
            stream: key(channel),
            channel: channel.into(),
        };
        give(&store, change, None);
    };
    run("CREATE TABLE ballast (bytes BLOB)");
    run(&fill);
    forget("b");
    for offset in 1..=3 {
        let error = publish_and_wait(&store, "a", offset)
            .unwrap_err()
            .to_string();
        assert!(error.contains("cannot be written"), "{error}");
        assert!(store.health().is_degraded);
        assert_eq!(store.health().queued_changes, 1, "the deletion waits");
    }
    run("DROP TRIGGER full");
    wait_until("there is room", || !store.health().is_degraded);
    publish_and_wait(&store, "a", 4).unwrap();
    run(&fill);
    forget("c");
    wait_until("the deletion finds no room", || store.health().is_degraded);
    store.close(PATIENCE);
    assert_eq!(store.health().queued_changes, 0, "the store has ended");
    run("DROP TRIGGER full");
    let saved = store.open().unwrap();
    let channels: Vec<_> = saved.streams.iter().map(|s| &*s.channel).collect();
    assert_eq!(channels, ["a", "c"]);
    assert_eq!(offsets(&saved, "a"), [4]);
    store.close(PATIENCE);
}
