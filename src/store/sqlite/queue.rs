//! What waits to be saved. Putting something in costs a short lock, and a wake-up only for what is waited for.

use crate::store::{Change, Committed};
use parking_lot::{Condvar, Mutex};
use std::time::{Duration, Instant};

pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    limit: usize,
}

pub(super) struct Entry {
    pub change: Change,
    pub committed: Option<Committed>,
    pub bytes: usize,
}

#[derive(Default)]
struct State {
    entries: Vec<Entry>,
    /// Of what waits here and of what the writer has taken and not yet saved.
    bytes: usize,
    changes: usize,
    /// Somebody waits for one of the entries.
    is_urgent: bool,
    writer: WriterState,
    is_open: bool,
}

#[derive(Default, PartialEq, Eq)]
enum WriterState {
    #[default]
    Busy,
    /// It waits for the first entry.
    Idle,
    /// It waits a moment for more.
    Gathering,
}

/// What the writer was given.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    Entries,
    Nothing,
    /// No more will come.
    Closed,
}

/// How long the first entry waits for others to go with it, unless one is waited for.
const GATHER: Duration = Duration::from_millis(3);

impl Queue {
    pub fn new(limit: usize) -> Self {
        Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            limit,
        }
    }

    pub fn open(&self) {
        self.state.lock().is_open = true;
    }

    /// Nothing more is taken in; the writer gets what is there.
    pub fn close(&self) {
        self.state.lock().is_open = false;
        self.changed.notify_all();
    }

    pub fn is_closed(&self) -> bool {
        !self.state.lock().is_open
    }

    /// Puts a change in; gives it back when the queue is closed, or full and the change is one that adds.
    pub fn push(
        &self,
        change: Change,
        committed: Option<Committed>,
    ) -> Result<(), (Change, Option<Committed>)> {
        let bytes = change.weight();
        let mut state = self.state.lock();
        if !state.is_open || (change.adds() && state.bytes + bytes > self.limit) {
            return Err((change, committed));
        }
        let is_urgent = committed.is_some();
        state.entries.push(Entry {
            change,
            committed,
            bytes,
        });
        state.bytes += bytes;
        state.changes += 1;
        state.is_urgent |= is_urgent;
        let wakes = match state.writer {
            WriterState::Busy => false,
            WriterState::Idle => true,
            WriterState::Gathering => is_urgent,
        };
        if wakes {
            state.writer = WriterState::Busy;
            drop(state);
            self.changed.notify_one();
        }
        Ok(())
    }

    /// Waits up to `timeout` for entries, and appends them to `taken`; they count as queued until `release`. With
    /// `gathers` off it does not wait for others to join the first.
    pub fn take(&self, taken: &mut impl Extend<Entry>, timeout: Duration, gathers: bool) -> Taken {
        let deadline = Instant::now() + timeout;
        let mut state = self.state.lock();
        while state.entries.is_empty() && state.is_open {
            state.writer = WriterState::Idle;
            let has_timed_out = self.changed.wait_until(&mut state, deadline).timed_out();
            state.writer = WriterState::Busy;
            if has_timed_out {
                break;
            }
        }
        if gathers && !state.entries.is_empty() {
            let deadline = Instant::now() + GATHER;
            while state.is_open && !state.is_urgent {
                state.writer = WriterState::Gathering;
                let has_timed_out = self.changed.wait_until(&mut state, deadline).timed_out();
                state.writer = WriterState::Busy;
                if has_timed_out {
                    break;
                }
            }
        }
        state.is_urgent = false;
        if !state.entries.is_empty() {
            let kept = state.entries.capacity().min(KEPT_CAPACITY);
            let entries = std::mem::replace(&mut state.entries, Vec::with_capacity(kept));
            drop(state);
            taken.extend(entries);
            return Taken::Entries;
        }
        if state.is_open {
            Taken::Nothing
        } else {
            Taken::Closed
        }
    }

    /// Entries that were taken are saved, or given up.
    pub fn release(&self, changes: usize, bytes: usize) {
        let mut state = self.state.lock();
        state.changes -= changes;
        state.bytes -= bytes;
    }

    /// Changes that wait, and their bytes.
    pub fn size(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.changes, state.bytes)
    }
}

