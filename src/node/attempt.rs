//! An attempt to claim a client for a connection.

use crate::ports::sessions::{ClaimFailure, Claimed, Presented};
use std::sync::Arc;

/// An attempt to claim a client for a connection.
#[derive(Clone, Debug)]
pub struct Attempt {
    pub client: Arc<str>,
    pub presented: Presented,
    /// Why the client is a new one, although it came with a token.
    pub refused: Option<&'static str>,
}

/// The outcome of a claim that was not known when the connect began.
#[derive(Debug)]
pub struct LateClaim {
    pub(super) attempt: Attempt,
    pub(super) outcome: Result<Claimed, ClaimFailure>,
}

impl Attempt {
    pub fn new(client: Arc<str>, presented: Presented) -> Self {
        Self {
            client,
            presented,
            refused: None,
        }
    }
}
