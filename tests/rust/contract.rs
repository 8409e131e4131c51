//! What every broker must do, over each store that there is.

use crate::adversary::{Adversary, Behaviour};
use crate::peer::history_limits;
use crate::stores::{PATIENCE, every_store};
use _tantor::adapters::memory_broker::MemoryBroker;
use _tantor::base::completion::{Completion, Progress};
use _tantor::base::priority::{Priority, SlowConsumer};
use _tantor::core::history::{Page, StreamPosition, Unrecovered};
use _tantor::ports::broker::{
    Broker, Delivered, Failure, Found, IdempotencyKey, Outgoing, PublicationKind, Query, Receipt,
    Sink, Stream, View,
};
use _tantor::settings::channel_kind::ChannelKind;
use _tantor::settings::channel_settings::ChannelSettings;
use _tantor::wire::frame::Unsealed;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

/// A broker to test.
struct Tested {
    name: String,
    broker: Arc<dyn Broker>,
    /// What the files of its store are in.
    _folder: tempfile::TempDir,
}

/// Each broker over each store, and an adversary on top of each: late, on other threads, in odd order.
fn brokers() -> Vec<Tested> {
    let late = Behaviour {
        seed: 7,
        ..Behaviour::LATE
    };
    let plain = every_store().into_iter();
    let memory = plain.map(|(name, store, folder)| {
        store.open().unwrap();
        let broker = MemoryBroker::new(store, history_limits(1 << 20));
        Tested {
            name: name.to_owned(),
            broker: Arc::new(broker),
            _folder: folder,
        }
    });
    let mut tested: Vec<Tested> = memory.collect();
    let adversaries = every_store().into_iter().map(|(name, store, folder)| {
        store.open().unwrap();
        let broker = MemoryBroker::new(store, history_limits(1 << 20));
        Tested {
            name: format!("adversary over {name}"),
            broker: Arc::new(Adversary::new(Arc::new(broker), late)),
            _folder: folder,
        }
    });
    tested.extend(adversaries);
    tested
}

/// Remembers what it was given.
#[derive(Default)]
pub struct Recorder {
    pub offsets: Mutex<Vec<Option<u64>>>,
}

impl Recorder {
    pub fn offsets(&self) -> Vec<u64> {
        self.offsets
            .lock()
            .unwrap()
            .iter()
            .copied()
            .flatten()
            .collect()
    }
}

impl Sink for Recorder {
    fn deliver(&self, delivered: &Delivered<'_>) -> usize {
        let is_notice = delivered.kind == PublicationKind::Notice;
        let offset = (!is_notice).then_some(delivered.position.offset);
        self.offsets.lock().unwrap().push(offset);
        1
    }

    fn gap(&self, _: Option<StreamPosition>) {}

    fn subscribers(&self) -> usize {
        1
    }
}

pub fn settings() -> ChannelSettings {
    ChannelSettings {
        history_size: 100,
        message_ttl: Duration::from_secs(3600),
        durable: false,
        slow_consumer: SlowConsumer::Disconnect,
    }
}

pub fn attach_with(
    broker: &dyn Broker,
    name: &str,
    settings: ChannelSettings,
) -> (Arc<dyn Stream>, Arc<Recorder>) {
    let recorder = Arc::new(Recorder::default());
    let sink = Arc::clone(&recorder) as Arc<dyn Sink>;
    let stream = broker.attach(&Arc::from(name), ChannelKind::Public, settings, &sink);
    (stream, recorder)
}

pub fn attach(broker: &dyn Broker, name: &str) -> Arc<dyn Stream> {
    attach_with(broker, name, settings()).0
}

/// The outcome of a call, whenever it comes.
pub fn outcome<T: Send + 'static>(
    call: impl FnOnce(&mut dyn FnMut() -> Completion<T, Failure>) -> Progress<T, Failure>,
) -> Result<T, Failure> {
    let (tell, told) = mpsc::channel();
    let mut later = || {
        let tell = tell.clone();
        Completion::new(move |outcome| tell.send(outcome).unwrap())
    };
    match call(&mut later) {
        Progress::Ended(outcome) => outcome,
        Progress::Begun(_) => told.recv_timeout(PATIENCE).unwrap(),
    }
}

pub fn outgoing<'a>(body: &'a [u8], key: Option<IdempotencyKey<'a>>) -> Outgoing<'a> {
    Outgoing {
        body: Unsealed::new(body),
        priority: Priority::Normal,
        kind: PublicationKind::Message,
        is_durable: false,
        key,
    }
}

pub const BODY: &[u8] = b"{\"n\":1";

pub fn publish(stream: &dyn Stream) -> Result<Receipt, Failure> {
    outcome(|later| stream.publish(&outgoing(BODY, None), later))
}

