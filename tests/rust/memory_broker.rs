//! What the memory broker does besides the contract: budgets, and stores that are full.

use crate::contract::{BODY, attach, attach_with, kept, publish, publish_durably, settings};
use crate::peer::history_limits;
use crate::sqlite::wait_until;
use crate::stores::{LIMITS, PATIENCE, WaitedFor, offsets, reopen, sqlite};
use _tantor::adapters::memory_broker::{BrokerLimits, MemoryBroker};
use _tantor::adapters::memory_store::MemoryStore;
use _tantor::adapters::sqlite::{Limits, SqliteStore};
use _tantor::ports::broker::{Broker, Failure};
use _tantor::ports::durability::{Committed, Durability, NotTaken, StoreError};
use _tantor::ports::store::Store;
use _tantor::settings::channel_settings::ChannelSettings;
use std::sync::Arc;

#[test]
fn all_channels_together_keep_no_more_than_the_budget() {
    let broker = MemoryBroker::new(Arc::new(MemoryStore), history_limits(20_000));
    for number in 0..1000 {
        publish(&*attach(&broker, &format!("channel {}", number % 7))).unwrap();
    }
    let size = broker.size();
    assert!(
        size.bytes.evictable <= 20_000 && size.messages > 10,
        "{size:?}"
    );
    // the newest are those that are left
    assert_eq!(kept(&*attach(&broker, "channel 5")).last(), Some(&143));
}

#[test]
fn a_durable_publication_that_has_no_room_is_not_handed_over_and_takes_no_position() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(sqlite(folder.path()));
    store.open().unwrap();
    let limits = BrokerLimits {
        durable_bytes: 4096,
        ..history_limits(1 << 20)
    };
    let broker = MemoryBroker::new(store, limits);
    let (stream, recorder) = attach_with(&broker, "a", settings());
    let large = format!("{{\"n\":\"{}\"", "x".repeat(8192));
    for (body, has_room) in [(BODY, true), (large.as_bytes(), false), (BODY, true)] {
        match publish_durably(&*stream, body) {
            Ok(_) => assert!(has_room),
            Err(Failure::Refused(why)) => {
                assert!(!has_room && why.contains("durable_bytes is 4096"));
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_eq!(
        (recorder.offsets(), kept(&*stream)),
        (vec![1, 2], vec![1, 2])
    );
}

#[test]
fn invented_channels_fill_no_more_than_the_queue_while_the_file_is_locked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tantor.db");
    let limits = Limits {
        queue_bytes: 64 << 10,
        ..LIMITS
    };
    let store = Arc::new(SqliteStore::new(&path, limits));
    store.open().unwrap();
    let broker = MemoryBroker::new(store.clone(), history_limits(1 << 20));
    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    for number in 0..5000 {
        let name = format!("invented {number}");
        assert!(publish(&*attach(&broker, &name)).is_ok());
        broker.remove(&name);
    }
    let stays = attach(&broker, "stays");
    assert!(publish(&*stays).is_ok());
    let health = store.health();
    // each opening that was taken has a deletion, which is never refused
    assert!(health.queued_bytes <= 2 * limits.queue_bytes, "{health:?}");
    assert!(health.changes_lost > 4000, "{health:?}");
    other.execute_batch("COMMIT").unwrap();
    wait_until("all is saved", || store.health().queued_changes == 0);
    assert!(publish(&*stays).is_ok());
    let saved = reopen(&*store);
    assert_eq!(saved.streams.len(), 1, "{:?}", saved.streams);
    assert_eq!(offsets(&saved, "stays"), [2], "it is announced again");
    store.close(PATIENCE);
}

#[test]
fn a_channel_whose_last_publication_could_not_be_saved_takes_the_next_and_ends() {
    let full = WaitedFor(|committed: Option<Committed>| {
        Err(NotTaken {
            error: StoreError("full".to_owned()),
            committed,
        })
    });
    let broker = MemoryBroker::new(Arc::new(full), history_limits(1 << 20));
    let settings = ChannelSettings {
        durable: true,
        ..settings()
    };
    let (stream, recorder) = attach_with(&broker, "a", settings);
    for _ in 0..2 {
        let refused = publish(&*stream);
        assert_eq!(refused, Err(Failure::Refused("full".to_owned())));
    }
    assert!(recorder.offsets().is_empty());
    assert!(broker.detach("a"), "nothing is kept");
}
