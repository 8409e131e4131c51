//! The broker of a single process: a stream per channel, and one budget for what all of them keep.

mod budget;
mod epochs;
mod stream;

pub use budget::HistoryLimits;

use crate::base::capacity::shrink_map;
use crate::base::clock::SteadyTime;
use crate::base::sync::{Mutex, Rank};
use crate::core::history::{Bytes, History};
use crate::ports::broker::{Broker, Closing, Evicted, HistorySize, Stream};
use crate::ports::store::{Change, SavedStream, Store};
use crate::settings::channel_kind::ChannelKind;
use crate::settings::channel_settings::ChannelSettings;
use budget::{Budget, charge, level};
use epochs::Epochs;
use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use stream::{InStore, MemoryStream, Neighbours, restored};

pub struct MemoryBroker {
    shared: Arc<Shared>,
    /// What was saved of channels whose streams are not open.
    saved: Mutex<HashMap<Arc<str>, SavedStream>>,
}

/// What the streams have in common.
struct Shared {
    streams: Mutex<HashMap<Arc<str>, Arc<MemoryStream>>>,
    epochs: Epochs,
    next_key: AtomicU64,
    store: Arc<dyn Store>,
    budget: Arc<Budget>,
    /// Held by the thread that evicts.
    evicting: Mutex<()>,
    /// Evicted publications by channel, until `take_evicted`.
    evicted: Mutex<HashMap<Arc<str>, usize>>,
    /// Channels whose history has become empty, until `take_emptied`.
    emptied: Mutex<HashSet<Arc<str>>>,
}

impl MemoryBroker {
    pub fn new(store: Arc<dyn Store>, limits: HistoryLimits) -> Self {
        Self {
            shared: Arc::new(Shared {
                streams: Mutex::new(Rank::Streams, HashMap::new()),
                epochs: Epochs::new(),
                next_key: AtomicU64::new(0),
                store,
                budget: Arc::new(Budget::new(limits)),
                evicting: Mutex::new(Rank::Eviction, ()),
                evicted: Mutex::default(),
                emptied: Mutex::default(),
            }),
            saved: Mutex::default(),
        }
    }
}

impl Broker for MemoryBroker {
    fn restore(&self, streams: Vec<SavedStream>) {
        for saved in streams {
            let open = self.shared.streams.lock().get(&saved.channel).cloned();
            match open {
                Some(stream) => stream.restore(saved),
                None => {
                    self.saved.lock().insert(Arc::clone(&saved.channel), saved);
                }
            }
        }
    }

    fn open(
        &self,
        channel: &Arc<str>,
        kind: ChannelKind,
        settings: ChannelSettings,
    ) -> Arc<dyn Stream> {
        let mut streams = self.shared.streams.lock();
        if let Some(stream) = streams.get(channel) {
            return Arc::clone(stream) as Arc<dyn Stream>;
        }
        let saved = {
            let mut saved = self.saved.lock();
            let found = saved.remove(channel);
            shrink_map(&mut saved);
            found
        };
        let in_store = match saved {
            Some(_) => InStore::Earlier,
            None => InStore::Nothing,
        };
        let was_durable = saved.as_ref().is_some_and(|saved| saved.durable);
        let history = saved.map_or_else(
            || History::new(self.shared.epochs.next(channel), 0),
            |saved| restored(saved, settings.durable),
        );
        let stream = Arc::new(MemoryStream::new(
            (
                Arc::clone(&self.shared.store),
                Arc::clone(&self.shared.budget),
                Arc::downgrade(&self.shared) as Weak<dyn Neighbours>,
            ),
            channel,
            kind,
            settings,
            self.shared.next_key.fetch_add(1, Ordering::Relaxed),
            history,
            in_store,
        ));
        stream.begin(was_durable);
        streams.insert(Arc::clone(channel), Arc::clone(&stream));
        drop(streams);
        stream.make_room();
        stream
    }

    fn next_epoch(&self, channel: &str) -> u64 {
        self.shared.epochs.next(channel)
    }

    fn close(&self, channel: &str, closing: Closing) -> bool {
        let mut streams = self.shared.streams.lock();
        self.saved.lock().remove(channel);
        let Some(stream) = streams.get(channel).cloned() else {
            return true;
        };
        let mut state = stream.state.lock();
        stream.trim(&mut state, SteadyTime::now());
        if closing == Closing::IfEmpty && !stream.is_empty(&state) {
            return false;
        }
        streams.remove(channel);
        shrink_map(&mut streams);
        if state.assigned > 0 || closing == Closing::Whatever {
            self.shared.epochs.end(channel);
        }
        drop(streams);
        stream.end(&mut state);
        if stream.saves && state.in_store != InStore::Nothing {
            let change = Change::StreamForgotten {
                stream: stream.key,
                channel: Arc::clone(&stream.channel),
            };
            self.shared.store.save(change, None);
        }
        true
    }

    fn expire(&self) {
        let now = SteadyTime::now();
        // a store without room needs to know of everything that is gone
        let is_degraded = self.shared.store.health().is_degraded;
        for stream in self.shared.all() {
            let mut state = stream.state.lock();
            stream.trim(&mut state, now);
            if is_degraded {
                stream.tell_trimmed(&mut state, 1);
            }
        }
    }

