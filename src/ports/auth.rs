//! Admission: which connections are admitted, and as which client.

use crate::base::completion::Completion;
use crate::base::error::Refusal;
use crate::base::names::check_client_id;
use crate::net::peer::Peer;
use crate::wire::http::head::RequestHead;
use crate::wire::http::pages::Denial;
use std::sync::Arc;

/// Decides who may connect.
pub trait Auth: Send + Sync {
    /// Decides about a valid request for a WebSocket: at once, with `Admission::Decided`, or later, by a completion from
    /// `deferral`. An answer at once allocates nothing.
    ///
    /// Ordering: none; verdicts on different requests may come in any order. Errors: a completion that fails, or that is
    /// dropped, refuses the connection with status 503, as does a verdict that has not come `handshake_timeout` after the
    /// connection was accepted. A panic refuses this connection with status 500. Blocking: must not block, because the
    /// caller is the thread of a shard. The completion may be completed on any thread, before `admit` returns too.
    fn admit(&self, request: &AdmissionRequest<'_>, deferral: Deferral<'_>) -> Admission;
}

/// A request for a WebSocket.
#[derive(Clone, Copy, Debug)]
pub struct AdmissionRequest<'a> {
    /// Path, query, header fields and cookies.
    pub head: &'a Arc<RequestHead>,
    /// Where the connection comes from; `None` when the connection has ended already.
    pub peer: Option<Peer>,
}

/// The answer of `Auth::admit`.
#[derive(Debug)]
pub enum Admission {
    Decided(Verdict),
    /// The completion from `Deferral::defer` receives the verdict.
    Deferred(Deferred),
}

/// A decision about one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The connection is admitted: as this client, or as a client of its own choice.
    Admitted(Option<Identity>),
    /// The connection gets this answer and ends.
    Denied(Denial),
}

/// The client that a connection belongs to.
///
/// A client with this id that is away, or that is connected, is resumed: its older connection is closed. Without sessions
/// (`resume_ttl` is 0) the client gets the id if no other client has the id, and a new id otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    client_id: Arc<str>,
}

impl Identity {
    /// Errors: an id that is empty, over 255 bytes, or with a control character.
    pub fn new(client_id: &str) -> Result<Self, Refusal> {
        check_client_id(client_id)?;
        Ok(Self {
            client_id: client_id.into(),
        })
    }

    pub fn client_id(&self) -> &Arc<str> {
        &self.client_id
    }
}

/// Lets an implementation of `Auth` decide about one connection later.
pub struct Deferral<'a>(&'a dyn Fn() -> Completion<Verdict>);

impl<'a> Deferral<'a> {
    pub fn new(completion: &'a dyn Fn() -> Completion<Verdict>) -> Self {
        Self(completion)
    }

    /// Returns the completion that takes the verdict, and what `Auth::admit` then returns.
    pub fn defer(self) -> (Completion<Verdict>, Admission) {
        ((self.0)(), Admission::Deferred(Deferred(())))
    }
}

/// Proof that the completion of a connection was taken.
#[derive(Debug)]
pub struct Deferred(());
