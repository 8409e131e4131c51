//! Where a broker saves what it publishes.

mod memory;

pub use memory::MemoryStore;

use crate::broker::StreamPosition;
use crate::frame::EncodedFrame;

/// Saved streams, one per channel.
pub trait Store: Send + Sync {
    /// The position of the last publication saved.
    ///
    /// Ordering: sees every `append` that returned before. Errors: none; a channel never saved to has `None`.
    /// Blocking: may read from disk; called once when a channel's stream is opened.
    fn top(&self, channel: &str) -> Option<StreamPosition>;

    /// Saves a publication.
    ///
    /// Ordering: called in offset order for one channel, under that channel's lock. Errors: none may surface
    /// here; an implementation that fails counts it. Blocking: must not wait for a disk.
    fn append(&self, channel: &str, position: StreamPosition, frame: &EncodedFrame);

    /// Forgets a channel that has ended.
    ///
    /// Ordering: after the last `append` for it. Errors: none. Blocking: must not wait for a disk.
    fn forget(&self, channel: &str);
}
