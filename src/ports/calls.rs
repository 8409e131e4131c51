//! The calls on a messenger, as data. Python's methods translate into them, and so will every other way in. The node in
//! this process is one implementation; a link to a node in another process can be another.

use super::stats::Stats;
use crate::base::clock::WallTime;
use crate::base::completion::{Later, Progress};
use crate::base::priority::Priority;
use crate::core::history::{Page, StreamPosition};
use crate::settings::channel_kind::ChannelKind;
use crate::wire::command::Recover;
use crate::wire::frame::EncodedFrame;
use crate::wire::messages::{Body, Stamp};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A call. Texts and bodies are borrowed for as long as `Calls::call` runs.
///
/// Some calls are made by the application alone, and some, from `Join` on, by a client about itself; `Broadcast` by both.
/// The implementation of `Calls` knows who calls, and refuses the calls of others.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Call<'a> {
    /// Publishes on a channel, which is made if there is none. `data` is JSON. Replies `Published`.
    Broadcast {
        channel: &'a str,
        event: &'a str,
        #[serde(with = "serde_bytes")]
        data: &'a [u8],
        options: PublishOptions<'a>,
    },
    /// Sends to one client; a message to a client that is away waits for the client. Replies `Sent`.
    Send {
        client: &'a str,
        /// The channel that the message names; `None` for the default channel.
        channel: Option<&'a str>,
        body: Body<'a>,
        options: PublishOptions<'a>,
    },
    /// Sends to every client, ahead of everything that waits. Replies `Alarmed`.
    Emergency { message: &'a str },
    /// Puts a client on a channel; the client need not be connected. Replies `Done`.
    Subscribe { client: &'a str, channel: &'a str },
    /// Takes a client off a channel. Replies `Done`.
    Unsubscribe { client: &'a str, channel: &'a str },
    /// Replies `Changed`: true for a new channel, false when there is one of this name.
    CreateChannel { name: &'a str, kind: &'a str },
    /// Removes a channel with its history and subscriptions. Replies `Changed`: false when there is none of this name.
    DeleteChannel { name: &'a str },
    /// Replies `History`.
    History { channel: &'a str, page: Page },
    /// Replies `Ids`: the subscribers of a channel, in the order in which they came.
    Presence { channel: &'a str },
    /// Replies `Census`: the number of subscribers of each channel.
    Census,
    /// Replies `Ids`: the names of all channels, the oldest first.
    ChannelNames,
    /// Replies `Count`.
    ChannelCount,
    /// Replies `Known`.
    HasChannel { name: &'a str },
    /// Replies `Channel`.
    Channel { name: &'a str },
    /// Replies `Ids`: the connected clients, in the order in which they connected.
    ConnectionIds,
    /// Replies `Count`.
    ConnectionCount,
    /// Replies `Known`.
    HasConnection { client: &'a str },
    /// Replies `Connection`.
    Connection { client: &'a str },
    /// Makes a token with which a client can connect under this id. Replies `Token`.
    ResumeToken { client: &'a str },
    /// Replies `UserData`.
    UserData { client: &'a str },
    /// Attaches JSON to a client, for as long as the client is known. Replies `Done`.
    SetUserData {
        client: &'a str,
        #[serde(with = "serde_bytes")]
        json: &'a [u8],
    },
    /// Replies `Delivery`.
    Delivery { message_id: &'a str },
    /// Replies `Stats`.
    Stats,
    /// The client joins a channel. The client gets its answer between two publications of the channel, with what was
    /// published behind `recover`. Replies `Joining`.
    #[serde(skip)]
    Join {
        channel: &'a str,
        recover: Option<&'a Recover<'a>>,
    },
    /// The client leaves a channel. Replies `Done`.
    #[serde(skip)]
    Leave { channel: &'a str },
    /// Replies `Present`.
    #[serde(skip)]
    Present { channel: &'a str },
    /// A page of the history, with the limit as the client wrote it. Replies `History`.
    #[serde(skip)]
    Page {
        channel: &'a str,
        limit: Option<i64>,
        after: Option<u64>,
        before: Option<u64>,
    },
    /// The client has taken messages. `malformed` is a text among their ids that is no id. Replies `Acknowledged`.
    #[serde(skip)]
    Acknowledge {
        ids: &'a [u64],
        malformed: Option<&'a str>,
    },
    /// The client shows that it is there. Replies `Pong`.
    #[serde(skip)]
    Ping,
    /// A frame of the client whose action the application knows. Replies `Done`.
    #[serde(skip)]
    Message {
        action: Option<&'a str>,
        text: &'a str,
    },
}

/// The reply to a call.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    Done,
    /// Whether the call changed anything.
    Changed(bool),
    /// Whether there is one.
    Known(bool),
    Count(usize),
    Published(Published),
    Sent(Sent),
    Alarmed(Emergency),
    History(HistoryPage),
    Ids(Vec<Arc<str>>),
    Census(Vec<(Arc<str>, usize)>),
    /// `None` when there is no such channel.
    Channel(Option<ChannelInfo>),
    /// `None` when the client is not connected.
    Connection(Option<ConnectionInfo>),
    Token(String),
    /// JSON; `None` when nothing is attached, or the client is not known.
    UserData(Option<Bytes>),
    /// `None` for a message that is not known, or no longer.
    Delivery(Option<DeliveryReport>),
    Stats(Box<Stats>),
    /// The answer goes to the client by itself.
    Joining,
    /// The number of subscribers, and the first of them.
    Present {
        online: usize,
        users: Vec<Arc<str>>,
    },
    /// The number of messages that waited to be acknowledged.
    Acknowledged(usize),
    Pong,
}

/// Takes calls.
pub trait Calls: Send + Sync {
    /// Takes a call, and replies at once or by the completion that `later` makes. `Progress::Begun` has the reply to a
    /// publication or message that only has to be saved.
    ///
    /// Ordering: publications of one caller on one channel keep the order of the calls. Errors: with nothing done, but
    /// where the error says otherwise; on a durable channel with nothing handed over. Blocking: for the inboxes of shards
    /// that are behind, unless the priority is `Emergency`. The outcome may come inside the call, so the caller holds no
    /// lock that the receiver takes.
    fn call(&self, call: Call<'_>, later: &mut Later<'_, Reply>) -> Progress<Reply>;
}

/// How a message is to be published or sent.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct PublishOptions<'a> {
    pub priority: Priority,
    /// The call ends only when the message is saved.
    pub durable: bool,
    /// A repeat with the same key publishes nothing.
    pub idempotency_key: Option<&'a str>,
}

/// A publication that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// Connected subscribers that the publication was handed over to, or will be when it is saved.
    pub recipients: usize,
    /// The position in the channel's history; `None` when the publication is not kept.
    pub position: Option<StreamPosition>,
    /// The idempotency key was known: this is the result of the first publication, and nothing was published now.
    pub is_duplicate: bool,
}

/// A message that was sent to one client.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Sent {
    pub stamp: Stamp,
    /// The idempotency key was known: this is the stamp of the first message, and nothing was sent now.
    pub is_duplicate: bool,
}

/// An emergency that went out.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Emergency {
    pub stamp: Stamp,
    /// Connected clients that the emergency was handed over to.
    pub recipients: usize,
}

/// How far a message has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeliveryReport {
    /// Connections that the message was handed over to.
    pub handed_over: usize,
    /// Connections whose socket took the message.
    pub written: usize,
    /// Clients that acknowledged the message.
    pub acknowledged: usize,
    /// Clients that the message is kept for.
    pub waiting: usize,
}

/// Publications of a channel, oldest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryPage {
    pub epoch: u64,
    /// The offset of the newest publication.
    pub offset: u64,
    /// As they were on the wire.
    pub publications: Vec<EncodedFrame>,
    /// The page was cut short, because it would have been too large.
    pub is_cut: bool,
}

/// A channel as the application sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChannelInfo {
    pub name: Arc<str>,
    pub kind: ChannelKind,
    /// Ids in the order in which the subscribers came.
    pub subscribers: Vec<Arc<str>>,
    pub created_at: WallTime,
}

/// A connected client as the application sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConnectionInfo {
    pub client_id: Arc<str>,
    pub joined_at: WallTime,
    pub last_ping: WallTime,
    pub channels: Vec<Arc<str>>,
}

impl HistoryPage {
    /// The page of a channel that keeps nothing.
    pub fn empty(epoch: u64) -> Self {
        Self {
            epoch,
            offset: 0,
            publications: Vec::new(),
            is_cut: false,
        }
    }
}
