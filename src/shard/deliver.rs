//! The way out: from the inbox to the outbound queues, and from those to the sockets.

use super::Shard;
use super::socket::Phase;
use crate::error::Disconnect;
use crate::frame::EncodedFrame;
use crate::hub::{ChannelKey, Slot};
use crate::node::{Delivery, Place};
use crate::outbound::Chunk;
use bytes::{Bytes, BytesMut};
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
                Delivery::Publish { channel, frame } => {
                    let mut run = Run::new(frame);
                    while let Some(Delivery::Publish { frame, .. }) = deliveries_left
                        .next_if(|next| matches!(next, Delivery::Publish { channel: other, frame } if *other == channel && run.takes(frame)))
                    {
                        run.add(&frame);
                    }
                    self.fan_out(channel, &run.into_chunk());
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
                Delivery::Direct { place, frame } => {
                    if self.is_open(place) {
                        self.queue(place.slot, frame.into());
                        self.check_slow(place.slot);
                    }
                }
                Delivery::Close {
                    place,
                    disconnect,
                    frame,
                } => {
                    if self.is_open(place) {
                        self.close(place.slot, disconnect, frame);
                    }
                }
                Delivery::Ended { place } => {
                    if self.is_open(place) {
                        self.flush(place.slot);
                        self.drop_connection(place.slot, Disconnect::Lost);
                    }
                }
                Delivery::Urgent { frame } => self.deliver_urgent(&frame),
                Delivery::Drain { goodbye } => self.drain(&goodbye),
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

    fn fan_out(&mut self, channel: ChannelKey, chunk: &Chunk) {
        let mut over = Vec::new();
        let limit = self.config.max_pending_bytes;
        for &slot in self.hub.subscribers(channel) {
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

    /// Ends a connection for which more waits than may, after one more try to write it.
    ///
    /// A single message may be larger than the bound: only what waits besides it counts.
    pub(super) fn check_slow(&mut self, slot: Slot) {
        let limit = self.config.max_pending_bytes;
        let is_over = |shard: &Self| {
            shard
                .connections
                .get(slot as usize)
                .is_some_and(|connection| {
                    connection.outbound.weight() > limit && connection.outbound.chunks() > 1
                })
        };
        if is_over(self) {
            self.flush(slot);
            if is_over(self) {
                self.end(slot, Disconnect::SlowConsumer);
            }
        }
    }

    fn deliver_urgent(&mut self, frame: &EncodedFrame) {
        let mut over = Vec::new();
        let limit = self.config.max_pending_bytes;
        for (slot, connection) in &mut self.connections {
            if matches!(connection.phase, Phase::Open(_)) {
                let frames = connection.outbound.frames();
                connection.outbound.push_urgent(frame);
                // a run that is half written is counted anew, without the frames that have left
                self.queued_frames = self.queued_frames + connection.outbound.frames() - frames;
                self.queued_bytes += frame.len();
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

    fn drain(&mut self, goodbye: &EncodedFrame) {
        self.draining = Some(Instant::now() + self.config.drain_timeout);
        let open: Vec<Slot> = self
            .connections
            .iter()
            .filter(|(_, connection)| matches!(connection.phase, Phase::Open(_)))
            .map(|(slot, _)| slot as Slot)
            .collect();
        for slot in open {
            self.queue(slot, goodbye.clone().into());
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

    fn takes(&self, frame: &EncodedFrame) -> bool {
        let size = match self {
            Run::One(first) => first.len(),
            Run::Many(bytes, _) => bytes.len(),
        };
        size + frame.len() <= MAX_RUN
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

    fn into_chunk(self) -> Chunk {
        match self {
            Run::One(frame) => frame.into(),
            Run::Many(bytes, frames) => Chunk::run(Bytes::from(bytes), frames),
        }
    }
}
