//! The broker of a single process: a lock, a counter and a ring per channel, over a store.

use super::{Broker, Closing, Encode, Encoded, HandOver, HandOverSaved, Stream, StreamPosition};
use crate::channel_settings::ChannelSettings;
use crate::frame::EncodedFrame;
use crate::history::{History, Kept};
use crate::protocol::now_micros;
use crate::random::random_u64;
use crate::store::{Change, Committed, SavedStream, Store, StreamKey};
use crate::sync::Mutex;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

pub struct MemoryBroker {
    shared: Arc<Shared>,
    saved: Mutex<HashMap<Arc<str>, SavedStream>>,
}

/// What the streams have in common.
struct Shared {
    streams: Mutex<HashMap<Arc<str>, Arc<MemoryStream>>>,
    next_key: AtomicU64,
    store: Arc<dyn Store>,
    budget: Arc<Budget>,
    /// Held by whoever makes room.
    evicting: Mutex<()>,
}

/// Bytes that all kept publications take.
struct Budget {
    bytes: AtomicUsize,
    limit: usize,
}

/// The part of the budget that is left in use once it was exceeded, so that not every publication has to make room.
const KEPT_PERCENT: usize = 90;

/// Publications that went out of memory are taken off the store so many at a time, at least.
const TRIMMED_TOGETHER: u64 = 64;

/// How long the opening of a stream waits until the store knows that it is durable no longer.
const MAX_WAIT: Duration = Duration::from_secs(5);

