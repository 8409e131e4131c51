//! Clients of this process that other processes have claimed.

use crate::base::sync::Mutex;
use crate::ports::claim::ClaimNumber;
use crate::ports::sessions::SessionSink;
use std::sync::Arc;

/// The claims of other processes that the node has not carried out yet: it lets go of the clients at the next tick.
#[derive(Default)]
pub struct Displaced {
    claims: Mutex<Vec<(Arc<str>, ClaimNumber)>>,
}

impl Displaced {
    pub fn take(&self) -> Vec<(Arc<str>, ClaimNumber)> {
        std::mem::take(&mut *self.claims.lock())
    }
}

impl SessionSink for Displaced {
    fn displaced(&self, client: &Arc<str>, claim: ClaimNumber) {
        self.claims.lock().push((Arc::clone(client), claim));
    }
}
