//! One channel's stream in memory: a lock, a counter and a ring.

use super::budget::{Budget, Reserved, charge};
use crate::base::clock::{SteadyTime, WallTime};
use crate::base::random::random_u64;
use crate::base::sync::{Mutex, Rank};
use crate::core::history::{Bytes, History, Kept, StreamPosition, weight};
use crate::ports::broker::{CHANNEL_SIZE, Encode, HandOver, KeyAt, OnSaved, Refused, Stream};
use crate::ports::store::{Change, Committed, SavedStream, Store, StoreError, StreamKey, UsedKey};
use crate::settings::channel_kind::ChannelKind;
use crate::settings::channel_settings::ChannelSettings;
use crate::wire::frame::EncodedFrame;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Least number of removed publications that are reported to the store in one change.
const TRIMMED_TOGETHER: u64 = 64;

/// How long the opening of a stream waits until the store knows that the stream is durable no longer.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// The other streams of the broker, with which a stream shares the budget.
pub(super) trait Neighbours: Send + Sync {
    /// Evicts publications until the budget has room again. Not to be called with a stream's lock held.
    fn make_room(&self);

    /// Notes that the history of a channel is empty.
    fn note_emptied(&self, channel: &Arc<str>);
}

pub(super) struct MemoryStream {
    pub channel: Arc<str>,
    /// Stands for this stream in the store.
    pub key: StreamKey,
    kind: ChannelKind,
    settings: ChannelSettings,
    /// Publications are kept in memory.
    keeps: bool,
    /// Publications are saved.
    pub saves: bool,
    pub state: Mutex<StreamState>,
    /// Publications that are handed over when they are saved, and are not yet.
    saving: AtomicUsize,
    store: Arc<dyn Store>,
    budget: Arc<Budget>,
    neighbours: Weak<dyn Neighbours>,
}

/// What the store has of a stream.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum InStore {
    Nothing,
    /// Perhaps rows from before the store was opened, but no announcement since.
    Earlier,
    /// The store took the announcement of the stream since the store was opened.
    Announced,
}

pub(super) struct StreamState {
    pub history: History,
    /// The last offset that was given; above `history.top` while publications are being saved.
    pub assigned: u64,
    /// The store was told to remove what is up to this offset.
    trimmed: u64,
    pub in_store: InStore,
    /// The store knows that something was published on this stream since it was opened.
    is_noted: bool,
    is_closed: bool,
}

impl Stream for MemoryStream {
    fn publish(
        &self,
        encode: &mut Encode<'_>,
        hand_over: &mut HandOver<'_>,
        committed: &mut Option<Committed>,
    ) -> Result<(), Refused> {
        let mut state = self.state.lock();
        if state.is_closed {
            return Err(Refused::Closed);
        }
        let position = state.next();
        let frame = encode(self.keeps.then_some(position));
        if !self.keeps {
            state.assigned = position.offset;
            hand_over(None, &frame);
            state.history.pass(position.offset);
            drop(state);
            if let Some(committed) = committed.take() {
                committed(Ok(()));
            }
            return Ok(());
        }
        let at = SteadyTime::now();
        // before subscribers see the publication, and until the publication counts in the history
        let reserved = if self.saves && committed.is_some() {
            let reserved = self.reserve(&mut state, &frame, at);
            Some(reserved.map_err(Refused::NoRoom)?)
        } else {
            None
        };
        state.assigned = position.offset;
        if self.saves && !state.is_noted {
            state.is_noted = self.store.note_published(&self.channel);
        }
        let used_key = hand_over(Some(position), &frame);
        if self.saves {
            let is_durable = reserved.is_some();
            let publication = (position, &frame, used_key);
            self.save(&mut state, publication, is_durable, committed.take());
        }
        let kept = Kept {
            offset: position.offset,
            at,
            is_durable: reserved.is_some(),
            frame,
        };
        self.keep(&mut state, kept);
        drop(reserved);
        drop(state);
        // of a store that saves nothing there is nothing to wait for
        if let Some(committed) = committed.take() {
            committed(Ok(()));
        }
        self.make_room();
        Ok(())
    }

