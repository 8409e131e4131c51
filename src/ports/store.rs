//! The state that outlives the process: the log of streams and the saved sessions in one file, with one order of commits.

use super::durability::{StoreError, UsedKey};
use super::saved_sessions::{SavedClient, SavedMail, SavedSessions};
use super::stream_log::{SavedStream, StreamLog};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Both logs, with their one lifecycle. The process keeps the state; the store is read once, when it is opened.
pub trait Store: StreamLog + SavedSessions {
    /// Opens the store and reads what was saved; from here on changes are taken.
    ///
    /// Ordering: before every change; again after `close`. What was lost by an unclean end shows as another epoch of the
    /// streams that were not durable. Errors: the store cannot be used, with its name and what is wrong.
    /// Blocking: for as long as reading takes.
    fn open(&self) -> Result<Saved, StoreError>;

    /// Saves all changes that were taken and closes the store, so that the store can be opened again.
    ///
    /// Ordering: behind every change; later changes are refused. Errors: what could not be saved is counted in
    /// `health`. Blocking: up to `within`.
    fn close(&self, within: Duration);
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
