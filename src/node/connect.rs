//! The start of a connection: it claims its client, at once or later, and gets its welcome.

use super::attempt::{Attempt, LateClaim};
use super::client::{Client, SessionStatus};
use super::clients::new_client_id;
use super::connecting::{ConnectRequest, Connected, Connecting, NotConnected};
use super::delivery::{Awaited, ConnectionId, Delivery};
use super::encode::encode;
use super::resume::Return;
use super::token::{read_token, token_text};
use super::wiring::Node;
use crate::base::clock::WallTime;
use crate::base::completion::{Completion, Progress};
use crate::base::names;
use crate::core::events::Detail;
use crate::core::resume_secrets::Secret;
use crate::ports::auth::Identity;
use crate::ports::sessions::{ClaimFailure, ClaimRequest, Claimed, Presented};
use crate::wire::frame::EncodedFrame;
use crate::wire::messages::{self, ResumeOutcome, WelcomeFields};
use std::sync::Arc;

const MALFORMED: &str = "the resume token is malformed";
const UNKNOWN: &str =
    "the resume token is of nobody who is expected back: it has expired, or the client has left";
const USED: &str = "the resume token is not the client's latest: it was used before, or made up";

impl Node {
    /// Connects a client: the client of the identity or of the resume token, or a new client. Refuses when as many clients
    /// as allowed are connected. A client that replaces its own older connection counts once.
    pub fn connect(
        self: &Arc<Self>,
        connection_id: ConnectionId,
        request: &ConnectRequest<'_>,
    ) -> Connecting {
        let attempt = match (request.identity, request.resume.map(read_token)) {
            (Some(identity), _) => self.vouched(identity),
            (None, Some(Some((client, secret)))) => Attempt::new(client, Presented::Secret(secret)),
            (None, Some(None)) => self.refused_token(MALFORMED),
            (None, None) => Attempt::new(new_client_id(), Presented::New),
        };
        let connecting = match attempt.presented {
            Presented::New => self.claim_new(connection_id, request, &attempt),
            Presented::Secret(_) | Presented::Vouched => {
                self.claim_known(connection_id, request, &attempt)
            }
        };
        self.count(connecting)
    }

    /// Goes on with a connect whose claim came later.
    pub fn connect_claimed(
        self: &Arc<Self>,
        connection_id: ConnectionId,
        request: &ConnectRequest<'_>,
        claim: LateClaim,
    ) -> Connecting {
        let LateClaim { attempt, outcome } = claim;
        let connecting = match (attempt.presented, outcome) {
            (Presented::New, Ok(claimed)) => self.begin(connection_id, request, &attempt, &claimed),
            (_, Ok(claimed)) => {
                let emergencies = self.emergencies.hold_back();
                let returning = Return {
                    connection_id,
                    request,
                    claimed,
                    is_late: true,
                };
                self.resume_by_id(&attempt.client, emergencies, returning)
            }
            (_, Err(failure)) => self.unclaimed(connection_id, request, &attempt, &failure),
        };
        self.count(connecting)
    }

    /// Gives up a claim whose connection has ended meanwhile. The client stays as it was.
    pub fn give_up(self: &Arc<Self>, claim: LateClaim) {
        let LateClaim { attempt, outcome } = claim;
        match (attempt.presented, outcome) {
            (Presented::New, Ok(claimed)) => self.end_unused(&attempt, &claimed),
            (_, Ok(claimed)) => self.keep_unused(&attempt.client, &claimed),
            (_, Err(_)) => self.drop_idle(&attempt.client),
        }
    }

    /// True while one more client may connect.
    pub fn has_room(&self) -> bool {
        self.clients.connected() < self.shards.limits().connections
    }

    /// Subscribes a new client to the default channel. To be called when the welcome is queued.
    pub fn join_default_channel(self: &Arc<Self>, connected: &Connected) {
        if !connected.is_resumed {
            let name = self.config.default_channel.clone();
            self.add_member(&connected.client, &name);
        }
    }

