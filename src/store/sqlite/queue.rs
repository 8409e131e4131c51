//! What waits to be saved. Putting something in costs a short lock and a copy of its bytes, and a wake-up only for what
//! is waited for: publications come from threads that have better things to do.

use crate::store::{Change, Committed, SavedClient, StreamKey, UsedKey};
use crate::sync::{Condvar, Mutex};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    limit: usize,
}

/// Changes in their order, and the bytes that they are about.
#[derive(Default)]
pub(super) struct Batch {
    pub entries: Vec<Entry>,
    bytes: Vec<u8>,
}

pub(super) struct Entry {
    pub item: Item,
    pub committed: Option<Committed>,
    /// Bytes that it takes of the queue's limit.
    pub weight: usize,
}

/// A change, with its message in the batch's bytes.
pub(super) enum Item {
    Published {
        stream: StreamKey,
        offset: u64,
        at: u64,
        expires: u64,
        is_durable: bool,
        message: Span,
        used_key: Option<Box<UsedKey>>,
    },
    StreamOpened {
        stream: StreamKey,
        channel: Arc<str>,
        epoch: u64,
        kind: Box<str>,
        durable: bool,
    },
    Trimmed {
        stream: StreamKey,
        through: u64,
    },
    StreamForgotten {
        stream: StreamKey,
        channel: Arc<str>,
    },
    Mailed {
        client: Arc<str>,
        number: u64,
        message_id: u64,
        expires: u64,
        is_emergency: bool,
        message: Span,
        used_key: Option<Box<UsedKey>>,
    },
    Unmailed {
        client: Arc<str>,
        numbers: Vec<u64>,
    },
    ClientSaved {
        client: Box<SavedClient>,
    },
    ClientForgotten {
        id: Arc<str>,
    },
    /// What is left of a publication or of mail that was deleted before it was saved.
    KeyUsed {
        used_key: Box<UsedKey>,
    },
    Mark,
}

impl Item {
    /// What it was published under.
    pub fn used_key(&self) -> Option<&UsedKey> {
        match self {
            Item::Published { used_key, .. } | Item::Mailed { used_key, .. } => used_key.as_deref(),
            Item::KeyUsed { used_key } => Some(used_key),
            _ => None,
        }
    }

    /// True for what takes room in the file.
    pub fn adds(&self) -> bool {
        !self.deletes() && !matches!(self, Item::Mark)
    }

    /// True for what makes room in the file.
    pub fn deletes(&self) -> bool {
        matches!(
            self,
            Item::Trimmed { .. }
                | Item::StreamForgotten { .. }
                | Item::Unmailed { .. }
                | Item::ClientForgotten { .. }
        )
    }

    /// True for what may be saved behind later changes that are no deletions.
    pub fn may_be_passed(&self) -> bool {
        matches!(self, Item::Published { .. } | Item::Mailed { .. })
    }
}

/// A part of a batch's bytes.
#[derive(Clone, Copy, Default)]
pub(super) struct Span {
    start: usize,
    len: usize,
}

#[derive(Default)]
struct State {
    waiting: Batch,
    /// An empty batch with room, for the next one.
    spare: Batch,
    /// Of what waits here and of what the writer has taken and not yet saved.
    weight: usize,
    changes: usize,
    /// Entries that somebody waits for.
    urgent: usize,
    writer: WriterState,
    is_open: bool,
}

#[derive(Default, PartialEq, Eq)]
enum WriterState {
    #[default]
    Busy,
    /// It waits for the first entry.
    Idle,
    /// It waits a moment for more, until so many of them are waited for.
    Gathering(usize),
}

/// How long the writer lets others join what is there.
#[derive(Clone, Copy)]
pub(super) enum Gather {
    No,
    /// For a moment, unless somebody waits.
    Usually,
    /// For at most so long, until so many wait: those whom the last commit has told are about to come again.
    For(usize, Duration),
}

/// What the writer was given.
pub(super) enum Taken {
    Batch(Batch),
    Nothing,
    /// No more will come.
    Closed,
}

/// How long the first entry waits for others to go with it, unless one is waited for.
const GATHER: Duration = Duration::from_millis(3);

