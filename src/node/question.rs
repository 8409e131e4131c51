//! What a client asks about a channel when it joins, or has noticed a gap.

use super::delivery::ConnectionId;
use crate::ports::broker::Query;
use crate::wire::command::Recover;
use crate::wire::messages::Reference;
use std::borrow::Cow;

/// What a client asks when it joins a channel.
#[derive(Clone)]
pub struct Question<'a> {
    /// The connection that it asks by.
    pub connection_id: ConnectionId,
    reference: Option<Cow<'a, str>>,
    recover: Option<LastSeen>,
}

/// The position that a client has seen last.
#[derive(Clone, Copy)]
struct LastSeen {
    /// `None` for a text that is no epoch.
    epoch: Option<u64>,
    offset: u64,
}

impl<'a> Question<'a> {
    pub fn new(
        connection_id: ConnectionId,
        reference: Option<Reference<'a>>,
        recover: Option<&Recover<'_>>,
    ) -> Self {
        Self {
            connection_id,
            reference: reference.map(|reference| Cow::Borrowed(reference.0)),
            recover: recover.map(|recover| LastSeen {
                epoch: epoch_number(&recover.epoch),
                offset: recover.offset,
            }),
        }
    }

    /// A bare join is answered by the notice alone.
    pub fn wants_reply(&self) -> bool {
        self.reference.is_some() || self.recover.is_some()
    }

    pub fn reference(&self) -> Option<Reference<'_>> {
        self.reference.as_deref().map(Reference)
    }

    pub fn to_owned(&self) -> Question<'static> {
        Question {
            connection_id: self.connection_id,
            reference: self.reference.as_deref().map(|text| text.to_owned().into()),
            recover: self.recover,
        }
    }

    /// The last offset that the client has seen, if it wants to recover.
    pub fn last_seen(&self) -> Option<u64> {
        self.recover.map(|seen| seen.offset)
    }

    /// What has to be read of the stream for the reply.
    pub fn query(&self, through: Option<u64>, max_bytes: usize) -> Query {
        self.recover.map_or(Query::Position, |seen| Query::Since {
            epoch: seen.epoch,
            offset: seen.offset,
            through,
            max_bytes,
        })
    }
}

/// Parses an epoch of the client; `None` for a text that is not 16 hex digits, which matches no stream.
fn epoch_number(text: &str) -> Option<u64> {
    let is_epoch = text.len() == 16 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_epoch
        .then(|| u64::from_str_radix(text, 16).ok())
        .flatten()
}