pub fn publish_durably(stream: &dyn Stream, body: &[u8]) -> Result<Receipt, Failure> {
    let durable = Outgoing {
        is_durable: true,
        ..outgoing(body, None)
    };
    outcome(|later| stream.publish(&durable, later))
}

pub fn offset(receipt: Result<Receipt, Failure>) -> u64 {
    receipt.unwrap().position.unwrap().offset
}

fn read(stream: &dyn Stream, query: Query) -> View {
    outcome(|later| stream.read(query, later)).unwrap()
}

fn top(stream: &dyn Stream) -> u64 {
    read(stream, Query::Position).position.offset
}

/// The offsets that frames on the wire carry.
pub fn offsets_of(frames: &[_tantor::wire::frame::EncodedFrame]) -> Vec<u64> {
    let offset = |frame: &_tantor::wire::frame::EncodedFrame| {
        let message: serde_json::Value = serde_json::from_slice(frame.payload()).unwrap();
        message["offset"].as_u64().unwrap()
    };
    frames.iter().map(offset).collect()
}

/// The offsets of what is kept.
pub fn kept(stream: &dyn Stream) -> Vec<u64> {
    let page = Page {
        limit: usize::MAX,
        after: None,
        before: None,
    };
    let query = Query::Page {
        page,
        max_bytes: usize::MAX,
    };
    match read(stream, query).found {
        Found::Page { publications, .. } => offsets_of(&publications),
        other => panic!("{other:?}"),
    }
}

pub fn since(stream: &dyn Stream, position: StreamPosition) -> Result<Vec<u64>, Unrecovered> {
    let query = Query::Since {
        epoch: Some(position.epoch),
        offset: position.offset,
        through: None,
        max_bytes: usize::MAX,
    };
    match read(stream, query).found {
        Found::Missed(missed) => missed.map(|frames| offsets_of(&frames)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn positions_are_gapless_and_delivered_in_order_from_eight_threads() {
    for Tested { name, broker, .. } in brokers() {
        let (stream, recorder) = attach_with(&*broker, "a", settings());
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        assert!(publish(&*stream).is_ok());
                    }
                });
            }
        });
        let wanted: Vec<u64> = (1..=1600).collect();
        assert_eq!(top(&*stream), 1600, "{name}");
        assert_eq!(recorder.offsets(), wanted, "{name}");
        assert_eq!(kept(&*stream), wanted[1500..], "{name}");
        assert_eq!(
            top(&*attach(&*broker, "b")),
            0,
            "{name}: channels count apart"
        );
    }
}

#[test]
fn one_caller_s_publications_keep_the_order_of_the_calls() {
    for Tested { name, broker, .. } in brokers() {
        let stream = attach(&*broker, "a");
        let (tell, told) = mpsc::channel();
        for number in 0..50 {
            let body = format!("{{\"n\":{number}");
            let tell = tell.clone();
            let mut later = || {
                let tell = tell.clone();
                Completion::new(move |receipt| tell.send((number, receipt)).unwrap())
            };
            let progress = stream.publish(&outgoing(body.as_bytes(), None), &mut later);
            if let Progress::Ended(receipt) = progress {
                tell.send((number, receipt)).unwrap();
            }
        }
        for _ in 0..50 {
            let (number, receipt) = told.recv_timeout(PATIENCE).unwrap();
            assert_eq!(offset(receipt), number + 1, "{name}");
        }
    }
}

#[test]
fn a_read_is_a_barrier_behind_what_the_sink_has_got() {
    for Tested { name, broker, .. } in brokers() {
        let (stream, recorder) = attach_with(&*broker, "a", settings());
        std::thread::scope(|scope| {
            let publisher = scope.spawn(|| {
                for _ in 0..300 {
                    assert!(publish(&*stream).is_ok());
                }
            });
            while !publisher.is_finished() {
                let position = top(&*stream);
                let delivered = recorder.offsets().last().copied().unwrap_or(0);
                assert!(
                    delivered >= position,
                    "{name}: {delivered} before {position}"
                );
            }
        });
    }
}

#[test]
fn what_was_missed_is_recovered_or_the_reason_is_told() {
    for Tested { name, broker, .. } in brokers() {
        let stream = attach(&*broker, "a");
        let start = read(&*stream, Query::Position).position;
        for _ in 0..150 {
            publish(&*stream).unwrap();
        }
        let at = |offset| StreamPosition { offset, ..start };
        let wanted: Vec<u64> = (121..=150).collect();
        assert_eq!(since(&*stream, at(120)), Ok(wanted), "{name}");
        assert_eq!(since(&*stream, at(150)), Ok(Vec::new()), "{name}");
        assert_eq!(since(&*stream, at(10)), Err(Unrecovered::Expired), "{name}");
        assert_eq!(
            since(&*stream, at(151)),
            Err(Unrecovered::OffsetAhead),
            "{name}"
        );
        let other = StreamPosition {
            epoch: !start.epoch,
            offset: 150,
        };
        assert_eq!(since(&*stream, other), Err(Unrecovered::Epoch), "{name}");
    }
}