    pub(super) fn welcome(
        &self,
        client: &Client,
        secret: Option<&Secret>,
        channels: &[Arc<str>],
        outcome: Option<ResumeOutcome<'_>>,
    ) -> EncodedFrame {
        let token = secret.map(|secret| token_text(&client.id, secret));
        let stamp = self.stamps.next();
        let fields = WelcomeFields {
            resume: token
                .as_deref()
                .map(|token| (token, self.config.resume_ttl.as_secs_f64())),
            heartbeat_interval: self.config.heartbeat_interval.as_secs_f64(),
            channels,
            outcome,
        };
        encode(|out| messages::write_welcome(out, stamp, &client.id, &fields))
    }

    /// An attempt to connect the client that an identity names, as if the client had come with its resume token: a new
    /// client, one that is away, or one that is connected. Where sessions are not kept (`resume_ttl` is 0) the client is a
    /// new one, with this id if no other client has it.
    fn vouched(&self, identity: &Identity) -> Attempt {
        let id = Arc::clone(identity.client_id());
        if !self.config.resume_ttl.is_zero() {
            return Attempt::new(id, Presented::Vouched);
        }
        Attempt::new(id, Presented::New)
    }

    /// An attempt of a client whose token is not good, as a new client.
    fn refused_token(&self, reason: &'static str) -> Attempt {
        self.counters.resumes_refused.add(1);
        Attempt {
            refused: Some(reason),
            ..Attempt::new(new_client_id(), Presented::New)
        }
    }

    fn claim_new(
        self: &Arc<Self>,
        connection_id: ConnectionId,
        request: &ConnectRequest<'_>,
        attempt: &Attempt,
    ) -> Connecting {
        if !self.has_room() {
            return Connecting::NotConnected(NotConnected::Full);
        }
        match self.claim(connection_id, attempt, WallTime::now()) {
            Progress::Ended(Ok(claimed)) => self.begin(connection_id, request, attempt, &claimed),
            Progress::Ended(Err(failure)) => not_claimed(&failure),
            Progress::Begun(_) => Connecting::Begun,
        }
    }

    /// Claims a client that may be known. The client's state is locked, so that a client that is known at once cannot be
    /// forgotten between the claim and the return.
    fn claim_known(
        self: &Arc<Self>,
        connection_id: ConnectionId,
        request: &ConnectRequest<'_>,
        attempt: &Attempt,
    ) -> Connecting {
        let emergencies = self.emergencies.hold_back();
        let known = match attempt.presented {
            Presented::Vouched => {
                let client = self.clients.get_or_add(&attempt.client);
                client.set_spoken();
                Some(client)
            }
            Presented::Secret(_) | Presented::New => self.clients.get(&attempt.client),
        };
        let state = known.as_ref().map(|client| client.state.lock());
        let state = state.filter(|state| !state.removed);
        let is_connected = state
            .as_ref()
            .is_some_and(|state| state.connection_id.is_some());
        if !is_connected && !self.has_room() {
            drop((state, emergencies));
            self.drop_idle(&attempt.client);
            return Connecting::NotConnected(NotConnected::Full);
        }
        let since = known
            .as_ref()
            .map_or_else(WallTime::now, |client| client.joined);
        match self.claim(connection_id, attempt, since) {
            Progress::Ended(Ok(claimed)) => {
                let returning = Return {
                    connection_id,
                    request,
                    claimed,
                    is_late: false,
                };
                match (&known, state) {
                    (Some(client), Some(state)) => {
                        self.resume(client, state, emergencies, returning)
                    }
                    _ => self.resume_by_id(&attempt.client, emergencies, returning),
                }
            }
            Progress::Ended(Err(failure)) => {
                drop((state, emergencies));
                self.unclaimed(connection_id, request, attempt, &failure)
            }
            Progress::Begun(_) => Connecting::Begun,
        }
    }

