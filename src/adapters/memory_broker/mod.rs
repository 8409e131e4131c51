//! The broker of a single process: a stream for each channel, and one budget for all histories.

mod budget;
mod epochs;
mod keys;
mod publish;
mod selected;
mod stream;

pub use budget::BrokerLimits;
pub use keys::KeyLimits;

use crate::base::capacity::shrink_map;
use crate::base::clock::SteadyTime;
use crate::base::completion::Later;
use crate::base::sync::{Mutex, Rank};
use crate::core::history::{Bytes, History, StreamPosition};
use crate::ports::broker::{
    Broker, BrokerSize, Failure, Found, Query, Reading, Sink, Stream, View,
};
use crate::ports::durability::UsedKey;
use crate::ports::stream_log::{SavedStream, StreamChange, StreamLog};
use crate::settings::channel_kind::ChannelKind;
use crate::settings::channel_settings::ChannelSettings;
use budget::{Budget, charge, level};
use epochs::Epochs;
use keys::Keys;
use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use stream::{Common, InStore, MemoryStream, Neighbours, restored};

pub struct MemoryBroker {
    shared: Arc<Shared>,
    /// The saved streams of channels that are not attached.
    saved: Mutex<HashMap<Arc<str>, SavedStream>>,
}

/// The state that all streams share.
struct Shared {
    streams: Mutex<HashMap<Arc<str>, Arc<MemoryStream>>>,
    epochs: Epochs,
    next_key: AtomicU64,
    log: Arc<dyn StreamLog>,
    budget: Arc<Budget>,
    keys: Arc<Keys>,
    /// The thread that evicts holds this lock.
    evicting: Mutex<()>,
    /// Evicted publications by channel, until `take_evicted`.
    evicted: Mutex<HashMap<Arc<str>, usize>>,
    /// Channels whose history has become empty, until `take_emptied`.
    emptied: Mutex<HashSet<Arc<str>>>,
}

