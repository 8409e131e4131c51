//! The saved sessions: clients that may come back, their channels, and the mail that is kept for them.

use super::durability::{Committed, Durability, NotTaken, UsedKey};
use crate::base::clock::WallTime;
use crate::wire::frame::EncodedFrame;
use bytes::Bytes;
use std::sync::Arc;

/// A log of the changes of sessions and mailboxes. The node keeps the sessions, and the implementation of `Mail` keeps the
/// mailboxes; `Store::open` reads the log.
pub trait SavedSessions: Durability {
    /// Takes a change. `committed` completes when the change is saved and would outlive a power failure, or when saving
    /// has failed.
    ///
    /// Ordering: changes are saved, and completed, in the order of the calls on both ports. While the store is full, mail
    /// that does not fit may be saved after later changes, but never after its own deletion. Errors: `NotTaken` when the
    /// store refuses the change: a full store refuses changes that add to it, a closed store refuses every change. Later
    /// errors go to `committed`; without it the store tries again, and counts the changes that it gave up in `health`.
    /// Blocking: as `Durability::barrier`.
    fn save(
        &self,
        change: SessionChange<&EncodedFrame>,
        committed: Option<Committed>,
    ) -> Result<(), NotTaken>;
}

/// A client that may come back.
#[derive(Clone, Debug)]
pub struct SavedClient {
    pub id: Arc<str>,
    /// Of its resume tokens, and how many it was given.
    pub root: [u8; 16],
    pub rotation: u64,
    /// The one before, while the client may not have got the latest.
    pub previous: Option<u64>,
    /// When it is forgotten; `None` while it is connected.
    pub expires: Option<WallTime>,
    pub joined: WallTime,
    pub last_ping: WallTime,
    pub user_data: Option<Bytes>,
}

/// A message that is kept for a client; those of one client come in the order of their numbers.
#[derive(Clone, Debug)]
pub struct SavedMail {
    pub client: Arc<str>,
    pub number: u64,
    pub message: u64,
    pub expires: WallTime,
    pub is_emergency: bool,
    pub frame: EncodedFrame,
}

/// A change of a session or of a mailbox. `F` is the message of mail: its frame, or the place where a store has put the
/// bytes of the frame.
#[derive(Debug)]
pub enum SessionChange<F> {
    Mailed {
        client: Arc<str>,
        number: u64,
        message: u64,
        expires: WallTime,
        is_emergency: bool,
        frame: F,
        used_key: Option<Box<UsedKey>>,
    },
    Unmailed {
        client: Arc<str>,
        numbers: Vec<u64>,
    },
    ClientSaved {
        client: Box<SavedClient>,
    },
    /// A client that is saved, or is about to be, is on a channel since the time `at`.
    Joined {
        client: Arc<str>,
        channel: Arc<str>,
        at: WallTime,
    },
    Left {
        client: Arc<str>,
        channel: Arc<str>,
    },
    /// The client's memberships go with it.
    ClientForgotten {
        id: Arc<str>,
    },
}

impl<F> SessionChange<F> {
    /// The same change, with its frame replaced.
    pub fn map_frame<G>(self, replace: impl FnOnce(F) -> G) -> SessionChange<G> {
        match self {
            SessionChange::Mailed {
                client,
                number,
                message,
                expires,
                is_emergency,
                frame,
                used_key,
            } => SessionChange::Mailed {
                client,
                number,
                message,
                expires,
                is_emergency,
                frame: replace(frame),
                used_key,
            },
            SessionChange::Unmailed { client, numbers } => {
                SessionChange::Unmailed { client, numbers }
            }
            SessionChange::ClientSaved { client } => SessionChange::ClientSaved { client },
            SessionChange::Joined {
                client,
                channel,
                at,
            } => SessionChange::Joined {
                client,
                channel,
                at,
            },
            SessionChange::Left { client, channel } => SessionChange::Left { client, channel },
            SessionChange::ClientForgotten { id } => SessionChange::ClientForgotten { id },
        }
    }
}
