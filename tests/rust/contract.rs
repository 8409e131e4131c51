//! What every broker must do, over each store that there is.

use crate::peer::history_limits;
use crate::sqlite::wait_until;
use crate::stores::{LIMITS, PATIENCE, WaitedFor, every_store, offsets, reopen, sqlite, waiting};
use _tantor::adapters::memory_broker::{HistoryLimits, MemoryBroker};
use _tantor::adapters::memory_store::MemoryStore;
use _tantor::adapters::sqlite::{Limits, SqliteStore};
use _tantor::base::priority::SlowConsumer;
use _tantor::core::history::Page;
use _tantor::core::history::StreamPosition;
use _tantor::ports::broker::{Broker, Closing, HistorySize, OnSaved, Refused, Stream};
use _tantor::ports::store::{Committed, Store, StoreError};
use _tantor::settings::channel_kind::ChannelKind;
use _tantor::settings::channel_settings::ChannelSettings;
use _tantor::wire::frame::EncodedFrame;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A broker over each store, open, and the store's name; the last is what its files are in.
fn brokers() -> Vec<(&'static str, Arc<dyn Broker>, tempfile::TempDir)> {
    every_store()
        .into_iter()
        .map(|(name, store, folder)| {
            store.open().unwrap();
            let broker = MemoryBroker::new(store, history_limits(1 << 20));
            (name, Arc::new(broker) as Arc<dyn Broker>, folder)
        })
        .collect()
}

fn settings() -> ChannelSettings {
    ChannelSettings {
        history_size: 100,
        message_ttl: Duration::from_secs(3600),
        durable: false,
        slow_consumer: SlowConsumer::Disconnect,
    }
}

fn open(broker: &dyn Broker, name: &str) -> Arc<dyn Stream> {
    broker.open(&Arc::from(name), ChannelKind::Public, settings())
}

fn frame() -> EncodedFrame {
    EncodedFrame::text(b"{}")
}

/// Publishes; the position that was handed over.
fn publish(stream: &dyn Stream) -> Option<StreamPosition> {
    let mut seen = None;
    let mut hand_over = |position: Option<StreamPosition>, _: &EncodedFrame| {
        seen = position;
        None
    };
    let published = stream.publish(&mut |_| frame(), &mut hand_over, &mut None);
    published.ok().and(seen)
}

fn top(stream: &dyn Stream) -> u64 {
    let mut top = 0;
    stream.read(&mut |history| top = history.top);
    top
}

/// Offsets of what is kept.
fn kept(stream: &dyn Stream) -> Vec<u64> {
    let page = Page {
        limit: usize::MAX,
        after: None,
        before: None,
    };
    let mut offsets = Vec::new();
    stream.read(&mut |history| {
        let (kept, _) = history.page(page, usize::MAX);
        offsets = kept.iter().map(|kept| kept.offset).collect();
    });
    offsets
}

