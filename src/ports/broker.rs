//! Gives every publication its place in its channel's stream, in one order for all, and keeps the last of them.

use crate::core::history::{Bytes, History, StreamPosition};
use crate::ports::store::{Committed, SavedStream, StoreError, UsedKey};
use crate::settings::channel_kind::ChannelKind;
use crate::settings::channel_settings::ChannelSettings;
use crate::wire::frame::EncodedFrame;
use std::sync::Arc;

/// Bytes that a channel takes besides its publications, about, with its places in the maps.
pub const CHANNEL_SIZE: usize = 1024;

/// Encodes a publication at its position (`None` when the channel keeps no publications).
pub type Encode<'a> = dyn FnMut(Option<StreamPosition>) -> EncodedFrame + 'a;

/// Hands an encoded publication to subscribers; returns the idempotency key to save with the publication.
pub type HandOver<'a> =
    dyn FnMut(Option<StreamPosition>, &EncodedFrame) -> Option<Box<UsedKey>> + 'a;

/// Why a stream did not take a publication; nothing was handed over.
#[derive(Debug)]
pub enum Refused {
    /// The channel was closed: it has to be opened again.
    Closed,
    /// `durable_bytes` leaves no room for the publication.
    NoRoom(StoreError),
}

/// Returns the idempotency key to save with a publication at this position.
pub type KeyAt<'a> = dyn FnMut(StreamPosition) -> Option<Box<UsedKey>> + 'a;

/// Completes a publication that is handed over after saving: hands the saved publication to subscribers, or receives the
/// reason why the publication could not be saved.
pub type OnSaved = Box<dyn FnOnce(Result<(StreamPosition, &EncodedFrame), StoreError>) + Send>;

/// Which streams are closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    /// One of which nothing is kept, nor about to be.
    IfEmpty,
    Whatever,
}

/// What is kept of all channels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HistorySize {
    pub messages: usize,
    pub bytes: Bytes,
}

/// A channel, and how many of its publications were evicted.
pub type Evicted = (Arc<str>, usize);

pub trait Broker: Send + Sync {
    /// Takes in what was saved. Called once, before streams are opened.
    ///
    /// Ordering: before every `open`. Errors: none. Blocking: no.
    fn restore(&self, streams: Vec<SavedStream>);

    /// The stream of a channel, opened where it was left.
    ///
    /// Ordering: two calls for a channel that was not closed in between give the same stream. Errors: none.
    /// Blocking: no.
    fn open(
        &self,
        channel: &Arc<str>,
        kind: ChannelKind,
        settings: ChannelSettings,
    ) -> Arc<dyn Stream>;

    /// The epoch that the stream of a channel without one gets when it is opened, unless something of it was saved.
    ///
    /// Ordering: another epoch only after a stream has ended that gave out positions, or was closed with `Whatever`. Errors: none. Blocking: no.
    fn next_epoch(&self, channel: &str) -> u64;

    /// Ends the stream of a channel and removes its history. False, with nothing done, when `closing` is `IfEmpty` and
    /// the history is not empty.
    ///
    /// Ordering: what is published on its stream from now on is refused. Errors: none. Blocking: for a publication on
    /// it that is under way.
    fn close(&self, channel: &str, closing: Closing) -> bool;

    /// Removes publications that have expired.
    ///
    /// Ordering: any. Errors: none. Blocking: for publications that are under way.
    fn expire(&self);

    /// Bytes of memory that histories take, about, with the channels that they are of.
    ///
    /// Ordering: any. Errors: none. Blocking: no.
    fn used(&self) -> Bytes;

    /// Ordering: any. Errors: none. Blocking: as `expire`.
    fn size(&self) -> HistorySize;

    /// What was evicted since the last call, because the histories took more than they may.
    ///
    /// Ordering: any. Errors: none. Blocking: no.
    fn take_evicted(&self) -> Vec<Evicted>;

    /// Channels whose history has become empty since the last call.
    ///
    /// Ordering: any. Errors: none. Blocking: no.
    fn take_emptied(&self) -> Vec<Arc<str>>;
}

/// One channel's publications.
pub trait Stream: Send + Sync {
    /// Gives a publication the next position, encodes it and hands it over, as one step. With `committed`, which is
    /// called when the publication is saved, it is durable: no budget removes it from the history.
    ///
    /// Ordering: calls of `hand_over` come one after another, in the order of positions. Errors: `Refused`, with no
    /// position taken, nothing handed over, and `committed` left to the caller. `committed` is told, perhaps before this
    /// returns, when the publication could not be saved; it was handed over then all the same. Blocking: only for other
    /// publications of this channel; `encode` and `hand_over` must not publish on it.
    fn publish(
        &self,
        encode: &mut Encode<'_>,
        hand_over: &mut HandOver<'_>,
        committed: &mut Option<Committed>,
    ) -> Result<(), Refused>;

    /// Gives a publication the next position at once, and calls `on_saved` when the publication is saved. No budget
    /// removes the publication from the history after that. False, with nothing done, when the channel was closed.
    ///
    /// Ordering: `on_saved` is called in the order of positions, on the store's thread, under this stream's lock.
    /// Errors: `on_saved` receives them, perhaps before this method returns: saving failed, or durable publications have
    /// no more room. Nothing was handed over then. Blocking: as `publish`.
    fn publish_saved(
        self: Arc<Self>,
        encode: &mut Encode<'_>,
        key_at: &mut KeyAt<'_>,
        on_saved: &mut Option<OnSaved>,
    ) -> bool;

    /// Hands over a notice, which takes no position and is not kept.
    ///
    /// Ordering: between publications as it was called. Errors: none. Blocking: as `publish`.
    fn notify(&self, hand_over: &mut dyn FnMut());

    /// Looks at what is kept. What the caller hands over meanwhile comes behind all of it, and before what follows.
    ///
    /// Ordering: between publications as it was called. Errors: none. Blocking: as `publish`.
    fn read(&self, look: &mut dyn FnMut(&History));

    /// Publications are to be saved before they are handed over.
    ///
    /// Ordering: never changes. Errors: none. Blocking: no.
    fn is_durable(&self) -> bool;
}
