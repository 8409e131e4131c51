//! The broker gives every publication its position in the stream of its channel, keeps the last publications, and hands
//! each to the sinks of the processes that are attached to the channel.

use super::durability::{StoreError, UsedKey};
use super::stream_log::SavedStream;
use crate::base::completion::{Abandoned, Completion, Later, Progress};
use crate::base::error::Error;
use crate::base::priority::Priority;
use crate::core::history::{Bytes, Page, StreamPosition, Unrecovered};
use crate::settings::channel_kind::ChannelKind;
use crate::settings::channel_settings::ChannelSettings;
use crate::wire::frame::{EncodedFrame, Unsealed};
use std::fmt;
use std::sync::Arc;

/// Approximate bytes that a channel takes besides its publications, with its entries in the maps.
pub const CHANNEL_SIZE: usize = 1024;

/// The streams of all channels.
pub trait Broker: Send + Sync {
    /// Takes in streams and idempotency keys that were saved.
    ///
    /// Ordering: before the first `attach`, and again each time the storage was opened anew. Errors: none. Blocking: no.
    fn restore(&self, streams: Vec<SavedStream>, used_keys: Vec<UsedKey>);

    /// Attaches a sink to the stream of a channel. The sink gets every publication behind the position that any later
    /// `Stream::read` reports.
    ///
    /// Ordering: once for each process and channel, until `detach` or `remove`; a second call gives the same stream, and
    /// leaves the first sink in place. Errors: none; an adapter that cannot reach its backend tries again, and tells the
    /// sink of the gap. Blocking: no.
    fn attach(
        &self,
        channel: &Arc<str>,
        kind: ChannelKind,
        settings: ChannelSettings,
        sink: &Arc<dyn Sink>,
    ) -> Arc<dyn Stream>;

    /// Reads the stream of a channel to which this process is not attached; makes none.
    ///
    /// Ordering: none. Errors: `Failure`, but for `Closed`. Blocking: no.
    fn read(&self, channel: &str, query: Query, later: &mut Later<'_, View, Failure>) -> Reading;

    /// Detaches this process from a channel. False, with nothing done, while the broker needs the process to stay
    /// attached: the memory broker does while it keeps publications of the channel, or is about to.
    ///
    /// Ordering: publications on the stream fail with `Closed` from now on, and the sink gets nothing more. Errors: none.
    /// Blocking: no.
    fn detach(&self, channel: &str) -> bool;

    /// Removes a channel with its history, for every process.
    ///
    /// Ordering: publications on the stream fail with `Closed` from now on. Errors: none; the adapter tries again.
    /// Blocking: no.
    fn remove(&self, channel: &str);

    /// Removes publications and idempotency keys that have expired.
    ///
    /// Ordering: any. Errors: none. Blocking: no.
    fn expire(&self);

    /// Forgets the idempotency keys of a client that does not return.
    ///
    /// Ordering: any. Errors: none. Blocking: no.
    fn forget_keys(&self, client: &Arc<str>);

    /// The memory of histories and keys in this process.
    ///
    /// Ordering: any. Errors: none. Blocking: no.
    fn size(&self) -> BrokerSize;

    /// `BrokerSize::bytes` alone, which costs no look at the streams.
    ///
    /// Ordering: any. Errors: none. Blocking: no.
    fn used(&self) -> Bytes;

    /// Channels of which publications were evicted since the last call, because all histories together took more than
    /// they may, each with the number of its evicted publications.
    ///
    /// Ordering: any. Errors: none. Blocking: no.
    fn take_evicted(&self) -> Vec<(Arc<str>, usize)>;

    /// Channels whose history has become empty since the last call.
    ///
    /// Ordering: any. Errors: none. Blocking: no.
    fn take_emptied(&self) -> Vec<Arc<str>>;
}

/// The stream of one channel.
pub trait Stream: Send + Sync {
    /// Publishes: gives the publication the next position, and hands it to the sinks.
    ///
    /// A publication whose idempotency key is known is not published again. Its receipt is that of the first
    /// publication, with `is_duplicate`; while the first is under way, the second waits for the outcome of the first.
    /// A durable publication ends when it is saved.
    ///
    /// Ordering: the publications of one caller with equal `is_durable` keep the order of the calls. The outcome may come
    /// before or after the sink gets the publication. Errors: `Failure`; after `Unknown` a retry under the same key is
    /// safe. Blocking: no. The outcome may come inside the call, so the caller holds no lock that the receiver takes.
    fn publish(
        &self,
        publication: &Outgoing<'_>,
        later: &mut Later<'_, Receipt, Failure>,
    ) -> Progress<Receipt, Failure>;

