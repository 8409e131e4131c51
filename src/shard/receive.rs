//! The way in: reads a connection's socket, decodes frames, and executes commands.

use super::pause::Pause;
use super::socket::Phase;
use super::write::{InLine, SLICE_WORK, fan_out_work};
use super::{READ_BUFFER, Shard};
use crate::base::error::{Disconnect, ErrorCode, Refusal};
use crate::base::priority::Priority;
use crate::core::hub::Slot;
use crate::node::{Backpressure, Channel, ConnectionId, Delivery, FanOut};
use crate::wire::frame::EncodedFrame;
use crate::wire::frame_reader::Received;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::ReadBuf;

/// Reads of one connection in a turn. A client that sends without pause must leave room for others.
const READS_PER_TURN: usize = 4;

/// The most bytes that one read takes from a connection that had little to read in its last turn. Many such connections
/// may be ready together, and each waits for all before it.
pub(super) const QUIET_READ: usize = 16 << 10;

/// The approximate work that the frames of one connection may cause in a turn, in nanoseconds.
pub(super) const READ_SHARE: usize = 200_000;

/// The approximate work of executing a frame, in nanoseconds.
const FRAME_WORK: usize = 1000;

/// The approximate number of bytes that are read in a nanosecond, complete frames or not.
pub(super) const BYTES_PER_WORK: usize = 4;

/// The approximate work of one push, in nanoseconds: a publication adds it for each subscriber.
pub(super) const PUSH_WORK: usize = 50;

/// The approximate number of bytes that one connection may publish in a turn: as much as joins into one run.
const SHARE_BYTES: usize = 64 << 10;

/// The least time that the reading of a publisher pauses for a large fan-out, also where `publisher_hold` is shorter.
const LEAST_FAN_OUT_HOLD: Duration = Duration::from_secs(1);

/// The work that the frames of a connection have caused, added up while the shard reads them.
#[derive(Default)]
struct Charge {
    /// In nanoseconds, approximately.
    work: usize,
    published_bytes: usize,
    /// Bytes that the publications add to the queues of subscribers.
    queued_bytes: usize,
    /// The work of writing the publications.
    fan_out_work: usize,
    /// The channel of the latest publication.
    channel: Option<Arc<Channel>>,
    /// The work of pushing the latest run on `channel`.
    run_work: usize,
    /// The next publication on `channel` joins the run.
    is_run: bool,
}

impl Charge {
    fn add(&mut self, bytes: usize, fan_out: Option<FanOut>) {
        self.work += FRAME_WORK;
        let Some(fan_out) = fan_out else {
            self.end_run();
            return;
        };
        let is_same = |channel: &Arc<Channel>| channel.key == fan_out.channel.key;
        if !(self.is_run && self.channel.as_ref().is_some_and(is_same)) {
            self.end_run();
            self.run_work = fan_out.recipients * PUSH_WORK;
        }
        self.published_bytes += bytes;
        self.queued_bytes += fan_out.recipients * bytes;
        self.fan_out_work += fan_out_work(fan_out.recipients, bytes);
        self.is_run = fan_out.can_be_joined;
        self.channel = Some(fan_out.channel);
    }

    /// Returns the pause after a large fan-out: its publisher waits until the fan-out is written.
    fn pause(self, publisher_hold: Duration) -> Option<Pause> {
        let channel = self.channel.filter(|_| self.fan_out_work > SLICE_WORK)?;
        Some(Pause::FanOut {
            channel,
            bytes: self.queued_bytes,
            deadline: Instant::now() + publisher_hold.max(LEAST_FAN_OUT_HOLD),
        })
    }

    /// Charges a run at its end. All frames of a run are pushed together, at the price of one.
    fn end_run(&mut self) {
        self.work += std::mem::take(&mut self.run_work);
        self.is_run = false;
    }
}

