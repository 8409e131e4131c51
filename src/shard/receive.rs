//! The way in: what a connection's socket has, read, decoded and carried out.

use super::Shard;
use super::socket::{Connection, Phase};
use crate::client_module::client_file;
use crate::connection::Received;
use crate::error::{Disconnect, ErrorCode, Refusal};
use crate::events::LogLevel;
use crate::frame::EncodedFrame;
use crate::handshake::{self, Refused, Request};
use crate::hub::Slot;
use crate::node::{Delivery, Greeting, Place, Work};
use crate::outbound::Chunk;
use crate::priority::Priority;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, ReadBuf};

/// Reads of one connection in a turn, so that one that sends without pause leaves room for others.
const READS_PER_TURN: usize = 4;

/// Who holds a connection back.
#[derive(Clone, Copy)]
enum Behind {
    Python,
    Shard,
}

impl Shard {
    /// The socket may be readable or writable again.
    pub(super) fn on_ready(&mut self, slot: Slot) {
        self.flush(slot);
        // what was read before the connection was held back comes first
        if self
            .connections
            .get(slot as usize)
            .is_some_and(|connection| connection.reader.is_midway())
        {
            self.read_frames(slot, &mut []);
            self.note_input(slot, 0);
        }
        for _ in 0..READS_PER_TURN {
            let has_read_enough = self.has_read_enough();
            let Some(connection) = self.connections.get_mut(slot as usize) else {
                return;
            };
            if connection.is_held_back || connection.is_at_end {
                return;
            }
            // a close that was read is in the inbox, and comes before the end of the stream
            let is_closing =
                connection.has_ended_reading && matches!(connection.phase, Phase::Open(_));
            if is_closing || has_read_enough {
                connection.readiness.set();
                return;
            }
            let mut buffer = std::mem::take(&mut self.buffer);
            let mut read = ReadBuf::new(&mut buffer);
            let mut context = Context::from_waker(&connection.waker);
            let result = Pin::new(&mut connection.stream).poll_read(&mut context, &mut read);
            let count = read.filled().len();
            let goes_on = match result {
                Poll::Pending => false,
                Poll::Ready(Ok(())) if count > 0 => {
                    self.received(slot, &mut buffer[..count]);
                    self.note_input(slot, count);
                    true
                }
                Poll::Ready(Ok(())) => {
                    self.at_end(slot);
                    false
                }
                Poll::Ready(Err(_)) => {
                    self.drop_connection(slot, Disconnect::Lost);
                    false
                }
            };
            self.buffer = buffer;
            if !goes_on {
                return;
            }
        }
        // there may be more, after the others' turn
        if let Some(connection) = self.connections.get(slot as usize) {
            connection.readiness.set();
        }
    }

    /// The peer has shut its side: what it is owed is still written.
    fn at_end(&mut self, slot: Slot) {
        let Some(connection) = self.connections.get_mut(slot as usize) else {
            return;
        };
        connection.is_at_end = true;
        match connection.phase {
            Phase::Handshake { .. } => self.drop_connection(slot, Disconnect::Lost),
            Phase::Closing { .. } if connection.outbound.is_empty() => {
                self.drop_connection(slot, Disconnect::Lost);
            }
            Phase::Closing { .. } => {}
            Phase::Open(_) => {
                let place = Place {
                    shard: self.index,
                    slot,
                    generation: connection.generation,
                };
                self.door.inbox.push(Delivery::Ended { place });
            }
        }
    }

    fn received(&mut self, slot: Slot, bytes: &mut [u8]) {
        let now = self.wheel.now();
        let Some(connection) = self.connections.get_mut(slot as usize) else {
            return;
        };
        connection.last_seen = now;
        match &mut connection.phase {
            Phase::Open(_) => self.read_frames(slot, bytes),
            Phase::Closing { .. } => {}
            Phase::Handshake { head, .. } => {
                if head.is_empty() {
                    let used = self.read_head(slot, bytes);
                    self.read_frames(slot, &mut bytes[used..]);
                    return;
                }
                head.extend_from_slice(bytes);
                // a head ends with a line: without one there is nothing new to see
                if bytes.contains(&b'\n') || head.len() >= self.config.max_header_size {
                    let mut head = std::mem::take(head);
                    let used = self.read_head(slot, &head);
                    self.read_frames(slot, &mut head[used..]);
                }
            }
        }
    }

    /// Reads a request head, all of it so far; returns how much was used up.
    fn read_head(&mut self, slot: Slot, bytes: &[u8]) -> usize {
        let limit = self.config.max_header_size;
        let is_draining = self.draining.is_some();
        match handshake::read_request(bytes, limit) {
            Request::Incomplete => {
                if let Some(Connection {
                    phase: Phase::Handshake { head, .. },
                    ..
                }) = self.connections.get_mut(slot as usize)
                {
                    *head = bytes.to_vec();
                }
            }
            Request::Upgrade { .. } if is_draining => {
                let seconds = self.config.reconnect_window.as_secs().max(1);
                self.last_word(
                    slot,
                    handshake::refusal_response(Refused::Draining(seconds)),
                );
            }
            Request::Upgrade {
                accept,
                len,
                resume,
                acknowledges,
            } => {
                let greeting = Greeting {
                    resume: resume.as_deref(),
                    acknowledges,
                };
                self.open(slot, &accept, &greeting);
                return len;
            }
            Request::Page {
                path,
                is_head,
                if_none_match,
            } => {
                let response = match path.as_str() {
                    "/" => handshake::index_response(is_head),
                    "/healthz" => {
                        let is_draining = is_draining || self.node.is_draining();
                        handshake::health_response(
                            is_draining,
                            self.node.connection_count(),
                            is_head,
                        )
                    }
                    path => match client_file(path) {
                        Some(file) => {
                            handshake::file_response(file, if_none_match.as_deref(), is_head)
                        }
                        None => handshake::refusal_response(Refused::NotFound),
                    },
                };
                self.last_word(slot, response);
            }
            Request::Refused(refused) => self.last_word(slot, handshake::refusal_response(refused)),
        }
        bytes.len()
    }