    fn claim(
        &self,
        connection_id: ConnectionId,
        attempt: &Attempt,
        since: WallTime,
    ) -> Progress<Claimed, ClaimFailure> {
        let request = ClaimRequest {
            client: &attempt.client,
            presented: attempt.presented,
            since,
        };
        self.sessions.claim(&request, &mut || {
            let (shards, attempt) = (Arc::clone(&self.shards), attempt.clone());
            Completion::new(move |outcome| {
                let claim = LateClaim { attempt, outcome };
                let delivery = Delivery::Awaited {
                    connection_id,
                    awaited: Box::new(Awaited::Claim(claim)),
                };
                shards.push(connection_id.shard, delivery);
            })
        })
    }

    /// Goes on without a claim: a client whose token is not good is a new one.
    fn unclaimed(
        self: &Arc<Self>,
        connection_id: ConnectionId,
        request: &ConnectRequest<'_>,
        attempt: &Attempt,
        failure: &ClaimFailure,
    ) -> Connecting {
        self.drop_idle(&attempt.client);
        let reason = match failure {
            ClaimFailure::NoSession => UNKNOWN,
            ClaimFailure::Used => USED,
            ClaimFailure::Failed(_) => return not_claimed(failure),
        };
        let attempt = self.refused_token(reason);
        self.claim_new(connection_id, request, &attempt)
    }

    /// Adds a new client.
    fn begin(
        &self,
        connection_id: ConnectionId,
        request: &ConnectRequest<'_>,
        attempt: &Attempt,
        claimed: &Claimed,
    ) -> Connecting {
        let emergencies = self.emergencies.hold_back();
        if !self.clients.reserve(self.shards.limits().connections) {
            self.end_unused(attempt, claimed);
            return Connecting::NotConnected(NotConnected::Full);
        }
        let client = self
            .clients
            .add_connected(&attempt.client, claimed.claim, connection_id);
        client.begin_connection(false, request.peer);
        let mut state = client.state.lock();
        // the session is of the id that was claimed
        let secret = claimed.secret.filter(|_| client.id == attempt.client);
        if secret.is_some() {
            state.session = SessionStatus::Kept;
        } else {
            self.end_unused(attempt, claimed);
        }
        // `join_default_channel` subscribes the client
        let channels = [Arc::from(self.config.default_channel.as_str())];
        let outcome = attempt.refused.map(ResumeOutcome::Refused);
        let welcome = self.welcome(&client, secret.as_ref(), &channels, outcome);
        // the welcome of a new client tells nothing of mail
        self.open_mail(&client, &state, request);
        drop(state);
        Connecting::Connected(Connected {
            client,
            welcome,
            is_resumed: false,
            emergencies: *emergencies,
        })
    }

    /// Ends the session that was made for a new client, if there is one.
    fn end_unused(&self, attempt: &Attempt, claimed: &Claimed) {
        if claimed.secret.is_some() {
            self.sessions.end(&attempt.client, Some(claimed.claim));
        }
    }

    /// Counts a connect that has ended, and tells the application.
    fn count(&self, connecting: Connecting) -> Connecting {
        match &connecting {
            Connecting::Connected(connected) => {
                self.counters.connections_total.add(1);
                for event in ["welcome", "connect"] {
                    self.events.emit(
                        event,
                        Some(&connected.client.id),
                        Some(names::SYSTEM_CHANNEL),
                        || Detail::Message(messages::WELCOME.to_owned()),
                    );
                }
            }
            Connecting::NotConnected(NotConnected::Full) => self.counters.refused_full.add(1),
            Connecting::NotConnected(NotConnected::NotClaimed(_)) | Connecting::Begun => {}
        }
        connecting
    }

    /// Removes a client that an attempt has added, unless something is known of the client.
    fn drop_idle(&self, id: &str) {
        if let Some(client) = self.clients.get(id) {
            let state = client.state.lock();
            self.drop_if_idle(&client, state);
        }
    }
}

fn not_claimed(failure: &ClaimFailure) -> Connecting {
    Connecting::NotConnected(NotConnected::NotClaimed(failure.to_string()))
}
