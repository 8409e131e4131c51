//! The way out: from the inbox to the outbound queues, and from those to the sockets.

use super::Shard;
use super::socket::Phase;
use crate::error::Disconnect;
use crate::frame::EncodedFrame;
use crate::hub::Slot;
use crate::node::{Channel, Delivery, Door, Place};
use crate::outbound::{Chunk, Outbound, Shed};
use crate::priority::{Priority, SlowConsumer};
use bytes::{Bytes, BytesMut};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Frames of one channel that came together are joined up to this size, so that a subscriber gets one chunk.
const MAX_RUN: usize = 64 << 10;

impl Shard {
    /// Carries out what is in the inbox, in its order.
    pub(super) fn deliver(&mut self) {
        let mut deliveries = std::mem::take(&mut self.deliveries);
        if self.door.inbox.take(&mut deliveries) {
            // others may hold back because of this inbox
            self.node.wake_shards();
        }
        let mut deliveries_left = deliveries.drain(..).peekable();
        while let Some(delivery) = deliveries_left.next() {
            match delivery {
                Delivery::Publish {
                    channel,
                    frame,
                    mut offset,
                    priority,
                } => {
                    let mut run = Run::new(frame);
                    // what may be dropped is dropped one by one
                    let is_joined = channel.settings.slow_consumer == SlowConsumer::Disconnect;
                    while let Some(Delivery::Publish {
                        frame,
                        offset: next,
                        ..
                    }) = deliveries_left
                        .next_if(|next| is_joined && run.is_continued_by(next, &channel, priority))
                    {
                        run.add(&frame);
                        offset = next.or(offset);
                    }
                    self.fan_out(&channel, &run.into_chunk(&channel, offset, priority));
                }
                Delivery::Adopt { stream, is_tuned } => self.adopt(stream, is_tuned),
                Delivery::Subscribe { place, channel } => {
                    if self.is_open(place) {
                        self.hub.subscribe(place.slot, channel);
                    }
                }
                Delivery::Unsubscribe { place, channel } => {
                    if self.is_open(place) {
                        self.hub.unsubscribe(place.slot, channel);
                    }
                }
                Delivery::Direct {
                    place,
                    frame,
                    priority,
                    receipt,
                } => {
                    if self.is_open(place) {
                        self.queue(place.slot, Chunk::direct(&frame, priority, receipt));
                        self.check_slow(place.slot);
                    }
                }
                Delivery::Close {
                    place,
                    disconnect,
                    frame,
                } => {
                    if self.is_open(place) {
                        self.close(place.slot, disconnect, &frame);
                    }
                }
                Delivery::Ended { place } => {
                    if self.is_open(place) {
                        self.flush(place.slot);
                        self.drop_connection(place.slot, Disconnect::Lost);
                    }
                }
                Delivery::Urgent { frame, receipt } => {
                    self.deliver_urgent(&Chunk::direct(&frame, Priority::Emergency, receipt));
                }
                Delivery::Drain => self.drain(),
                Delivery::Finish => self.is_finished = true,
            }
        }
        drop(deliveries_left);
        if deliveries.capacity() > KEPT_CAPACITY {
            deliveries = Vec::new();
        }
        self.deliveries = deliveries;
    }

    /// Writes each touched connection once.
    pub(super) fn flush_touched(&mut self) {
        let mut touched = std::mem::take(&mut self.touched);
        for slot in touched.drain(..) {
            if let Some(connection) = self.connections.get_mut(slot as usize) {
                connection.is_touched = false;
                self.flush(slot);
            }
        }
        // closing a connection tells others, through the inbox and so in the next turn
        self.touched = touched;
    }

