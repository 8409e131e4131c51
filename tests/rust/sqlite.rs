//! The SQLite file: what it keeps, whose it is, and what becomes of it when things go wrong.

use crate::stores::{
    CHANNELS, LATE, LIMITS, PATIENCE, client, frame, give, joined, key, lasting, mailed, offsets,
    opened, publish, publish_and_wait, publish_text, reopen, save, save_with_channels, sqlite,
    trimmed, waiting,
};
use _tantor::adapters::sqlite::{Limits, SqliteStore};
use _tantor::base::clock::WallTime;
use _tantor::core::history::{Message, StreamPosition};
use _tantor::ports::durability::{Committed, Durability};
use _tantor::ports::saved_sessions::SessionChange;
use _tantor::ports::store::{Saved, Store};
use _tantor::ports::stream_log::{StreamChange, StreamLog};
use _tantor::settings::channel_kind::ChannelKind;
use rusqlite::Connection;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

pub fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(
            started.elapsed() < PATIENCE,
            "not within {PATIENCE:?}: {what}"
        );
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// A copy of the files as they are now: what a process that is killed at this moment leaves behind.
pub fn killed(folder: &Path) -> (tempfile::TempDir, SqliteStore) {
    let copy = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    let store = sqlite(copy.path());
    (copy, store)
}

pub fn query<T: rusqlite::types::FromSql>(path: &Path, sql: &str) -> T {
    let connection = Connection::open(path).unwrap();
    connection.query_row(sql, [], |row| row.get(0)).unwrap()
}

#[test]
fn everything_comes_back_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let store = sqlite(folder.path());
    assert!(store.open().unwrap().streams.is_empty());
    give(&store, opened("a", u64::MAX - 1, true), None);
    for offset in 1..=3 {
        publish(&store, "a", offset, None);
    }
    give(&store, mailed("client_1", 4, true), None);
    save_with_channels(&store, "client_1");
    let saved = reopen(&store);
    let stream = &saved.streams[0];
    assert_eq!(
        (
            &*stream.channel,
            stream.epoch,
            stream.top,
            stream.kind,
            stream.durable
        ),
        ("a", u64::MAX - 1, 3, ChannelKind::Public, true)
    );
    assert_eq!(
        stream.publications[2].message,
        Message::InMemory(frame("{\"offset\":3}"))
    );
    let mail = &saved.mail[0];
    assert_eq!(
        (
            &*mail.client,
            mail.number,
            mail.message,
            mail.expires,
            mail.is_emergency
        ),
        ("client_1", 4, u64::MAX - 4, LATE, true)
    );
    assert_eq!(mail.frame, frame("{\"number\":4}"));
    let seen = &saved.clients[0];
    let wanted = client("client_1");
    assert_eq!(
        (
            &seen.id,
            (seen.root, seen.rotation, seen.previous),
            &seen.user_data,
            seen.expires
        ),
        (
            &wanted.id,
            (wanted.root, wanted.rotation, wanted.previous),
            &wanted.user_data,
            None
        )
    );
    assert_eq!(saved.memberships["client_1"], CHANNELS.map(Into::into));
}

#[test]
fn memberships_come_and_go_one_by_one_and_with_their_client() {
    let folder = tempfile::tempdir().unwrap();
    let store = sqlite(folder.path());
    store.open().unwrap();
    for id in ["client_1", "client_2", "client_3"] {
        save_with_channels(&store, id);
    }
    give(&store, joined("client_1", "late", 3), None);
    give(&store, joined("client_1", "jungle", 4), None);
    let (client, channel) = ("client_2".into(), CHANNELS[0].into());
    give(&store, SessionChange::Left { client, channel }, None);
    let id = "client_3".into();
    give(&store, SessionChange::ClientForgotten { id }, None);
    let nobody = "client_4";
    give(&store, joined(nobody, "jungle", 5), None);
    let saved = reopen(&store);
    assert_eq!(
        saved.memberships["client_1"],
        [CHANNELS[0], CHANNELS[1], "late"].map(Into::into)
    );
    assert_eq!(saved.memberships["client_2"], [CHANNELS[1].into()]);
    assert_eq!(saved.memberships.len(), 2);
    store.close(PATIENCE);
}

