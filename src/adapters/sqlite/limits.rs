//! Bounds of the database.

use std::time::Duration;

/// The bounds of the file, and of the queue before it.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The most bytes of the file, without its log. A larger file is treated as a full disk.
    pub file_bytes: u64,
    /// The most bytes of changes that wait to be saved.
    pub queue_bytes: usize,
    /// The most idempotency keys of one kind.
    pub keys: usize,
    /// How long idempotency keys are known.
    pub key_ttl: Duration,
}
