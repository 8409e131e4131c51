//! The way out: from the inbox to the outbound queues, and from those to the sockets.

use super::Shard;
use super::socket::Phase;
use crate::error::Disconnect;
use crate::frame::EncodedFrame;
use crate::hub::{ChannelKey, Slot};
use crate::node::{Channel, Delivery, Door, Place, Terms};
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
                    mut terms,
                } => {
                    let mut run = Run::new(frame);
                    // what may be dropped is dropped one by one
                    let is_joined = terms.policy == SlowConsumer::Disconnect;
                    while let Some(Delivery::Publish {
                        frame, terms: next, ..
                    }) = deliveries_left
                        .next_if(|next| is_joined && run.is_continued_by(next, &channel, terms))
                    {
                        run.add(&frame);
                        terms.offset = next.offset.or(terms.offset);
                    }
                    self.fan_out(&channel, &run.into_chunk(&channel, terms), terms.policy);
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
                Delivery::Urgent {
                    number,
                    frame,
                    receipt,
                } => {
                    let chunk = Chunk::direct(&frame, Priority::Emergency, receipt);
                    self.deliver_urgent(number, &chunk);
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
        // some are touched again: they are told what was dropped for them
        while !self.touched.is_empty() {
            let mut touched = std::mem::take(&mut self.touched);
            for slot in touched.drain(..) {
                if let Some(connection) = self.connections.get_mut(slot as usize) {
                    connection.is_touched = false;
                    self.flush(slot);
                }
            }
            if self.touched.is_empty() {
                self.touched = touched;
            }
        }
    }

    fn fan_out(&mut self, channel: &Arc<Channel>, chunk: &Chunk, policy: SlowConsumer) {
        let mut over = Vec::new();
        let limit = self.config.max_pending_bytes;
        if policy == SlowConsumer::Latest {
            self.conflate(channel);
        }
        for &slot in self.hub.subscribers(channel.key) {
            let Some(connection) = self.connections.get_mut(slot as usize) else {
                continue;
            };
            let added = connection.outbound.push(chunk.clone());
            self.queued_frames = self.queued_frames.wrapping_add_signed(added);
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
                connection.is_some_and(|connection| connection.outbound.has_older(channel.key))
            })
            .collect();
        let mut dropped = 0;
        for slot in behind {
            // it may only not have had its turn
            self.flush(slot);
            let shed = self.shed(slot, |outbound| outbound.conflate(channel.key));
            dropped += shed.iter().map(|shed| shed.frames).sum::<usize>();
        }
        if dropped > 0 {
            let reason = SlowConsumer::Latest.name();
            self.node.count_shed(reason, Some(channel), dropped);
        }
    }

    /// Deals with a connection for which more waits than may, after one more try to write it: drops what its channels'
    /// policies allow to, or ends it.
    ///
    /// A single message may be larger than the bound: only what waits behind it counts.
    pub(super) fn check_slow(&mut self, slot: Slot) {
        let limit = self.config.max_pending_bytes;
        if !self.is_over(slot, limit) {
            return;
        }
        self.flush(slot);
        if self.is_over(slot, limit) {
            self.shed_oldest(slot, limit);
            if self.is_over(slot, limit) {
                self.end(slot, Disconnect::SlowConsumer);
            }
        }
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
            let before = self.queued_bytes;
            self.shed_oldest(slot as Slot, 0);
            if self.queued_bytes == before {
                self.end(slot as Slot, Disconnect::SlowConsumer);
            }
        }
    }

    fn is_over(&self, slot: Slot, limit: usize) -> bool {
        let connection = self.connections.get(slot as usize);
        connection.is_some_and(|connection| connection.outbound.weight_behind() > limit)
    }

    /// Drops the oldest, where that is the channels' policy, until what waits weighs `limit`.
    fn shed_oldest(&mut self, slot: Slot, limit: usize) {
        let dropped = self.shed(slot, |outbound| outbound.shed(limit));
        self.count_shed(SlowConsumer::DropOldest.name(), &dropped);
    }

    /// Drops something from a connection's queue; the client is told once it takes something again.
    fn shed(&mut self, slot: Slot, drop: impl FnOnce(&mut Outbound) -> Vec<Shed>) -> Vec<Shed> {
        let Some(connection) = self.connections.get_mut(slot as usize) else {
            return Vec::new();
        };
        let (frames, bytes) = (connection.outbound.frames(), connection.outbound.bytes());
        let weight = connection.outbound.weight();
        let dropped = drop(&mut connection.outbound);
        // a run that is half written is counted anew
        self.queued_frames = self.queued_frames + connection.outbound.frames() - frames;
        self.queued_bytes -= bytes - connection.outbound.bytes();
        self.freed += weight - connection.outbound.weight();
        connection.note_shed(&dropped);
        dropped
    }

    /// Counts what a slow consumer's queue has lost, by channel.
    pub(super) fn count_shed(&mut self, reason: &'static str, dropped: &[Shed]) {
        for shed in dropped {
            let channel = self.channel_of(shed.channel);
            self.node
                .count_shed(reason, channel.as_deref(), shed.frames);
        }
    }

    /// The channel with this key; those of slow consumers are remembered, for the node would look at all.
    fn channel_of(&mut self, key: ChannelKey) -> Option<Arc<Channel>> {
        if let Some(known) = self.shed_channels.get(&key) {
            return Some(Arc::clone(known));
        }
        if self.shed_channels.len() >= KNOWN_CHANNELS {
            self.shed_channels.clear();
        }
        let channel = self.node.channel_of(key)?;
        self.shed_channels.insert(key, Arc::clone(&channel));
        Some(channel)
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
            if let Some(channel) = self.channel_of(shed.channel) {
                let frame = self.node.gap(&channel, &shed);
                // before what of the channel still waits
                self.queue(slot, Chunk::direct(&frame, Priority::High, None));
            }
        }
    }

    fn deliver_urgent(&mut self, number: u64, chunk: &Chunk) {
        let mut over = Vec::new();
        let limit = self.config.max_pending_bytes;
        for (slot, connection) in &mut self.connections {
            // for one that came later it was mail, or is nothing
            if connection.emergencies < number && matches!(connection.phase, Phase::Open(_)) {
                let added = connection.outbound.push(chunk.clone());
                self.queued_frames = self.queued_frames.wrapping_add_signed(added);
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

/// Channels of slow consumers that are remembered.
const KNOWN_CHANNELS: usize = 1024;

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
    fn is_continued_by(&self, next: &Delivery, channel: &Arc<Channel>, terms: Terms) -> bool {
        let Delivery::Publish {
            channel: other,
            frame,
            terms: its,
        } = next
        else {
            return false;
        };
        let size = match self {
            Run::One(first) => first.len(),
            Run::Many(bytes, _) => bytes.len(),
        };
        other.key == channel.key
            && (its.priority, its.policy) == (terms.priority, terms.policy)
            && size + frame.len() <= MAX_RUN
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

    fn into_chunk(self, channel: &Channel, terms: Terms) -> Chunk {
        let (bytes, frames) = match self {
            Run::One(frame) => (frame.bytes().clone(), 1),
            Run::Many(bytes, frames) => (Bytes::from(bytes), frames),
        };
        let source = (channel.key, terms.offset, terms.policy);
        Chunk::published(bytes, frames, terms.priority, source)
    }
}
