//! From the first byte to the welcome: the request head, the answer to a plain request, the verdict of `Auth`, and the
//! connect of a client.

use super::Shard;
use super::socket::Phase;
use crate::base::completion::Completion;
use crate::base::error::Error;
use crate::core::events::LogLevel;
use crate::core::hub::Slot;
use crate::core::outbound::Chunk;
use crate::net::peer::Peer;
use crate::node::{ConnectRequest, ConnectionId, Delivery};
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

    /// Reads the bytes that came together with the end of a request head. Keeps the bytes while the connection waits for
    /// its verdict; the rest of the input stays in the socket meanwhile.
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
                self.open(slot, &upgrade, self.peer(slot), identity);
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
        let Phase::Handshake { deadline, .. } = connection.phase else {
            return;
        };
        let connection_id = self.connection_id(slot, connection.generation);
        let completion = || {
            let handle = Arc::clone(&self.handle);
            Completion::new(move |verdict| {
                handle.inbox.push(Delivery::Verdict {
                    connection_id,
                    verdict: Box::new(verdict),
                });
            })
        };
        // asking the system for the peer is a large part of the cost of a connect
        let peer = connection.stream.peer();
        let request = AdmissionRequest { head, peer };
        match self.auth.admit(&request, Deferral::new(&completion)) {
            Admission::Decided(Verdict::Admitted(identity)) => {
                self.open(slot, upgrade, peer, identity.as_ref());
            }
            Admission::Decided(Verdict::Denied(denial)) => self.deny(slot, denial),
            Admission::Deferred(_) => {
                let head = Arc::clone(head);
                if let Some(connection) = self.connections.get_mut(slot as usize) {
                    connection.phase = Phase::Admitting { head, deadline };
                }
            }
        }
    }

    /// Carries out a verdict. A verdict that comes after the deadline, or after the connection has ended, has no effect.
    pub(super) fn decide(&mut self, connection_id: ConnectionId, verdict: Result<Verdict, Error>) {
        let slot = connection_id.slot;
        let Some(connection) = self.connections.get_mut(slot as usize) else {
            return;
        };
        let Phase::Admitting { head, deadline } = &connection.phase else {
            return;
        };
        if connection.generation != connection_id.generation {
            return;
        }
        let (head, deadline) = (Arc::clone(head), *deadline);
        connection.readiness.set();
        if self.current_tick() >= deadline {
            self.expire_admission(slot);
            return;
        }
        let before = self.read_work;
        self.contain(slot, |shard| match verdict {
            Ok(Verdict::Admitted(identity)) => match Upgrade::check(&head) {
                Ok(upgrade) => shard.open(slot, &upgrade, shard.peer(slot), identity.as_ref()),
                Err(refused) => shard.refuse(slot, &refused),
            },
            Ok(Verdict::Denied(denial)) => shard.deny(slot, denial),
            Err(error) => {
                shard.node.events.log(LogLevel::Warning, "auth", || {
                    format!("a connection is refused, because it could not be checked: {error}")
                });
                shard.node.counters.admissions_refused.add(1);
                shard.refuse(slot, &Refused::Undecided);
            }
        });
        self.charge_as_pushes(before);
        self.note_input(slot, 0);
    }

    /// Refuses a connection whose verdict has not come in time.
    pub(super) fn expire_admission(&mut self, slot: Slot) {
        self.node.counters.admissions_expired.add(1);
        self.refuse(slot, &Refused::Unanswered);
    }

    /// Refuses all connections that wait for their verdict, because the server is stopping.
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

    /// Accepts a WebSocket and sends the welcome, if the node takes one more client.
    fn open(
        &mut self,
        slot: Slot,
        upgrade: &Upgrade<'_>,
        peer: Option<Peer>,
        identity: Option<&Identity>,
    ) {
        let next_ping = self.wheel.now() + self.ticks(self.config.heartbeat_interval);
        let Some(connection) = self.connections.get_mut(slot as usize) else {
            return;
        };
        connection.may_return = upgrade.may_return;
        let generation = connection.generation;
        let request = ConnectRequest {
            resume: upgrade.resume,
            acknowledges: upgrade.acknowledges,
            peer,
            identity,
        };
        let connection_id = self.connection_id(slot, generation);
        let Some(connected) = self.node.connect(connection_id, &request) else {
            self.refuse(slot, &Refused::Full);
            return;
        };
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
        self.node.join_default_channel(&connected);
        self.read_work += OPEN_WORK;
    }
}
