//! One connection on its shard: the handshake, reading, writing, heartbeats and the end.

use super::pause::Stall;
use super::transport::Transport;
use super::unfinished::Unfinished;
use super::wake::Readiness;
use super::write::InLine;
use super::{CLOSE_TIMEOUT, Shard};
use crate::base::error::Disconnect;
use crate::core::events::LogLevel;
use crate::core::hub::Slot;
use crate::core::outbound::{Chunk, Dropped, Outbound, Unwritten};
use crate::node::{Client, ConnectionId};
use crate::wire::frame::EncodedFrame;
use crate::wire::frame_reader::Reader;
use crate::wire::http::head::{HeadReader, RequestHead};
use crate::wire::http::pages::Refused;
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// The approximate memory of a connection, in the shard and in the node, in bytes.
const CONNECTION_SIZE: usize = 1024;

/// The most slices of one vectored write.
const MAX_SLICES: usize = 64;

#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own; the phase holds what excludes each other"
)]
pub(super) struct Connection {
    pub(super) stream: Transport,
    pub(super) readiness: Arc<Readiness>,
    pub(super) waker: Waker,
    pub(super) generation: u32,
    pub(super) phase: Phase,
    pub(super) reader: Reader,
    pub(super) unfinished: Unfinished,
    pub(super) outbound: Outbound,
    /// Messages that were dropped from `outbound`, and for which the client gets a `gap`.
    pub(super) dropped: Vec<Dropped>,
    /// The queued bytes as last reported to the node.
    reported_bytes: usize,
    /// The number of emergencies that went out before the connection was opened.
    pub(super) emergencies: u64,
    /// The client is a page that may be loaded again.
    pub(super) may_return: bool,
    /// The tick at which bytes came last.
    pub(super) last_seen: u64,
    /// The number of the connection's latest entry in the wheel.
    watch: u32,
    pub(super) in_line: InLine,
    /// Set while the queue is over the mark.
    pub(super) stall: Option<Stall>,
    /// There was more to read than one turn takes. Other connections are read first.
    pub(super) is_busy: bool,
    pub(super) is_paused: bool,
    /// A close frame or a violation was read. Further input is ignored.
    pub(super) has_ended_reading: bool,
    /// The peer has shut its side.
    pub(super) is_at_end: bool,
    /// A write failed. The remaining input is still read.
    pub(super) takes_nothing: bool,
}

/// An entry of the wheel. Only the latest entry of a connection counts.
pub(super) struct Watch {
    slot: Slot,
    generation: u32,
    number: u32,
}

pub(super) enum Phase {
    /// The request head has not arrived in full.
    Handshake {
        /// The part of the head that has arrived; `None` before the first byte.
        reader: Option<Box<HeadReader>>,
        /// The tick by which the head must be complete.
        deadline: u64,
    },
    /// The connection waits for the verdict of `Auth`, or for its claim on a client. Nothing is read meanwhile.
    Admitting {
        head: Arc<RequestHead>,
        /// The tick by which the connection must be admitted.
        deadline: u64,
    },
    Open {
        client: Arc<Client>,
        /// The tick of the next heartbeat.
        next_ping: u64,
    },
    /// The last chunk is queued. When the chunk is written the socket is shut, and then dropped when the peer has shut its
    /// side.
    Closing { deadline: u64, is_shut: bool },
}

impl Shard {
    /// Adds a connection in its handshake; returns its slot.
    pub(super) fn add_connection(&mut self, stream: Transport) -> Slot {
        self.next_generation = self.next_generation.wrapping_add(1);
        let generation = self.next_generation;
        let deadline = self.wheel.now() + self.ticks(self.config.handshake_timeout);
        let entry = self.connections.vacant_entry();
        let slot = entry.key() as Slot;
        let readiness = Readiness::new(slot, &self.ready);
        readiness.set();
        entry.insert(Connection {
            stream,
            unfinished: Unfinished::default(),
            waker: Waker::from(Arc::clone(&readiness)),
            readiness,
            generation,
            phase: Phase::Handshake {
                reader: None,
                deadline,
            },
            reader: Reader::default(),
            outbound: Outbound::default(),
            dropped: Vec::new(),
            reported_bytes: 0,
            emergencies: 0,
            may_return: false,
            last_seen: self.wheel.now(),
            watch: 0,
            in_line: InLine::No,
            stall: None,
            is_busy: false,
            is_paused: false,
            has_ended_reading: false,
            is_at_end: false,
            takes_nothing: false,
        });
        self.handshakes.push_back((slot, generation));
        self.watch(slot, deadline);
        slot
    }

