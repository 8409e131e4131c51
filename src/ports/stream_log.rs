//! The log of streams: where the memory broker saves publications, and reads them back after a restart.

use super::durability::{Committed, Durability, NotTaken, StoreError, UsedKey};
use crate::base::clock::WallTime;
use crate::base::completion::{Later, Progress};
use crate::core::history::{Message, StreamPosition};
use crate::settings::channel_kind::ChannelKind;
use crate::wire::frame::EncodedFrame;
use std::ops::RangeInclusive;
use std::sync::Arc;

/// A log of the changes of streams. The broker keeps the state of the streams, with the newest messages. `Store::open`
/// reads that state, and `read` the older messages.
pub trait StreamLog: Durability {
    /// Takes a change. `committed` completes when the change is saved and would outlive a power failure, or when saving
    /// has failed.
    ///
    /// Ordering: changes are saved, and completed, in the order of the calls on both ports; those of a stream behind its
    /// `StreamOpened`, since the store was opened. While the store is full, a publication that does not fit may be saved
    /// after later changes, but never after its own deletion. Errors: `NotTaken` when the store refuses the change: a
    /// full store refuses changes that add to it, a closed store refuses every change. A refused `StreamOpened` is not
    /// counted as lost, because its stream is to be announced again. Later errors go to `committed`; without it the store
    /// tries again, and counts the changes that it gave up in `health`. Blocking: as `Durability::barrier`.
    fn append(
        &self,
        change: StreamChange<&EncodedFrame>,
        committed: Option<Committed>,
    ) -> Result<(), NotTaken>;

    /// Notes, for the next `open`, that something is about to be published on a stream that is not durable: only such
    /// streams have another epoch after an unclean end. `was_durable` says that the saved state may still call the stream
    /// durable. False when the store is not open.
    ///
    /// Ordering: before the first such publication since the store was opened. Errors: none. Blocking: two system calls
    /// that wait for no disk.
    fn note_published(&self, channel: &str, was_durable: bool) -> bool;

    /// Reads the publications of a channel's stream at these offsets, oldest first. The caller bounds the range: all of
    /// its publications are read.
    ///
    /// Ordering: sees each publication whose `committed` has completed before the call, unless the publication was deleted
    /// since. Publications that are deleted meanwhile may be missing. Errors: the store is closed, too many reads wait, or
    /// the store cannot be read. Blocking: no. The outcome never comes inside the call on the caller's own thread: an
    /// outcome that is known at once is `Progress::Ended`. A read waits neither for changes nor for their commits.
    fn read(
        &self,
        channel: &Arc<str>,
        offsets: RangeInclusive<u64>,
        later: &mut Later<'_, Vec<Logged>, StoreError>,
    ) -> Progress<Vec<Logged>, StoreError>;

    /// True while half of what may wait to be saved does: what can be done without is not to be given.
    ///
    /// Ordering: any. Errors: none. Blocking: no.
    fn is_busy(&self) -> bool;
}

/// Stands for a stream, so that a publication need not name its channel.
pub type StreamKey = u64;

/// A channel's stream, its publications oldest first.
#[derive(Clone, Debug)]
pub struct SavedStream {
    pub channel: Arc<str>,
    pub epoch: u64,
    pub top: u64,
    pub kind: ChannelKind,
    pub durable: bool,
    /// Some of what was published up to this offset is not there.
    pub broken_through: u64,
    pub publications: Vec<SavedPublication>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedPublication {
    pub offset: u64,
    /// When it was published.
    pub at: WallTime,
    pub is_durable: bool,
    /// Of a durable stream only the newest messages are read at the opening (`core::history::WINDOW`).
    pub message: Message,
}

/// A publication as it was read from the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    pub offset: u64,
    pub frame: EncodedFrame,
}

/// A change of a stream. `F` is the message of a publication: its frame, or the place where a store has put the bytes of
/// the frame.
#[derive(Debug)]
pub enum StreamChange<F> {
    /// On a stream that was opened under this key before.
    Published {
        stream: StreamKey,
        position: StreamPosition,
        at: WallTime,
        expires: WallTime,
        /// The publication has a caller that waits until it is saved.
        is_durable: bool,
        frame: F,
        used_key: Option<Box<UsedKey>>,
    },
    /// From here on the key stands for this channel's stream.
    StreamOpened {
        stream: StreamKey,
        channel: Arc<str>,
        epoch: u64,
        kind: ChannelKind,
        durable: bool,
    },
    Trimmed {
        stream: StreamKey,
        through: u64,
    },
    StreamForgotten {
        stream: StreamKey,
        channel: Arc<str>,
    },
}

impl<F> StreamChange<F> {
    /// The same change, with its frame replaced.
    pub fn map_frame<G>(self, replace: impl FnOnce(F) -> G) -> StreamChange<G> {
        match self {
            StreamChange::Published {
                stream,
                position,
                at,
                expires,
                is_durable,
                frame,
                used_key,
            } => StreamChange::Published {
                stream,
                position,
                at,
                expires,
                is_durable,
                frame: replace(frame),
                used_key,
            },
            StreamChange::StreamOpened {
                stream,
                channel,
                epoch,
                kind,
                durable,
            } => StreamChange::StreamOpened {
                stream,
                channel,
                epoch,
                kind,
                durable,
            },
            StreamChange::Trimmed { stream, through } => StreamChange::Trimmed { stream, through },
            StreamChange::StreamForgotten { stream, channel } => {
                StreamChange::StreamForgotten { stream, channel }
            }
        }
    }
}