    fn fan_out(&mut self, channel: &Arc<Channel>, chunk: &Chunk) {
        let mut over = Vec::new();
        let limit = self.config.max_pending_bytes;
        if channel.settings.slow_consumer == SlowConsumer::Latest {
            self.conflate(channel);
        }
        for &slot in self.hub.subscribers(channel.key) {
            let Some(connection) = self.connections.get_mut(slot as usize) else {
                continue;
            };
            connection.outbound.push(chunk.clone());
            self.queued_frames += chunk.frames as usize;
            self.queued_bytes += chunk.bytes.len();
            if connection.outbound.weight() > limit {
                over.push(slot);
            }
            if !std::mem::replace(&mut connection.is_touched, true) {
                self.touched.push(slot);
            }
        }
        for slot in over {
            self.check_slow(slot);
        }
    }

    /// Of a channel of which only the newest publication counts, what still waits makes way for a newer one.
    fn conflate(&mut self, channel: &Arc<Channel>) {
        let behind: Vec<Slot> = self
            .hub
            .subscribers(channel.key)
            .iter()
            .copied()
            .filter(|slot| {
                let connection = self.connections.get(*slot as usize);
                connection.is_some_and(|connection| connection.outbound.has_waiting(channel.key))
            })
            .collect();
        for slot in behind {
            // it may only not have had its turn
            self.flush(slot);
            self.shed(slot, |outbound| outbound.conflate(channel.key));
        }
    }

    /// Deals with a connection for which more waits than may, after one more try to write it: drops what its channels'
    /// policies allow to, or ends it.
    ///
    /// A single message may be larger than the bound: only what waits besides it counts.
    pub(super) fn check_slow(&mut self, slot: Slot) {
        let limit = self.config.max_pending_bytes;
        if self.is_over(slot, limit) {
            self.flush(slot);
        }
        self.hold_to(slot, limit);
    }

    /// Has the connection with the most bytes waiting let go of what waits, while more waits in the process than may.
    pub(super) fn check_process(&mut self) {
        let limit = self.config.max_queued_bytes;
        let doors = self.node.doors();
        let waits = |door: &Arc<Door>| door.queued_bytes.load(Ordering::Relaxed);
        let queued: usize = doors.iter().map(waits).sum();
        // the shard that has most to let go of does
        if queued <= limit || doors.iter().map(waits).max() != Some(self.queued_bytes) {
            return;
        }
        let wanted = self.queued_bytes.saturating_sub(queued - limit);
        while self.queued_bytes > wanted {
            let open = self.connections.iter().filter(|(_, connection)| {
                matches!(connection.phase, Phase::Open(_)) && connection.outbound.chunks() > 1
            });
            let worst = open.max_by_key(|(_, connection)| connection.outbound.bytes());
            let Some((slot, _)) = worst else { return };
            self.hold_to(slot as Slot, 0);
        }
    }

    fn is_over(&self, slot: Slot, limit: usize) -> bool {
        let connection = self.connections.get(slot as usize);
        connection.is_some_and(|connection| {
            connection.outbound.weight() > limit && connection.outbound.chunks() > 1
        })
    }

    fn hold_to(&mut self, slot: Slot, limit: usize) {
        if self.is_over(slot, limit) {
            self.shed(slot, |outbound| outbound.shed(limit));
            if self.is_over(slot, limit) {
                self.end(slot, Disconnect::SlowConsumer);
            }
        }
    }

    /// Drops something from a connection's queue; the client is told once it takes something again.
    fn shed(&mut self, slot: Slot, drop: impl FnOnce(&mut Outbound) -> Vec<Shed>) {
        let Some(connection) = self.connections.get_mut(slot as usize) else {
            return;
        };
        let (frames, bytes) = (connection.outbound.frames(), connection.outbound.bytes());
        let weight = connection.outbound.weight();
        let dropped = drop(&mut connection.outbound);
        // a run that is half written is counted anew
        self.queued_frames = self.queued_frames + connection.outbound.frames() - frames;
        self.queued_bytes -= bytes - connection.outbound.bytes();
        self.freed += weight - connection.outbound.weight();
        for shed in &dropped {
            self.node
                .count_shed(shed.policy.name(), std::slice::from_ref(shed));
        }
        connection.note_shed(dropped);
    }

