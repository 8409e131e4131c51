//! From the first byte to the welcome: the request head, the answer to a plain request, the verdict of `Auth`, and the
//! claim on a client.

use super::Shard;
use super::socket::Phase;
use crate::base::completion::Completion;
use crate::base::error::Error;
use crate::core::events::LogLevel;
use crate::core::hub::Slot;
use crate::core::outbound::Chunk;
use crate::net::peer::Peer;
use crate::node::{
    Awaited, ConnectRequest, Connected, Connecting, ConnectionId, Delivery, LateClaim, NotConnected,
};
use crate::ports::auth::{Admission, AdmissionRequest, Deferral, Identity, Verdict};
use crate::wire::client_module::client_file;
use crate::wire::http::head::RequestHead;
use crate::wire::http::pages::{self, Denial, Refused};
use crate::wire::http::request::Request;
use crate::wire::http::upgrade::Upgrade;
use std::sync::Arc;

/// The approximate CPU time of opening a connection, in nanoseconds.
const OPEN_WORK: usize = 20_000;

impl Shard {
    /// Reads bytes of a connection in its handshake. The bytes behind the head are frames.
    pub(super) fn read_head(&mut self, slot: Slot, bytes: &mut [u8]) {
        let max_size = self.config.max_header_size;
        let Some(connection) = self.connections.get_mut(slot as usize) else {
            return;
        };
        let Phase::Handshake { reader, .. } = &mut connection.phase else {
            return;
        };
        let mut head_reader = reader
            .take()
            .map_or_else(Default::default, |reader| *reader);
        match head_reader.read(bytes, max_size) {
            Ok(None) => *reader = Some(Box::new(head_reader)),
            Ok(Some(read)) => {
                self.answer(slot, read.head, None);
                self.read_behind_head(slot, &mut bytes[read.used..]);
            }
            Err(error) => self.refuse(slot, &Refused::from(error)),
        }
    }

    /// Reads the bytes that came together with the end of a request head. Keeps the bytes while the connection waits to be
    /// admitted; the rest of the input stays in the socket meanwhile.
    pub(super) fn read_behind_head(&mut self, slot: Slot, bytes: &mut [u8]) {
        if let Some(connection) = self.connections.get_mut(slot as usize)
            && matches!(connection.phase, Phase::Admitting { .. })
        {
            connection.reader.keep(bytes);
        } else {
            self.read_frames(slot, bytes);
        }
    }

    /// Answers a request, or opens the WebSocket that the request asks for. `Auth` decides about a connection without an
    /// identity.
    pub(super) fn answer(&mut self, slot: Slot, head: RequestHead, identity: Option<&Identity>) {
        let head = Arc::new(head);
        match Request::of(&head, &self.config.http_prefix) {
            Request::Upgrade(_) if self.draining.is_some() => self.refuse_draining(slot),
            Request::Upgrade(upgrade) if identity.is_some() => {
                self.open(slot, &head, &upgrade, (self.peer(slot), identity));
            }
            Request::Upgrade(upgrade) => self.admit(slot, &head, &upgrade),
            Request::Page {
                path,
                is_head,
                if_none_match,
            } => {
                let response = self.page(path, is_head, if_none_match);
                self.last_word(slot, response);
            }
            Request::Options => self.last_word(slot, pages::options_response()),
            Request::Refused(refused) => self.refuse(slot, &refused),
        }
    }

    fn page(&self, path: &str, is_head: bool, if_none_match: Option<&str>) -> Vec<u8> {
        match path {
            "/" => pages::index_response(is_head),
            "/favicon.ico" => pages::icon_response(is_head),
            "/healthz" => {
                let is_draining = self.draining.is_some() || self.node.shards.is_draining();
                pages::health_response(is_draining, self.node.connection_count(), is_head)
            }
            path => match client_file(path) {
                Some(file) => pages::file_response(file, if_none_match, is_head),
                None => pages::refusal_response(&Refused::NotFound),
            },
        }
    }

