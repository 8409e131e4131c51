//! The stream of one channel in memory: a lock, a counter and a ring.

use super::budget::{Budget, Reserved, charge};
use super::keys::Keys;
use super::selected::Selected;
use crate::base::clock::{SteadyTime, WallTime};
use crate::base::completion::{Later, Progress};
use crate::base::priority::Priority;
use crate::base::random::random_u64;
use crate::base::sync::{Mutex, Rank};
use crate::core::history::{Bytes, History, Kept, StreamPosition, WINDOW, weight};
use crate::ports::broker::{
    CHANNEL_SIZE, Delivered, Failure, Outgoing, PublicationKind, Query, Reading, Receipt, Sink,
    Stream, View,
};
use crate::ports::durability::StoreError;
use crate::ports::stream_log::{SavedStream, StreamChange, StreamKey, StreamLog};
use crate::settings::channel_kind::ChannelKind;
use crate::settings::channel_settings::ChannelSettings;
use crate::wire::frame::{EncodedFrame, Unsealed};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

/// The least number of removed publications that are reported to the store in one change.
const TRIMMED_TOGETHER: u64 = 64;

/// The other streams of the broker, with which a stream shares the budget.
pub(super) trait Neighbours: Send + Sync {
    /// Evicts publications until the budget has room again. Not to be called with a stream's lock held.
    fn make_room(&self);

    /// Records that the history of a channel is empty.
    fn note_emptied(&self, channel: &Arc<str>);
}

pub(super) struct MemoryStream {
    pub channel: Arc<str>,
    /// The key of this stream in the store.
    pub key: StreamKey,
    kind: ChannelKind,
    pub settings: ChannelSettings,
    /// Publications are kept in memory.
    pub keeps: bool,
    /// Publications are saved.
    pub saves: bool,
    /// Publications are handed to the sink once they are saved.
    pub saves_first: bool,
    pub state: Mutex<StreamState>,
    /// The number of publications that wait to be saved before they are handed over.
    saving: AtomicUsize,
    pub log: Arc<dyn StreamLog>,
    budget: Arc<Budget>,
    pub keys: Arc<Keys>,
    neighbours: Weak<dyn Neighbours>,
    pub sink: Arc<dyn Sink>,
    /// This stream, for publications that end after the call.
    pub me: Weak<MemoryStream>,
}

/// The state that all streams of a broker share.
pub(super) struct Common {
    pub log: Arc<dyn StreamLog>,
    pub budget: Arc<Budget>,
    pub keys: Arc<Keys>,
    pub neighbours: Weak<dyn Neighbours>,
}

/// What the log knows of a stream.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum InStore {
    Nothing,
    /// Perhaps rows from before the store was opened, but no announcement since.
    Earlier,
    /// The store has taken the announcement of the stream since the store was opened.
    Announced,
}

pub(super) struct StreamState {
    pub history: History,
    /// The last offset that was allotted; above `history.top` while publications are being saved.
    pub assigned: u64,
    /// The log was asked to remove publications up to this offset.
    trimmed: u64,
    pub in_store: InStore,
    /// The saved state may still call the stream durable.
    was_durable: bool,
    /// The store knows that something was published on this stream since the store was opened.
    is_noted: bool,
    pub is_closed: bool,
}

impl Stream for MemoryStream {
    fn publish(
        &self,
        publication: &Outgoing<'_>,
        later: &mut Later<'_, Receipt, Failure>,
    ) -> Progress<Receipt, Failure> {
        self.publish_once(publication, later)
    }

    fn notify(&self, body: Unsealed<'_>) -> usize {
        let frame = body.seal(None);
        let state = self.state.lock();
        if state.is_closed {
            return 0;
        }
        self.sink.deliver(&Delivered {
            position: StreamPosition {
                epoch: state.history.epoch,
                offset: state.history.top,
            },
            is_kept: false,
            priority: Priority::Normal,
            kind: PublicationKind::Notice,
            frame: &frame,
        })
    }

    fn read(&self, query: Query, later: &mut Later<'_, View, Failure>) -> Reading {
        let mut state = self.state.lock();
        if state.is_closed {
            return Reading::Ended(Err(Failure::Closed));
        }
        self.trim(&mut state, SteadyTime::now());
        // A position that is given out, even offset 0, has to be known after a restart. While the save queue is half
        // full, a read does not announce the stream; its first publication does.
        if self.saves && (state.in_store == InStore::Announced || !self.log.is_busy()) {
            self.announce(&mut state);
        }
        let selected = Selected::new(&state.history, query);
        drop(state);
        let me = self.me.clone();
        let is_closed = move || {
            me.upgrade()
                .is_none_or(|stream| stream.state.lock().is_closed)
        };
        selected.complete(&*self.log, &self.channel, is_closed, later)
    }