    /// Writes the queue, as far as the socket takes data.
    pub(super) fn flush(&mut self, slot: Slot) {
        let Some(connection) = self.connections.get_mut(slot as usize) else {
            return;
        };
        if connection.outbound.is_empty() && connection.dropped.is_empty() {
            return;
        }
        if !connection.dropped.is_empty() && connection.takes_something() {
            // a gap goes ahead of the waiting messages of its channel
            self.tell_dropped(slot);
        }
        let Some(connection) = self.connections.get_mut(slot as usize) else {
            return;
        };
        let (frames, bytes) = (connection.outbound.frames(), connection.outbound.bytes());
        let result = if connection.takes_nothing {
            Err(())
        } else {
            connection.write_waiting().map_err(drop)
        };
        if result.is_err() {
            connection.outbound.discard();
        }
        self.queued_frames -= frames - connection.outbound.frames();
        self.queued_bytes -= bytes - connection.outbound.bytes();
        connection.report_waiting();
        if connection.stall.is_some() {
            let written = bytes - connection.outbound.bytes();
            self.look_at_stall(slot, written);
        }
        let Some(connection) = self.connections.get_mut(slot as usize) else {
            return;
        };
        match result {
            // frames that the client sent before still count: reading ends the connection after them
            Err(()) if matches!(connection.phase, Phase::Open { .. }) => {
                if !std::mem::replace(&mut connection.takes_nothing, true) {
                    connection.readiness.set();
                }
            }
            Err(()) => self.drop_connection(slot, Disconnect::Lost),
            Ok(()) if connection.outbound.is_empty() => {
                let is_at_end = connection.is_at_end;
                if let Phase::Closing { is_shut, .. } = &mut connection.phase {
                    if is_at_end {
                        self.drop_connection(slot, Disconnect::Lost);
                    } else if !std::mem::replace(is_shut, true) {
                        connection.stream.shutdown(Shutdown::Write);
                    }
                }
            }
            Ok(()) => {}
        }
    }

    /// Handles an entry of the wheel that is due, if the connection still exists.
    pub(super) fn on_due(&mut self, watch: &Watch, heartbeat: &mut Option<EncodedFrame>) {
        let slot = watch.slot;
        let now = self.wheel.now();
        let timeout = self.ticks(self.config.heartbeat_timeout);
        let interval = self.ticks(self.config.heartbeat_interval);
        let Some(connection) = self.connections.get_mut(slot as usize) else {
            return;
        };
        if connection.generation != watch.generation || connection.watch != watch.number {
            return;
        }
        let next_look = match &mut connection.phase {
            Phase::Handshake { deadline, .. } if now >= *deadline => {
                self.refuse(slot, &Refused::TimedOut);
                return;
            }
            Phase::Admitting { deadline, .. } if now >= *deadline => {
                self.expire_admission(slot);
                return;
            }
            // a server that stops writes the queue until `drain_timeout`
            Phase::Closing { deadline, .. }
                if now >= *deadline
                    && (self.draining.is_none() || connection.outbound.is_empty()) =>
            {
                // a process that was stopped may not have written the last chunk yet
                self.flush(slot);
                self.drop_connection(slot, Disconnect::Lost);
                return;
            }
            Phase::Handshake { deadline, .. }
            | Phase::Admitting { deadline, .. }
            | Phase::Closing { deadline, .. } => *deadline,
            // the input of a paused connection is not read, so the client is not silent
            Phase::Open { .. }
                if !connection.is_paused && now >= connection.last_seen + timeout =>
            {
                self.end(slot, Disconnect::HeartbeatTimeout);
                return;
            }
            Phase::Open { next_ping, .. } => {
                if connection.is_paused {
                    connection.last_seen = now;
                }
                let deadline = connection.last_seen + timeout;
                if now >= *next_ping {
                    *next_ping = now + interval;
                    let frame = heartbeat
                        .get_or_insert_with(|| self.node.heartbeat())
                        .clone();
                    self.queue(slot, EncodedFrame::ping().into());
                    self.queue(slot, frame.into());
                    self.check_slow(slot);
                    (now + interval).min(deadline)
                } else {
                    (*next_ping).min(deadline)
                }
            }
        };
        self.watch(slot, next_look);
    }

