//! Sessions: which clients may return, with which token, and which connection of a client is the newest.

use super::broker::Failure;
use super::claim::ClaimNumber;
use super::saved_sessions::SavedClient;
use crate::base::clock::WallTime;
use crate::base::completion::{Abandoned, Later, Progress};
use crate::core::resume_secrets::Secret;
use bytes::Bytes;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

/// The sessions of all clients, which several processes may share.
///
/// Ordering, of all methods: the calls of one process for one client take effect in the order of the calls; calls for
/// different clients in any order. Blocking, of all methods: no; the caller may hold the lock of the client's state. An
/// outcome never comes inside the call on the caller's own thread: an outcome that is known at once is
/// `Progress::Ended`.
pub trait Sessions: Send + Sync {
    /// Sets the sink of this process.
    ///
    /// Ordering: once for each process, before its other calls. Errors: none. Blocking: no.
    fn attach(&self, sink: Arc<dyn SessionSink>);

    /// Takes in the sessions that were saved, with the channels of each client. A session that is known stays as it is.
    ///
    /// Ordering: before the first claim, and again each time the storage was opened anew. Errors: none. Blocking: no.
    fn restore(&self, clients: &[SavedClient], memberships: &HashMap<Arc<str>, Vec<Arc<str>>>);

    /// Claims a client for a new connection, under a higher number than every claim on this client before. The token of
    /// the client is replaced: the answer has the secret of the next one. The token before stays good until `confirm`.
    ///
    /// Ordering: as all methods; outcomes of several claims on one client may come in any order. If another process made
    /// the claim before, its sink hears of this claim, before or after the outcome. Errors: `ClaimFailure`. After
    /// `Failure::Unknown` the client may be claimed; the token that was presented is still good, and the adapter ends the
    /// session after `resume_ttl` unless the client is claimed again. Blocking: no.
    fn claim(
        &self,
        request: &ClaimRequest<'_>,
        later: &mut Later<'_, Claimed, ClaimFailure>,
    ) -> Progress<Claimed, ClaimFailure>;

    /// The first frame of the claim's connection has arrived, so the client has its new token: the one before is void. An
    /// older claim changes nothing.
    ///
    /// Ordering: as all methods. Errors: none; the adapter tries again. Blocking: no.
    fn confirm(&self, client: &Arc<str>, claim: ClaimNumber);

    /// The connection of the claim has ended, and the client may return. `state` makes the state of the client, which
    /// replaces the state that was saved; it is called at most once, inside the call. An older claim changes nothing.
    ///
    /// Ordering: as all methods. Errors: none; the adapter tries again. Blocking: no.
    fn release(&self, client: &Arc<str>, claim: ClaimNumber, state: &dyn Fn() -> SessionState);

    /// Ends the session: the client has left, or its time to return is over. No token of the client is good any more. An
    /// older claim changes nothing; `None` is older than every claim.
    ///
    /// Ordering: as all methods. Errors: none; the adapter tries again. Blocking: no.
    fn end(&self, client: &Arc<str>, claim: Option<ClaimNumber>);

    /// Saves a change of the state of a client that has a session. An older claim, or a client without a session, changes
    /// nothing; `None` is older than every claim.
    ///
    /// Ordering: as all methods. Errors: none; the adapter tries again. Blocking: no.
    fn save(&self, client: &Arc<str>, claim: Option<ClaimNumber>, change: Change<'_>);

    /// The secret of the token with which the client can connect. Makes a session if there is none, with the state that
    /// `state` makes; it is called at most once, inside the call.
    ///
    /// Ordering: as all methods. Errors: `Failure`; after `Unknown` there may be a session, which the adapter ends after
    /// `resume_ttl`. Blocking: no.
    fn token(
        &self,
        client: &Arc<str>,
        state: &dyn Fn() -> SessionState,
        later: &mut Later<'_, Secret, Failure>,
    ) -> Progress<Secret, Failure>;
}

/// Learns what other processes do with the clients of this process.
pub trait SessionSink: Send + Sync {
    /// Another process has claimed a client whose latest claim, or whose session, was of this process.
    ///
    /// Ordering: none; the number of the claim tells whether it is newer than the latest one that this process knows.
    /// Errors: may come twice. Blocking: must not block, and takes no lock of a client, because a caller of `Sessions` may
    /// hold one.
    fn displaced(&self, client: &Arc<str>, claim: ClaimNumber);
}

/// A connection that claims a client.
#[derive(Clone, Copy, Debug)]
pub struct ClaimRequest<'a> {
    pub client: &'a Arc<str>,
    pub presented: Presented,
    /// The time since which the client is known, for a session that the claim makes.
    pub since: WallTime,
}

/// The right of a connection to a client.
#[derive(Clone, Copy, Debug)]
pub enum Presented {
    /// The client is a new one: its id was made for this connection.
    New,
    /// The secret of the client's resume token.
    Secret(Secret),
    /// `Auth` says that the connection is of this client. The claim makes a session if there is none.
    Vouched,
}

/// A claim that was made.
#[derive(Debug)]
pub struct Claimed {
    pub claim: ClaimNumber,
    /// The secret of the client's next token; `None` for a new client where sessions are not kept.
    pub secret: Option<Secret>,
    pub origin: Origin,
    /// The saved state of a session that is not new. `None` where the adapter answered inside the call and `origin` is
    /// `Here`: this process has the state.
    pub state: Option<Box<SessionState>>,
}

/// Who had the session before a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The claim has made the session.
    New,
    /// This process made the claim before, or the session.
    Here,
    /// Another process did.
    Elsewhere,
}

/// What a client has in any process that claims it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionState {
    pub joined: WallTime,
    pub last_ping: WallTime,
    /// JSON of the application.
    pub user_data: Option<Bytes>,
    /// In the order in which the client joined them.
    pub channels: Vec<Arc<str>>,
}

/// A change of the saved state.
#[derive(Clone, Copy)]
pub enum Change<'a> {
    UserData(&'a Bytes),
    Joined(&'a Arc<str>),
    Left(&'a str),
    /// The state as a whole: `make` is called at most once, inside the call.
    State {
        make: &'a dyn Fn() -> SessionState,
    },
}

/// Why a client could not be claimed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimFailure {
    /// There is no session of this client.
    NoSession,
    /// The secret is not the latest: it was used before, or made up.
    Used,
    /// The backend has failed.
    Failed(Failure),
}

impl SessionState {
    /// The state of a client that is on no channel.
    pub fn new(joined: WallTime, last_ping: WallTime) -> Self {
        Self {
            joined,
            last_ping,
            user_data: None,
            channels: Vec::new(),
        }
    }
}

impl fmt::Display for ClaimFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClaimFailure::NoSession => f.write_str("there is no session"),
            ClaimFailure::Used => f.write_str("the token was used before, or made up"),
            ClaimFailure::Failed(failure) => f.write_str(failure.problem()),
        }
    }
}

impl Abandoned for ClaimFailure {
    fn abandoned() -> Self {
        ClaimFailure::Failed(Failure::abandoned())
    }
}
