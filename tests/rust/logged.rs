//! The log of streams, read page by page: the contract of `StreamLog::read`, and durable history that is larger than its
//! window in memory, over every log and over an adversarial one.

use crate::contract::{attach_with, kept, outcome, publish, settings, since};
use crate::peer::history_limits;
use crate::stores::{
    GivenStreamChange, PATIENCE, every_store, give, key, offsets, opened, publish_and_wait, reopen,
    sqlite, trimmed,
};
use _tantor::adapters::memory_broker::MemoryBroker;
use _tantor::base::completion::{Completion, Later, Progress};
use _tantor::core::history::{Message, Page, StreamPosition, Unrecovered, WINDOW};
use _tantor::ports::broker::{Broker, Failure, Found, Query, Stream};
use _tantor::ports::durability::{Committed, Durability, Health, NotTaken, StoreError};
use _tantor::ports::store::Store;
use _tantor::ports::stream_log::{Logged, StreamChange, StreamLog};
use _tantor::settings::channel_settings::ChannelSettings;
use _tantor::wire::frame::EncodedFrame;
use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// Reads from a log and waits for the outcome.
fn read(
    log: &dyn StreamLog,
    channel: &str,
    offsets: RangeInclusive<u64>,
) -> Result<Vec<u64>, StoreError> {
    let (tell, told) = mpsc::channel();
    let mut later = || {
        let tell = tell.clone();
        Completion::new(move |outcome| tell.send(outcome).unwrap())
    };
    let outcome = match log.read(&Arc::from(channel), offsets, &mut later) {
        Progress::Ended(outcome) => outcome,
        Progress::Begun(_) => told.recv_timeout(PATIENCE).unwrap(),
    };
    outcome.map(|logged| {
        let text = |offset| format!("{{\"offset\":{offset}}}");
        for logged in &logged {
            assert_eq!(logged.frame.payload(), text(logged.offset).as_bytes());
        }
        logged.iter().map(|logged| logged.offset).collect()
    })
}

#[test]
fn a_read_sees_every_publication_that_was_completed_before() {
    for (name, store, _folder) in every_store() {
        store.open().unwrap();
        let saved = |offsets: RangeInclusive<u64>| -> Vec<u64> {
            offsets.filter(|_| store.is_durable()).collect()
        };
        for channel in ["a", "b"] {
            give(&*store, opened(channel, 1, true), None);
        }
        for offset in 1..=20 {
            publish_and_wait(&*store, "a", offset).unwrap();
            publish_and_wait(&*store, "b", offset + 100).unwrap();
            assert_eq!(
                read(&*store, "a", offset..=offset),
                Ok(saved(offset..=offset)),
                "{name}"
            );
        }
        assert_eq!(read(&*store, "a", 3..=7), Ok(saved(3..=7)), "{name}");
        assert_eq!(
            read(&*store, "a", 0..=u64::from(u32::MAX)),
            Ok(saved(1..=20)),
            "{name}"
        );
        assert_eq!(read(&*store, "b", 1..=102), Ok(saved(101..=102)), "{name}");
        assert_eq!(read(&*store, "unknown", 1..=9), Ok(Vec::new()), "{name}");
        let waited = |change: GivenStreamChange| crate::stores::save(&*store, change).unwrap();
        waited(trimmed("a", 5));
        assert_eq!(read(&*store, "a", 3..=7), Ok(saved(6..=7)), "{name}");
        waited(StreamChange::StreamForgotten {
            stream: key("a"),
            channel: "a".into(),
        });
        assert_eq!(read(&*store, "a", 1..=20), Ok(Vec::new()), "{name}");
        store.close(PATIENCE);
    }
}

#[test]
fn a_closed_file_refuses_reads_and_an_open_one_takes_them_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = sqlite(folder.path());
    let refused = |store: &dyn StreamLog| {
        let error = read(store, "a", 1..=1).unwrap_err().0;
        assert!(
            error.contains("tantor.db cannot be read: it is closed"),
            "{error}"
        );
    };
    refused(&store);
    for offset in 1..=3 {
        store.open().unwrap();
        give(&store, opened("a", 1, true), None);
        publish_and_wait(&store, "a", offset).unwrap();
        assert_eq!(read(&store, "a", 1..=9), Ok((1..=offset).collect()));
        store.close(PATIENCE);
        refused(&store);
    }
    assert!(
        !folder.path().join("tantor.db-wal").exists(),
        "the last connection has moved the log to the file"
    );
}

/// More publications than one transaction deletes.
#[test]
fn a_saved_trim_holds_at_the_next_opening() {
    let folder = tempfile::tempdir().unwrap();
    let store = sqlite(folder.path());
    store.open().unwrap();
    give(&store, opened("a", 1, true), None);
    for offset in 1..10_000 {
        crate::stores::publish(&store, "a", offset, None);
    }
    publish_and_wait(&store, "a", 10_000).unwrap();
    crate::stores::save(&store, trimmed("a", 9990)).unwrap();
    let saved = reopen(&store);
    assert_eq!(offsets(&saved, "a"), (9991..=10_000).collect::<Vec<_>>());
    store.close(PATIENCE);
}