    fn publish_saved(
        self: Arc<Self>,
        encode: &mut Encode<'_>,
        key_at: &mut KeyAt<'_>,
        on_saved: &mut Option<OnSaved>,
    ) -> bool {
        let mut state = self.state.lock();
        if state.is_closed {
            return false;
        }
        let Some(on_saved) = on_saved.take() else {
            return true;
        };
        let position = state.next();
        let frame = encode(Some(position));
        let used_key = key_at(position);
        let at = SteadyTime::now();
        let reserved = match self.reserve(&mut state, &frame, at) {
            Ok(reserved) => reserved,
            Err(error) => {
                drop(state);
                on_saved(Err(error));
                return true;
            }
        };
        state.assigned = position.offset;
        let stream = Arc::clone(&self);
        let saved = frame.clone();
        let committed: Committed = Box::new(move |result| {
            let outcome = match result {
                Ok(()) => {
                    let mut state = stream.state.lock();
                    on_saved(Ok((position, &saved)));
                    let kept = Kept {
                        offset: position.offset,
                        at,
                        is_durable: true,
                        frame: saved,
                    };
                    // under the lock: the next publication must see the updated budget
                    stream.keep(&mut state, kept);
                    stream.finish_saving(reserved);
                    None
                }
                Err(error) => {
                    stream.finish_saving(reserved);
                    // the channel may have stayed for this publication alone
                    stream.note_emptied();
                    Some((on_saved, error))
                }
            };
            // without the lock: a store that is full or closed says so at once, to its caller, who holds it
            if let Some((on_saved, error)) = outcome {
                on_saved(Err(error));
            }
        });
        self.saving.fetch_add(1, Ordering::AcqRel);
        let publication = (position, &frame, used_key);
        self.save(&mut state, publication, true, Some(committed));
        true
    }

    fn notify(&self, hand_over: &mut dyn FnMut()) {
        let _order = self.state.lock();
        hand_over();
    }

    fn read(&self, look: &mut dyn FnMut(&History)) {
        let mut state = self.state.lock();
        self.trim(&mut state, SteadyTime::now());
        // A position that is given out, even offset 0, has to be known after a restart. While the save queue is half
        // full, a read does not announce the stream; its first publication does.
        if self.saves && (state.in_store == InStore::Announced || !self.store.is_busy()) {
            self.announce(&mut state);
        }
        look(&state.history);
    }

    fn is_durable(&self) -> bool {
        self.settings.durable && self.saves
    }
}

impl MemoryStream {
    pub fn new(
        (store, budget, neighbours): (Arc<dyn Store>, Arc<Budget>, Weak<dyn Neighbours>),
        channel: &Arc<str>,
        kind: ChannelKind,
        settings: ChannelSettings,
        key: StreamKey,
        history: History,
        in_store: InStore,
    ) -> Self {
        let keeps = settings.keeps(budget.limits.history_bytes);
        Self {
            channel: Arc::clone(channel),
            key,
            kind,
            settings,
            keeps,
            saves: keeps && store.is_durable(),
            state: Mutex::new(
                Rank::Stream,
                StreamState {
                    assigned: history.top,
                    trimmed: history.emptied_through(),
                    history,
                    in_store,
                    is_noted: false,
                    is_closed: false,
                },
            ),
            saving: AtomicUsize::new(0),
            store,
            budget,
            neighbours,
        }
    }

    /// Counts what was saved. `was_durable` says what the store knows of the stream.
    pub fn begin(&self, was_durable: bool) {
        let mut state = self.state.lock();
        self.budget
            .recount(Bytes::default(), charge(&state.history));
        self.trim(&mut state, SteadyTime::now());
        if was_durable && !self.settings.durable {
            self.announce_and_wait(&mut state);
        }
    }

    /// Nothing is kept, nor about to be.
    pub fn is_empty(&self, state: &StreamState) -> bool {
        state.history.is_empty() && self.saving.load(Ordering::Acquire) == 0
    }

    /// The channel has ended: nothing is published any more, nor kept.
    pub fn end(&self, state: &mut StreamState) {
        state.is_closed = true;
        self.change(state, History::clear);
    }

    /// The store was closed and opened again; another process may have used it meanwhile, so what it says counts.
    pub fn restore(&self, mut saved: SavedStream) {
        let mut state = self.state.lock();
        state.in_store = InStore::Earlier;
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
        self.change(&mut state, |history| *history = restored);
        state.trimmed = state.history.emptied_through();
        self.trim(&mut state, SteadyTime::now());
    }

    /// Removes what the channel's own settings keep no longer.
    pub fn trim(&self, state: &mut StreamState, now: SteadyTime) {
        let (size, oldest) = self.bounds(now);
        self.change(state, |history| history.trim(size, oldest));
        self.tell_trimmed(
            state,
            TRIMMED_TOGETHER.max(self.settings.history_size as u64 / 4),
        );
    }

    /// Removes publications that are not durable until `bytes` less are kept; returns how many, and their bytes.
    pub fn evict(&self, state: &mut StreamState, bytes: usize) -> (usize, usize) {
        let before = charge(&state.history).evictable;
        let count = self.change(state, |history| history.evict(bytes));
        self.tell_trimmed(state, 1);
        (count, before - charge(&state.history).evictable)
    }

    /// Has room made if more is kept than may be. Not to be called with a stream's lock held.
    pub fn make_room(&self) {
        if self.budget.excess() > 0
            && let Some(neighbours) = self.neighbours.upgrade()
        {
            neighbours.make_room();
        }
    }