    /// Sets the tick at which the wheel checks a connection, in place of the tick that was set before.
    pub(super) fn watch(&mut self, slot: Slot, tick: u64) {
        let Some(connection) = self.connections.get_mut(slot as usize) else {
            return;
        };
        connection.watch = connection.watch.wrapping_add(1);
        let watch = Watch {
            slot,
            generation: connection.generation,
            number: connection.watch,
        };
        self.wheel.insert(tick, watch);
    }

    /// Ends an open connection from this side. The queue is written first, unless the client is stalled.
    pub(super) fn end(&mut self, slot: Slot, disconnect: Disconnect) {
        let Some(connection) = self.connections.get_mut(slot as usize) else {
            return;
        };
        if disconnect.is_of_stalled() {
            let (frames, bytes) = (connection.outbound.frames(), connection.outbound.bytes());
            self.freed += connection.outbound.weight();
            let dropped = connection.outbound.clear_waiting();
            // the frames of a half-written run are counted again
            self.queued_frames = self.queued_frames + connection.outbound.frames() - frames;
            self.queued_bytes -= bytes - connection.outbound.bytes();
            self.count_dropped(disconnect.reason(), &dropped);
            if disconnect == Disconnect::SlowConsumer {
                let frames = dropped.iter().map(|dropped| dropped.frames).sum();
                self.node.counters.dropped_slow_consumer.add(frames);
            }
        }
        self.close(slot, disconnect, &EncodedFrame::of_disconnect(disconnect));
    }

    /// Drops a connection at once.
    pub(super) fn drop_connection(&mut self, slot: Slot, disconnect: Disconnect) {
        let Some(mut connection) = self.connections.try_remove(slot as usize) else {
            return;
        };
        self.forget_input(&mut connection.unfinished);
        self.queued_frames -= connection.outbound.frames();
        self.queued_bytes -= connection.outbound.bytes();
        self.freed += CONNECTION_SIZE + connection.outbound.weight() + connection.reader.held();
        self.hub.remove(slot);
        self.stalls.has_ended |= connection.stall.is_some();
        connection.stream.shutdown(Shutdown::Both);
        match connection.phase {
            Phase::Handshake { .. } | Phase::Admitting { .. } => {}
            Phase::Closing { .. } => self.closing_count -= 1,
            Phase::Open { client, .. } => {
                self.open_count -= 1;
                let unwritten = connection.outbound.unwritten_emergencies();
                let connection_id = self.connection_id(slot, connection.generation);
                self.disconnected(&client, connection_id, disconnect, unwritten);
            }
        }
    }

    fn disconnected(
        &self,
        client: &Arc<Client>,
        connection_id: ConnectionId,
        disconnect: Disconnect,
        unwritten: Vec<Unwritten>,
    ) {
        self.node.events.log(LogLevel::Debug, "connections", || {
            format!(
                "{} disconnected: {} ({})",
                client.id,
                disconnect.reason(),
                disconnect.code()
            )
        });
        client.set_queued_bytes(0);
        self.node
            .disconnect(client, connection_id, disconnect, unwritten);
    }

    pub(super) fn connection_id(&self, slot: Slot, generation: u32) -> ConnectionId {
        ConnectionId {
            shard: self.index,
            slot,
            generation,
        }
    }

