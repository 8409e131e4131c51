//! The queue of changes that wait to be saved. A push costs a short lock and a copy of the bytes. A push wakes the writer
//! only if a caller waits for the change, so that publishing threads seldom make a system call.

use super::batch::{Batch, Entry, Item};
use crate::base::sync::{Condvar, Mutex};
use crate::ports::durability::Committed;
use crate::ports::saved_sessions::SessionChange;
use crate::wire::frame::EncodedFrame;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    limit: usize,
}

#[derive(Default)]
struct State {
    waiting: Batch,
    /// An empty batch with capacity, to be used next.
    spare: Batch,
    /// Bytes of the changes that wait, and of those that the writer has taken and not saved yet.
    weight: usize,
    changes: usize,
    /// The number of entries with a completion.
    urgent: usize,
    /// By client: the index in `waiting` of the change that saves the client.
    clients: HashMap<Arc<str>, usize>,
    writer: WriterState,
    is_open: bool,
}

#[derive(Default, PartialEq, Eq)]
enum WriterState {
    #[default]
    Busy,
    /// The writer waits for the first entry.
    Idle,
    /// The writer waits a moment for more entries, until so many have completions.
    Gathering(usize),
}

/// How the writer lets further changes join the first.
#[derive(Clone, Copy)]
pub(super) enum Gather {
    No,
    /// Wait a moment, unless a completion waits.
    Usually,
    /// Wait for at most this time, until so many completions wait: the callers of the last commit are about to call again.
    For(usize, Duration),
}

/// The answer to a writer that asks for entries.
pub(super) enum Taken {
    Batch(Batch),
    Nothing,
    /// The queue is closed and empty.
    Closed,
}

/// How long the first entry waits for others, unless one of them has a completion.
const GATHER: Duration = Duration::from_millis(3);

/// The most bytes and entries for which the capacity of a batch is kept for the next batch, because an allocation would
/// cost the publisher more than the copy.
const KEPT_BYTES: usize = 16 << 20;
const KEPT_ENTRIES: usize = 128 << 10;

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

    /// Refuses further changes. The writer gets those that wait.
    pub fn close(&self) {
        self.state.lock().is_open = false;
        self.changed.notify_all();
    }

    pub fn is_closed(&self) -> bool {
        !self.state.lock().is_open
    }

    /// Queues a change. Returns the completion if the queue refuses the change: the queue is closed, or it is full and the
    /// change is an addition.
    pub fn push(
        &self,
        item: Item<&EncodedFrame>,
        committed: Option<Committed>,
    ) -> Result<(), Option<Committed>> {
        let weight = item.weight();
        // changes of sessions may take half of the queue; the other half is for messages
        let limit = if item.is_of_session() {
            self.limit / 2
        } else {
            self.limit
        };
        let mut state = self.state.lock();
        if !state.is_open || (item.adds() && state.weight + weight > limit) {
            if let Some(used) = item.used_key() {
                used.lost_flag.lose();
            }
            return Err(committed);
        }
        state.urgent += usize::from(committed.is_some());
        let item = state.waiting.take_in(item);
        let Some(item) = state.replace_client(item, weight, committed.is_some()) else {
            return Ok(());
        };
        state.waiting.entries.push(Entry {
            item,
            committed,
            weight,
        });
        state.weight += weight;
        state.changes += 1;
        let wakes = match state.writer {
            WriterState::Busy => false,
            WriterState::Idle => true,
            WriterState::Gathering(enough) => state.urgent >= enough,
        };
        if wakes {
            state.writer = WriterState::Busy;
            drop(state);
            self.changed.notify_one();
        }
        Ok(())
    }

    /// Waits up to `timeout` for changes, and for others to join the first. The changes count as queued until `release`.
    pub fn take(&self, timeout: Duration, gather: Gather) -> Taken {
        let deadline = Instant::now() + timeout;
        let mut state = self.state.lock();
        while state.waiting.entries.is_empty() && state.is_open {
            state.writer = WriterState::Idle;
            let has_timed_out;
            (state, has_timed_out) = self.changed.wait_until(state, deadline);
            state.writer = WriterState::Busy;
            if has_timed_out {
                break;
            }
        }
        let (enough, most) = match gather {
            Gather::No => (0, Duration::ZERO),
            // more completions wait than after the last commit: further callers have come meanwhile
            Gather::For(enough, most) if state.urgent > 0 => (enough + state.urgent, most),
            Gather::For(..) | Gather::Usually => (1, GATHER),
        };
        if !state.waiting.entries.is_empty() {
            let deadline = Instant::now() + most;
            while state.is_open && state.urgent < enough {
                state.writer = WriterState::Gathering(enough);
                let has_timed_out;
                (state, has_timed_out) = self.changed.wait_until(state, deadline);
                state.writer = WriterState::Busy;
                if has_timed_out {
                    break;
                }
            }
        }
        state.urgent = 0;
        if !state.waiting.entries.is_empty() {
            let spare = std::mem::take(&mut state.spare);
            state.clients.clear();
            return Taken::Batch(std::mem::replace(&mut state.waiting, spare));
        }
        if state.is_open {
            Taken::Nothing
        } else {
            Taken::Closed
        }
    }

    /// Subtracts entries that were taken, because they are saved or were given up.
    pub fn release(&self, changes: usize, weight: usize) {
        let mut state = self.state.lock();
        state.changes -= changes;
        state.weight -= weight;
    }

    /// Gives an empty batch back, for its capacity.
    pub fn recycle(&self, mut batch: Batch) {
        if batch.bytes.capacity() <= KEPT_BYTES && batch.entries.capacity() <= KEPT_ENTRIES {
            batch.bytes.clear();
            batch.entries.clear();
            self.state.lock().spare = batch;
        }
    }

    /// Frees the capacity that is kept for the next batch.
    pub fn let_go(&self) {
        let spare = std::mem::take(&mut self.state.lock().spare);
        drop(spare);
    }

    pub fn is_half_full(&self) -> bool {
        self.state.lock().weight > self.limit / 2
    }

    /// Returns the number and the bytes of the changes that wait.
    pub fn size(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.changes, state.weight)
    }
}

