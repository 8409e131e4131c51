//! The queues that the frame of a client has filled.

use super::channel::Channel;
use std::sync::Arc;

/// What a frame of a client has put in queues. The client is read no further while these queues are too full.
#[derive(Debug, Default)]
pub struct Backpressure {
    /// Shards have something to deliver.
    pub published: bool,
    /// Python has an event to handle.
    pub told: bool,
    /// The publication of the frame, or the notice of a join or a leave, to the subscribers of a channel.
    pub fan_out: Option<FanOut>,
}

/// A frame on its way to the subscribers of a channel.
#[derive(Debug)]
pub struct FanOut {
    pub channel: Arc<Channel>,
    /// Connected subscribers.
    pub recipients: usize,
    /// A shard can join the frame to the one published before on the same channel, and queue both as one.
    pub can_be_joined: bool,
}