#[test]
fn reads_wait_for_no_writer() {
    let folder = tempfile::tempdir().unwrap();
    let store = sqlite(folder.path());
    store.open().unwrap();
    give(&store, opened("a", 1, true), None);
    publish_and_wait(&store, "a", 1).unwrap();
    let other = rusqlite::Connection::open(folder.path().join("tantor.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert_eq!(read(&store, "a", 1..=1), Ok(vec![1]));
    other.execute_batch("COMMIT").unwrap();
    store.close(PATIENCE);
}

fn durable(history_size: usize) -> ChannelSettings {
    ChannelSettings {
        durable: true,
        history_size,
        ..settings()
    }
}

/// The number of messages that are read at the opening, and of those that stay in the file.
fn split(saved: &_tantor::ports::store::Saved) -> [usize; 2] {
    let all = saved.streams.iter().flat_map(|stream| &stream.publications);
    let in_log = all
        .clone()
        .filter(|kept| matches!(kept.message, Message::InLog(_)))
        .count();
    [all.count() - in_log, in_log]
}

fn page(stream: &dyn Stream, page: Page, max_bytes: usize) -> (usize, bool) {
    let query = Query::Page { page, max_bytes };
    match outcome(|later| stream.read(query, later)).unwrap().found {
        Found::Page {
            publications,
            is_cut,
        } => (publications.len(), is_cut),
        other => panic!("{other:?}"),
    }
}

#[test]
fn durable_history_behind_the_window_is_read_from_the_file() {
    let (count, size) = (WINDOW.messages as u64 + 700, WINDOW.messages + 500);
    let wanted: Vec<u64> = (count - size as u64 + 1..=count).collect();
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(sqlite(folder.path()));
    let begin = || {
        let saved = store.open().unwrap();
        let in_memory = split(&saved);
        let broker = MemoryBroker::new(
            Arc::clone(&store) as Arc<dyn StreamLog>,
            history_limits(1 << 20),
        );
        broker.restore(saved.streams, saved.used_keys);
        (broker, in_memory)
    };
    let check = |broker: &MemoryBroker, stream: &dyn Stream| {
        assert_eq!(kept(stream), wanted);
        let at = |offset| StreamPosition {
            epoch: stream.epoch(),
            offset,
        };
        assert_eq!(since(stream, at(wanted[0] - 1)), Ok(wanted.clone()));
        assert_eq!(since(stream, at(wanted[0] - 2)), Err(Unrecovered::Expired));
        assert_eq!(since(stream, at(count - 1)), Ok(vec![count]));
        let oldest = Page {
            limit: 10,
            after: Some(0),
            before: None,
        };
        assert_eq!(page(stream, oldest, usize::MAX), (10, false));
        assert_eq!(page(stream, oldest, 1), (1, true));
        assert_eq!(broker.size().messages, size);
        broker.size().bytes
    };
    let (broker, _) = begin();
    let (stream, _) = attach_with(&broker, "a", durable(size));
    std::thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| {
                for _ in 0..count / 10 {
                    publish(&*stream).unwrap();
                }
            });
        }
    });
    let bytes = check(&broker, &*stream);
    drop((stream, broker));
    store.close(PATIENCE);
    let (broker, [in_memory, in_log]) = begin();
    assert_eq!(in_memory, WINDOW.messages);
    assert!(in_log >= size - WINDOW.messages, "{in_log}");
    let (stream, _) = attach_with(&broker, "a", durable(size));
    assert_eq!(
        check(&broker, &*stream),
        bytes,
        "the budget counts the same bytes after a restart"
    );
    broker.remove("a");
    let closed = outcome(|later| stream.read(Query::Position, later));
    assert_eq!(closed, Err(Failure::Closed));
    assert_eq!(broker.size().bytes.durable, 0);
    let saved = reopen(&*store);
    assert!(saved.streams.is_empty(), "{:?}", saved.streams);
    store.close(PATIENCE);
}

/// A log that completes late and on a thread of its own, refuses changes and reads at random, and forgets rows that it
/// reads.
struct AdversarialLog {
    inner: Arc<dyn Store>,
    work: mpsc::Sender<Box<dyn FnOnce() + Send>>,
    random: AtomicU64,
}

impl AdversarialLog {
    fn new(inner: Arc<dyn Store>, seed: u64) -> Self {
        let (work, todo) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        std::thread::spawn(move || {
            for (number, work) in todo.into_iter().enumerate() {
                if number % 16 == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
                work();
            }
        });
        Self {
            inner,
            work,
            random: AtomicU64::new(seed),
        }
    }