    /// Queues the close frame and releases the client. The socket is closed when the frame is written.
    pub(super) fn close(&mut self, slot: Slot, disconnect: Disconnect, frame: &EncodedFrame) {
        let deadline = self.wheel.now() + self.ticks(CLOSE_TIMEOUT);
        let Some(connection) = self.connections.get_mut(slot as usize) else {
            return;
        };
        if !matches!(connection.phase, Phase::Open { .. }) {
            return;
        }
        let phase = std::mem::replace(
            &mut connection.phase,
            Phase::Closing {
                deadline,
                is_shut: false,
            },
        );
        connection.is_paused = false;
        self.stalls.has_ended |= connection.stall.take().is_some();
        self.freed += std::mem::take(&mut connection.reader).held();
        let mut unfinished = std::mem::take(&mut connection.unfinished);
        let generation = connection.generation;
        // a stalled client is unlikely to read its emergencies: they become mail
        let unwritten = if disconnect.is_of_stalled() {
            connection.outbound.unwritten_emergencies()
        } else {
            Vec::new()
        };
        self.forget_input(&mut unfinished);
        self.open_count -= 1;
        self.begin_closing(slot, generation);
        self.queue(slot, Chunk::last_words(frame.bytes().clone()));
        self.hub.remove(slot);
        self.watch(slot, deadline);
        if let Phase::Open { client, .. } = phase {
            let connection_id = self.connection_id(slot, generation);
            self.disconnected(&client, connection_id, disconnect, unwritten);
        }
    }

    /// Sends an HTTP answer, after which the connection ends.
    pub(super) fn last_word(&mut self, slot: Slot, response: Vec<u8>) {
        let deadline = self.wheel.now() + self.ticks(CLOSE_TIMEOUT);
        let Some(connection) = self.connections.get_mut(slot as usize) else {
            return;
        };
        connection.phase = Phase::Closing {
            deadline,
            is_shut: false,
        };
        // a connection that waited for its verdict was not read, and the peer may have closed it
        connection.readiness.set();
        let mut unfinished = std::mem::take(&mut connection.unfinished);
        let generation = connection.generation;
        // frames may have come behind the head of a request that waited for its verdict
        self.freed += std::mem::take(&mut connection.reader).held();
        self.forget_input(&mut unfinished);
        self.begin_closing(slot, generation);
        self.queue(slot, Chunk::last_words(response.into()));
        self.watch(slot, deadline);
    }
}

impl Connection {
    /// Adds dropped messages to the `gap` that the client gets when its socket takes data again.
    pub(super) fn note_dropped(&mut self, dropped: &[Dropped]) {
        let noted = &mut self.dropped;
        for dropped in dropped {
            match noted
                .iter_mut()
                .find(|known| known.channel == dropped.channel)
            {
                Some(known) => {
                    known.frames += dropped.frames;
                    known.offset = known.offset.max(dropped.offset);
                }
                None => noted.push(*dropped),
            }
        }
    }

    /// True when the socket takes data.
    fn takes_something(&self) -> bool {
        let mut context = Context::from_waker(&self.waker);
        !self.takes_nothing && self.stream.poll_write_ready(&mut context).is_ready()
    }

    /// Tells the node how many bytes wait for the client.
    fn report_waiting(&mut self) {
        let bytes = self.outbound.bytes();
        if bytes != self.reported_bytes
            && let Phase::Open { client, .. } = &self.phase
        {
            client.set_queued_bytes(bytes);
            self.reported_bytes = bytes;
        }
    }

    fn write_waiting(&mut self) -> io::Result<()> {
        let mut context = Context::from_waker(&self.waker);
        while !self.outbound.is_empty() {
            let written = if self.outbound.chunks() == 1 {
                self.stream.poll_write(&mut context, self.outbound.first())
            } else {
                let mut slices = [IoSlice::new(&[]); MAX_SLICES];
                let filled = self.outbound.fill(&mut slices);
                self.stream
                    .poll_write_vectored(&mut context, &slices[..filled])
            };
            match written {
                Poll::Ready(Ok(count)) => self.outbound.advance(count),
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => return Ok(()),
            }
        }
        Ok(())
    }
}