/// Bytes and entries of a batch whose room is kept for the next one, while there is something to do: room that is new
/// costs whoever publishes more than the copy.
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

    /// Nothing more is taken in; the writer gets what is there.
    pub fn close(&self) {
        self.state.lock().is_open = false;
        self.changed.notify_all();
    }

    pub fn is_closed(&self) -> bool {
        !self.state.lock().is_open
    }

    /// Puts a change in; gives back who wants to hear of it when the queue is closed, or full and the change is one
    /// that adds.
    pub fn push(
        &self,
        change: Change<'_>,
        committed: Option<Committed>,
    ) -> Result<(), Option<Committed>> {
        let weight = change.weight();
        let mut state = self.state.lock();
        if !state.is_open || (change.adds() && state.weight + weight > self.limit) {
            if let Change::Published { used_key, .. } | Change::Mailed { used_key, .. } = change
                && let Some(used) = used_key
            {
                used.fate.lose();
            }
            return Err(committed);
        }
        state.urgent += usize::from(committed.is_some());
        let item = state.waiting.take_in(change);
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

    /// Waits up to `timeout` for changes, and for others to join the first; they count as queued until `release`.
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
            // more than the last time: who came meanwhile has not been told yet
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
            return Taken::Batch(std::mem::replace(&mut state.waiting, spare));
        }
        if state.is_open {
            Taken::Nothing
        } else {
            Taken::Closed
        }
    }

    /// Entries that were taken are saved, or given up.
    pub fn release(&self, changes: usize, weight: usize) {
        let mut state = self.state.lock();
        state.changes -= changes;
        state.weight -= weight;
    }

    /// Gives the room of a batch back.
    pub fn recycle(&self, mut batch: Batch) {
        if batch.bytes.capacity() <= KEPT_BYTES && batch.entries.capacity() <= KEPT_ENTRIES {
            batch.bytes.clear();
            batch.entries.clear();
            self.state.lock().spare = batch;
        }
    }

    /// Lets the room go that is kept for the next batch.
    pub fn let_go(&self) {
        let spare = std::mem::take(&mut self.state.lock().spare);
        drop(spare);
    }

    /// Changes that wait, and their bytes.
    pub fn size(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.changes, state.weight)
    }
}

impl Batch {
    /// Entries without a message.
    pub fn of(entries: Vec<Entry>) -> Self {
        Self {
            entries,
            bytes: Vec::new(),
        }
    }

    pub fn text(&self, span: Span) -> &[u8] {
        self.bytes
            .get(span.start..span.start + span.len)
            .unwrap_or_default()
    }

    fn copy(&mut self, text: &[u8]) -> Span {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(text);
        Span {
            start,
            len: text.len(),
        }
    }

    fn take_in(&mut self, change: Change<'_>) -> Item {
        match change {
            Change::Published {
                stream,
                position,
                at,
                expires,
                is_durable,
                frame,
                used_key,
            } => Item::Published {
                stream,
                offset: position.offset,
                at,
                expires,
                is_durable,
                message: self.copy(frame.payload()),
                used_key,
            },
            Change::StreamOpened {
                stream,
                channel,
                epoch,
                kind,
                durable,
            } => Item::StreamOpened {
                stream,
                channel,
                epoch,
                kind,
                durable,
            },
            Change::Trimmed { stream, through } => Item::Trimmed { stream, through },
            Change::StreamForgotten { stream, channel } => {
                Item::StreamForgotten { stream, channel }
            }
            Change::Mailed {
                client,
                number,
                message,
                expires,
                is_emergency,
                frame,
                used_key,
            } => Item::Mailed {
                client,
                number,
                message_id: message,
                expires,
                is_emergency,
                message: self.copy(frame.payload()),
                used_key,
            },
            Change::Unmailed { client, numbers } => Item::Unmailed { client, numbers },
            Change::ClientSaved { client } => Item::ClientSaved { client },
            Change::ClientForgotten { id } => Item::ClientForgotten { id },
            Change::Mark => Item::Mark,
        }
    }
}

impl Change<'_> {
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
            Change::Published {
                frame, used_key, ..
            } => frame.len() + key_weight(used_key.as_deref()),
            Change::Mailed {
                frame, used_key, ..
            } => frame.len() + key_weight(used_key.as_deref()),
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
            | Change::ClientForgotten { .. }
            | Change::Mark => 0,
        };
        own + size_of::<Entry>()
    }
}

fn key_weight(used: Option<&UsedKey>) -> usize {
    used.map_or(0, |used| {
        size_of_val(used)
            + used.client.as_deref().map_or(0, str::len)
            + used.target.len()
            + used.key.len()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    fn forgotten(name: &str) -> Change<'static> {
        Change::ClientForgotten { id: name.into() }
    }

    fn mailed(size: usize) -> Change<'static> {
        Change::Mailed {
            client: "a".into(),
            number: 0,
            message: 0,
            expires: 0,
            is_emergency: false,
            frame: crate::frame::EncodedFrame::text(&vec![b'x'; size]),
            used_key: None,
        }
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
        assert!(queue.push(mailed(600), None).is_ok());
        assert!(queue.push(mailed(600), None).is_err());
        assert!(queue.push(forgotten("a"), None).is_ok());
        let batch = taken(&queue).unwrap();
        let Item::Mailed { message, .. } = batch.entries[0].item else {
            panic!("another comes first")
        };
        assert_eq!(batch.text(message), vec![b'x'; 600]);
        assert!(
            queue.push(mailed(600), None).is_err(),
            "what is being saved still counts"
        );
        let weight = batch.entries.iter().map(|entry| entry.weight).sum();
        queue.release(batch.entries.len(), weight);
        queue.recycle(batch);
        assert_eq!(queue.size(), (0, 0));
        assert!(queue.push(mailed(600), None).is_ok());
        queue.close();
        assert!(queue.push(forgotten("b"), None).is_err());
        assert_eq!(taken(&queue).unwrap().entries.len(), 1);
        assert!(matches!(queue.take(LONG, Gather::Usually), Taken::Closed));
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
                            if let Item::Trimmed { stream, through } = entry.item {
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
                            (through % 7 == 0).then(|| Box::new(|_| ()) as Committed);
                        let change = Change::Trimmed { stream, through };
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
