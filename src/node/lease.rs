//! Whether presence may have lost the members of this process, and members for which it has failed since.

use super::channel::Channel;
use super::client::Client;
use crate::base::sync::Mutex;
use crate::ports::presence::PresenceSink;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What is to be joined anew at the next tick.
#[derive(Default)]
pub(super) struct Lease {
    is_lost: AtomicBool,
    /// Members for which presence has failed.
    failed: Mutex<Vec<(Arc<Client>, Arc<Channel>)>>,
}

impl PresenceSink for Lease {
    fn lease_lost(&self) {
        self.is_lost.store(true, Ordering::Release);
    }
}

impl Lease {
    /// True after a loss, once.
    pub fn take_lost(&self) -> bool {
        self.is_lost.swap(false, Ordering::AcqRel)
    }

    /// Takes the members for which presence has failed.
    pub fn take_failed(&self) -> Vec<(Arc<Client>, Arc<Channel>)> {
        std::mem::take(&mut *self.failed.lock())
    }

    pub fn add_failed(&self, client: &Arc<Client>, channel: &Arc<Channel>) {
        let failed = (Arc::clone(client), Arc::clone(channel));
        self.failed.lock().push(failed);
    }
}
