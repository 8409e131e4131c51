//! The start of a connection: a new client, or a client that resumes its session.

use super::client::{Client, ClientState};
use super::delivery::{ConnectionId, Delivery};
use super::encode::encode;
use super::token::{Session, read_token};
use super::wiring::Node;
use crate::base::clock::WallTime;
use crate::base::error::{Disconnect, Error, argument};
use crate::base::names;
use crate::core::events::{Detail, LogLevel};
use crate::net::peer::Peer;
use crate::ports::auth::Identity;
use crate::wire::frame::EncodedFrame;
use crate::wire::messages::{self, ResumeOutcome, WelcomeFields};
use std::sync::Arc;

/// Why a client could not resume.
enum Unresumed {
    /// The token is not valid, for this reason.
    Refused(&'static str),
    /// No more clients may connect.
    Full,
}

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

/// A client that has connected.
pub struct Connected {
    pub client: Arc<Client>,
    /// The first message of the connection.
    pub welcome: EncodedFrame,
    pub is_resumed: bool,
    /// How many emergencies went out before. Those that the client has not acknowledged are in its mailbox.
    pub emergencies: u64,
}

const MALFORMED: &str = "the resume token is malformed";
const UNKNOWN: &str =
    "the resume token is of nobody who is expected back: it has expired, or the client has left";
const USED: &str = "the resume token is not the client's latest: it was used before, or made up";

impl Node {
    /// A client has connected: the one that it was, if its token says so, or a new one. `None` when as many as may be
    /// are connected already; one that takes the place of its own older connection is not one more.
    pub fn connect(
        self: &Arc<Self>,
        connection_id: ConnectionId,
        request: &ConnectRequest<'_>,
    ) -> Option<Connected> {
        let connected = match (request.identity, request.resume) {
            (Some(identity), _) => self.connect_as(connection_id, identity, request),
            (None, Some(token)) => match self.resume(connection_id, token, request) {
                Ok(resumed) => Some(resumed),
                Err(Unresumed::Full) => None,
                Err(Unresumed::Refused(reason)) => {
                    self.counters.resumes_refused.add(1);
                    self.begin(connection_id, request, Some(ResumeOutcome::Refused(reason)))
                }
            },
            (None, None) => self.begin(connection_id, request, None),
        };
        let Some(connected) = connected else {
            self.counters.refused_full.add(1);
            return None;
        };
        self.counters.connections_total.add(1);
        for event in ["welcome", "connect"] {
            self.events.emit(
                event,
                Some(&connected.client.id),
                Some(names::SYSTEM_CHANNEL),
                || Detail::Message(messages::WELCOME.to_owned()),
            );
        }
        Some(connected)
    }

    /// Connects the client that an identity names, as if the client had come with its resume token: a new client, one that
    /// is away, or one that is connected, whose older connection is closed. Where sessions are not kept (`resume_ttl` is 0)
    /// the client is a new one. `None` when as many clients as allowed are connected.
    fn connect_as(
        self: &Arc<Self>,
        connection_id: ConnectionId,
        identity: &Identity,
        request: &ConnectRequest<'_>,
    ) -> Option<Connected> {
        let id = identity.client_id();
        // before a token is made, which makes the client too
        if !self.has_room() && !self.has_connection(id) {
            return None;
        }
        let token = self.resume_token(id).ok();
        match token.map(|token| self.resume(connection_id, &token, request)) {
            Some(Ok(resumed)) => Some(resumed),
            Some(Err(Unresumed::Full)) => None,
            // the client was forgotten meanwhile, or sessions are not kept
            Some(Err(Unresumed::Refused(_))) | None => self.begin(connection_id, request, None),
        }
    }

    /// True while one more client may connect.
    pub fn has_room(&self) -> bool {
        self.clients.connected() < self.shards.limits().connections
    }

    /// Subscribes a new client to the default channel. To be called after `connect`, when the welcome is queued.
    pub fn join_default_channel(self: &Arc<Self>, connected: &Connected) {
        if !connected.is_resumed {
            let name = self.config.default_channel.clone();
            self.add_member(&connected.client, &name);
        }
    }

    /// The token with which a client can connect under this id. A client that was never connected begins on the default
    /// channel, as every client does.
    ///
    /// Errors: an id that cannot be one; `resume_ttl` is 0; the storage cannot be opened.
    pub fn resume_token(self: &Arc<Self>, client_id: &str) -> Result<String, Error> {
        names::check_client_id(client_id).map_err(argument)?;
        self.restore()?;
        if self.config.resume_ttl.is_zero() {
            return Err(Error::Argument(
                "there are no resume tokens: resume_ttl is 0".to_owned(),
            ));
        }
        loop {
            let client = self.clients.get_or_add(client_id);
            let mut state = client.state.lock();
            if state.removed {
                continue;
            }
            client.set_spoken();
            let is_new = state.session.is_none();
            let token = state
                .session
                .get_or_insert_with(Session::new)
                .token(client_id);
            if state.connection_id.is_none() && state.away.is_none() {
                let start = &self.config.default_channel;
                let is_there = state.position(start).is_some();
                let remembered = (!is_there).then(|| Arc::from(start.as_str()));
                self.away
                    .add(&client, &mut state, remembered.into_iter().collect());
            }
            self.store.save_client(&client, &state);
            if is_new {
                for name in state.channel_names() {
                    self.store.save_joined(&client, &state, &name);
                }
            }
            drop(state);
            self.forget_surplus();
            return Ok(token);
        }
    }

