//! Where a process saves what has to outlive it.

use crate::base::clock::WallTime;
use crate::base::completion::{Abandoned, Completion};
use crate::core::history::StreamPosition;
use crate::core::idempotency::LostFlag;
use crate::settings::channel_kind::ChannelKind;
use crate::wire::frame::EncodedFrame;
use crate::wire::messages::Stamp;
use bytes::Bytes;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A log of changes, in the order in which they are given, that is read once when it is opened. What the process knows
/// counts; the log only brings it back.
pub trait Store: Send + Sync {
    /// Opens the store and reads what was saved; from here on changes are taken.
    ///
    /// Ordering: before every `save`; again after `close`. What was lost by an unclean end shows as another epoch of the
    /// streams that were not durable. Errors: the store cannot be used, with its name and what is wrong.
    /// Blocking: for as long as reading takes.
    fn open(&self) -> Result<Saved, StoreError>;

    /// Takes a change. `committed` completes when the change is saved and would outlive a power failure, or when saving
    /// has failed.
    ///
    /// Ordering: changes are saved, and completed, in the order of the calls; those of a stream behind its
    /// `StreamOpened`, since the store was opened. While the store is full, a message that does not fit may be saved
    /// after later changes, but never after its own deletion. Errors: `NotTaken` when the store refuses the change: a
    /// full store refuses changes that add to it, a closed store refuses every change. A refused `StreamOpened` is not
    /// counted as lost, because its stream is to be announced again. Later errors go to `committed`; without it the store
    /// tries again, and counts the changes that it gave up in `health`. Blocking: no. A store that saves nothing
    /// completes `committed` before this returns, so the caller holds no lock then; any other store completes on its own
    /// thread.
    fn save(
        &self,
        change: Change<&EncodedFrame>,
        committed: Option<Committed>,
    ) -> Result<(), NotTaken>;

    /// Notes, for the next `open`, that something is about to be published on a stream that is not durable: only such
    /// streams have another epoch after an unclean end. `was_durable` says that the saved state may still call the stream
    /// durable. False when the store is not open.
    ///
    /// Ordering: before the first such publication since the store was opened. Errors: none. Blocking: two system calls
    /// that wait for no disk.
    fn note_published(&self, channel: &str, was_durable: bool) -> bool;

    /// True while half of what may wait to be saved does: what can be done without is not to be given.
    ///
    /// Ordering: any. Errors: none. Blocking: no.
    fn is_busy(&self) -> bool;

    /// How the store is.
    ///
    /// Ordering: any. Errors: none. Blocking: no.
    fn health(&self) -> Health;

    /// What is saved outlives the process.
    ///
    /// Ordering: never changes. Errors: none. Blocking: no.
    fn is_durable(&self) -> bool;

    /// Saves what was taken and lets go of the store, so that it can be opened again.
    ///
    /// Ordering: behind every `save`; what is given after it is lost. Errors: what could not be saved is counted in
    /// `health`. Blocking: up to `within`.
    fn close(&self, within: Duration);
}

/// Completes with a result when everything that the store was given before is saved, unless the change that brought the
/// result was lost. To be called without locks held.
pub fn complete_when_saved<T: Send + 'static, E: Abandoned + From<StoreError> + 'static>(
    store: &dyn Store,
    (result, lost_flag): (T, LostFlag),
    completion: Completion<T, E>,
) {
    let committed = Committed::new(move |outcome| {
        completion.complete(match outcome {
            Ok(()) if lost_flag.is_lost() => Err(E::from(StoreError(
                "the first message under this idempotency key was lost".to_owned(),
            ))),
            Ok(()) => Ok(result),
            Err(error) => Err(E::from(error)),
        });
    });
    if let Err(refused) = store.save(Change::Barrier, Some(committed)) {
        refused.complete();
    }
}

/// Stands for a stream, so that a publication need not name its channel.
pub type StreamKey = u64;

/// Completes when a change is saved, or saving has failed. The receiver must not block the store's thread.
pub type Committed = Completion<(), StoreError>;

/// What is wrong, in words that name the store.
#[derive(Clone, Debug)]
pub struct StoreError(pub String);

impl Abandoned for StoreError {
    fn abandoned() -> Self {
        Self("the storage ended before the change was saved".to_owned())
    }
}

/// A change that the store refused, with the completion that was to receive its outcome.
pub struct NotTaken {
    pub error: StoreError,
    pub committed: Option<Committed>,
}