    fn used(&self) -> Bytes {
        self.shared.budget.used()
    }

    fn size(&self) -> HistorySize {
        let all = self.shared.all();
        HistorySize {
            messages: all
                .iter()
                .map(|stream| stream.state.lock().history.len())
                .sum(),
            bytes: self.used(),
        }
    }

    fn take_evicted(&self) -> Vec<Evicted> {
        std::mem::take(&mut *self.shared.evicted.lock())
            .into_iter()
            .collect()
    }

    fn take_emptied(&self) -> Vec<Arc<str>> {
        std::mem::take(&mut *self.shared.emptied.lock())
            .into_iter()
            .collect()
    }
}

impl Shared {
    fn all(&self) -> Vec<Arc<MemoryStream>> {
        self.streams.lock().values().cloned().collect()
    }
}

impl Neighbours for Shared {
    fn note_emptied(&self, channel: &Arc<str>) {
        self.emptied.lock().insert(Arc::clone(channel));
    }

    /// Evicts from the channels that take most: a flood on one channel removes its own publications, not those of
    /// others.
    fn make_room(&self) {
        let Some(_only_one) = self.evicting.try_lock() else {
            return;
        };
        let mut sized: Vec<_> = self
            .all()
            .into_iter()
            .map(|stream| {
                let charged = charge(&stream.state.lock().history);
                (charged.evictable, stream)
            })
            .filter(|(bytes, _)| *bytes > 0)
            .collect();
        sized.sort_unstable_by_key(|(bytes, _)| Reverse(*bytes));
        let mut excess = self.budget.excess();
        let level = level(sized.iter().map(|(bytes, _)| *bytes), excess);
        for (bytes, stream) in sized {
            if excess == 0 {
                return;
            }
            let mut state = stream.state.lock();
            let (count, freed) = stream.evict(&mut state, excess.min(bytes - level.min(bytes)));
            drop(state);
            excess = excess.saturating_sub(freed);
            if count > 0 {
                let mut evicted = self.evicted.lock();
                *evicted.entry(Arc::clone(&stream.channel)).or_default() += count;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::memory_store::MemoryStore;
    use crate::base::clock::{CLOCK_SET_BY, WallTime};
    use crate::base::priority::SlowConsumer;
    use crate::ports::store::SavedPublication;
    use crate::wire::frame::EncodedFrame;
    use std::time::Duration;

    const HOUR: Duration = Duration::from_secs(3600);

    fn broker() -> MemoryBroker {
        let limits = HistoryLimits {
            history_bytes: 1 << 20,
            durable_bytes: 1 << 20,
        };
        MemoryBroker::new(Arc::new(MemoryStore), limits)
    }

    fn settings() -> ChannelSettings {
        ChannelSettings {
            history_size: 100,
            message_ttl: HOUR,
            durable: false,
            slow_consumer: SlowConsumer::Disconnect,
        }
    }

    fn set_clock(seconds: i64) {
        CLOCK_SET_BY.set(seconds * 1_000_000);
    }

    #[test]
    fn a_clock_that_is_set_removes_no_history_and_keeps_none_longer() {
        let broker = broker();
        let short = ChannelSettings {
            message_ttl: Duration::from_millis(1),
            ..settings()
        };
        let long = broker.open(&Arc::from("long"), ChannelKind::Public, settings());
        let short = broker.open(&Arc::from("short"), ChannelKind::Public, short);
        for stream in [&long, &short] {
            let frame = EncodedFrame::text(b"{}");
            let published = stream.publish(&mut |_| frame.clone(), &mut |_, _| None, &mut None);
            assert!(published.is_ok());
        }
        std::thread::sleep(Duration::from_millis(2));
        for seconds in [7200, -7200] {
            set_clock(seconds);
            broker.expire();
            assert_eq!(
                broker.size().messages,
                1,
                "the clock was set by {seconds} s"
            );
        }
        long.read(&mut |history| assert_eq!(history.len(), 1));
    }

    #[test]
    fn the_wall_clock_says_how_old_a_saved_publication_is() {
        let broker = broker();
        let publication = |offset, age: Duration| SavedPublication {
            offset,
            at: WallTime::now() - age,
            is_durable: false,
            frame: EncodedFrame::text(b"{}"),
        };
        let mut saved = SavedStream {
            channel: "a".into(),
            epoch: 7,
            top: 3,
            kind: ChannelKind::Public,
            durable: false,
            broken_through: 0,
            publications: vec![publication(1, HOUR * 2), publication(2, HOUR / 2)],
        };
        // of a clock that was ahead when it was saved
        set_clock(7200);
        saved.publications.push(publication(3, Duration::ZERO));
        set_clock(0);
        broker.restore(vec![saved]);
        let stream = broker.open(&Arc::from("a"), ChannelKind::Public, settings());
        stream.read(&mut |history| {
            let page = crate::core::history::Page {
                limit: 10,
                after: None,
                before: None,
            };
            let (kept, _) = history.page(page, usize::MAX);
            let offsets: Vec<u64> = kept.iter().map(|kept| kept.offset).collect();
            assert_eq!(offsets, [2, 3]);
        });
    }
}
