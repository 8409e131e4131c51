//! The state of the writer, as numbers that any thread may read.

use crate::base::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64};

/// Gauges that the writer sets and `health` reads.
#[derive(Default)]
pub(super) struct Gauges {
    pub is_degraded: AtomicBool,
    pub error: Mutex<Option<String>>,
    pub commits: AtomicU64,
    pub saved: AtomicU64,
    pub lost: AtomicU64,
    pub file_bytes: AtomicU64,
}