impl NotTaken {
    /// Tells the completion of the refusal. To be called without locks held.
    pub fn complete(self) {
        if let Some(committed) = self.committed {
            committed.complete(Err(self.error));
        }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// All that was saved and has not expired.
#[derive(Debug, Default)]
pub struct Saved {
    pub streams: Vec<SavedStream>,
    pub clients: Vec<SavedClient>,
    /// The channels of each client, in the order in which it joined them.
    pub memberships: HashMap<Arc<str>, Vec<Arc<str>>>,
    pub mail: Vec<SavedMail>,
    /// In the order in which they were used.
    pub used_keys: Vec<UsedKey>,
}

/// A channel's stream, its publications oldest first.
#[derive(Clone, Debug)]
pub struct SavedStream {
    pub channel: Arc<str>,
    pub epoch: u64,
    pub top: u64,
    pub kind: ChannelKind,
    pub durable: bool,
    /// Some of what was published up to this offset is not there.
    pub broken_through: u64,
    pub publications: Vec<SavedPublication>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedPublication {
    pub offset: u64,
    /// When it was published.
    pub at: WallTime,
    pub is_durable: bool,
    pub frame: EncodedFrame,
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

/// An idempotency key, and what it gave. It is saved with what was published under it, all or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsedKey {
    /// The client that published; `None` for the application.
    pub client: Option<Box<str>>,
    /// The channel that was published on, or the client that was sent to.
    pub target: Box<str>,
    pub key: Box<str>,
    pub expires: WallTime,
    pub result: KeyResult,
    pub lost_flag: LostFlag,
}

/// What the publisher was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyResult {
    Published {
        position: StreamPosition,
        recipients: usize,
    },
    Sent(Stamp),
}

/// A change to save. `F` is the message of a publication or of mail: its frame, or the place where a store has put the
/// bytes of the frame.
#[derive(Debug)]
pub enum Change<F> {
    /// On a stream that was opened under this key before.
    Published {
        stream: StreamKey,
        position: StreamPosition,
        at: WallTime,
        expires: WallTime,
        /// Its publisher is told once it is saved.
        is_durable: bool,
        frame: F,
        used_key: Option<Box<UsedKey>>,
    },
    /// From here on the key stands for this channel's stream.
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
    /// An idempotency key alone: its publication or message was deleted before it was saved.
    KeyUsed {
        used_key: Box<UsedKey>,
    },
    /// Changes nothing; completes when every change before it is saved.
    Barrier,
}

impl<F> Change<F> {
    /// The same change, with its frame replaced.
    pub fn map_frame<G>(self, replace: impl FnOnce(F) -> G) -> Change<G> {
        match self {
            Change::Published {
                stream,
                position,
                at,
                expires,
                is_durable,
                frame,
                used_key,
            } => Change::Published {
                stream,
                position,
                at,
                expires,
                is_durable,
                frame: replace(frame),
                used_key,
            },
            Change::Mailed {
                client,
                number,
                message,
                expires,
                is_emergency,
                frame,
                used_key,
            } => Change::Mailed {
                client,
                number,
                message,
                expires,
                is_emergency,
                frame: replace(frame),
                used_key,
            },
            Change::StreamOpened {
                stream,
                channel,
                epoch,
                kind,
                durable,
            } => Change::StreamOpened {
                stream,
                channel,
                epoch,
                kind,
                durable,
            },
            Change::Joined {
                client,
                channel,
                at,
            } => Change::Joined {
                client,
                channel,
                at,
            },
            Change::Trimmed { stream, through } => Change::Trimmed { stream, through },
            Change::StreamForgotten { stream, channel } => {
                Change::StreamForgotten { stream, channel }
            }
            Change::Unmailed { client, numbers } => Change::Unmailed { client, numbers },
            Change::ClientSaved { client } => Change::ClientSaved { client },
            Change::Left { client, channel } => Change::Left { client, channel },
            Change::ClientForgotten { id } => Change::ClientForgotten { id },
            Change::KeyUsed { used_key } => Change::KeyUsed { used_key },
            Change::Barrier => Change::Barrier,
        }
    }
}

/// How a store is; counts are since it was made.
#[derive(Clone, Debug, Default)]
pub struct Health {
    pub kind: &'static str,
    pub path: Option<String>,
    /// What is to be saved cannot be, for the time being.
    pub is_degraded: bool,
    /// The last thing that was wrong.
    pub error: Option<String>,
    pub queued_changes: usize,
    pub queued_bytes: usize,
    pub commits: u64,
    pub changes_saved: u64,
    pub changes_lost: u64,
    pub file_bytes: u64,
}
