//! The way out: from the inbox to the outbound queues.

use super::Shard;
use super::socket::Phase;
use super::write::{InLine, line_for};
use crate::base::error::Disconnect;
use crate::base::priority::{Priority, SlowConsumer};
use crate::core::hub::{ChannelKey, Slot};
use crate::core::inbox::Weigh;
use crate::core::outbound::{Chunk, Dropped, Outbound};
use crate::node::{Channel, ConnectionId, Delivery, DeliveryOptions, InFlight};
use crate::wire::frame::EncodedFrame;
use bytes::{Bytes, BytesMut};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Consecutive frames of one channel are joined up to this size, so that a subscriber gets one chunk.
const MAX_RUN: usize = 64 << 10;

/// The approximate number of chunks that one turn queues. The rest of the inbox waits for the next turn.
const TURN_PUSHES: usize = 4096;

/// The number of pushes that take about as long as one send.
const PUSHES_PER_SEND: usize = 64;

impl Shard {
    /// Carries out the deliveries of the inbox in order. Deliveries beyond the limit of pushes wait for the next turn.
    pub(super) fn deliver(&mut self) {
        if self.deliveries.is_empty() {
            let mut taken = Vec::from(std::mem::take(&mut self.deliveries));
            if taken.capacity() > KEPT_CAPACITY {
                taken = Vec::new();
            }
            self.handle.inbox.take(&mut taken);
            self.deliveries = taken.into();
        }
        let mut settled = 0;
        while self.pushes < TURN_PUSHES
            && !self.must_wait_for_others()
            && let Some(delivery) = self.deliveries.pop_front()
        {
            settled += delivery.weight();
            self.pushes += 1;
            settled += self.carry_out(delivery);
        }
        if self.handle.inbox.settle(settled) {
            // other shards may have paused publishers because this inbox was full
            self.node.shards.wake();
        }
    }