impl State {
    /// Replaces a waiting change that saves the same client; returns any other item.
    fn replace_client(&mut self, item: Item, weight: usize, is_awaited: bool) -> Option<Item> {
        match &item {
            Item::Session(SessionChange::ClientSaved { client }) if is_awaited => {
                self.clients.remove(&client.id);
            }
            Item::Session(SessionChange::ClientSaved { client }) => {
                let next = self.waiting.entries.len();
                let index = *self.clients.entry(Arc::clone(&client.id)).or_insert(next);
                let Some(entry) = self.waiting.entries.get_mut(index) else {
                    return Some(item);
                };
                entry.item = item;
                self.weight = self.weight + weight - std::mem::replace(&mut entry.weight, weight);
                return None;
            }
            Item::Session(SessionChange::ClientForgotten { id }) => {
                self.clients.remove(id);
            }
            _ => {}
        }
        Some(item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::WallTime;
    use crate::ports::saved_sessions::SavedClient;
    use crate::ports::stream_log::StreamChange;

    const LONG: Duration = Duration::from_secs(20);

    fn forgotten(name: &str) -> Item<&'static EncodedFrame> {
        Item::Session(SessionChange::ClientForgotten { id: name.into() })
    }

    /// Pushes a message of this size; false if the queue refuses the message.
    fn push_mail(queue: &Queue, size: usize) -> bool {
        let change = Item::Session(SessionChange::Mailed {
            client: "a".into(),
            number: 0,
            message: 0,
            expires: WallTime::now(),
            is_emergency: false,
            frame: &EncodedFrame::text(&vec![b'x'; size]),
            used_key: None,
        });
        queue.push(change, None).is_ok()
    }

    fn taken(queue: &Queue) -> Option<Batch> {
        match queue.take(LONG, Gather::Usually) {
            Taken::Batch(batch) => Some(batch),
            Taken::Nothing | Taken::Closed => None,
        }
    }

    #[test]
    fn what_adds_is_refused_when_full_and_what_frees_never() {
        let queue = Queue::new(1000);
        assert!(queue.push(forgotten("a"), None).is_err(), "it is closed");
        queue.open();
        assert!(push_mail(&queue, 600));
        assert!(!push_mail(&queue, 600));
        assert!(queue.push(forgotten("a"), None).is_ok());
        let batch = taken(&queue).unwrap();
        let Item::Session(SessionChange::Mailed { frame, .. }) = batch.entries[0].item else {
            panic!("another comes first")
        };
        assert_eq!(batch.text(frame), vec![b'x'; 600]);
        assert!(!push_mail(&queue, 600), "what is being saved still counts");
        let weight = batch.entries.iter().map(|entry| entry.weight).sum();
        queue.release(batch.entries.len(), weight);
        queue.recycle(batch);
        assert_eq!(queue.size(), (0, 0));
        assert!(push_mail(&queue, 600));
        queue.close();
        assert!(queue.push(forgotten("b"), None).is_err());
        assert_eq!(taken(&queue).unwrap().entries.len(), 1);
        assert!(matches!(queue.take(LONG, Gather::Usually), Taken::Closed));
    }

    #[test]
    fn a_client_that_is_saved_again_replaces_itself_until_it_is_forgotten() {
        let saved = |rotation, text: &'static str| {
            Item::Session(SessionChange::ClientSaved {
                client: Box::new(SavedClient {
                    id: "a".into(),
                    root: [0; 16],
                    rotation,
                    previous: None,
                    expires: Some(WallTime::now()),
                    joined: WallTime::now(),
                    last_ping: WallTime::now(),
                    user_data: Some(bytes::Bytes::from_static(text.as_bytes())),
                }),
            })
        };
        let queue = Queue::new(10_000);
        queue.open();
        for change in [
            saved(1, "long"),
            forgotten("b"),
            saved(2, "s"),
            forgotten("a"),
            saved(3, ""),
            saved(4, "last"),
        ] {
            assert!(queue.push(change, None).is_ok());
        }
        assert!(
            queue
                .push(saved(5, ""), Some(Committed::new(|_| ())))
                .is_ok()
        );
        assert!(queue.push(saved(6, ""), None).is_ok());
        let (changes, weight) = queue.size();
        let batch = taken(&queue).unwrap();
        let rotations = batch.entries.iter().map(|entry| match &entry.item {
            Item::Session(SessionChange::ClientSaved { client }) => client.rotation,
            _ => 0,
        });
        assert_eq!(rotations.collect::<Vec<_>>(), [2, 0, 0, 4, 5, 6]);
        assert_eq!(changes, batch.entries.len());
        let sum: usize = batch.entries.iter().map(|entry| entry.weight).sum();
        assert_eq!(weight, sum);
        assert!(queue.push(saved(7, ""), None).is_ok());
        assert_eq!(
            taken(&queue).unwrap().entries.len(),
            1,
            "not into the batch that was taken"
        );
    }

