//! Bounds of the database.

use std::time::Duration;

/// The bounds of the file, and of the queue before it.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of the file, its log not counted; beyond it, it counts as a full disk.
    pub file_bytes: u64,
    /// Bytes of changes that may wait to be saved.
    pub queue_bytes: usize,
    /// Idempotency keys of one kind.
    pub keys: usize,
    /// How long idempotency keys are known.
    pub key_ttl: Duration,
}