    /// Tells a client what was dropped for it, if it understands that.
    pub(super) fn tell_shed(&mut self, slot: Slot) {
        let Some(connection) = self.connections.get_mut(slot as usize) else {
            return;
        };
        let dropped = std::mem::take(&mut connection.shed);
        let Phase::Open(client) = &connection.phase else {
            return;
        };
        if !client.wants_gaps() {
            return;
        }
        for shed in dropped {
            if let Some(channel) = self.node.channel_of(shed.channel) {
                let frame = self.node.gap(&channel, &shed);
                // before what of the channel still waits
                self.queue(slot, Chunk::direct(&frame, Priority::High, None));
            }
        }
    }

    fn deliver_urgent(&mut self, chunk: &Chunk) {
        let mut over = Vec::new();
        let limit = self.config.max_pending_bytes;
        for (slot, connection) in &mut self.connections {
            if matches!(connection.phase, Phase::Open(_)) {
                let frames = connection.outbound.frames();
                connection.outbound.push(chunk.clone());
                // a run that is half written is counted anew, without the frames that have left
                self.queued_frames = self.queued_frames + connection.outbound.frames() - frames;
                self.queued_bytes += chunk.bytes.len();
                if connection.outbound.weight() > limit {
                    over.push(slot as Slot);
                }
                if !std::mem::replace(&mut connection.is_touched, true) {
                    self.touched.push(slot as Slot);
                }
            }
        }
        for slot in over {
            self.check_slow(slot);
        }
    }

    fn drain(&mut self) {
        self.draining = Some(Instant::now() + self.config.drain_timeout);
        let open: Vec<Slot> = self
            .connections
            .iter()
            .filter(|(_, connection)| matches!(connection.phase, Phase::Open(_)))
            .map(|(slot, _)| slot as Slot)
            .collect();
        for slot in open {
            let goodbye = self.node.goodbye();
            self.queue(slot, Chunk::last_words(goodbye.bytes().clone()));
            self.end(slot, Disconnect::Shutdown);
        }
    }

    fn is_open(&self, place: Place) -> bool {
        self.connections
            .get(place.slot as usize)
            .is_some_and(|connection| {
                connection.generation == place.generation
                    && matches!(connection.phase, Phase::Open(_))
            })
    }
}

/// Capacity of the list of deliveries that is kept from turn to turn.
const KEPT_CAPACITY: usize = 1 << 16;

/// Frames of one channel in a row.
enum Run {
    One(EncodedFrame),
    Many(BytesMut, u32),
}

impl Run {
    fn new(frame: EncodedFrame) -> Self {
        Run::One(frame)
    }

    /// True for a publication of the same channel and lane that has room.
    fn is_continued_by(&self, next: &Delivery, channel: &Arc<Channel>, priority: Priority) -> bool {
        let Delivery::Publish {
            channel: other,
            frame,
            priority: its_priority,
            ..
        } = next
        else {
            return false;
        };
        let size = match self {
            Run::One(first) => first.len(),
            Run::Many(bytes, _) => bytes.len(),
        };
        other.key == channel.key && *its_priority == priority && size + frame.len() <= MAX_RUN
    }

    fn add(&mut self, frame: &EncodedFrame) {
        match self {
            Run::One(first) => {
                let mut bytes = BytesMut::with_capacity(4 * (first.len() + frame.len()));
                bytes.extend_from_slice(first.bytes());
                bytes.extend_from_slice(frame.bytes());
                *self = Run::Many(bytes, 2);
            }
            Run::Many(bytes, frames) => {
                bytes.extend_from_slice(frame.bytes());
                *frames += 1;
            }
        }
    }

    fn into_chunk(self, channel: &Channel, offset: Option<u64>, priority: Priority) -> Chunk {
        let (bytes, frames) = match self {
            Run::One(frame) => (frame.bytes().clone(), 1),
            Run::Many(bytes, frames) => (Bytes::from(bytes), frames),
        };
        let source = (channel.key, offset, channel.settings.slow_consumer);
        Chunk::published(bytes, frames, priority, source)
    }
}