    fn open(&mut self, slot: Slot, accept: &str, greeting: &Greeting<'_>) {
        let next_ping = self.wheel.now() + self.ticks(self.config.heartbeat_interval);
        let Some(connection) = self.connections.get_mut(slot as usize) else {
            return;
        };
        let place = Place {
            shard: self.index,
            slot,
            generation: connection.generation,
        };
        let Some(connected) = self.node.connect(place, greeting) else {
            self.last_word(slot, handshake::refusal_response(Refused::Full));
            return;
        };
        let Some(connection) = self.connections.get_mut(slot as usize) else {
            return;
        };
        connection.phase = Phase::Open(Arc::clone(&connected.client));
        self.open_count += 1;
        connection.next_ping = next_ping;
        connection.emergencies = connected.emergencies;
        self.queue(
            slot,
            Chunk::first_words(handshake::accept_response(accept).into()),
        );
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
        self.node.enter(&connected);
    }

    fn read_frames(&mut self, slot: Slot, bytes: &mut [u8]) {
        let Some(connection) = self.connections.get_mut(slot as usize) else {
            return;
        };
        let Phase::Open(client) = &connection.phase else {
            return;
        };
        if connection.has_ended_reading {
            return;
        }
        if connection.is_held_back {
            connection.reader.keep(bytes);
            return;
        }
        let place = Place {
            shard: self.index,
            slot,
            generation: connection.generation,
        };
        let client = Arc::clone(client);
        let mut reader = std::mem::take(&mut connection.reader);
        let held = reader.held();
        let limit = self.config.max_message_size;
        let mut closed = None;
        let mut behind = None;
        let mut completed = false;
        let result = reader.read(bytes, limit, &mut |received| {
            completed |= matches!(
                received,
                Received::Text(_) | Received::Binary(_) | Received::TooLarge(_)
            );
            let work = match received {
                Received::Text(text) => {
                    #[cfg(test)]
                    assert_ne!(text, "panic", "as the test asked for");
                    self.node.execute(&client, place, text)
                }
                Received::Binary(_) => {
                    let message = "binary frames are not understood here; send JSON in text frames";
                    self.node
                        .refuse(place, &Refusal::new(ErrorCode::Binary, message));
                    Work::default()
                }
                Received::TooLarge(size) => {
                    let message = format!("the message is {size} bytes; at most {limit} are taken");
                    self.node
                        .refuse(place, &Refusal::new(ErrorCode::TooLarge, message));
                    Work::default()
                }
                Received::Ping(payload) => {
                    let frame = EncodedFrame::pong(payload);
                    self.door.inbox.push(Delivery::Direct {
                        place,
                        frame,
                        priority: Priority::Normal,
                        receipt: None,
                    });
                    Work::default()
                }
                Received::Pong => self.node.ponged(&client),
                Received::Close(code) => {
                    closed = Some(code);
                    Work::default()
                }
            };
            behind = self.behind_with(work);
            closed.is_none() && behind.is_none() && !self.has_read_enough()
        });
        self.freed += held.saturating_sub(reader.held());
        if let Some(connection) = self.connections.get_mut(slot as usize) {
            connection.reader = reader;
            if completed {
                connection.unfinished.complete();
            }
        }
        if let Some(behind) = behind {
            self.hold_back(slot, behind);
        }
        // by way of the inbox, as replies are, so that it leaves behind them
        let close = match (result, closed) {
            (Err(disconnect), _) => Some((disconnect, EncodedFrame::of_disconnect(disconnect))),
            // answered with the same code (RFC 6455 section 5.5.1); 1005 stands for none
            (Ok(()), Some(code)) => Some((
                Disconnect::Closed(code.unwrap_or(1005)),
                EncodedFrame::close(code, ""),
            )),
            (Ok(()), None) => None,
        };
        if let Some((disconnect, frame)) = close {
            self.door.inbox.push(Delivery::Close {
                place,
                disconnect,
                frame,
            });
            if let Some(connection) = self.connections.get_mut(slot as usize) {
                connection.has_ended_reading = true;
            }
        }
    }

    /// Reads a connection no further, while Python or another shard is behind with what it sent.
    fn hold_back(&mut self, slot: Slot, behind: Behind) {
        let Some(connection) = self.connections.get_mut(slot as usize) else {
            return;
        };
        connection.is_held_back = true;
        match behind {
            Behind::Python => self.held_for_events.push(slot),
            Behind::Shard => {
                self.held_for_shards.push(slot);
                self.node.counters.inbox_pauses.add(1);
            }
        }
    }

    /// Who, if anybody, is behind with the work that a frame made.
    fn behind_with(&self, work: Work) -> Option<Behind> {
        if work.told && self.node.events.must_hold_back() {
            Some(Behind::Python)
        } else if work.published && self.node.is_congested() {
            Some(Behind::Shard)
        } else {
            None
        }
    }
}