    #[test]
    fn the_writer_sees_all_in_order_whatever_the_timing() {
        let queue = Arc::new(Queue::new(1 << 30));
        queue.open();
        let own = Arc::clone(&queue);
        let writer = std::thread::spawn(move || {
            let mut seen: Vec<Vec<u64>> = vec![Vec::new(); 4];
            loop {
                match own.take(LONG, Gather::Usually) {
                    Taken::Batch(batch) => {
                        for entry in &batch.entries {
                            if let Item::Stream(StreamChange::Trimmed { stream, through }) =
                                entry.item
                            {
                                seen[stream as usize].push(through);
                            }
                        }
                        own.recycle(batch);
                    }
                    Taken::Nothing => {}
                    Taken::Closed => return seen,
                }
            }
        });
        let pushers: Vec<_> = (0..4)
            .map(|stream| {
                let queue = Arc::clone(&queue);
                std::thread::spawn(move || {
                    for through in 0..5000 {
                        let committed: Option<Committed> =
                            (through % 7 == 0).then(|| Committed::new(|_| ()));
                        let change = Item::Stream(StreamChange::Trimmed { stream, through });
                        assert!(queue.push(change, committed).is_ok());
                    }
                })
            })
            .collect();
        for pusher in pushers {
            pusher.join().unwrap();
        }
        queue.close();
        let wanted: Vec<u64> = (0..5000).collect();
        assert_eq!(writer.join().unwrap(), vec![wanted; 4]);
    }
}