    /// Asks `Auth` about a connection.
    fn admit(&mut self, slot: Slot, head: &Arc<RequestHead>, upgrade: &Upgrade<'_>) {
        let Some(connection) = self.connections.get(slot as usize) else {
            return;
        };
        let connection_id = self.connection_id(slot, connection.generation);
        let completion = || {
            let handle = Arc::clone(&self.handle);
            Completion::new(move |verdict| {
                handle.inbox.push(Delivery::Awaited {
                    connection_id,
                    awaited: Box::new(Awaited::Verdict(verdict)),
                });
            })
        };
        // asking the system for the peer is a large part of the cost of a connect
        let peer = connection.stream.peer();
        let request = AdmissionRequest { head, peer };
        match self.auth.admit(&request, Deferral::new(&completion)) {
            Admission::Decided(Verdict::Admitted(identity)) => {
                self.open(slot, head, upgrade, (peer, identity.as_ref()));
            }
            Admission::Decided(Verdict::Denied(denial)) => self.deny(slot, denial),
            Admission::Deferred(_) => self.wait(slot, head),
        }
    }

    /// Has a connection wait for its verdict or its claim, until the deadline of its handshake.
    fn wait(&mut self, slot: Slot, head: &Arc<RequestHead>) {
        if let Some(connection) = self.connections.get_mut(slot as usize)
            && let Phase::Handshake { deadline, .. } = connection.phase
        {
            let head = Arc::clone(head);
            connection.phase = Phase::Admitting { head, deadline };
        }
    }

    /// Goes on with a connection that gets what it waited for. What comes after the deadline, or after the connection has
    /// ended, has no effect.
    pub(super) fn go_on(&mut self, connection_id: ConnectionId, awaited: Awaited) {
        let slot = connection_id.slot;
        let Some((head, deadline)) = self.admitting(connection_id) else {
            self.give_up(awaited);
            return;
        };
        if self.current_tick() >= deadline {
            self.give_up(awaited);
            self.expire_admission(slot);
            return;
        }
        let before = self.read_work;
        self.contain(slot, |shard| match awaited {
            Awaited::Verdict(verdict) => shard.decide(slot, &head, verdict),
            Awaited::Claim(claim) => shard.open_claimed(slot, &head, claim),
        });
        self.charge_as_pushes(before);
        self.note_input(slot, 0);
    }

    /// The head and the deadline of a connection that waits to be admitted. The connection is read again.
    fn admitting(&mut self, connection_id: ConnectionId) -> Option<(Arc<RequestHead>, u64)> {
        let connection = self.connections.get_mut(connection_id.slot as usize)?;
        let Phase::Admitting { head, deadline } = &connection.phase else {
            return None;
        };
        if connection.generation != connection_id.generation {
            return None;
        }
        connection.readiness.set();
        Some((Arc::clone(head), *deadline))
    }

    fn give_up(&self, awaited: Awaited) {
        if let Awaited::Claim(claim) = awaited {
            self.node.give_up(claim);
        }
    }

    fn decide(&mut self, slot: Slot, head: &Arc<RequestHead>, verdict: Result<Verdict, Error>) {
        match verdict {
            Ok(Verdict::Admitted(identity)) => match Upgrade::check(head) {
                Ok(upgrade) => {
                    let who = (self.peer(slot), identity.as_ref());
                    self.open(slot, head, &upgrade, who);
                }
                Err(refused) => self.refuse(slot, &refused),
            },
            Ok(Verdict::Denied(denial)) => self.deny(slot, denial),
            Err(error) => {
                self.node.events.log(LogLevel::Warning, "auth", || {
                    format!("a connection is refused, because it could not be checked: {error}")
                });
                self.node.counters.admissions_refused.add(1);
                self.refuse(slot, &Refused::Undecided);
            }
        }
    }

    /// Refuses a connection that was not admitted in time.
    pub(super) fn expire_admission(&mut self, slot: Slot) {
        self.node.counters.admissions_expired.add(1);
        self.refuse(slot, &Refused::Unanswered);
    }

    /// Refuses all connections that wait to be admitted, because the server is stopping.
    pub(super) fn refuse_admissions(&mut self) {
        let waiting: Vec<Slot> = self
            .connections
            .iter()
            .filter(|(_, connection)| matches!(connection.phase, Phase::Admitting { .. }))
            .map(|(slot, _)| slot as Slot)
            .collect();
        for slot in waiting {
            self.refuse_draining(slot);
        }
    }