#[test]
fn notices_take_no_position_and_are_not_kept() {
    for Tested { name, broker, .. } in brokers() {
        let (stream, recorder) = attach_with(&*broker, "a", settings());
        publish(&*stream).unwrap();
        stream.notify(Unsealed::new(BODY));
        assert_eq!(offset(publish(&*stream)), 2, "{name}");
        assert_eq!((top(&*stream), kept(&*stream)), (2, vec![1, 2]), "{name}");
        let delivered = recorder.offsets.lock().unwrap().clone();
        assert_eq!(delivered, [Some(1), None, Some(2)], "{name}");
    }
}

#[test]
fn what_is_not_kept_is_delivered_at_its_position() {
    for Tested { name, broker, .. } in brokers() {
        let settings = ChannelSettings {
            history_size: 0,
            ..settings()
        };
        let (stream, recorder) = attach_with(&*broker, "a", settings);
        for _ in 0..3 {
            assert_eq!(publish(&*stream).unwrap().position, None, "{name}");
        }
        assert_eq!(top(&*stream), 3, "{name}");
        assert_eq!(recorder.offsets(), [1, 2, 3], "{name}");
    }
}

#[test]
fn a_repeat_under_a_key_publishes_nothing_and_waits_for_the_first() {
    for Tested { name, broker, .. } in brokers() {
        let stream = attach(&*broker, "a");
        let key = IdempotencyKey {
            client: None,
            channel: "a",
            key: "order 7",
        };
        let receipts: Vec<Receipt> = std::thread::scope(|scope| {
            let publish = || outcome(|later| stream.publish(&outgoing(BODY, Some(key)), later));
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(publish)).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap().unwrap())
                .collect()
        });
        let first: Vec<_> = receipts
            .iter()
            .filter(|receipt| !receipt.is_duplicate)
            .collect();
        assert_eq!(first.len(), 1, "{name}: {receipts:?}");
        assert!(
            receipts
                .iter()
                .all(|receipt| receipt.position == first[0].position)
        );
        assert_eq!(kept(&*stream), [1], "{name}");
        let client: Arc<str> = Arc::from("client_1");
        let of_client = IdempotencyKey {
            client: Some(&client),
            ..key
        };
        let publish = || outcome(|later| stream.publish(&outgoing(BODY, Some(of_client)), later));
        assert!(!publish().unwrap().is_duplicate, "{name}: keys count apart");
        assert!(publish().unwrap().is_duplicate, "{name}");
        broker.forget_keys(&client);
        assert!(!publish().unwrap().is_duplicate, "{name}");
    }
}

#[test]
fn a_closed_channel_takes_nothing_and_begins_anew() {
    for Tested { name, broker, .. } in brokers() {
        let old = attach(&*broker, "a");
        let before = publish(&*old).unwrap().position.unwrap();
        assert!(!broker.detach("a"), "{name}: something is kept");
        assert_eq!(offset(publish(&*old)), 2, "{name}");
        broker.remove("a");
        assert_eq!(publish(&*old), Err(Failure::Closed), "{name}");
        let after = publish(&*attach(&*broker, "a")).unwrap().position.unwrap();
        assert_eq!(after.offset, 1, "{name}");
        assert_ne!(after.epoch, before.epoch, "{name}: offsets began anew");
    }
}

#[test]
fn a_channel_that_nobody_is_attached_to_can_be_read() {
    for Tested { name, broker, .. } in brokers() {
        let unattached = outcome(|later| broker.read("a", Query::Position, later)).unwrap();
        assert_eq!(unattached.position.offset, 0, "{name}");
        let stream = attach(&*broker, "a");
        let attached = read(&*stream, Query::Position);
        assert_eq!(attached.position, unattached.position, "{name}");
    }
}

#[test]
fn what_has_expired_is_let_go() {
    for Tested { name, broker, .. } in brokers() {
        let settings = ChannelSettings {
            message_ttl: Duration::from_millis(1),
            ..settings()
        };
        let (stream, _) = attach_with(&*broker, "a", settings);
        publish(&*stream).unwrap();
        std::thread::sleep(Duration::from_millis(2));
        broker.expire();
        let size = broker.size();
        assert_eq!((size.messages, size.bytes.evictable), (0, 0), "{name}");
        assert_eq!(top(&*stream), 1, "{name}");
    }
}