    /// Carries out a delivery, with the deliveries behind it that can be joined. Returns the weight of the joined ones.
    fn carry_out(&mut self, delivery: Delivery) -> usize {
        match delivery {
            Delivery::Publish {
                channel,
                frame,
                delivery_options,
            } => return self.publish(channel, frame, delivery_options),
            Delivery::Gap { channel, frame } => self.tell_lost(channel, &frame),
            Delivery::Adopt(adoption) => self.adopt(adoption),
            Delivery::Awaited {
                connection_id,
                awaited,
            } => self.go_on(connection_id, *awaited),
            Delivery::Subscribe {
                connection_id,
                channel,
            } => {
                if self.is_open(connection_id) {
                    self.hub.subscribe(connection_id.slot, channel);
                }
            }
            Delivery::Unsubscribe {
                connection_id,
                channel,
            } => {
                if self.is_open(connection_id) {
                    self.hub.unsubscribe(connection_id.slot, channel);
                }
            }
            Delivery::Direct {
                connection_id,
                frame,
                priority,
                receipt,
            } => {
                if self.is_open(connection_id) {
                    self.queue(connection_id.slot, Chunk::direct(&frame, priority, receipt));
                    self.check_slow(connection_id.slot);
                    if self.would_overfill(0) {
                        self.flush(connection_id.slot);
                        self.make_room();
                    }
                }
            }
            Delivery::Close {
                connection_id,
                disconnect,
                frame,
            } => {
                if self.is_open(connection_id) {
                    self.close(connection_id.slot, disconnect, &frame);
                }
            }
            Delivery::Ended { connection_id } => {
                if self.is_open(connection_id) {
                    self.flush(connection_id.slot);
                    self.drop_connection(connection_id.slot, Disconnect::Lost);
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
        0
    }

    /// Queues a publication for its subscribers, joined with the publications behind it that continue the run. Returns the
    /// weight of the joined publications.
    fn publish(
        &mut self,
        mut channel: InFlight,
        frame: EncodedFrame,
        mut delivery_options: DeliveryOptions,
    ) -> usize {
        let mut run = Run::new(frame);
        let mut joined = 0;
        // publications that a policy may drop stay separate, so that each can be dropped alone
        let is_joined = delivery_options.policy == SlowConsumer::Disconnect;
        while is_joined
            && let Some(next) = self.deliveries.front()
            && run.is_continued_by(next, &channel, delivery_options)
        {
            joined += next.weight();
            if let Some(Delivery::Publish {
                channel: next_channel,
                frame,
                delivery_options: next,
            }) = self.deliveries.pop_front()
            {
                channel.join(next_channel);
                run.add(&frame);
                delivery_options.offset = next.offset.or(delivery_options.offset);
            }
        }
        self.fan_out(
            &channel,
            &run.into_chunk(&channel, delivery_options),
            delivery_options.policy,
        );
        let was_full = self.node.is_full(&channel);
        let channel = channel.into_channel();
        self.stalls.has_ended |= was_full && !self.node.is_full(&channel);
        joined
    }

    fn fan_out(&mut self, channel: &Arc<Channel>, chunk: &Chunk, policy: SlowConsumer) {
        if policy == SlowConsumer::Latest {
            self.conflate(channel);
        }
        let subscribers = self.hub.subscribers(channel.key);
        let bytes = chunk.bytes.len();
        self.pushes += subscribers.len();
        if self.would_overfill(subscribers.len().saturating_mul(bytes)) {
            let subscribers = subscribers.to_vec();
            self.fan_out_in_little_room(&subscribers, channel, chunk);
            return;
        }
        let mut over = Vec::new();
        let mark = self.mark().min(self.config.max_pending_bytes);
        let line = line_for(subscribers.len(), bytes);
        for &slot in subscribers {
            let Some(connection) = self.connections.get_mut(slot as usize) else {
                continue;
            };
            let added = connection.outbound.push(chunk.clone());
            self.queued_frames = self.queued_frames.wrapping_add_signed(added);
            self.queued_bytes += bytes;
            if connection.outbound.weight() > mark {
                over.push(slot);
            }
            Self::touch(&mut self.lines, slot, &mut connection.in_line, line);
        }
        if line == InLine::Sliced {
            self.handle.has_backlog.store(true, Ordering::Relaxed);
        }
        for slot in over {
            self.check_slow(slot);
            self.check_behind(slot, channel);
        }
    }

    /// A fan-out that exceeds `max_queued_bytes` unless sockets take the bytes at once. Beyond the limit, the shard writes
    /// each subscriber before it queues for the next.
    fn fan_out_in_little_room(
        &mut self,
        subscribers: &[Slot],
        channel: &Arc<Channel>,
        chunk: &Chunk,
    ) {
        for &slot in subscribers {
            let is_over = self.would_overfill(chunk.bytes.len());
            self.queue(slot, chunk.clone());
            if is_over {
                self.flush(slot);
                self.make_room();
            }
            self.check_slow(slot);
            self.check_behind(slot, channel);
        }
    }

    /// Drops the waiting publications of a channel of which only the newest publication counts.
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
        self.pushes += behind.len() * PUSHES_PER_SEND;
        let mut count = 0;
        for slot in behind {
            // The queue may be full only because the connection was not flushed yet.
            self.flush(slot);
            let dropped = self.drop_queued(slot, |outbound| outbound.conflate(channel.key));
            count += dropped.iter().map(|dropped| dropped.frames).sum::<usize>();
        }
        if count > 0 {
            let reason = SlowConsumer::Latest.name();
            self.node.count_dropped(reason, Some(channel), count);
        }
    }

    /// Enforces `max_pending_bytes` for a connection: tries to write, then drops what the policies of the channels allow, and
    /// ends the connection if too much still waits.
    ///
    /// A single message may exceed the limit: only the bytes behind the first message count.
    pub(super) fn check_slow(&mut self, slot: Slot) {
        let limit = self.config.max_pending_bytes;
        if !self.is_over(slot, limit) {
            return;
        }
        self.flush(slot);
        if self.is_over(slot, limit) {
            self.drop_oldest(slot, limit);
            if self.is_over(slot, limit) {
                self.end(slot, Disconnect::SlowConsumer);
            }
        }
    }

    /// Counts a connection as behind with a channel if its queue is over the mark.
    fn check_behind(&mut self, slot: Slot, channel: &Arc<Channel>) {
        let mark = self.mark();
        if let Some(connection) = self.connections.get_mut(slot as usize)
            && connection.outbound.weight() > mark
            && matches!(connection.phase, Phase::Open { .. })
        {
            Self::fall_behind(connection, channel);
        }
    }

    fn is_over(&self, slot: Slot, limit: usize) -> bool {
        let connection = self.connections.get(slot as usize);
        connection.is_some_and(|connection| connection.outbound.weight_behind() > limit)
    }

    /// Drops the oldest publications of channels with this policy, until the queue weighs at most `limit`.
    pub(super) fn drop_oldest(&mut self, slot: Slot, limit: usize) {
        let dropped = self.drop_queued(slot, |outbound| outbound.drop_oldest(limit));
        self.count_dropped(SlowConsumer::DropOldest.name(), &dropped);
    }

    /// Drops chunks from the queue of a connection. The client gets a `gap` when its socket takes data again.
    fn drop_queued(
        &mut self,
        slot: Slot,
        drop: impl FnOnce(&mut Outbound) -> Vec<Dropped>,
    ) -> Vec<Dropped> {
        let Some(connection) = self.connections.get_mut(slot as usize) else {
            return Vec::new();
        };
        let (frames, bytes) = (connection.outbound.frames(), connection.outbound.bytes());
        let weight = connection.outbound.weight();
        let dropped = drop(&mut connection.outbound);
        // the frames of a half-written run are counted again, and may weigh more than the run
        self.queued_frames = self.queued_frames + connection.outbound.frames() - frames;
        self.queued_bytes -= bytes - connection.outbound.bytes();
        self.freed += weight.saturating_sub(connection.outbound.weight());
        connection.note_dropped(&dropped);
        dropped
    }

    /// Counts the frames that the queue of a slow consumer has lost, by channel.
    pub(super) fn count_dropped(&mut self, reason: &'static str, dropped: &[Dropped]) {
        for dropped in dropped {
            let channel = dropped.channel.and_then(|key| self.channel_of(key));
            self.node
                .count_dropped(reason, channel.as_deref(), dropped.frames);
        }
    }

    /// The channel with this key. Channels of slow consumers are cached, because the node has no index by key.
    fn channel_of(&mut self, key: ChannelKey) -> Option<Arc<Channel>> {
        if let Some(known) = self.channels_with_drops.get(&key) {
            return Some(Arc::clone(known));
        }
        if self.channels_with_drops.len() >= KNOWN_CHANNELS {
            self.channels_with_drops.clear();
        }
        let channel = self.node.channels.find(key)?;
        self.channels_with_drops.insert(key, Arc::clone(&channel));
        Some(channel)
    }

    /// Queues a `gap` for each channel of which messages were dropped, if the client understands gaps.
    pub(super) fn tell_dropped(&mut self, slot: Slot) {
        let Some(connection) = self.connections.get_mut(slot as usize) else {
            return;
        };
        let dropped = std::mem::take(&mut connection.dropped);
        let Phase::Open { client, .. } = &connection.phase else {
            return;
        };
        if !client.wants_gaps() {
            return;
        }
        for dropped in dropped {
            if let Some(channel) = dropped.channel.and_then(|key| self.channel_of(key)) {
                let frame = self.node.gap(&channel, &dropped);
                // the lane brings the gap ahead of the waiting messages of the channel
                self.queue(slot, Chunk::direct(&frame, Priority::High, None));
            }
        }
    }

    /// Queues the `gap` of a channel that has lost publications, for each subscriber that understands gaps. The lane
    /// brings the gap ahead of the later publications of the channel, whatever their priority below emergencies.
    fn tell_lost(&mut self, channel: ChannelKey, frame: &EncodedFrame) {
        let subscribers = self.hub.subscribers(channel).to_vec();
        self.pushes += subscribers.len();
        for slot in subscribers {
            let understands = self.connections.get(slot as usize).is_some_and(|connection| {
                matches!(&connection.phase, Phase::Open { client, .. } if client.wants_gaps())
            });
            if understands {
                self.queue(slot, Chunk::direct(frame, Priority::High, None));
                self.check_slow(slot);
            }
        }
    }

    fn deliver_urgent(&mut self, number: u64, chunk: &Chunk) {
        let mut over = Vec::new();
        let line = line_for(self.connections.len(), chunk.bytes.len());
        let limit = self.config.max_pending_bytes;
        for (slot, connection) in &mut self.connections {
            // a connection that began later got the emergency from its mailbox, if it was kept for its client
            if connection.emergencies < number && matches!(connection.phase, Phase::Open { .. }) {
                let added = connection.outbound.push(chunk.clone());
                self.queued_frames = self.queued_frames.wrapping_add_signed(added);
                self.queued_bytes += chunk.bytes.len();
                if connection.outbound.weight() > limit {
                    over.push(slot as Slot);
                }
                Self::touch(&mut self.lines, slot as Slot, &mut connection.in_line, line);
            }
        }
        for slot in over {
            self.check_slow(slot);
        }
    }

    fn drain(&mut self) {
        self.draining = Some(Instant::now() + self.config.drain_timeout);
        // no new client is admitted, so the places of clients are free for the close of these clients
        self.max_transient += self.open_count;
        let open: Vec<Slot> = self
            .connections
            .iter()
            .filter(|(_, connection)| matches!(connection.phase, Phase::Open { .. }))
            .map(|(slot, _)| slot as Slot)
            .collect();
        for slot in open {
            let goodbye = self.node.goodbye();
            self.queue(slot, Chunk::last_words(goodbye.bytes().clone()));
            self.end(slot, Disconnect::Shutdown);
        }
        self.refuse_admissions();
    }

    fn is_open(&self, connection_id: ConnectionId) -> bool {
        self.connections
            .get(connection_id.slot as usize)
            .is_some_and(|connection| {
                connection.generation == connection_id.generation
                    && matches!(connection.phase, Phase::Open { .. })
            })
    }
}

/// The number of channels of slow consumers that are cached.
const KNOWN_CHANNELS: usize = 1024;

/// The largest capacity of the list of deliveries that is kept from turn to turn.
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

    /// True for a publication of the same channel, lane and policy for which the run has room.
    fn is_continued_by(
        &self,
        next: &Delivery,
        channel: &Arc<Channel>,
        delivery_options: DeliveryOptions,
    ) -> bool {
        let Delivery::Publish {
            channel: other,
            frame,
            delivery_options: its,
        } = next
        else {
            return false;
        };
        let size = match self {
            Run::One(first) => first.len(),
            Run::Many(bytes, _) => bytes.len(),
        };
        other.key == channel.key
            && (its.priority, its.policy) == (delivery_options.priority, delivery_options.policy)
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

    fn into_chunk(self, channel: &Channel, delivery_options: DeliveryOptions) -> Chunk {
        let (bytes, frames) = match self {
            Run::One(frame) => (frame.bytes().clone(), 1),
            Run::Many(bytes, frames) => (Bytes::from(bytes), frames),
        };
        let source = (
            channel.key,
            delivery_options.offset,
            delivery_options.policy,
        );
        Chunk::published(bytes, frames, delivery_options.priority, source)
    }
}