impl MemoryBroker {
    pub fn new(log: Arc<dyn StreamLog>, limits: BrokerLimits) -> Self {
        Self {
            shared: Arc::new(Shared {
                streams: Mutex::new(Rank::Streams, HashMap::new()),
                epochs: Epochs::new(),
                next_key: AtomicU64::new(0),
                keys: Arc::new(Keys::new(limits.keys, Arc::clone(&log))),
                log,
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
    fn restore(&self, streams: Vec<SavedStream>, used_keys: Vec<UsedKey>) {
        self.shared.keys.restore(used_keys);
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

    fn attach(
        &self,
        channel: &Arc<str>,
        kind: ChannelKind,
        settings: ChannelSettings,
        sink: &Arc<dyn Sink>,
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
        let common = Common {
            log: Arc::clone(&self.shared.log),
            budget: Arc::clone(&self.shared.budget),
            keys: Arc::clone(&self.shared.keys),
            neighbours: Arc::downgrade(&self.shared) as Weak<dyn Neighbours>,
        };
        let stream = MemoryStream::new(
            common,
            channel,
            (kind, settings),
            self.shared.next_key.fetch_add(1, Ordering::Relaxed),
            Arc::clone(sink),
            history,
            (in_store, was_durable),
        );
        stream.begin();
        streams.insert(Arc::clone(channel), Arc::clone(&stream));
        drop(streams);
        stream.make_room();
        stream
    }

    fn read(&self, channel: &str, query: Query, later: &mut Later<'_, View, Failure>) -> Reading {
        let open = self.shared.streams.lock().get(channel).cloned();
        match open {
            Some(stream) => stream.read(query, later),
            None => Reading::Ended(Ok(View {
                position: StreamPosition {
                    epoch: self.shared.epochs.next(channel),
                    offset: 0,
                },
                found: Found::Nothing,
            })),
        }
    }

    fn detach(&self, channel: &str) -> bool {
        self.shared.end(channel, &self.saved, false)
    }

    fn remove(&self, channel: &str) {
        self.shared.end(channel, &self.saved, true);
    }

    fn expire(&self) {
        self.shared.keys.expire();
        let now = SteadyTime::now();
        // a store without room needs to know of every deletion
        let is_degraded = self.shared.log.health().is_degraded;
        for stream in self.shared.all() {
            let mut state = stream.state.lock();
            stream.trim(&mut state, now);
            if is_degraded {
                stream.tell_trimmed(&mut state, 1);
            }
        }
    }

    fn forget_keys(&self, client: &Arc<str>) {
        self.shared.keys.forget_client(client);
    }

    fn size(&self) -> BrokerSize {
        let (keys, displaced_keys) = self.shared.keys.size();
        let streams = self.shared.all();
        BrokerSize {
            messages: streams
                .iter()
                .map(|stream| stream.state.lock().history.len())
                .sum(),
            bytes: self.shared.budget.used(),
            keys,
            displaced_keys,
        }
    }

    fn used(&self) -> Bytes {
        self.shared.budget.used()
    }

    fn take_evicted(&self) -> Vec<(Arc<str>, usize)> {
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

    /// Ends the stream of a channel and removes its history. False, with nothing done, where the history is not empty and
    /// must stay.
    fn end(
        &self,
        channel: &str,
        saved: &Mutex<HashMap<Arc<str>, SavedStream>>,
        removes_history: bool,
    ) -> bool {
        let mut streams = self.streams.lock();
        saved.lock().remove(channel);
        let Some(stream) = streams.get(channel).cloned() else {
            return true;
        };
        let mut state = stream.state.lock();
        stream.trim(&mut state, SteadyTime::now());
        if !removes_history && !stream.is_empty(&state) {
            return false;
        }
        streams.remove(channel);
        shrink_map(&mut streams);
        // the successor of a stream that gave out no position may have the same epoch
        if state.assigned > 0 || removes_history {
            self.epochs.end(channel);
        }
        drop(streams);
        stream.end(&mut state);
        if stream.saves && state.in_store != InStore::Nothing {
            let change = StreamChange::StreamForgotten {
                stream: stream.key,
                channel: Arc::clone(&stream.channel),
            };
            // an open store never refuses a deletion, and a closed store takes no changes at all
            let _ = self.log.append(change, None);
        }
        true
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
    use crate::base::completion::Progress;
    use crate::base::priority::{Priority, SlowConsumer};
    use crate::core::history::{Message, Page};
    use crate::ports::broker::{Delivered, Outgoing, PublicationKind};
    use crate::ports::stream_log::SavedPublication;
    use crate::wire::frame::{EncodedFrame, Unsealed};
    use std::time::Duration;

    const HOUR: Duration = Duration::from_secs(3600);

    fn broker() -> MemoryBroker {
        let limits = BrokerLimits {
            history_bytes: 1 << 20,
            durable_bytes: 1 << 20,
            keys: KeyLimits {
                ttl: HOUR,
                total: 100,
                of_one_client: 10,
            },
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

    /// A sink without subscribers.
    struct Nobody;

    impl Sink for Nobody {
        fn deliver(&self, _: &Delivered<'_>) -> usize {
            0
        }

        fn gap(&self, _: Option<StreamPosition>) {}

        fn subscribers(&self) -> usize {
            0
        }
    }

    fn attach(broker: &MemoryBroker, name: &str, settings: ChannelSettings) -> Arc<dyn Stream> {
        let sink: Arc<dyn Sink> = Arc::new(Nobody);
        broker.attach(&Arc::from(name), ChannelKind::Public, settings, &sink)
    }

    /// The number of publications that are kept.
    fn kept(stream: &dyn Stream) -> usize {
        let page = Page {
            limit: 10,
            after: None,
            before: None,
        };
        let query = Query::Page {
            page,
            max_bytes: usize::MAX,
        };
        match stream.read(query, &mut || panic!("it ends at once")) {
            Reading::Ended(Ok(View {
                found: Found::Page { publications, .. },
                ..
            })) => publications.len(),
            other => panic!("{other:?}"),
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
        let long = attach(&broker, "long", settings());
        let short = attach(&broker, "short", short);
        for stream in [&long, &short] {
            let outgoing = Outgoing {
                body: Unsealed::new(b"{\"n\":1"),
                priority: Priority::Normal,
                kind: PublicationKind::Message,
                is_durable: false,
                key: None,
            };
            let published = stream.publish(&outgoing, &mut || panic!("it ends at once"));
            assert!(matches!(published, Progress::Ended(Ok(_))));
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
        assert_eq!(kept(&*long), 1);
    }

    #[test]
    fn the_wall_clock_says_how_old_a_saved_publication_is() {
        let broker = broker();
        let publication = |offset, age: Duration| SavedPublication {
            offset,
            at: WallTime::now() - age,
            is_durable: false,
            message: Message::InMemory(EncodedFrame::text(b"{}")),
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
        // the clock was ahead when the publication was saved
        set_clock(7200);
        saved.publications.push(publication(3, Duration::ZERO));
        set_clock(0);
        broker.restore(vec![saved], Vec::new());
        let stream = attach(&broker, "a", settings());
        assert_eq!(kept(&*stream), 2);
    }
}
