//! The sender of a command.

use super::client::Client;
use super::delivery::ConnectionId;
use crate::wire::messages::Reference;
use std::sync::Arc;

/// A client with the connection and the reference of its command. The reply has this reference and goes to this
/// connection.
#[derive(Clone, Copy)]
pub struct Asker<'a> {
    pub client: &'a Arc<Client>,
    pub connection_id: ConnectionId,
    pub reference: Option<Reference<'a>>,
}
