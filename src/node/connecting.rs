//! What a connection asks for when it connects, and what comes of it.

use super::client::Client;
use crate::net::peer::Peer;
use crate::ports::auth::Identity;
use crate::wire::frame::EncodedFrame;
use std::sync::Arc;

/// What a client asks for when it connects.
#[derive(Clone, Copy, Debug, Default)]
pub struct ConnectRequest<'a> {
    /// The resume token of a client that returns.
    pub resume: Option<&'a str>,
    /// The client acknowledges what is sent to it.
    pub acknowledges: bool,
    /// The address that the client connects from.
    pub peer: Option<Peer>,
    /// The client that the connection belongs to. Goes before `resume`.
    pub identity: Option<&'a Identity>,
}

/// Where a connect stands when the call returns.
pub enum Connecting {
    Connected(Connected),
    NotConnected(NotConnected),
    /// The shard of the connection gets `Awaited::Claim`, with which the connect goes on.
    Begun,
}

/// A client that has connected.
pub struct Connected {
    pub client: Arc<Client>,
    /// The first message of the connection.
    pub welcome: EncodedFrame,
    pub is_resumed: bool,
    /// How many emergencies went out before. Those that the client has not acknowledged are in its mailbox.
    pub emergencies: u64,
}

/// Why a client is not connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotConnected {
    /// As many clients as allowed are connected.
    Full,
    /// The client could not be claimed, for this reason; a later attempt may succeed.
    NotClaimed(String),
}
