//! Gives every publication its place in its channel's stream, in one order for all.

mod memory;

pub use memory::MemoryBroker;

use crate::frame::EncodedFrame;
use std::sync::Arc;

/// A place in a channel's stream: offsets count publications within one epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamPosition {
    /// This incarnation of the stream; another one means that offsets began anew.
    pub epoch: u64,
    /// 1 for the first publication.
    pub offset: u64,
}

/// Encodes a publication at its position (`None` when it has none), hands it to subscribers and returns it.
pub type HandOver<'a> = dyn FnMut(Option<StreamPosition>) -> EncodedFrame + 'a;

pub trait Broker: Send + Sync {
    /// The stream of a channel, opened where its store left it.
    ///
    /// Ordering: two calls for a channel that was not closed in between give the same stream. Errors: none.
    /// Blocking: may read from the store.
    fn open(&self, channel: &str) -> Arc<dyn Stream>;

    /// Lets go of a channel that has ended.
    ///
    /// Ordering: what is published on its stream from now on gets no position. Errors: none. Blocking: for a
    /// publication on it that is under way.
    fn close(&self, channel: &str);
}

/// One channel's publications.
pub trait Stream: Send + Sync {
    /// Gives a publication the next position and hands it over, as one step. `None`, with nothing handed over, when
    /// the channel was closed: it has to be opened again.
    ///
    /// Ordering: calls of `hand_over` come one after another, in the order of positions. Errors: none.
    /// Blocking: only for other publications of this channel; `hand_over` must not publish on it.
    fn publish(&self, hand_over: &mut HandOver<'_>) -> Option<StreamPosition>;

    /// Hands over a notice, which takes no position and is not kept.
    ///
    /// Ordering: between publications as it was called. Errors: none. Blocking: as `publish`.
    fn notify(&self, hand_over: &mut HandOver<'_>);

    /// The last position given; offset 0 before the first.
    ///
    /// Ordering: sees every publication that returned before. Errors: none. Blocking: as `publish`.
    fn top(&self) -> StreamPosition;
}
