//! The store of the node: opened and closed, watched, and given the changes of clients.

use super::client::{Client, ClientState};
use crate::base::clock::WallTime;
use crate::base::error::Error;
use crate::base::fork::{ForkSensitive, OwningProcess};
use crate::base::sync::{Mutex, Rank};
use crate::core::events::{EventQueue, LogLevel};
use crate::ports::durability::{Committed, Durability, Health, NotTaken};
use crate::ports::saved_sessions::{SavedClient, SessionChange};
use crate::ports::store::{Saved, Store};
use crate::wire::frame::EncodedFrame;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// The store, with the process that has it open. Methods that take a `ClientState` must be called with this state
/// locked, so that the changes of one client are saved in their order.
pub struct Storage {
    store: Arc<dyn Store>,
    resume_ttl: Duration,
    /// The process that opened the store; none after `close`.
    opened_by: OwningProcess,
    /// Held while the store is opened or closed.
    opening: Mutex<()>,
    fork_use: ForkSensitive,
    /// `Health::is_degraded` at the last call of `watch`.
    was_degraded: AtomicBool,
    /// `Health::changes_lost` at the last call of `watch`.
    known_lost: AtomicU64,
}

impl Storage {
    pub fn new(store: Arc<dyn Store>, resume_ttl: Duration) -> Self {
        Self {
            store,
            resume_ttl,
            opened_by: OwningProcess::default(),
            opening: Mutex::new(Rank::Restore, ()),
            fork_use: ForkSensitive::default(),
            was_degraded: AtomicBool::new(false),
            known_lost: AtomicU64::new(0),
        }
    }

    /// Opens the store unless it is open, and calls `restore` with everything that was saved. No other thread finds the
    /// store open before `restore` has returned.
    ///
    /// Errors: the store cannot be opened.
    pub(super) fn open(&self, restore: impl FnOnce(Saved)) -> Result<(), Error> {
        if self.is_open() {
            return Ok(());
        }
        let _worker = self.fork_use.begin();
        let _opening = self.opening.lock();
        if self.is_open() {
            return Ok(());
        }
        let saved = self.store.open().map_err(|error| Error::Storage(error.0))?;
        restore(saved);
        self.opened_by.claim();
        Ok(())
    }

    pub fn is_open(&self) -> bool {
        self.opened_by.is_some()
    }

    /// True in a child of the process that opened the store, or was opening or closing it: the child does not have the
    /// thread that writes.
    pub fn is_inherited(&self) -> bool {
        let was_opened = self.store.is_durable() && self.opened_by.is_ancestor();
        was_opened || self.fork_use.was_cut()
    }

    /// Saves all changes that wait, and closes the store until the next `open`.
    pub fn close(&self, within: Duration) {
        let _worker = self.fork_use.begin();
        let _opening = self.opening.lock();
        if self.opened_by.release() {
            self.store.close(within);
        }
    }

    pub fn is_durable(&self) -> bool {
        self.store.is_durable()
    }

    pub fn health(&self) -> Health {
        self.store.health()
    }

    pub(super) fn port(&self) -> &dyn Durability {
        &*self.store
    }

    /// Gives a change to the store, which counts a change that it refuses.
    pub fn save(&self, change: SessionChange<&EncodedFrame>) {
        let _ = self.store.save(change, None);
    }

    /// Gives a change to the store, as `SavedSessions::save`.
    pub fn save_then(
        &self,
        change: SessionChange<&EncodedFrame>,
        committed: Option<Committed>,
    ) -> Result<(), NotTaken> {
        self.store.save(change, committed)
    }

    /// Logs that changes cannot be saved, that they can be saved again, and how many were lost.
    pub fn watch(&self, events: &EventQueue) {
        let health = self.store.health();
        let was_degraded = self
            .was_degraded
            .swap(health.is_degraded, Ordering::Relaxed);
        match (was_degraded, health.is_degraded) {
            (false, true) => events.log(LogLevel::Error, "storage", || {
                let problem = health.error.unwrap_or_default();
                format!("{problem}; messages are delivered, but those that wait may be lost with the process")
            }),
            (true, false) => events.log(LogLevel::Info, "storage", || {
                "the database can be written again".to_owned()
            }),
            _ => {}
        }
        let lost = health.changes_lost;
        let known = self.known_lost.swap(lost, Ordering::Relaxed);
        if lost > known {
            events.log(LogLevel::Warning, "storage", || {
                format!(
                    "{} changes could not be saved ({lost} since the start)",
                    lost - known
                )
            });
        }
    }

    /// True if changes could not be saved at the last call of `watch`.
    pub fn was_degraded(&self) -> bool {
        self.was_degraded.load(Ordering::Relaxed)
    }

    /// Saves the session of a client, without its channels.
    pub fn save_client(&self, client: &Client, state: &ClientState) {
        if !self.is_durable() {
            return;
        }
        let Some(session) = &state.session else {
            return;
        };
        let (root, rotation, previous) = session.saved();
        let is_away = state.connection_id.is_none();
        let saved = SavedClient {
            id: Arc::clone(&client.id),
            root,
            rotation,
            previous,
            expires: is_away.then(|| WallTime::now() + self.resume_ttl),
            joined: client.joined,
            last_ping: client.last_ping(),
            user_data: state.user_data.clone(),
        };
        let client = Box::new(saved);
        self.save(SessionChange::ClientSaved { client });
    }

    /// Saves that a client is on a channel.
    pub fn save_joined(&self, client: &Client, state: &ClientState, channel: &Arc<str>) {
        if self.is_durable() && state.session.is_some() {
            let change = SessionChange::Joined {
                client: Arc::clone(&client.id),
                channel: Arc::clone(channel),
                at: WallTime::now(),
            };
            self.save(change);
        }
    }

    /// Saves that a client is not on a channel any more.
    pub fn save_left(&self, client: &Client, state: &ClientState, channel: &str) {
        if self.is_durable() && state.session.is_some() {
            let change = SessionChange::Left {
                client: Arc::clone(&client.id),
                channel: channel.into(),
            };
            self.save(change);
        }
    }

    /// Deletes the session of a client.
    pub fn delete_client(&self, id: &Arc<str>) {
        if self.is_durable() {
            let id = Arc::clone(id);
            self.save(SessionChange::ClientForgotten { id });
        }
    }

    /// Deletes messages that are not kept for a client any more, by their numbers in the mailbox.
    pub fn delete_mail(&self, client_id: &Arc<str>, numbers: Vec<u64>) {
        if !numbers.is_empty() && self.is_durable() {
            let client = Arc::clone(client_id);
            self.save(SessionChange::Unmailed { client, numbers });
        }
    }
}