#[test]
fn an_unclean_end_gives_streams_that_may_have_lost_something_another_epoch() {
    let folder = tempfile::tempdir().unwrap();
    let store = sqlite(folder.path());
    store.open().unwrap();
    for (channel, durable) in [("plain", false), ("durable", true), ("quiet", false)] {
        give(&store, opened(channel, 5, durable), None);
        if channel != "quiet" {
            assert!(store.note_published(channel, false));
        }
        publish_and_wait(&store, channel, 1).unwrap();
    }
    let (_copy, after_kill) = killed(folder.path());
    let saved = after_kill.open().unwrap();
    for stream in &saved.streams {
        assert_eq!(
            (stream.top, stream.publications.len()),
            (1, 1),
            "{stream:?}"
        );
        let has_lost_nothing = stream.durable || &*stream.channel == "quiet";
        assert_eq!(stream.epoch == 5, has_lost_nothing, "{stream:?}");
    }
    let epochs = |saved: &Saved| {
        saved
            .streams
            .iter()
            .map(|stream| stream.epoch)
            .collect::<Vec<_>>()
    };
    let after = epochs(&saved);
    assert_eq!(
        epochs(&reopen(&after_kill)),
        after,
        "a clean end changes nothing"
    );
    let clean = reopen(&store);
    assert_eq!(epochs(&clean), [5, 5, 5]);
}

#[test]
fn a_hole_of_a_stream_that_is_not_durable_is_told_and_costs_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let store = sqlite(folder.path());
    store.open().unwrap();
    for (channel, durable) in [("plain", false), ("durable", true)] {
        give(&store, opened(channel, 5, durable), None);
        for offset in [1, 2, 4, 5] {
            publish(&store, channel, offset, None);
        }
    }
    let saved = reopen(&store);
    let broken = |name: &str| {
        let mut streams = saved.streams.iter();
        let stream = streams.find(|stream| &*stream.channel == name).unwrap();
        (offsets(&saved, name), stream.broken_through)
    };
    assert_eq!(broken("plain"), (vec![1, 2, 4, 5], 3));
    let nobody_has_seen_what_failed = 0;
    assert_eq!(
        broken("durable"),
        (vec![1, 2, 4, 5], nobody_has_seen_what_failed)
    );
}

#[test]
fn what_has_expired_is_not_opened() {
    let folder = tempfile::tempdir().unwrap();
    let store = sqlite(folder.path());
    store.open().unwrap();
    give(&store, opened("a", 1, false), None);
    let expired = StreamChange::Published {
        stream: key("a"),
        position: StreamPosition {
            epoch: 1,
            offset: 1,
        },
        at: WallTime::from_micros(1),
        expires: WallTime::from_micros(2),
        is_durable: false,
        frame: lasting("{}"),
        used_key: None,
    };
    give(&store, expired, None);
    let mut gone = client("client_gone");
    gone.expires = Some(WallTime::from_micros(2));
    give(
        &store,
        SessionChange::ClientSaved {
            client: Box::new(gone),
        },
        None,
    );
    let saved = reopen(&store);
    assert_eq!((offsets(&saved, "a"), saved.streams[0].top), (vec![], 1));
    assert!(saved.clients.is_empty());
}

