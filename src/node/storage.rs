//! The store of the node: opened, closed and watched. The ports that save their changes have the store too.

use crate::base::error::Error;
use crate::base::fork::{ForkSensitive, OwningProcess};
use crate::base::sync::{Mutex, Rank};
use crate::core::events::{EventQueue, LogLevel};
use crate::ports::durability::{Durability, Health};
use crate::ports::store::{Saved, Store};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// The store, with the process that has it open.
pub struct Storage {
    store: Arc<dyn Store>,
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
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self {
            store,
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
}
