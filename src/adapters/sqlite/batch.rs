//! Changes as they wait to be saved: copies of what they need, with their messages in the bytes of a batch.

use crate::ports::store::{Change, Committed, UsedKey};
use crate::wire::frame::EncodedFrame;

/// Changes in their order, and the bytes that they are about.
#[derive(Default)]
pub(super) struct Batch {
    pub entries: Vec<Entry>,
    pub(super) bytes: Vec<u8>,
}

pub(super) struct Entry {
    pub item: Item,
    pub committed: Option<Committed>,
    /// Bytes that it takes of the queue's limit.
    pub weight: usize,
}

/// A change, with its message in the batch's bytes.
pub(super) type Item = Change<Span>;

impl<F> Change<F> {
    /// The idempotency key to save with the change.
    pub(super) fn used_key(&self) -> Option<&UsedKey> {
        match self {
            Change::Published { used_key, .. } | Change::Mailed { used_key, .. } => {
                used_key.as_deref()
            }
            Change::KeyUsed { used_key } => Some(used_key),
            _ => None,
        }
    }

    /// True for changes that need room in the file.
    pub(super) fn adds(&self) -> bool {
        !self.deletes() && !matches!(self, Change::Barrier)
    }

    /// True for changes that free room in the file. Such changes are always queued.
    pub(super) fn deletes(&self) -> bool {
        matches!(
            self,
            Change::Trimmed { .. }
                | Change::StreamForgotten { .. }
                | Change::Unmailed { .. }
                | Change::Left { .. }
                | Change::ClientForgotten { .. }
        )
    }

    /// True for changes that may be saved behind later ones that delete nothing.
    pub(super) fn may_be_passed(&self) -> bool {
        matches!(self, Change::Published { .. } | Change::Mailed { .. })
    }

    /// True for changes that clients cause when they come, join and go.
    pub(super) fn is_of_session(&self) -> bool {
        matches!(self, Change::ClientSaved { .. } | Change::Joined { .. })
    }
}

/// A part of a batch's bytes.
#[derive(Clone, Copy, Default)]
pub(super) struct Span {
    start: usize,
    len: usize,
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

    /// Copies the message of a change into the batch's bytes.
    pub fn take_in(&mut self, change: Change<&EncodedFrame>) -> Item {
        change.map_frame(|frame| self.copy(frame.payload()))
    }
}

impl Change<&EncodedFrame> {
    /// The approximate number of bytes that the change takes in memory.
    pub(super) fn weight(&self) -> usize {
        let own = match self {
            Change::Published { frame, .. } | Change::Mailed { frame, .. } => frame.len(),
            Change::ClientSaved { client } => {
                size_of_val(&**client) + client.user_data.as_ref().map_or(0, bytes::Bytes::len)
            }
            Change::Unmailed { numbers, .. } => 8 * numbers.len(),
            Change::Joined {
                client, channel, ..
            }
            | Change::Left { client, channel } => client.len() + channel.len(),
            Change::StreamOpened { channel, .. } | Change::StreamForgotten { channel, .. } => {
                channel.len()
            }
            Change::ClientForgotten { id } => id.len(),
            Change::Trimmed { .. } | Change::KeyUsed { .. } | Change::Barrier => 0,
        };
        own + key_weight(self.used_key()) + size_of::<Entry>()
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
