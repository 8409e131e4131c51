//! From the broker to the subscribers of this process: one push for each shard that has a subscriber.

use super::channel::{Channel, InFlight, Members};
use super::counters::Counters;
use super::delivery::{Delivery, DeliveryOptions};
use super::encode::encode;
use super::gate::{GatedPublication, Place};
use super::shards::Shards;
use super::stamps::Stamps;
use crate::base::priority::{Priority, SlowConsumer};
use crate::base::sync::Mutex;
use crate::core::history::StreamPosition;
use crate::ports::broker::{Delivered, PublicationKind, Sink};
use crate::wire::frame::EncodedFrame;
use crate::wire::messages;
use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Weak};

/// What the sinks of all channels share.
pub(super) struct Distributor {
    pub shards: Arc<Shards>,
    pub counters: Arc<Counters>,
    pub stamps: Arc<Stamps>,
    /// Bytes that the gate of one channel keeps.
    pub gate_bytes: usize,
    /// Emergencies that the broker has delivered, and that did not go out to clients yet.
    arrived: Mutex<VecDeque<ArrivedEmergency>>,
    /// Emergencies of this process that did not go out yet, by id.
    own_unsent: Mutex<HashSet<u64>>,
}

/// An emergency that the broker has delivered.
pub(super) struct ArrivedEmergency {
    pub message: u64,
    pub frame: EncodedFrame,
}

/// The reason under which gaps of the broker are counted: one for each gap, because a broker may not know how many
/// publications are lost.
pub(super) const LOST: &str = "lost";

/// The subscribers of a channel in this process.
pub(super) struct ChannelSink {
    /// The channel owns its stream, which owns this sink.
    channel: Weak<Channel>,
    distributor: Arc<Distributor>,
}

impl Distributor {
    pub fn new(
        shards: Arc<Shards>,
        counters: Arc<Counters>,
        stamps: Arc<Stamps>,
        gate_bytes: usize,
    ) -> Self {
        Self {
            shards,
            counters,
            stamps,
            gate_bytes,
            arrived: Mutex::default(),
            own_unsent: Mutex::default(),
        }
    }

    /// Notes that this process is about to publish an emergency.
    pub fn begin_emergency(&self, message: u64) {
        self.own_unsent.lock().insert(message);
    }

    /// True for an emergency of this process that did not go out yet. It counts as sent from now on.
    pub fn take_unsent(&self, message: u64) -> bool {
        self.own_unsent.lock().remove(&message)
    }

    pub fn is_unsent(&self, message: u64) -> bool {
        self.own_unsent.lock().contains(&message)
    }

    /// Adds an emergency that the broker could not take.
    pub fn add_emergency(&self, message: u64, frame: EncodedFrame) {
        let emergency = ArrivedEmergency { message, frame };
        self.arrived.lock().push_back(emergency);
    }

    pub fn has_emergencies(&self) -> bool {
        !self.arrived.lock().is_empty()
    }

    /// The oldest emergency that did not go out yet.
    pub fn next_emergency(&self) -> Option<ArrivedEmergency> {
        self.arrived.lock().pop_front()
    }

    /// One inbox push for each shard that has a subscriber; returns the number of subscribers.
    fn fan_out(
        &self,
        channel: &Arc<Channel>,
        frame: &EncodedFrame,
        delivery_options: DeliveryOptions,
    ) -> usize {
        let members = channel.members.lock();
        let recipients = members.interest.total();
        if recipients > 0 {
            self.push(&members, || Delivery::Publish {
                channel: InFlight::new(channel, frame.len()),
                frame: frame.clone(),
                delivery_options,
            });
            drop(members);
            self.counters.messages_sent.add(recipients);
        }
        recipients
    }

    /// Tells the subscribers that publications are lost.
    fn push_gap(&self, channel: &Arc<Channel>, frame: &EncodedFrame) {
        self.push(&channel.members.lock(), || Delivery::Gap {
            channel: channel.key,
            frame: frame.clone(),
        });
    }

    /// Pushes a delivery to each shard that has a subscriber.
    fn push(&self, members: &Members, delivery: impl Fn() -> Delivery) {
        let handles = self.shards.load();
        let shards = members.interest.shards();
        for handle in shards.filter_map(|shard| handles.get(shard)) {
            handle.inbox.push(delivery());
        }
    }
}

impl ChannelSink {
    pub fn new(channel: &Arc<Channel>, distributor: &Arc<Distributor>) -> Self {
        Self {
            channel: Arc::downgrade(channel),
            distributor: Arc::clone(distributor),
        }
    }
}

impl Sink for ChannelSink {
    fn deliver(&self, delivered: &Delivered<'_>) -> usize {
        if let PublicationKind::Emergency { message } = delivered.kind {
            self.distributor
                .add_emergency(message, delivered.frame.clone());
            return 0;
        }
        let Some(channel) = self.channel.upgrade() else {
            return 0;
        };
        let policy = match (delivered.kind, channel.settings.slow_consumer) {
            // a notice stands for no newer state of the channel
            (PublicationKind::Notice, SlowConsumer::Latest) => SlowConsumer::DropOldest,
            (_, policy) => policy,
        };
        let delivery_options = DeliveryOptions {
            offset: delivered.is_kept.then_some(delivered.position.offset),
            priority: delivered.priority,
            policy,
        };
        let frame = delivered.frame;
        let gated = || GatedPublication {
            place: match delivered.kind {
                PublicationKind::Notice => Place::Behind(delivered.position),
                _ => Place::At(delivered.position),
            },
            frame: frame.clone(),
            priority: delivery_options.priority,
        };
        channel.gate.pass(gated, self.distributor.gate_bytes, || {
            self.distributor.fan_out(&channel, frame, delivery_options)
        })
    }

    fn gap(&self, top: Option<StreamPosition>) {
        let Some(channel) = self.channel.upgrade() else {
            return;
        };
        let stamp = self.distributor.stamps.next();
        let top = top.map(|top| (top.epoch, top.offset));
        let frame = encode(|out| messages::write_lost(out, stamp, &channel.name, top));
        let gated = || GatedPublication {
            place: Place::Gap,
            frame: frame.clone(),
            priority: Priority::High,
        };
        self.distributor.counters.dropped(LOST, &channel.name, 1);
        channel.gate.pass(gated, self.distributor.gate_bytes, || {
            self.distributor.push_gap(&channel, &frame);
        });
    }

    fn subscribers(&self) -> usize {
        self.channel
            .upgrade()
            .map_or(0, |channel| channel.members.lock().interest.total())
    }
}