    fn epoch(&self) -> u64 {
        self.state.lock().history.epoch
    }

    fn saves_first(&self) -> bool {
        self.saves_first
    }
}

impl MemoryStream {
    /// `was_durable`: the saved state calls the stream durable.
    pub fn new(
        common: Common,
        channel: &Arc<str>,
        (kind, settings): (ChannelKind, ChannelSettings),
        key: StreamKey,
        sink: Arc<dyn Sink>,
        history: History,
        (in_store, was_durable): (InStore, bool),
    ) -> Arc<Self> {
        let keeps = settings.keeps(common.budget.limits.history_bytes);
        let saves = keeps && common.log.is_durable();
        Arc::new_cyclic(|me| Self {
            channel: Arc::clone(channel),
            key,
            kind,
            settings,
            keeps,
            saves,
            saves_first: settings.durable && saves,
            state: Mutex::new(
                Rank::Stream,
                StreamState {
                    assigned: history.top,
                    trimmed: history.emptied_through(),
                    history,
                    in_store,
                    was_durable,
                    is_noted: false,
                    is_closed: false,
                },
            ),
            saving: AtomicUsize::new(0),
            log: common.log,
            budget: common.budget,
            keys: common.keys,
            neighbours: common.neighbours,
            sink,
            me: Weak::clone(me),
        })
    }

    /// Charges the budget for the history that was restored.
    pub fn begin(&self) {
        let mut state = self.state.lock();
        self.leave_to_log(&mut state.history);
        self.budget
            .recount(Bytes::default(), charge(&state.history));
        self.trim(&mut state, SteadyTime::now());
    }

    /// Tells the store, once, that publications may be lost with the process.
    pub fn note_published(&self, state: &mut StreamState) {
        if !state.is_noted {
            state.is_noted = self.log.note_published(&self.channel, state.was_durable);
        }
    }

    pub fn subscribers(&self) -> usize {
        self.sink.subscribers()
    }

    /// True if the history is empty and no publication is on its way to the history.
    pub fn is_empty(&self, state: &StreamState) -> bool {
        state.history.is_empty() && self.saving.load(Ordering::Acquire) == 0
    }

    /// Ends the stream: nothing is published or kept any more.
    pub fn end(&self, state: &mut StreamState) {
        state.is_closed = true;
        self.change(state, History::clear);
    }

    /// Takes the saved state over the state in memory: the store was closed and opened again, and another process may have
    /// used it meanwhile.
    pub fn restore(&self, mut saved: SavedStream) {
        let mut state = self.state.lock();
        state.in_store = InStore::Earlier;
        state.was_durable = saved.durable;
        state.is_noted = false;
        if (state.history.epoch, state.assigned) == (saved.epoch, saved.top) {
            return;
        }
        if state.history.epoch == saved.epoch && state.assigned > saved.top {
            // some publications were not saved: a new epoch prevents reuse of offsets that clients have seen
            saved.epoch = random_u64();
        }
        state.assigned = saved.top;
        let restored = restored(saved, self.settings.durable);
        self.change(&mut state, |history| {
            *history = restored;
            self.leave_to_log(history);
        });
        state.trimmed = state.history.emptied_through();
        self.trim(&mut state, SteadyTime::now());
    }

    /// Removes the publications that the settings of the channel do not keep any more.
    pub fn trim(&self, state: &mut StreamState, now: SteadyTime) {
        let (size, oldest) = self.bounds(now);
        self.change(state, |history| history.trim(size, oldest));
        self.tell_trimmed(
            state,
            TRIMMED_TOGETHER.max(self.settings.history_size as u64 / 4),
        );
    }

    /// Removes publications that are not durable until `bytes` less are kept. Returns the number and the bytes of the removed
    /// publications.
    pub fn evict(&self, state: &mut StreamState, bytes: usize) -> (usize, usize) {
        let before = charge(&state.history).evictable;
        let count = self.change(state, |history| history.evict(bytes));
        self.tell_trimmed(state, 1);
        (count, before - charge(&state.history).evictable)
    }

    /// Evicts publications of all channels if the budget is exceeded. Must not be called with the lock of a stream held.
    pub fn make_room(&self) {
        if self.budget.excess() > 0
            && let Some(neighbours) = self.neighbours.upgrade()
        {
            neighbours.make_room();
        }
    }