    fn refuse_draining(&mut self, slot: Slot) {
        let seconds = self.config.reconnect_window.as_secs().max(1);
        self.refuse(slot, &Refused::Draining(seconds));
    }

    fn deny(&mut self, slot: Slot, denial: Denial) {
        self.node.counters.admissions_refused.add(1);
        self.refuse(slot, &Refused::Denied(denial));
    }

    /// Sends an error status, after which the connection ends.
    pub(super) fn refuse(&mut self, slot: Slot, refused: &Refused) {
        self.last_word(slot, pages::refusal_response(refused));
    }

    fn peer(&self, slot: Slot) -> Option<Peer> {
        self.connections.get(slot as usize)?.stream.peer()
    }

    /// Connects the client of a WebSocket.
    fn open(
        &mut self,
        slot: Slot,
        head: &Arc<RequestHead>,
        upgrade: &Upgrade<'_>,
        (peer, identity): (Option<Peer>, Option<&Identity>),
    ) {
        let Some(connection) = self.connections.get_mut(slot as usize) else {
            return;
        };
        connection.may_return = upgrade.may_return;
        let generation = connection.generation;
        let connection_id = self.connection_id(slot, generation);
        let request = ConnectRequest {
            resume: upgrade.resume,
            acknowledges: upgrade.acknowledges,
            peer,
            identity,
        };
        let connecting = self.node.connect(connection_id, &request);
        self.conclude(slot, head, upgrade, connecting);
    }

    /// Goes on with the connect of a client whose claim came later.
    fn open_claimed(&mut self, slot: Slot, head: &Arc<RequestHead>, claim: LateClaim) {
        let upgrade = match Upgrade::check(head) {
            Ok(upgrade) => upgrade,
            Err(refused) => {
                self.node.give_up(claim);
                self.refuse(slot, &refused);
                return;
            }
        };
        let Some(connection) = self.connections.get(slot as usize) else {
            return;
        };
        let connection_id = self.connection_id(slot, connection.generation);
        let request = ConnectRequest {
            resume: upgrade.resume,
            acknowledges: upgrade.acknowledges,
            peer: connection.stream.peer(),
            identity: None,
        };
        let connecting = self.node.connect_claimed(connection_id, &request, claim);
        self.conclude(slot, head, &upgrade, connecting);
    }

    fn conclude(
        &mut self,
        slot: Slot,
        head: &Arc<RequestHead>,
        upgrade: &Upgrade<'_>,
        connecting: Connecting,
    ) {
        match connecting {
            Connecting::Connected(connected) => self.welcome(slot, upgrade, &connected),
            Connecting::NotConnected(NotConnected::Full) => self.refuse(slot, &Refused::Full),
            Connecting::NotConnected(NotConnected::NotClaimed(problem)) => {
                self.node.events.log(LogLevel::Warning, "connections", || {
                    format!(
                        "a connection is refused, because its client cannot be claimed: {problem}"
                    )
                });
                self.refuse(slot, &Refused::Undecided);
            }
            Connecting::Begun => self.wait(slot, head),
        }
    }

    /// Accepts a WebSocket, and sends the welcome.
    fn welcome(&mut self, slot: Slot, upgrade: &Upgrade<'_>, connected: &Connected) {
        let next_ping = self.wheel.now() + self.ticks(self.config.heartbeat_interval);
        let subprotocol = self.config.subprotocols.select(&upgrade.offered);
        if subprotocol.is_none() && !upgrade.offered.is_empty() {
            self.node.log_unselected(&upgrade.offered);
        }
        let response = upgrade.response(subprotocol);
        let Some(connection) = self.connections.get_mut(slot as usize) else {
            return;
        };
        connection.phase = Phase::Open {
            client: Arc::clone(&connected.client),
            next_ping,
        };
        self.open_count += 1;
        connection.emergencies = connected.emergencies;
        self.queue(slot, Chunk::first_words(response.into()));
        self.queue(slot, Chunk::first_words(connected.welcome.bytes().clone()));
        self.watch(slot, next_ping);
        self.node.events.log(LogLevel::Debug, "connections", || {
            let word = if connected.is_resumed {
                "resumed"
            } else {
                "connected"
            };
            format!("{} {word}", connected.client.id)
        });
        self.node.join_default_channel(connected);
        self.read_work += OPEN_WORK;
    }
}