#[test]
fn positions_are_gapless_and_handed_over_in_order_from_eight_threads() {
    for (name, broker, _folder) in brokers() {
        let handed_over = Arc::new(Mutex::new(Vec::new()));
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let (broker, handed_over) = (Arc::clone(&broker), Arc::clone(&handed_over));
                std::thread::spawn(move || {
                    for _ in 0..200 {
                        let mut hand_over = |position: Option<StreamPosition>, _: &EncodedFrame| {
                            handed_over.lock().unwrap().push(position.unwrap().offset);
                            None
                        };
                        let stream = open(&*broker, "a");
                        let published = stream.publish(&mut |_| frame(), &mut hand_over, &mut None);
                        assert!(published.is_ok());
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        let wanted: Vec<u64> = (1..=1600).collect();
        assert_eq!(*handed_over.lock().unwrap(), wanted, "{name}");
        assert_eq!(top(&*open(&*broker, "a")), 1600, "{name}");
        assert_eq!(kept(&*open(&*broker, "a")), wanted[1500..], "{name}");
        assert_eq!(
            top(&*open(&*broker, "b")),
            0,
            "{name}: channels count apart"
        );
    }
}

#[test]
fn notices_take_no_position() {
    for (name, broker, _folder) in brokers() {
        let stream = open(&*broker, "a");
        publish(&*stream);
        let mut is_handed_over = false;
        stream.notify(&mut || is_handed_over = true);
        assert!(is_handed_over, "{name}");
        assert_eq!((top(&*stream), kept(&*stream)), (1, vec![1]), "{name}");
    }
}

#[test]
fn a_closed_channel_takes_nothing_and_begins_anew() {
    for (name, broker, _folder) in brokers() {
        let old = open(&*broker, "a");
        let before = publish(&*old).unwrap();
        assert!(
            !broker.close("a", Closing::IfEmpty),
            "{name}: something is kept"
        );
        assert_eq!(
            publish(&*old).map(|position| position.offset),
            Some(2),
            "{name}"
        );
        assert!(broker.close("a", Closing::Whatever), "{name}");
        assert_eq!(publish(&*old), None, "{name}");
        let after = publish(&*open(&*broker, "a")).unwrap();
        assert_eq!(after.offset, 1, "{name}");
        assert_ne!(after.epoch, before.epoch, "{name}: offsets began anew");
    }
}

#[test]
fn all_channels_together_keep_no_more_than_the_budget() {
    let broker = MemoryBroker::new(Arc::new(MemoryStore), history_limits(20_000));
    for number in 0..1000 {
        publish(&*open(&broker, &format!("channel {}", number % 7)));
    }
    let HistorySize { messages, bytes } = broker.size();
    assert!(
        bytes.evictable <= 20_000 && messages > 10,
        "{messages} {bytes:?}"
    );
    // the newest are those that are left
    assert_eq!(kept(&*open(&broker, "channel 5")).last(), Some(&143));
}

#[test]
fn what_has_expired_is_let_go() {
    let broker = MemoryBroker::new(Arc::new(MemoryStore), history_limits(1 << 20));
    let settings = ChannelSettings {
        message_ttl: Duration::from_millis(1),
        ..settings()
    };
    let stream = broker.open(&Arc::from("a"), ChannelKind::Public, settings);
    publish(&*stream);
    std::thread::sleep(Duration::from_millis(2));
    broker.expire();
    assert_eq!(broker.size(), HistorySize::default());
    assert_eq!(top(&*stream), 1);
}

#[test]
fn a_durable_publication_that_has_no_room_is_not_handed_over_and_takes_no_position() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(sqlite(folder.path()));
    store.open().unwrap();
    let limits = HistoryLimits {
        durable_bytes: 4096,
        ..history_limits(1 << 20)
    };
    let broker = MemoryBroker::new(store, limits);
    let stream = open(&broker, "a");
    let mut handed_over = Vec::new();
    let large = EncodedFrame::text(&[b'x'; 8192]);
    for (frame, has_room) in [(frame(), true), (large, false), (frame(), true)] {
        let (committed, told) = waiting();
        let mut committed = Some(committed);
        let mut hand_over = |position: Option<StreamPosition>, _: &EncodedFrame| {
            handed_over.push(position.unwrap().offset);
            None
        };
        match stream.publish(&mut |_| frame.clone(), &mut hand_over, &mut committed) {
            Ok(()) => assert!(has_room && told.recv_timeout(PATIENCE).unwrap().is_ok()),
            Err(Refused::NoRoom(error)) => {
                assert!(!has_room && error.to_string().contains("durable_bytes is 4096"));
                assert!(committed.is_some(), "the caller tells whoever waits");
            }
            Err(Refused::Closed) => panic!("the channel is open"),
        }
    }
    assert_eq!((handed_over, kept(&*stream)), (vec![1, 2], vec![1, 2]));
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
    let broker = MemoryBroker::new(
        Arc::clone(&store) as Arc<dyn Store>,
        history_limits(1 << 20),
    );
    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    for number in 0..5000 {
        let name = format!("invented {number}");
        assert!(publish(&*open(&broker, &name)).is_some());
        assert!(broker.close(&name, Closing::Whatever));
    }
    let stays = open(&broker, "stays");
    assert!(publish(&*stays).is_some());
    let health = store.health();
    // each opening that was taken has a deletion, which is never refused
    assert!(health.queued_bytes <= 2 * limits.queue_bytes, "{health:?}");
    assert!(health.changes_lost > 4000, "{health:?}");
    other.execute_batch("COMMIT").unwrap();
    wait_until("all is saved", || store.health().queued_changes == 0);
    assert!(publish(&*stays).is_some());
    let saved = reopen(&*store);
    assert_eq!(saved.streams.len(), 1, "{:?}", saved.streams);
    assert_eq!(offsets(&saved, "stays"), [2], "it is announced again");
    store.close(PATIENCE);
}

#[test]
fn a_channel_whose_last_publication_could_not_be_saved_takes_the_next_and_ends() {
    let full = WaitedFor(|committed: Option<Committed>| {
        if let Some(committed) = committed {
            committed(Err(StoreError("full".to_owned())));
        }
        false
    });
    let broker = MemoryBroker::new(Arc::new(full), history_limits(1 << 20));
    let settings = ChannelSettings {
        durable: true,
        ..settings()
    };
    let stream = broker.open(&Arc::from("a"), ChannelKind::Public, settings);
    for _ in 0..2 {
        let (tell, told) = std::sync::mpsc::channel();
        let mut on_saved: Option<OnSaved> =
            Some(Box::new(move |result| tell.send(result.is_err()).unwrap()));
        let stream = Arc::clone(&stream);
        assert!(stream.publish_saved(&mut |_| frame(), &mut |_| None, &mut on_saved));
        assert!(told.try_recv().unwrap(), "it is refused");
    }
    assert!(broker.close("a", Closing::IfEmpty), "nothing is kept");
}
