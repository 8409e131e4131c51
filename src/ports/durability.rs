//! The common part of the log of streams and the saved sessions, because one file holds both.

use crate::base::clock::WallTime;
use crate::base::completion::{Abandoned, Completion};
use crate::core::history::StreamPosition;
use crate::core::idempotency::{LostFlag, Ticket};
use crate::wire::messages::Stamp;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fmt;

/// Saves changes in one order, whichever port they are given to.
pub trait Durability: Send + Sync {
    /// Completes when every change that was given before is saved, or when saving has failed.
    ///
    /// Ordering: as a change that changes nothing. Errors: `NotTaken` while the store is closed; later errors go to
    /// `committed`. Blocking: no. A store that saves nothing completes `committed` before this returns, so the caller
    /// holds no lock then; any other store completes on its own thread.
    fn barrier(&self, committed: Committed) -> Result<(), NotTaken>;

    /// The state of the store, and its counters.
    ///
    /// Ordering: any. Errors: none. Blocking: no.
    fn health(&self) -> Health;

    /// True if saved changes outlive the process.
    ///
    /// Ordering: never changes. Errors: none. Blocking: no.
    fn is_durable(&self) -> bool;
}

/// Completes with a result when everything that the store was given before is saved, unless the change that brought the
/// result was lost. To be called without locks held.
pub fn complete_when_saved<T: Send + 'static, E: Abandoned + From<StoreError> + 'static>(
    store: &dyn Durability,
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
    if let Err(refused) = store.barrier(committed) {
        refused.complete();
    }
}

/// Completes when a change is saved, or saving has failed. The receiver must not block the store's thread.
pub type Committed = Completion<(), StoreError>;

/// A problem of the store, in words that name the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreError(pub String);

impl Abandoned for StoreError {
    fn abandoned() -> Self {
        Self("the storage ended without an outcome".to_owned())
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

impl UsedKey {
    /// The key of a use, to be saved with its result.
    pub fn of(ticket: &Ticket, expires: WallTime, result: KeyResult) -> Box<Self> {
        let scope = ticket.scope();
        Box::new(Self {
            client: scope.client.map(Into::into),
            target: scope.target.into(),
            key: ticket.key().into(),
            expires,
            result,
            lost_flag: ticket.lost_flag.clone(),
        })
    }
}

/// The result that the publisher got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyResult {
    Published {
        position: StreamPosition,
        recipients: usize,
    },
    Sent(Stamp),
}

/// How a store is; counts are since it was made.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Health {
    pub kind: Cow<'static, str>,
    pub path: Option<String>,
    /// Changes cannot be saved at present.
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