#[test]
fn large_streams_are_deleted_in_chunks_while_others_are_saved() {
    let folder = tempfile::tempdir().unwrap();
    let store = sqlite(folder.path());
    store.open().unwrap();
    give(&store, opened("large", 1, false), None);
    for offset in 1..=20_000 {
        publish(&store, "large", offset, None);
    }
    give(&store, opened("trimmed", 2, false), None);
    for offset in 1..=5000 {
        publish(&store, "trimmed", offset, None);
    }
    save(
        &store,
        StreamChange::StreamForgotten {
            stream: key("large"),
            channel: "large".into(),
        },
    )
    .unwrap();
    save(&store, trimmed("trimmed", 4990)).unwrap();
    let path = folder.path().join("tantor.db");
    let rows = || query::<i64>(&path, "SELECT count(*) FROM publications");
    wait_until("the rows are gone", || rows() == 10);
    assert_eq!(
        offsets(&reopen(&store), "trimmed"),
        (4991..=5000).collect::<Vec<_>>()
    );
}

#[test]
fn the_file_gives_back_what_was_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let store = sqlite(folder.path());
    store.open().unwrap();
    give(&store, opened("a", 1, false), None);
    for offset in 1..=20_000 {
        publish(&store, "a", offset, None);
    }
    let path = folder.path().join("tantor.db");
    give(&store, trimmed("a", 20_000), None);
    let pages = || query::<i64>(&path, "PRAGMA page_count");
    let most = pages();
    wait_until("the file is smaller", || pages() < most.max(600) / 2);
    store.close(PATIENCE);
}

#[test]
fn a_full_file_fails_what_is_waited_for_and_recovers() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits {
        file_bytes: 1 << 20,
        ..LIMITS
    };
    let store = SqliteStore::new(&folder.path().join("tantor.db"), limits);
    store.open().unwrap();
    give(&store, opened("a", 1, true), None);
    let large = "x".repeat(100_000);
    let mut last = 0;
    let error = loop {
        last += 1;
        assert!(last < 100, "it is never full");
        let (committed, told) = waiting();
        publish_text(&store, "a", last, &large, Some(committed));
        if let Err(error) = told.recv_timeout(PATIENCE).unwrap() {
            break error.to_string();
        }
    };
    assert!(
        error.contains("full") && error.contains("tantor.db"),
        "{error}"
    );
    // the file may have found room for less by now, and then is degraded no longer
    assert_eq!(store.health().changes_lost, 1);
    // what nobody waits for is tried again, behind what makes room
    publish_text(&store, "a", last + 1, &large, None);
    give(&store, trimmed("a", last - 1), None);
    wait_until("it is written again", || !store.health().is_degraded);
    assert_eq!(store.health().error, None);
    assert_eq!(offsets(&reopen(&store), "a"), [last + 1]);
    store.close(PATIENCE);
}

