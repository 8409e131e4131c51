//! From the first byte to the welcome: the request head, the answer to a plain request, and the connect of a client.

use super::Shard;
use super::socket::Phase;
use crate::core::events::LogLevel;
use crate::core::hub::Slot;
use crate::core::outbound::Chunk;
use crate::node::ConnectRequest;
use crate::wire::client_module::client_file;
use crate::wire::http::head::RequestHead;
use crate::wire::http::pages::{self, Refused};
use crate::wire::http::request::Request;
use crate::wire::http::upgrade::Upgrade;
use std::sync::Arc;

/// The work of opening a connection, in nanoseconds, about.
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
                self.answer(slot, &read.head);
                self.read_frames(slot, &mut bytes[read.used..]);
            }
            Err(error) => self.refuse(slot, error.into()),
        }
    }

    /// Answers a request, or opens the WebSocket that the request asks for.
    fn answer(&mut self, slot: Slot, head: &RequestHead) {
        match Request::of(head, &self.config.http_prefix) {
            Request::Upgrade(_) if self.draining.is_some() => {
                let seconds = self.config.reconnect_window.as_secs().max(1);
                self.refuse(slot, Refused::Draining(seconds));
            }
            Request::Upgrade(upgrade) => self.open(slot, &upgrade),
            Request::Page {
                path,
                is_head,
                if_none_match,
            } => {
                let response = self.page(path, is_head, if_none_match);
                self.last_word(slot, response);
            }
            Request::Options => self.last_word(slot, pages::options_response()),
            Request::Refused(refused) => self.refuse(slot, refused),
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
                None => pages::refusal_response(Refused::NotFound),
            },
        }
    }

    /// Sends an error status, after which the connection ends.
    pub(super) fn refuse(&mut self, slot: Slot, refused: Refused) {
        self.last_word(slot, pages::refusal_response(refused));
    }

    /// Accepts a WebSocket and sends the welcome, if the node takes one more client.
    fn open(&mut self, slot: Slot, upgrade: &Upgrade<'_>) {
        let next_ping = self.wheel.now() + self.ticks(self.config.heartbeat_interval);
        let Some(connection) = self.connections.get_mut(slot as usize) else {
            return;
        };
        connection.may_return = upgrade.may_return;
        let generation = connection.generation;
        let request = ConnectRequest {
            resume: upgrade.resume,
            acknowledges: upgrade.acknowledges,
            peer: connection.stream.peer(),
        };
        let connection_id = self.connection_id(slot, generation);
        let Some(connected) = self.node.connect(connection_id, &request) else {
            self.refuse(slot, Refused::Full);
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