    fn finish_saving(&self, reserved: Reserved) {
        drop(reserved);
        self.saving.fetch_sub(1, Ordering::AcqRel);
    }

    fn note_emptied(&self) {
        if let Some(neighbours) = self.neighbours.upgrade() {
            neighbours.note_emptied(&self.channel);
        }
    }

    fn keep(&self, state: &mut StreamState, kept: Kept) {
        let (size, oldest) = self.bounds(kept.at);
        self.change(state, |history| {
            history.push(kept);
            history.trim(size, oldest);
        });
        if state.is_closed {
            self.change(state, History::clear);
        }
        self.tell_trimmed(
            state,
            TRIMMED_TOGETHER.max(self.settings.history_size as u64 / 4),
        );
    }

    /// How many publications are kept, and from when on.
    fn bounds(&self, now: SteadyTime) -> (usize, SteadyTime) {
        let size = if self.keeps {
            self.settings.history_size
        } else {
            0
        };
        (size, now - self.settings.message_ttl)
    }

    /// Changes the history, and counts what that changes in the budget.
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
    fn reserve(
        &self,
        state: &mut StreamState,
        frame: &EncodedFrame,
        now: SteadyTime,
    ) -> Result<Reserved, StoreError> {
        let saving = self.saving.load(Ordering::Acquire);
        let displaced = |history: &History| history.displaced(self.settings.history_size, saving);
        let mut bytes = weight(frame);
        if state.history.bytes().durable == 0 {
            bytes += CHANNEL_SIZE;
        }
        self.budget
            .reserve(bytes, displaced(&state.history))
            .or_else(|_| {
                // what has expired may still be counted
                self.trim(state, now);
                self.budget.reserve(bytes, displaced(&state.history))
            })
    }

    fn save(
        &self,
        state: &mut StreamState,
        (position, frame, used_key): (StreamPosition, &EncodedFrame, Option<Box<UsedKey>>),
        is_durable: bool,
        committed: Option<Committed>,
    ) {
        // a store that is full refuses the announcement, and then the publication, which is counted and told
        self.announce(state);
        let at = WallTime::now();
        let change = Change::Published {
            stream: self.key,
            position,
            at,
            expires: at + self.settings.message_ttl,
            is_durable,
            frame,
            used_key,
        };
        self.store.save(change, committed);
    }

    /// Tells the store of this stream, once; false when the store has no room for that now.
    fn announce(&self, state: &mut StreamState) -> bool {
        if state.in_store != InStore::Announced && self.store.save(self.announcement(state), None) {
            state.in_store = InStore::Announced;
        }
        state.in_store == InStore::Announced
    }

    fn announcement(&self, state: &StreamState) -> Change<&EncodedFrame> {
        Change::StreamOpened {
            stream: self.key,
            channel: Arc::clone(&self.channel),
            epoch: state.history.epoch,
            kind: self.kind,
            durable: self.settings.durable,
        }
    }

    /// Before anything is published that a crash may lose: else the epoch would outlive it.
    fn announce_and_wait(&self, state: &mut StreamState) {
        state.in_store = InStore::Announced;
        let (tell, told) = flume::bounded(1);
        let committed: Committed = Box::new(move |result| drop(tell.send(result)));
        self.store.save(self.announcement(state), Some(committed));
        if !matches!(told.recv_timeout(MAX_WAIT), Ok(Ok(()))) {
            // it could not be saved: another epoch, which the store does not know, is as good
            state.history.epoch = random_u64();
            state.in_store = InStore::Earlier;
        }
    }

    /// Tells the store which publications are gone, once there are `together` or more.
    pub fn tell_trimmed(&self, state: &mut StreamState, together: u64) {
        let through = state.history.emptied_through();
        let is_due = through.saturating_sub(state.trimmed) >= together;
        // of a stream that the store never took there is nothing to remove
        if self.saves && is_due && state.in_store != InStore::Nothing && self.announce(state) {
            state.trimmed = through;
            let change = Change::Trimmed {
                stream: self.key,
                through,
            };
            self.store.save(change, None);
        }
    }
}

impl StreamState {
    /// The position of the next publication.
    fn next(&self) -> StreamPosition {
        StreamPosition {
            epoch: self.history.epoch,
            offset: self.assigned + 1,
        }
    }
}

/// The history that was saved; `is_durable` says whether the channel is durable now.
pub(super) fn restored(saved: SavedStream, is_durable: bool) -> History {
    let (now, steady_now) = (WallTime::now(), SteadyTime::now());
    let is_durable = is_durable || saved.durable;
    let kept = saved.publications.into_iter().map(|publication| Kept {
        offset: publication.offset,
        // only here does the wall clock say how old a publication is
        at: steady_now - now.since(publication.at),
        is_durable: is_durable || publication.is_durable,
        frame: publication.frame,
    });
    History::restored(saved.epoch, saved.top, saved.broken_through, kept)
}