#[test]
fn a_file_that_can_be_written_again_is_noticed_though_nothing_is_to_be_saved() {
    let folder = tempfile::tempdir().unwrap();
    let store = sqlite(folder.path());
    store.open().unwrap();
    save(&store, opened("a", 1, true)).unwrap();
    let other = Connection::open(folder.path().join("tantor.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    publish_and_wait(&store, "a", 1).unwrap_err();
    assert!(store.health().is_degraded && store.health().queued_changes == 0);
    other.execute_batch("ROLLBACK").unwrap();
    wait_until("it is seen", || !store.health().is_degraded);
    store.close(PATIENCE);
}

#[test]
fn what_was_lost_makes_the_end_unclean() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits {
        queue_bytes: 10_000,
        ..LIMITS
    };
    let store = SqliteStore::new(&folder.path().join("tantor.db"), limits);
    store.open().unwrap();
    give(&store, opened("a", 5, false), None);
    store.note_published("a", false);
    let count = 10_000;
    for offset in 1..=count {
        publish(&store, "a", offset, None);
    }
    let health = store.health();
    assert!(
        health.changes_lost > 0 && health.queued_bytes <= 10_000,
        "{health:?}"
    );
    let saved = reopen(&store);
    assert_ne!(saved.streams[0].epoch, 5);
    store.close(PATIENCE);
}

#[test]
fn a_close_that_took_too_long_does_not_keep_the_file_for_good() {
    let folder = tempfile::tempdir().unwrap();
    let store = sqlite(folder.path());
    store.open().unwrap();
    let other = Connection::open(folder.path().join("tantor.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    give(&store, opened("a", 1, true), None);
    publish(&store, "a", 1, None);
    store.close(std::time::Duration::ZERO);
    let error = store.open().unwrap_err().0;
    assert!(error.contains("still being closed"), "{error}");
    other.execute_batch("COMMIT").unwrap();
    wait_until("it is closed", || store.open().is_ok());
}

#[test]
fn a_lock_of_another_holds_up_nobody_who_does_not_wait() {
    let folder = tempfile::tempdir().unwrap();
    let store = sqlite(folder.path());
    store.open().unwrap();
    save(&store, opened("a", 1, false)).unwrap();
    let other = Connection::open(folder.path().join("tantor.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    publish(&store, "a", 1, None);
    let error = publish_and_wait(&store, "a", 2).unwrap_err().to_string();
    assert!(error.contains("locked"), "{error}");
    assert!(store.health().is_degraded);
    other.execute_batch("ROLLBACK").unwrap();
    wait_until("it is written again", || !store.health().is_degraded);
    assert_eq!(offsets(&reopen(&store), "a"), [1]);
    store.close(PATIENCE);
}

#[test]
fn many_who_wait_share_a_commit() {
    let folder = tempfile::tempdir().unwrap();
    let store = sqlite(folder.path());
    store.open().unwrap();
    give(&store, opened("a", 1, true), None);
    let heard = Arc::new(AtomicUsize::new(0));
    for offset in 1..=5000 {
        let heard = Arc::clone(&heard);
        let committed: Committed = Committed::new(move |outcome| {
            outcome.unwrap();
            heard.fetch_add(1, Ordering::Relaxed);
        });
        publish(&store, "a", offset, Some(committed));
    }
    wait_until("all have heard", || heard.load(Ordering::Relaxed) == 5000);
    assert!(store.health().commits < 2500, "{:?}", store.health());
    assert_eq!(store.health().changes_saved, 5001);
    store.close(PATIENCE);
}

#[test]
fn the_views_have_the_columns_of_flask_tsk() {
    let folder = tempfile::tempdir().unwrap();
    let store = sqlite(folder.path());
    store.open().unwrap();
    give(&store, opened("chat", 1, false), None);
    let message = r#"{"id":"msg_1","channel":"chat","timestamp":1.5,"sender":"tantor","event":"chat_message","data":{"message":"hi"},"from":"client_1","offset":1}"#;
    publish_text(&store, "chat", 1, message, None);
    let direct =
        r#"{"id":"msg_2","channel":"jungle","timestamp":2.5,"sender":"tantor","message":"yo"}"#;
    give(
        &store,
        SessionChange::Mailed {
            client: "client_1".into(),
            number: 0,
            message: 2,
            expires: LATE,
            is_emergency: false,
            frame: lasting(direct),
            used_key: None,
        },
        None,
    );
    save_with_channels(&store, "client_1");
    store.close(PATIENCE);
    let path = folder.path().join("tantor.db");
    let rows = "SELECT group_concat(id || ',' || channel || ',' || message || ',' || sender || ',' || timestamp || ',' || \
                message_type || ',' || data, ';') FROM tantor_messages";
    assert_eq!(
        query::<String>(&path, rows),
        format!(
            r#"msg_1,chat,hi,client_1,1.5,chat_message,{{"message":"hi"}};msg_2,jungle,yo,tantor,2.5,chat,{direct}"#
        )
    );
    let rows = "SELECT client_id || ',' || handshake_complete || ',' || last_ping || ',' || joined_at || ',' || channels || ',' \
                || user_data FROM tantor_connections";
    assert_eq!(
        query::<String>(&path, rows),
        r#"client_1,1,0,0,["jungle","a \"b\" é"],{"x":1}"#
    );
}