    /// Hands a notice to the sinks: a message without position, which is not kept. Returns the subscribers of this
    /// process that have got the notice; 0 where the broker hands the notice over later.
    ///
    /// Ordering: in the order of the caller's calls on this stream. Errors: a notice may be lost. Blocking: no.
    fn notify(&self, body: Unsealed<'_>) -> usize;

    /// Reads the position of the stream and, by `query`, a part of its history. A barrier: the sink of this process has
    /// got everything up to the position that the view reports.
    ///
    /// Ordering: in the order of the caller's calls on this stream. Errors: `Failure`. Blocking: no. The outcome never comes inside the call
    /// on the caller's own thread: an outcome that is known at once is `Progress::Ended`.
    fn read(&self, query: Query, later: &mut Later<'_, View, Failure>) -> Reading;

    /// The epoch of the stream, as this process knows it.
    ///
    /// Ordering: any. Errors: none. Blocking: no.
    fn epoch(&self) -> u64;

    /// True if publications are handed to the sinks only once they are saved.
    ///
    /// Ordering: never changes. Errors: none. Blocking: no.
    fn saves_first(&self) -> bool;
}

/// The subscribers of a channel in this process.
///
/// Calls for one channel come one after another. A broker may hold locks of its own meanwhile, so a sink does not call
/// the broker, and does not block.
pub trait Sink: Send + Sync {
    /// Hands a publication or a notice to the subscribers; returns their number.
    ///
    /// Ordering: publications come in the order of their positions. Errors: none. Blocking: no.
    fn deliver(&self, delivered: &Delivered<'_>) -> usize;

    /// Publications are lost for this process and cannot be replayed: the subscribers get a `gap`, and recover. `top` is the
    /// newest lost position, where the broker knows it.
    ///
    /// Ordering: between the publications around the gap. Errors: none. Blocking: no.
    fn gap(&self, top: Option<StreamPosition>);

    /// The number of subscribers that a publication would be handed to now.
    ///
    /// Ordering: any. Errors: none. Blocking: no.
    fn subscribers(&self) -> usize;
}

/// A publication on its way to the broker.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    pub body: Unsealed<'a>,
    pub priority: Priority,
    pub kind: PublicationKind,
    /// The publication ends only when it is saved, and no budget removes it from the history.
    pub is_durable: bool,
    pub key: Option<IdempotencyKey<'a>>,
}

/// A publication or notice on its way from the broker to subscribers.
#[derive(Clone, Copy, Debug)]
pub struct Delivered<'a> {
    /// The position of a publication, kept or not; of a notice, the position of the last publication before the notice.
    pub position: StreamPosition,
    /// The history keeps the message, and the message carries its offset.
    pub is_kept: bool,
    pub priority: Priority,
    pub kind: PublicationKind,
    pub frame: &'a EncodedFrame,
}

/// How subscribers get a publication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublicationKind {
    /// The subscribers of the channel get it.
    Message,
    /// The subscribers of the channel get it; it stands for no newer state of the channel.
    Notice,
    /// Every connected client gets it, ahead of everything that waits.
    Emergency { message: u64 },
}

/// An idempotency key, with the scope in which it counts.
#[derive(Clone, Copy, Debug)]
pub struct IdempotencyKey<'a> {
    /// The client that publishes; `None` for the application.
    pub client: Option<&'a str>,
    /// The channel that is published on.
    pub channel: &'a str,
    pub key: &'a str,
}

/// A publication that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// `None` for a publication that is not kept, and while the broker has not reported it.
    pub position: Option<StreamPosition>,
    /// Subscribers that the publication was handed to; exact while no subscriber joins or leaves.
    pub recipients: usize,
    /// The idempotency key was known, and nothing was published now.
    pub is_duplicate: bool,
}

/// The part of a stream to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Query {
    /// Only its position.
    Position,
    /// Every publication behind a position.
    Since {
        /// `None` for an epoch that no stream can have.
        epoch: Option<u64>,
        offset: u64,
        /// Publications behind this offset are left out; `None` for none.
        through: Option<u64>,
        max_bytes: usize,
    },
    /// A page of the history.
    Page { page: Page, max_bytes: usize },
}

/// The result of reading a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The position of the newest publication; offset 0 before the first.
    pub position: StreamPosition,
    pub found: Found,
}

/// The publications that were found, oldest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    Nothing,
    Missed(Result<Vec<EncodedFrame>, Unrecovered>),
    Page {
        publications: Vec<EncodedFrame>,
        /// `max_bytes` has cut the page short.
        is_cut: bool,
    },
}

/// Where reading stands when the call returns.
pub type Reading = Progress<View, Failure>;

/// Why a call on the broker failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The channel was detached or removed: it has to be attached again. Nothing was done.
    Closed,
    /// The broker refuses the call. Nothing was done.
    Refused(String),
    /// The broker cannot be reached. Nothing was done.
    Unavailable(String),
    /// Too much waits for the broker. Nothing was done.
    Overloaded(String),
    /// The call may have been carried out: its reply was lost.
    Unknown(String),
}

/// The memory of the histories and keys of all channels in this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BrokerSize {
    pub messages: usize,
    /// Approximate bytes, with the channels that have history. Those of durable publications are in memory or in the log.
    pub bytes: Bytes,
    /// Known idempotency keys.
    pub keys: usize,
    /// Idempotency keys that were forgotten before their time, to make room.
    pub displaced_keys: u64,
}

impl Failure {
    /// What is wrong, without what became of the call.
    pub fn problem(&self) -> &str {
        match self {
            Failure::Closed => "the channel was deleted",
            Failure::Refused(problem)
            | Failure::Unavailable(problem)
            | Failure::Overloaded(problem)
            | Failure::Unknown(problem) => problem,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let problem = self.problem();
        match self {
            Failure::Unknown(_) => write!(f, "{problem}; the message may be published"),
            _ => f.write_str(problem),
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Error::Storage(failure.to_string())
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Failure::Refused(error.0)
    }
}

impl Abandoned for Failure {
    fn abandoned() -> Self {
        Failure::Unknown("the broker gave no outcome".to_owned())
    }
}

/// Receives the outcome of publishing.
pub type Publishing = Completion<Receipt, Failure>;