impl Shard {
    /// The socket may be readable or writable again.
    pub(super) fn on_ready(&mut self, slot: Slot) {
        if let Some(connection) = self.connections.get_mut(slot as usize)
            && !(connection.outbound.is_empty() && connection.dropped.is_empty())
        {
            // many sockets may be writable at once, so they are written in slices
            let in_line = &mut connection.in_line;
            Self::touch(&mut self.lines, slot, in_line, InLine::Sliced);
        }
        self.read_share = READ_SHARE;
        let has_more = self.read_some(slot);
        if let Some(connection) = self.connections.get_mut(slot as usize) {
            connection.is_busy = has_more || connection.is_paused;
            if has_more {
                connection.readiness.set();
            }
        }
    }

    /// Reads the share of a connection. True when there may be more to read in a later turn.
    fn read_some(&mut self, slot: Slot) -> bool {
        // frames that were read before the pause come first
        if self
            .connections
            .get(slot as usize)
            .is_some_and(|connection| connection.reader.is_midway())
        {
            self.read_frames(slot, &mut []);
            self.note_input(slot, 0);
        }
        for _ in 0..READS_PER_TURN {
            let has_read_enough = self.read_share == 0 || self.has_read_enough();
            let Some(connection) = self.connections.get_mut(slot as usize) else {
                return false;
            };
            let is_admitting = matches!(connection.phase, Phase::Admitting { .. });
            if connection.is_paused || connection.is_at_end || is_admitting {
                return false;
            }
            // the close is in the inbox, and must come before the end of the stream
            let is_closing =
                connection.has_ended_reading && matches!(connection.phase, Phase::Open { .. });
            if is_closing || has_read_enough {
                return true;
            }
            let most = if connection.is_busy {
                READ_BUFFER
            } else {
                QUIET_READ
            };
            let mut buffer = std::mem::take(&mut self.buffer);
            let mut read = ReadBuf::new(&mut buffer[..most]);
            let mut context = Context::from_waker(&connection.waker);
            let result = connection.stream.poll_read(&mut context, &mut read);
            let count = read.filled().len();
            let goes_on = match result {
                Poll::Pending => false,
                Poll::Ready(Ok(())) if count > 0 => {
                    let work = count / BYTES_PER_WORK;
                    self.read_work += work;
                    self.read_share = self.read_share.saturating_sub(work);
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
                return false;
            }
            if most == QUIET_READ && count == most {
                return true;
            }
        }
        true
    }

    /// The peer has shut its side. The queue is still written.
    pub(super) fn at_end(&mut self, slot: Slot) {
        let Some(connection) = self.connections.get_mut(slot as usize) else {
            return;
        };
        connection.is_at_end = true;
        match connection.phase {
            Phase::Handshake { .. } | Phase::Admitting { .. } => {
                self.drop_connection(slot, Disconnect::Lost);
            }
            Phase::Closing { .. } if connection.outbound.is_empty() => {
                self.drop_connection(slot, Disconnect::Lost);
            }
            Phase::Closing { .. } => {}
            Phase::Open { .. } => {
                let connection_id = ConnectionId {
                    shard: self.index,
                    slot,
                    generation: connection.generation,
                };
                self.handle.inbox.push(Delivery::Ended { connection_id });
            }
        }
    }

    pub(super) fn received(&mut self, slot: Slot, bytes: &mut [u8]) {
        let now = self.wheel.now();
        let Some(connection) = self.connections.get_mut(slot as usize) else {
            return;
        };
        connection.last_seen = now;
        match connection.phase {
            Phase::Open { .. } => self.read_frames(slot, bytes),
            Phase::Closing { .. } | Phase::Admitting { .. } => {}
            Phase::Handshake { .. } => self.read_head(slot, bytes),
        }
    }

    pub(super) fn read_frames(&mut self, slot: Slot, bytes: &mut [u8]) {
        let Some(connection) = self.connections.get_mut(slot as usize) else {
            return;
        };
        let Phase::Open { client, .. } = &connection.phase else {
            return;
        };
        if connection.has_ended_reading {
            return;
        }
        if connection.is_paused {
            connection.reader.keep(bytes);
            return;
        }
        let connection_id = ConnectionId {
            shard: self.index,
            slot,
            generation: connection.generation,
        };
        let client = Arc::clone(client);
        let may_return = connection.may_return;
        let mut reader = std::mem::take(&mut connection.reader);
        let held = reader.held();
        let limit = self.config.max_message_size;
        let mut close = None;
        let mut wait = None;
        let mut charge = Charge::default();
        let share = self.read_share;
        let share_bytes = SHARE_BYTES.min(self.config.max_pending_bytes / 8);
        let mut completed = false;
        let result = reader.read(bytes, limit, &mut |received| {
            completed |= matches!(
                received,
                Received::Text(_) | Received::Binary(_) | Received::TooLarge(_)
            );
            let mut bytes = 0;
            let backpressure = match received {
                Received::Text(text) => {
                    bytes = text.len();
                    self.node.execute(&client, connection_id, text)
                }
                Received::Binary(_) => {
                    let message = "binary frames are not understood here; send JSON in text frames";
                    let refusal = Refusal::new(ErrorCode::Binary, message);
                    self.node.refuse(connection_id, &refusal)
                }
                Received::TooLarge(size) => {
                    let message = format!("the message is {size} bytes; at most {limit} are taken");
                    let refusal = Refusal::new(ErrorCode::TooLarge, message);
                    self.node.refuse(connection_id, &refusal)
                }
                Received::Ping(payload) => {
                    self.answer_ping(connection_id, payload);
                    Backpressure::default()
                }
                Received::Pong => self.node.ponged(&client),
                Received::Close(code) => {
                    // the answer has the same code (RFC 6455 section 5.5.1); 1005 stands for no code
                    let disconnect = Disconnect::closed_by_client(code, may_return);
                    close = Some((disconnect, EncodedFrame::close(code, "")));
                    Backpressure::default()
                }
            };
            wait = self.pause_after(&backpressure);
            charge.add(bytes, backpressure.fan_out);
            close.is_none()
                && wait.is_none()
                && charge.work < share
                && charge.published_bytes < share_bytes
                && !self.has_read_enough()
        });
        charge.end_run();
        self.read_work += charge.work;
        self.read_share = if charge.published_bytes < share_bytes {
            share.saturating_sub(charge.work)
        } else {
            0
        };
        self.freed += held.saturating_sub(reader.held());
        if let Some(connection) = self.connections.get_mut(slot as usize) {
            connection.reader = reader;
            if completed {
                connection.unfinished.complete();
            }
        }
        let wait = wait.or_else(|| charge.pause(self.config.publisher_hold));
        if let Some(hold) = wait {
            self.pause_reading(slot, hold);
        }
        if let Err(disconnect) = result {
            close = Some((disconnect, EncodedFrame::of_disconnect(disconnect)));
        }
        if let Some((disconnect, frame)) = close {
            self.end_reading(connection_id, disconnect, frame);
        }
    }

    fn answer_ping(&self, connection_id: ConnectionId, payload: &[u8]) {
        self.handle.inbox.push(Delivery::Direct {
            connection_id,
            frame: EncodedFrame::pong(payload),
            priority: Priority::Normal,
            receipt: None,
        });
    }

    /// Ends a connection after a close frame or a violation of the protocol. The close goes through the inbox, as replies
    /// do, so that the close frame is sent after the replies.
    fn end_reading(
        &mut self,
        connection_id: ConnectionId,
        disconnect: Disconnect,
        frame: EncodedFrame,
    ) {
        self.handle.inbox.push(Delivery::Close {
            connection_id,
            disconnect,
            frame,
        });
        if let Some(connection) = self.connections.get_mut(connection_id.slot as usize) {
            connection.has_ended_reading = true;
        }
    }

    /// The reason to pause a connection after a frame, if there is one.
    fn pause_after(&self, backpressure: &Backpressure) -> Option<Pause> {
        let behind = |fan_out: &FanOut| {
            let must_wait = fan_out.recipients > 0 && self.node.is_full(&fan_out.channel);
            must_wait.then(|| Pause::Subscribers(Arc::clone(&fan_out.channel)))
        };
        if backpressure.told && self.node.events.must_pause() {
            Some(Pause::Events)
        } else if backpressure.published && self.node.shards.is_congested() {
            Some(Pause::Inbox)
        } else {
            backpressure.fan_out.as_ref().and_then(behind)
        }
    }
}
