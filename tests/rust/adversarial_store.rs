//! A durable store that does everything that a store may do: it saves late and on another thread, refuses publications
//! at random, and fails to save them. What the memory broker promises holds on top of it.

use crate::adversary::Random;
use crate::contract::{attach_with, kept, outcome, outgoing, settings};
use crate::peer::history_limits;
use _tantor::adapters::memory_broker::MemoryBroker;
use _tantor::base::completion::{Later, Progress};
use _tantor::core::history::StreamPosition;
use _tantor::ports::broker::{
    Broker, Delivered, Failure, IdempotencyKey, Outgoing, Receipt, Sink, Stream,
};
use _tantor::ports::durability::{Committed, Durability, Health, NotTaken, StoreError};
use _tantor::ports::saved_sessions::{SavedSessions, SessionChange};
use _tantor::ports::store::{Saved, Store};
use _tantor::ports::stream_log::{Logged, StreamChange, StreamLog};
use _tantor::settings::channel_kind::ChannelKind;
use _tantor::settings::channel_settings::ChannelSettings;
use _tantor::wire::frame::EncodedFrame;
use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::thread;
use std::time::Duration;

/// How the store behaves; rates are in percent.
#[derive(Clone, Copy, Debug)]
pub struct StoreBehaviour {
    pub seed: u64,
    /// Publications that the store does not take.
    pub refused: u64,
    /// Publications that the store takes and fails to save.
    pub failed: u64,
    /// The longest delay of a change.
    pub delay: Duration,
}

impl StoreBehaviour {
    pub fn failing(seed: u64) -> Self {
        Self {
            seed,
            refused: 15,
            failed: 15,
            delay: Duration::from_micros(100),
        }
    }
}

pub struct LateStore {
    behaviour: StoreBehaviour,
    random: Mutex<Random>,
    changes: mpsc::Sender<Taken>,
    saved: Arc<Mutex<BTreeSet<u64>>>,
}

/// A change that was taken.
struct Taken {
    /// The offset of a publication.
    offset: Option<u64>,
    fails: bool,
    committed: Option<Committed>,
}

fn problem(text: &str) -> StoreError {
    StoreError(format!("the adversarial store {text}"))
}

impl LateStore {
    pub fn new(behaviour: StoreBehaviour) -> Self {
        let (changes, queue) = mpsc::channel::<Taken>();
        let saved = Arc::new(Mutex::new(BTreeSet::new()));
        let log = Arc::clone(&saved);
        thread::spawn(move || {
            let mut random = Random::new(behaviour.seed + 7);
            for change in queue {
                let micros = random.below(behaviour.delay.as_micros() as u64 + 1);
                if random.percent(30) {
                    thread::sleep(Duration::from_micros(micros));
                }
                if let Some(offset) = change.offset.filter(|_| !change.fails) {
                    log.lock().unwrap().insert(offset);
                }
                if let Some(committed) = change.committed {
                    committed.complete(if change.fails {
                        Err(problem("could not save"))
                    } else {
                        Ok(())
                    });
                }
            }
        });
        Self {
            behaviour,
            random: Mutex::new(Random::new(behaviour.seed)),
            changes,
            saved,
        }
    }
}

impl LateStore {
    /// Queues a change behind the earlier ones; `random` is the lock that orders them.
    fn take(&self, taken: Taken, random: MutexGuard<'_, Random>) -> Result<(), NotTaken> {
        let sent = self.changes.send(taken).map_err(|lost| NotTaken {
            error: problem("is closed"),
            committed: lost.0.committed,
        });
        drop(random);
        sent
    }

    fn take_other(&self, committed: Option<Committed>) -> Result<(), NotTaken> {
        let taken = Taken {
            offset: None,
            fails: false,
            committed,
        };
        self.take(taken, self.random.lock().unwrap())
    }
}

impl Durability for LateStore {
    fn barrier(&self, committed: Committed) -> Result<(), NotTaken> {
        self.take_other(Some(committed))
    }

    fn health(&self) -> Health {
        Health::default()
    }

    fn is_durable(&self) -> bool {
        true
    }
}

impl StreamLog for LateStore {
    fn append(
        &self,
        change: StreamChange<&EncodedFrame>,
        committed: Option<Committed>,
    ) -> Result<(), NotTaken> {
        let StreamChange::Published {
            position, used_key, ..
        } = change
        else {
            return self.take_other(committed);
        };
        let mut random = self.random.lock().unwrap();
        let is_refused = random.percent(self.behaviour.refused);
        let fails = random.percent(self.behaviour.failed);
        if let Some(used_key) = used_key.filter(|_| is_refused || fails) {
            used_key.lost_flag.lose();
        }
        if is_refused {
            return Err(NotTaken {
                error: problem("refuses"),
                committed,
            });
        }
        let taken = Taken {
            offset: Some(position.offset),
            fails,
            committed,
        };
        self.take(taken, random)
    }

    fn read(
        &self,
        _: &Arc<str>,
        _: RangeInclusive<u64>,
        _: &mut Later<'_, Vec<Logged>, StoreError>,
    ) -> Progress<Vec<Logged>, StoreError> {
        Progress::Ended(Err(problem("cannot read")))
    }

    fn note_published(&self, _: &str, _: bool) -> bool {
        true
    }

    fn is_busy(&self) -> bool {
        false
    }
}