    pub fn begin_saving(&self) {
        self.saving.fetch_add(1, Ordering::AcqRel);
    }

    pub fn finish_saving(&self, reserved: Reserved) {
        drop(reserved);
        self.saving.fetch_sub(1, Ordering::AcqRel);
    }

    pub fn note_emptied(&self) {
        if let Some(neighbours) = self.neighbours.upgrade() {
            neighbours.note_emptied(&self.channel);
        }
    }

    pub fn keep(&self, state: &mut StreamState, kept: Kept) {
        let (size, oldest) = self.bounds(kept.at);
        self.change(state, |history| {
            history.push(kept);
            history.trim(size, oldest);
            self.leave_to_log(history);
        });
        if state.is_closed {
            self.change(state, History::clear);
        }
        self.tell_trimmed(
            state,
            TRIMMED_TOGETHER.max(self.settings.history_size as u64 / 4),
        );
    }

    /// Removes older messages from memory, if every kept publication is saved.
    fn leave_to_log(&self, history: &mut History) {
        if self.saves_first {
            history.leave_to_log(WINDOW);
        }
    }

    /// Returns the number of kept publications, and the time of the oldest.
    fn bounds(&self, now: SteadyTime) -> (usize, SteadyTime) {
        let size = if self.keeps {
            self.settings.history_size
        } else {
            0
        };
        (size, now - self.settings.message_ttl)
    }

    /// Changes the history, and updates its charge in the budget.
    fn change<T>(&self, state: &mut StreamState, change: impl FnOnce(&mut History) -> T) -> T {
        let before = charge(&state.history);
        let result = change(&mut state.history);
        let now = charge(&state.history);
        self.budget.recount(before, now);
        if now == Bytes::default() && before != now {
            self.note_emptied();
        }
        result
    }

    /// Counts a durable publication before it is saved.
    ///
    /// Errors: as `Budget::reserve`.
    pub fn reserve(
        &self,
        state: &mut StreamState,
        frame: &EncodedFrame,
        now: SteadyTime,
    ) -> Result<Reserved, StoreError> {
        let saving = self.saving.load(Ordering::Acquire);
        let displaced = |history: &History| history.displaced(self.settings.history_size, saving);
        let mut bytes = weight(frame.len());
        if state.history.bytes().durable == 0 {
            bytes += CHANNEL_SIZE;
        }
        self.budget
            .reserve(bytes, displaced(&state.history))
            .or_else(|_| {
                // expired publications may still be charged
                self.trim(state, now);
                self.budget.reserve(bytes, displaced(&state.history))
            })
    }

    /// Announces this stream to the store, once. False if the store has no room for the announcement.
    pub fn announce(&self, state: &mut StreamState) -> bool {
        if state.in_store == InStore::Announced {
            return true;
        }
        let announcement = StreamChange::StreamOpened {
            stream: self.key,
            channel: Arc::clone(&self.channel),
            epoch: state.history.epoch,
            kind: self.kind,
            durable: self.settings.durable,
        };
        let is_taken = self.log.append(announcement, None).is_ok();
        if is_taken {
            state.in_store = InStore::Announced;
        }
        is_taken
    }

    /// Reports removed publications to the store, if they are `together` or more.
    pub fn tell_trimmed(&self, state: &mut StreamState, together: u64) {
        let through = state.history.emptied_through();
        let is_due = through.saturating_sub(state.trimmed) >= together;
        // the store has nothing of a stream that it never took
        if self.saves && is_due && state.in_store != InStore::Nothing && self.announce(state) {
            state.trimmed = through;
            let change = StreamChange::Trimmed {
                stream: self.key,
                through,
            };
            // an open store never refuses a deletion, and a closed store takes no changes at all
            let _ = self.log.append(change, None);
        }
    }
}

impl StreamState {
    /// Returns the position of the next publication.
    pub fn next(&self) -> StreamPosition {
        StreamPosition {
            epoch: self.history.epoch,
            offset: self.assigned + 1,
        }
    }
}

/// Returns the history that was saved. `is_durable`: the channel is durable now.
pub(super) fn restored(saved: SavedStream, is_durable: bool) -> History {
    let (now, steady_now) = (WallTime::now(), SteadyTime::now());
    let is_durable = is_durable || saved.durable;
    let kept = saved.publications.into_iter().map(|publication| Kept {
        offset: publication.offset,
        // the saved times are of the wall clock: here they become ages
        at: steady_now - now.since(publication.at),
        is_durable: is_durable || publication.is_durable,
        message: publication.message,
    });
    History::restored(saved.epoch, saved.top, saved.broken_through, kept)
}