/// Room for entries that is kept from one taking to the next.
const KEPT_CAPACITY: usize = 4096;

impl Change {
    /// True for what takes room in the store; what frees some always finds its way.
    fn adds(&self) -> bool {
        matches!(
            self,
            Change::Published { .. } | Change::Mailed { .. } | Change::ClientSaved { .. }
        )
    }

    /// Bytes of memory that it takes, about.
    fn weight(&self) -> usize {
        let own = match self {
            Change::Published { frame, .. } | Change::Mailed { frame, .. } => frame.len(),
            Change::ClientSaved { client } => {
                let channels: usize = client.channels.iter().map(|name| name.len() + 16).sum();
                size_of_val(&**client)
                    + channels
                    + client.user_data.as_ref().map_or(0, bytes::Bytes::len)
            }
            Change::Unmailed { numbers, .. } => 8 * numbers.len(),
            Change::StreamOpened { .. }
            | Change::Trimmed { .. }
            | Change::StreamForgotten { .. }
            | Change::ClientForgotten { .. } => 0,
        };
        own + size_of::<Entry>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    const LONG: Duration = Duration::from_secs(20);

    fn forgotten(name: &str) -> Change {
        Change::ClientForgotten { id: name.into() }
    }

    fn mailed(size: usize) -> Change {
        Change::Mailed {
            client: "a".into(),
            number: 0,
            message: 0,
            expires: 0,
            is_emergency: false,
            frame: crate::frame::EncodedFrame::text(&vec![b'x'; size]),
            durable: false,
        }
    }

    #[test]
    fn what_adds_is_refused_when_full_and_what_frees_never() {
        let queue = Queue::new(1000);
        assert!(queue.push(forgotten("a"), None).is_err(), "it is closed");
        queue.open();
        assert!(queue.push(mailed(600), None).is_ok());
        assert!(queue.push(mailed(600), None).is_err());
        assert!(queue.push(forgotten("a"), None).is_ok());
        let mut taken = Vec::new();
        assert_eq!(queue.take(&mut taken, LONG, true), Taken::Entries);
        assert!(
            queue.push(mailed(600), None).is_err(),
            "what is being saved still counts"
        );
        let bytes = taken.iter().map(|entry| entry.bytes).sum();
        queue.release(taken.len(), bytes);
        assert_eq!(queue.size(), (0, 0));
        assert!(queue.push(mailed(600), None).is_ok());
        queue.close();
        assert!(queue.push(forgotten("b"), None).is_err());
        assert_eq!(queue.take(&mut taken, LONG, true), Taken::Entries);
        assert_eq!(queue.take(&mut taken, LONG, true), Taken::Closed);
    }

    #[test]
    fn the_writer_sees_all_in_order_whatever_the_timing() {
        let queue = Arc::new(Queue::new(1 << 30));
        queue.open();
        let own = Arc::clone(&queue);
        let writer = std::thread::spawn(move || {
            let mut all = Vec::new();
            while own.take(&mut all, LONG, true) != Taken::Closed {}
            all.len()
        });
        let pushers: Vec<_> = (0..4)
            .map(|_| {
                let queue = Arc::clone(&queue);
                std::thread::spawn(move || {
                    for number in 0..5000 {
                        let committed: Option<Committed> =
                            (number % 7 == 0).then(|| Box::new(|_| ()) as Committed);
                        assert!(queue.push(forgotten("a"), committed).is_ok());
                    }
                })
            })
            .collect();
        for pusher in pushers {
            pusher.join().unwrap();
        }
        queue.close();
        assert_eq!(writer.join().unwrap(), 20_000);
    }
}
