//! Changes as they wait to be saved: copies of what they need, with their messages in the bytes of a batch.

use crate::base::clock::WallTime;
use crate::ports::store::{Change, Committed, SavedClient, StreamKey, UsedKey};
use crate::settings::channel_kind::ChannelKind;
use std::sync::Arc;

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
pub(super) enum Item {
    Published {
        stream: StreamKey,
        offset: u64,
        at: WallTime,
        expires: WallTime,
        is_durable: bool,
        message: Span,
        used_key: Option<Box<UsedKey>>,
    },
    StreamOpened {
        stream: StreamKey,
        channel: Arc<str>,
        epoch: u64,
        kind: ChannelKind,
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
        expires: WallTime,
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
    Joined {
        client: Arc<str>,
        channel: Arc<str>,
        at: WallTime,
    },
    Left {
        client: Arc<str>,
        channel: Arc<str>,
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
                | Item::Left { .. }
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

    pub fn take_in(&mut self, change: Change<'_>) -> Item {
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
            Change::Joined {
                client,
                channel,
                at,
            } => Item::Joined {
                client,
                channel,
                at,
            },
            Change::Left { client, channel } => Item::Left { client, channel },
            Change::ClientForgotten { id } => Item::ClientForgotten { id },
            Change::Mark => Item::Mark,
        }
    }
}

impl Change<'_> {
    /// True for changes that need room in the store. Changes that free room are always queued.
    pub(super) fn adds(&self) -> bool {
        matches!(
            self,
            Change::Published { .. }
                | Change::StreamOpened { .. }
                | Change::Mailed { .. }
                | Change::ClientSaved { .. }
                | Change::Joined { .. }
        )
    }

    /// True for what clients cause by coming, joining and going.
    pub(super) fn is_of_session(&self) -> bool {
        matches!(self, Change::ClientSaved { .. } | Change::Joined { .. })
    }

    /// Bytes of memory that it takes, about.
    pub(super) fn weight(&self) -> usize {
        let own = match self {
            Change::Published {
                frame, used_key, ..
            } => frame.len() + key_weight(used_key.as_deref()),
            Change::Mailed {
                frame, used_key, ..
            } => frame.len() + key_weight(used_key.as_deref()),
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
            Change::Trimmed { .. } | Change::Mark => 0,
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
