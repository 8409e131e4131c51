//! Changes that wait to be saved. A batch has copies of the changes, and their messages in one run of bytes.

use crate::ports::durability::{Committed, UsedKey};
use crate::ports::saved_sessions::SessionChange;
use crate::ports::stream_log::StreamChange;
use crate::wire::frame::EncodedFrame;

/// Changes in their order, with the bytes of their messages.
#[derive(Default)]
pub(super) struct Batch {
    pub entries: Vec<Entry>,
    pub(super) bytes: Vec<u8>,
}

pub(super) struct Entry {
    pub item: Item,
    pub committed: Option<Committed>,
    /// The bytes that the change takes of the queue's limit.
    pub weight: usize,
}

/// A change of either port, or what the store makes of a change. `F` is the message of a publication or of mail: its frame
/// on the way in, then its place in the batch's bytes.
pub(super) enum Item<F = Span> {
    Stream(StreamChange<F>),
    Session(SessionChange<F>),
    /// An idempotency key alone, because its publication or message was deleted before it was saved.
    KeyUsed {
        used_key: Box<UsedKey>,
    },
    /// Changes nothing; completes when every change before it is saved.
    Barrier,
}

impl<F> Item<F> {
    /// The idempotency key to save with the change.
    pub(super) fn used_key(&self) -> Option<&UsedKey> {
        match self {
            Item::Stream(StreamChange::Published { used_key, .. })
            | Item::Session(SessionChange::Mailed { used_key, .. }) => used_key.as_deref(),
            Item::KeyUsed { used_key } => Some(used_key),
            _ => None,
        }
    }

    /// True for changes that need room in the file.
    pub(super) fn adds(&self) -> bool {
        !self.deletes() && !matches!(self, Item::Barrier)
    }

    /// True for changes that free room in the file. Such changes are always queued.
    pub(super) fn deletes(&self) -> bool {
        match self {
            Item::Stream(change) => matches!(
                change,
                StreamChange::Trimmed { .. } | StreamChange::StreamForgotten { .. }
            ),
            Item::Session(change) => matches!(
                change,
                SessionChange::Unmailed { .. }
                    | SessionChange::Left { .. }
                    | SessionChange::ClientForgotten { .. }
            ),
            Item::KeyUsed { .. } | Item::Barrier => false,
        }
    }

    /// True for changes that may be saved behind later ones that delete nothing.
    pub(super) fn may_be_passed(&self) -> bool {
        matches!(
            self,
            Item::Stream(StreamChange::Published { .. })
                | Item::Session(SessionChange::Mailed { .. })
        )
    }

    /// True for changes that clients cause when they come, join and go.
    pub(super) fn is_of_session(&self) -> bool {
        matches!(
            self,
            Item::Session(SessionChange::ClientSaved { .. } | SessionChange::Joined { .. })
        )
    }
}

/// The place of a message in the bytes of a batch.
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
    pub fn take_in(&mut self, item: Item<&EncodedFrame>) -> Item {
        let copy = |frame: &EncodedFrame| self.copy(frame.payload());
        match item {
            Item::Stream(change) => Item::Stream(change.map_frame(copy)),
            Item::Session(change) => Item::Session(change.map_frame(copy)),
            Item::KeyUsed { used_key } => Item::KeyUsed { used_key },
            Item::Barrier => Item::Barrier,
        }
    }
}

impl Item<&EncodedFrame> {
    /// The approximate number of bytes that the change takes in memory.
    pub(super) fn weight(&self) -> usize {
        let own = match self {
            Item::Stream(change) => match change {
                StreamChange::Published { frame, .. } => frame.len(),
                StreamChange::StreamOpened { channel, .. }
                | StreamChange::StreamForgotten { channel, .. } => channel.len(),
                StreamChange::Trimmed { .. } => 0,
            },
            Item::Session(change) => match change {
                SessionChange::Mailed { frame, .. } => frame.len(),
                SessionChange::ClientSaved { client } => {
                    size_of_val(&**client) + client.user_data.as_ref().map_or(0, bytes::Bytes::len)
                }
                SessionChange::Unmailed { numbers, .. } => 8 * numbers.len(),
                SessionChange::Joined {
                    client, channel, ..
                }
                | SessionChange::Left { client, channel } => client.len() + channel.len(),
                SessionChange::ClientForgotten { id } => id.len(),
            },
            Item::KeyUsed { .. } | Item::Barrier => 0,
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