    /// True for one of `of` calls.
    fn strikes(&self, of: u64) -> bool {
        let step = self
            .random
            .fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let mixed = (step ^ (step >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed >> 33).is_multiple_of(of)
    }

    /// The same completion, later and on the log's thread.
    fn postpone<T: Send + 'static>(
        &self,
        completion: Completion<T, StoreError>,
        change: impl FnOnce(Result<T, StoreError>) -> Result<T, StoreError> + Send + 'static,
    ) -> Completion<T, StoreError> {
        let work = self.work.clone();
        Completion::new(move |outcome| {
            let _ = work.send(Box::new(move || completion.complete(change(outcome))));
        })
    }
}

fn unlucky() -> StoreError {
    StoreError("as the adversary wants".to_owned())
}

impl Durability for AdversarialLog {
    fn barrier(&self, committed: Committed) -> Result<(), NotTaken> {
        self.inner
            .barrier(self.postpone(committed, |outcome| outcome))
    }

    fn health(&self) -> Health {
        self.inner.health()
    }

    fn is_durable(&self) -> bool {
        self.inner.is_durable()
    }
}

impl StreamLog for AdversarialLog {
    fn append(
        &self,
        change: StreamChange<&EncodedFrame>,
        committed: Option<Committed>,
    ) -> Result<(), NotTaken> {
        let is_publication = matches!(change, StreamChange::Published { .. });
        if is_publication && self.strikes(5) {
            return Err(NotTaken {
                error: unlucky(),
                committed,
            });
        }
        let committed = committed.map(|committed| self.postpone(committed, |outcome| outcome));
        self.inner.append(change, committed)
    }

    fn read(
        &self,
        channel: &Arc<str>,
        offsets: RangeInclusive<u64>,
        later: &mut Later<'_, Vec<Logged>, StoreError>,
    ) -> Progress<Vec<Logged>, StoreError> {
        if self.strikes(5) {
            return Progress::Ended(Err(unlucky()));
        }
        let (fails, forgets) = (self.strikes(5), self.strikes(5));
        self.inner.read(channel, offsets, &mut || {
            self.postpone(later(), move |outcome| {
                let mut logged = outcome?;
                if fails {
                    return Err(unlucky());
                }
                if forgets && !logged.is_empty() {
                    logged.remove(0);
                }
                Ok(logged)
            })
        })
    }

    fn note_published(&self, channel: &str, was_durable: bool) -> bool {
        self.inner.note_published(channel, was_durable)
    }

    fn is_busy(&self) -> bool {
        self.inner.is_busy()
    }
}

#[test]
fn over_an_adversarial_log_a_recovery_is_whole_or_fails() {
    let count = WINDOW.messages as u64 + 500;
    for (name, store, _folder) in every_store() {
        store.open().unwrap();
        let log = AdversarialLog::new(Arc::clone(&store), 11);
        let broker = MemoryBroker::new(Arc::new(log), history_limits(1 << 20));
        let (stream, _) = attach_with(&broker, "a", durable(count as usize));
        let mut published: BTreeSet<u64> = BTreeSet::new();
        std::thread::scope(|scope| {
            let publishers: Vec<_> = (0..10)
                .map(|_| {
                    scope.spawn(|| {
                        let receipts = (0..count / 8).filter_map(|_| publish(&*stream).ok());
                        receipts
                            .map(|receipt| receipt.position.unwrap().offset)
                            .collect::<Vec<_>>()
                    })
                })
                .collect();
            for publisher in publishers {
                published.extend(publisher.join().unwrap());
            }
        });
        let skipped = published.len().saturating_sub(count as usize);
        let wanted: Vec<u64> = published.into_iter().skip(skipped).collect();
        let start = StreamPosition {
            epoch: stream.epoch(),
            offset: wanted[0] - 1,
        };
        let (mut whole, mut failed, mut expired) = (0, 0, 0);
        for _ in 0..200 {
            let query = Query::Since {
                epoch: Some(start.epoch),
                offset: start.offset,
                through: None,
                max_bytes: usize::MAX,
            };
            match outcome(|later| stream.read(query, later)) {
                Ok(view) => match view.found {
                    Found::Missed(Ok(frames)) => {
                        let offsets = crate::contract::offsets_of(&frames);
                        assert_eq!(offsets, wanted, "{name}");
                        whole += 1;
                    }
                    Found::Missed(Err(Unrecovered::Expired)) => expired += 1,
                    other => panic!("{name}: {other:?}"),
                },
                Err(Failure::Unavailable(problem)) => {
                    assert_eq!(problem, unlucky().0, "{name}");
                    failed += 1;
                }
                Err(other) => panic!("{name}: {other:?}"),
            }
        }
        let has_log = store.is_durable();
        assert!(whole > 0, "{name}");
        assert_eq!((failed > 0, expired > 0), (has_log, has_log), "{name}");
        store.close(PATIENCE);
    }
}