    /// The data that the application attached to a client, as JSON; `None` for an unknown client.
    pub fn user_data(&self, client_id: &str) -> Option<bytes::Bytes> {
        let client = self.clients.get(client_id)?;
        client.state.lock().user_data.clone()
    }

    /// Attaches data of the application to a client, as JSON, for as long as the client is known.
    pub fn set_user_data(&self, client_id: &str, json: Vec<u8>) {
        let client = self.clients.get(client_id);
        if let Some(client) = client {
            let mut state = client.state.lock();
            state.user_data = Some(json.into());
            self.store.save_client(&client, &state);
        }
    }

    /// Adds a new client; `None` if no more clients may connect.
    fn begin(
        &self,
        connection_id: ConnectionId,
        request: &ConnectRequest<'_>,
        outcome: Option<ResumeOutcome<'_>>,
    ) -> Option<Connected> {
        let emergencies = self.emergencies.hold_back();
        if !self.clients.reserve(self.shards.limits().connections) {
            return None;
        }
        let own_id = request.identity.map(Identity::client_id);
        let client = self.clients.add_connected(connection_id, own_id);
        client.begin_connection(false, request.peer);
        let mut state = client.state.lock();
        state.acknowledges = request.acknowledges;
        if !self.config.resume_ttl.is_zero() {
            state.session = Some(Session::new());
        }
        // `join_default_channel` subscribes the client
        let channels = [Arc::from(self.config.default_channel.as_str())];
        let welcome = self.welcome(&client, &state, &channels, outcome);
        self.store.save_client(&client, &state);
        drop(state);
        Some(Connected {
            client,
            welcome,
            is_resumed: false,
            emergencies: *emergencies,
        })
    }

    /// Resumes the session of a token. The mail and the publications of the client follow through the inbox.
    fn resume(
        self: &Arc<Self>,
        connection_id: ConnectionId,
        token: &str,
        request: &ConnectRequest<'_>,
    ) -> Result<Connected, Unresumed> {
        let refused = Unresumed::Refused;
        let (id, secret) = read_token(token).ok_or(refused(MALFORMED))?;
        let client = self.clients.get(&id);
        let client = client.ok_or(refused(UNKNOWN))?;
        let emergencies = self.emergencies.hold_back();
        let mut guard = client.state.lock();
        let state = &mut *guard;
        let session = state
            .session
            .as_mut()
            .filter(|_| !state.removed)
            .ok_or(refused(UNKNOWN))?;
        let used = session.find(&secret).ok_or(refused(USED))?;
        if state.connection_id.is_none() && !self.clients.reserve(self.shards.limits().connections)
        {
            return Err(Unresumed::Full);
        }
        session.rotate(used);
        client.begin_connection(true, request.peer);
        client.ping(WallTime::now());
        let displaced = state.claim(connection_id);
        state.acknowledges = request.acknowledges;
        let mut names = state.channel_names();
        let mut remembered = self.away.remove(state);
        // what the displaced connection has asked for, the client asks for again if it still wants to
        let required = state.stop_all_entering();
        names.extend(required.iter().cloned());
        remembered.extend(required);
        if let Some(mailbox) = &mut state.mailbox {
            self.mailroom.expire(&client.id, mailbox);
        }
        let (waiting, dropped) = state
            .mailbox
            .as_mut()
            .map_or((0, 0), |mailbox| (mailbox.len(), mailbox.tell_dropped()));
        let outcome = ResumeOutcome::Resumed { waiting, dropped };
        let welcome = self.welcome(&client, state, &names, Some(outcome));
        self.hand_over_mail(&client, state, connection_id);
        for at in 0..state.channels.len() {
            let channel = Arc::clone(&state.channels[at].channel);
            self.go_live(&client, state, &channel);
        }
        // with the client locked, so that a thread that unsubscribes the client does so before or after
        let joined: Vec<_> = remembered
            .iter()
            .map(|name| self.add_subscription(&client, state, name, None))
            .collect();
        if let Some(old) = displaced {
            self.displace(&client, old);
        }
        self.store.save_client(&client, state);
        drop(guard);
        let known = *emergencies;
        drop(emergencies);
        for joined in joined {
            self.tell_joined(&client, joined);
        }
        self.counters.resumes.add(1);
        Ok(Connected {
            client,
            welcome,
            is_resumed: true,
            emergencies: known,
        })
    }

    fn displace(&self, client: &Client, old: ConnectionId) {
        self.events.log(LogLevel::Info, "connections", || {
            format!(
                "{} was resumed by another connection; the older one is closed",
                client.id
            )
        });
        self.shards.push(
            old.shard,
            Delivery::Close {
                connection_id: old,
                disconnect: Disconnect::Displaced,
                frame: EncodedFrame::of_disconnect(Disconnect::Displaced),
            },
        );
    }

    fn welcome(
        &self,
        client: &Client,
        state: &ClientState,
        channels: &[Arc<str>],
        outcome: Option<ResumeOutcome<'_>>,
    ) -> EncodedFrame {
        let token = state
            .session
            .as_ref()
            .map(|session| session.token(&client.id));
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
}