impl MemoryBroker {
    /// `history_bytes` bounds what is kept of all channels together.
    pub fn new(store: Arc<dyn Store>, history_bytes: usize) -> Self {
        let budget = Arc::new(Budget {
            bytes: AtomicUsize::new(0),
            limit: history_bytes,
        });
        Self {
            shared: Arc::new(Shared {
                streams: Mutex::default(),
                next_key: AtomicU64::new(0),
                store,
                budget,
                evicting: Mutex::new(()),
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

    fn open(&self, channel: &Arc<str>, kind: &str, settings: ChannelSettings) -> Arc<dyn Stream> {
        let mut streams = self.shared.streams.lock();
        if let Some(stream) = streams.get(channel) {
            return Arc::clone(stream) as Arc<dyn Stream>;
        }
        let saved = self.saved.lock().remove(channel);
        let was_durable = saved.as_ref().is_some_and(|saved| saved.durable);
        let history = saved.map_or_else(|| History::new(random_u64(), 0), restored);
        let keeps = settings.keeps(self.shared.budget.limit);
        let stream = Arc::new(MemoryStream {
            channel: Arc::clone(channel),
            key: self.shared.next_key.fetch_add(1, Ordering::Relaxed),
            kind: kind.into(),
            settings,
            keeps,
            saves: keeps && self.shared.store.is_durable(),
            state: Mutex::new(StreamState {
                assigned: history.top,
                trimmed: history.gone(),
                history,
                is_announced: false,
                is_closed: false,
            }),
            saving: AtomicUsize::new(0),
            store: Arc::clone(&self.shared.store),
            budget: Arc::clone(&self.shared.budget),
            shared: Arc::downgrade(&self.shared),
        });
        {
            let mut state = stream.state.lock();
            self.shared
                .budget
                .bytes
                .fetch_add(state.history.bytes(), Ordering::Relaxed);
            stream.trim(&mut state, now_micros());
            if was_durable && !settings.durable {
                stream.announce_and_wait(&mut state);
            }
        }
        streams.insert(Arc::clone(channel), Arc::clone(&stream));
        drop(streams);
        stream.make_room();
        stream
    }

    fn close(&self, channel: &str, closing: Closing) -> bool {
        let mut streams = self.shared.streams.lock();
        self.saved.lock().remove(channel);
        let Some(stream) = streams.get(channel).cloned() else {
            return true;
        };
        let mut state = stream.state.lock();
        stream.trim(&mut state, now_micros());
        let is_empty = state.history.is_empty() && stream.saving.load(Ordering::Acquire) == 0;
        if closing == Closing::IfEmpty && !is_empty {
            return false;
        }
        streams.remove(channel);
        drop(streams);
        state.is_closed = true;
        stream.release(&mut state, usize::MAX);
        if stream.saves {
            let change = Change::StreamForgotten {
                stream: stream.key,
                channel: Arc::clone(&stream.channel),
            };
            stream.store.save(change, None);
        }
        true
    }

    fn expire(&self) -> usize {
        let before = self.shared.budget.bytes.load(Ordering::Relaxed);
        let now = now_micros();
        // a store without room needs to know of everything that is gone
        let is_degraded = self.shared.store.health().is_degraded;
        for stream in self.shared.all() {
            let mut state = stream.state.lock();
            stream.trim(&mut state, now);
            if is_degraded {
                stream.tell_trimmed(&mut state, 1);
            }
        }
        before.saturating_sub(self.shared.budget.bytes.load(Ordering::Relaxed))
    }

    fn size(&self) -> (usize, usize) {
        let messages = self
            .shared
            .all()
            .iter()
            .map(|stream| stream.state.lock().history.len())
            .sum();
        (messages, self.shared.budget.bytes.load(Ordering::Relaxed))
    }
}

impl Shared {
    fn all(&self) -> Vec<Arc<MemoryStream>> {
        self.streams.lock().values().cloned().collect()
    }

    /// Lets go of what is kept of the channels that were quiet longest, until there is room again.
    fn make_room(&self) {
        let Some(_only_one) = self.evicting.try_lock() else {
            return;
        };
        let mut streams: Vec<_> = self
            .all()
            .into_iter()
            .map(|stream| {
                let newest = stream.state.lock().history.newest();
                (newest, stream)
            })
            .collect();
        streams.sort_unstable_by_key(|(newest, _)| *newest);
        let target = self.budget.limit / 100 * KEPT_PERCENT;
        for (_, stream) in streams {
            let used = self.budget.bytes.load(Ordering::Relaxed);
            if used <= target {
                return;
            }
            stream.release(&mut stream.state.lock(), used - target);
        }
    }
}

struct MemoryStream {
    channel: Arc<str>,
    /// What the store knows it by.
    key: StreamKey,
    kind: Box<str>,
    settings: ChannelSettings,
    /// Publications are kept in memory.
    keeps: bool,
    /// Publications are saved.
    saves: bool,
    state: Mutex<StreamState>,
    /// Publications that are handed over when they are saved, and are not yet.
    saving: AtomicUsize,
    store: Arc<dyn Store>,
    budget: Arc<Budget>,
    shared: Weak<Shared>,
}

struct StreamState {
    history: History,
    /// The last offset that was given; above `history.top` while publications are being saved.
    assigned: u64,
    /// The store was told to let go of what is up to this offset.
    trimmed: u64,
    /// The store knows of this stream.
    is_announced: bool,
    is_closed: bool,
}

impl Stream for MemoryStream {
    fn publish(&self, hand_over: &mut HandOver<'_>, committed: &mut Option<Committed>) -> bool {
        let mut state = self.state.lock();
        if state.is_closed {
            return false;
        }
        let position = state.assign();
        if !self.keeps {
            hand_over(None);
            state.history.pass(position.offset);
            drop(state);
            if let Some(committed) = committed.take() {
                committed(Ok(()));
            }
            return true;
        }
        let encoded = hand_over(Some(position));
        let at = now_micros();
        let frame = if self.saves {
            self.save(&mut state, position, at, encoded, committed.take())
        } else {
            encoded.frame
        };
        self.keep(&mut state, position, at, frame);
        drop(state);
        // of a store that saves nothing there is nothing to wait for
        if let Some(committed) = committed.take() {
            committed(Ok(()));
        }
        self.make_room();
        true
    }

    fn publish_saved(
        self: Arc<Self>,
        encode: &mut Encode<'_>,
        hand_over: &mut Option<HandOverSaved>,
    ) -> bool {
        let mut state = self.state.lock();
        if state.is_closed {
            return false;
        }
        let Some(hand_over) = hand_over.take() else {
            return true;
        };
        let position = state.assign();
        let encoded = encode(Some(position));
        let at = now_micros();
        let stream = Arc::clone(&self);
        let saved = encoded.frame.clone();
        let committed: Committed = Box::new(move |result| {
            match result {
                Ok(()) => {
                    let mut state = stream.state.lock();
                    hand_over(Ok((position, &saved)));
                    stream.keep(&mut state, position, at, saved);
                    stream.saving.fetch_sub(1, Ordering::AcqRel);
                }
                // without the lock: a store that is full or closed says so at once, to its caller, who holds it
                Err(error) => {
                    stream.saving.fetch_sub(1, Ordering::AcqRel);
                    return hand_over(Err(error));
                }
            }
            stream.make_room();
        });
        self.saving.fetch_add(1, Ordering::AcqRel);
        self.save(&mut state, position, at, encoded, Some(committed));
        true
    }

    fn notify(&self, hand_over: &mut HandOver<'_>) {
        let _order = self.state.lock();
        hand_over(None);
    }

    fn read(&self, look: &mut dyn FnMut(&History)) {
        let mut state = self.state.lock();
        self.trim(&mut state, now_micros());
        // a position that is given out, be it the beginning, has to be known after a restart
        if self.saves {
            self.announce(&mut state);
        }
        look(&state.history);
    }

    fn is_durable(&self) -> bool {
        self.settings.durable && self.saves
    }
}

impl MemoryStream {
    fn keep(
        &self,
        state: &mut StreamState,
        position: StreamPosition,
        at: u64,
        frame: EncodedFrame,
    ) {
        let before = state.history.bytes();
        state.history.push(Kept {
            offset: position.offset,
            at,
            frame,
        });
        let added = state.history.bytes() - before;
        self.budget.bytes.fetch_add(added, Ordering::Relaxed);
        self.trim(state, at);
        if state.is_closed {
            self.release(state, usize::MAX);
        }
    }

    fn save(
        &self,
        state: &mut StreamState,
        position: StreamPosition,
        at: u64,
        Encoded { frame, used_key }: Encoded,
        committed: Option<Committed>,
    ) -> EncodedFrame {
        self.announce(state);
        let change = Change::Published {
            stream: self.key,
            position,
            at,
            expires: at.saturating_add(self.settings.message_ttl.as_micros() as u64),
            frame: &frame,
            used_key,
        };
        self.store.save(change, committed);
        frame
    }

    fn announce(&self, state: &mut StreamState) {
        if !std::mem::replace(&mut state.is_announced, true) {
            self.store.save(self.announcement(state), None);
        }
    }

    /// The store was closed and opened again; another process may have used it meanwhile, so what it says counts.
    fn restore(&self, mut saved: SavedStream) {
        let mut state = self.state.lock();
        state.is_announced = false;
        if (state.history.epoch, state.assigned) == (saved.epoch, saved.top) {
            return;
        }
        if state.history.epoch == saved.epoch && state.assigned > saved.top {
            // not all was saved, and offsets that were seen are not to be given again
            saved.epoch = random_u64();
        }
        self.budget
            .bytes
            .fetch_sub(state.history.bytes(), Ordering::Relaxed);
        state.assigned = saved.top;
        state.history = restored(saved);
        state.trimmed = state.history.gone();
        self.budget
            .bytes
            .fetch_add(state.history.bytes(), Ordering::Relaxed);
        self.trim(&mut state, now_micros());
    }

    fn announcement(&self, state: &StreamState) -> Change<'static> {
        Change::StreamOpened {
            stream: self.key,
            channel: Arc::clone(&self.channel),
            epoch: state.history.epoch,
            kind: self.kind.clone(),
            durable: self.settings.durable,
        }
    }

    /// Before anything is published that a crash may lose: else the epoch would outlive it.
    fn announce_and_wait(&self, state: &mut StreamState) {
        state.is_announced = true;
        let (tell, told) = flume::bounded(1);
        let committed: Committed = Box::new(move |result| drop(tell.send(result)));
        self.store.save(self.announcement(state), Some(committed));
        if !matches!(told.recv_timeout(MAX_WAIT), Ok(Ok(()))) {
            // it could not be saved: another epoch, which the store does not know, is as good
            state.history.epoch = random_u64();
            state.is_announced = false;
        }
    }

    fn trim(&self, state: &mut StreamState, now: u64) {
        let before = state.history.bytes();
        let ttl = self.settings.message_ttl.as_micros() as u64;
        let size = if self.keeps {
            self.settings.history_size
        } else {
            0
        };
        state.history.trim(size, now.saturating_sub(ttl));
        self.let_go(
            state,
            before,
            TRIMMED_TOGETHER.max(self.settings.history_size as u64 / 4),
        );
    }

    fn release(&self, state: &mut StreamState, bytes: usize) {
        let before = state.history.bytes();
        state.history.release(bytes);
        self.let_go(state, before, 1);
    }

    /// Counts the publications that are kept no longer, and tells the store once there are `together` or more.
    fn let_go(&self, state: &mut StreamState, bytes_before: usize, together: u64) {
        let freed = bytes_before - state.history.bytes();
        if freed == 0 {
            return;
        }
        self.budget.bytes.fetch_sub(freed, Ordering::Relaxed);
        self.tell_trimmed(state, together);
    }

    /// Tells the store which publications are gone, once there are `together` or more.
    fn tell_trimmed(&self, state: &mut StreamState, together: u64) {
        let gone = state.history.gone();
        if self.saves && gone - state.trimmed >= together {
            state.trimmed = gone;
            self.announce(state);
            let change = Change::Trimmed {
                stream: self.key,
                through: gone,
            };
            self.store.save(change, None);
        }
    }

    /// Has room made if more is kept than may be. Not to be called with a stream's lock held.
    fn make_room(&self) {
        if self.budget.bytes.load(Ordering::Relaxed) > self.budget.limit
            && let Some(shared) = self.shared.upgrade()
        {
            shared.make_room();
        }
    }
}

impl StreamState {
    fn assign(&mut self) -> StreamPosition {
        self.assigned += 1;
        StreamPosition {
            epoch: self.history.epoch,
            offset: self.assigned,
        }
    }
}

fn restored(saved: SavedStream) -> History {
    let (top, broken_through) = (saved.top, saved.broken_through);
    History::restored(saved.epoch, top, broken_through, saved.publications)
}