impl SavedSessions for LateStore {
    fn save(
        &self,
        _: SessionChange<&EncodedFrame>,
        committed: Option<Committed>,
    ) -> Result<(), NotTaken> {
        self.take_other(committed)
    }
}

impl Store for LateStore {
    fn open(&self) -> Result<Saved, StoreError> {
        Ok(Saved::default())
    }

    fn close(&self, _: Duration) {}
}

/// Remembers what it was given, and which of that was not saved before.
#[derive(Default)]
struct Witness {
    saved: Arc<Mutex<BTreeSet<u64>>>,
    delivered: Mutex<Vec<u64>>,
    unsaved: Mutex<Vec<u64>>,
}

impl Sink for Witness {
    fn deliver(&self, delivered: &Delivered<'_>) -> usize {
        let offset = delivered.position.offset;
        if !self.saved.lock().unwrap().contains(&offset) {
            self.unsaved.lock().unwrap().push(offset);
        }
        self.delivered.lock().unwrap().push(offset);
        1
    }

    fn gap(&self, _: Option<StreamPosition>) {}

    fn subscribers(&self) -> usize {
        1
    }
}

fn durable_settings() -> ChannelSettings {
    ChannelSettings {
        durable: true,
        history_size: 10_000,
        ..settings()
    }
}

fn publish(stream: &dyn Stream, key: Option<&str>) -> Result<Receipt, Failure> {
    let key = key.map(|key| IdempotencyKey {
        client: None,
        channel: "a",
        key,
    });
    let durable = Outgoing {
        is_durable: true,
        ..outgoing(b"{\"n\":1", key)
    };
    outcome(|later| stream.publish(&durable, later))
}

#[test]
fn subscribers_get_exactly_what_was_saved_and_reported_in_order() {
    for seed in 1..=5 {
        let store = LateStore::new(StoreBehaviour::failing(seed));
        let witness = Arc::new(Witness {
            saved: Arc::clone(&store.saved),
            ..Witness::default()
        });
        let broker = MemoryBroker::new(Arc::new(store), history_limits(1 << 20));
        let sink = Arc::clone(&witness) as Arc<dyn Sink>;
        let settings = durable_settings();
        let stream = broker.attach(&Arc::from("a"), ChannelKind::Public, settings, &sink);
        let mut reported: Vec<u64> = thread::scope(|scope| {
            let publish_many = || -> Vec<u64> {
                let receipts = (0..150).filter_map(|_| publish(&*stream, None).ok());
                let positions = receipts.filter_map(|receipt| receipt.position);
                positions.map(|position| position.offset).collect()
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(publish_many)).collect();
            let offsets = threads.into_iter().map(|thread| thread.join().unwrap());
            offsets.flatten().collect()
        });
        reported.sort_unstable();
        let delivered = witness.delivered.lock().unwrap().clone();
        assert_eq!(delivered, reported, "seed {seed}: in order, and only these");
        assert!((200..600).contains(&delivered.len()), "{}", delivered.len());
        assert_eq!(kept(&*stream), delivered, "seed {seed}");
        let unsaved = witness.unsaved.lock().unwrap().clone();
        assert!(unsaved.is_empty(), "seed {seed}: {unsaved:?} before saved");
    }
}

#[test]
fn a_key_is_free_again_when_its_publication_was_not_saved() {
    for seed in 1..=5 {
        let store = LateStore::new(StoreBehaviour::failing(seed));
        let broker = MemoryBroker::new(Arc::new(store), history_limits(1 << 20));
        let (stream, recorder) = attach_with(&broker, "a", durable_settings());
        let mut failures = 0;
        for number in 0..100 {
            let key = number.to_string();
            let first = loop {
                match publish(&*stream, Some(&key)) {
                    Ok(receipt) => break receipt,
                    Err(Failure::Refused(_)) => failures += 1,
                    Err(other) => panic!("{other:?}"),
                }
            };
            assert!(!first.is_duplicate, "seed {seed}: nothing was published");
            let again = publish(&*stream, Some(&key)).unwrap();
            assert!(again.is_duplicate, "seed {seed}");
            assert_eq!(again.position, first.position, "seed {seed}");
        }
        assert!(failures > 10, "seed {seed}");
        assert_eq!(recorder.offsets().len(), 100, "seed {seed}");
    }
}

#[test]
fn callers_with_one_key_get_one_publication_or_all_its_failure() {
    for seed in 1..=20 {
        let store = LateStore::new(StoreBehaviour::failing(seed));
        let broker = MemoryBroker::new(Arc::new(store), history_limits(1 << 20));
        let (stream, recorder) = attach_with(&broker, "a", durable_settings());
        let receipts: Vec<Receipt> = thread::scope(|scope| {
            let publish_until_made = || loop {
                if let Ok(receipt) = publish(&*stream, Some("order 7")) {
                    return receipt;
                }
            };
            let threads: Vec<_> = (0..6).map(|_| scope.spawn(publish_until_made)).collect();
            let receipts = threads.into_iter().map(|thread| thread.join().unwrap());
            receipts.collect()
        });
        let new = receipts.iter().filter(|receipt| !receipt.is_duplicate);
        assert_eq!(new.count(), 1, "seed {seed}: {receipts:?}");
        assert!(
            receipts
                .iter()
                .all(|other| other.position == receipts[0].position)
        );
        assert_eq!(recorder.offsets().len(), 1, "seed {seed}");
    }
}
