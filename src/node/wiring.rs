//! The node: its parts, and what all operations on them share.

use super::away::AwayClients;
use super::channel::Channel;
use super::channels::Channels;
use super::clients::Clients;
use super::counters::Counters;
use super::emergencies::Emergencies;
use super::idempotency::{self, Idempotency};
use super::mailroom::Mailroom;
use super::shards::Shards;
use super::stamps::Stamps;
use super::storage::Storage;
use super::upkeep::Upkeep;
use crate::base::error::Error;
use crate::base::names;
use crate::core::events::EventQueue;
use crate::ports::broker::{Broker, Stream};
use crate::ports::calls::Published;
use crate::ports::store::Store;
use crate::settings::config::Config;
use crate::settings::socket_limits::SocketLimits;
use crate::wire::messages::Stamp;
use std::sync::Arc;

/// The parts of the node. Each part has private fields and its own locks. An operation that needs several parts is a
/// method of `Node`, in a file of its own, and runs on the thread that calls.
pub struct Node {
    pub config: Arc<Config>,
    pub events: Arc<EventQueue>,
    pub counters: Arc<Counters>,
    pub store: Arc<Storage>,
    pub shards: Shards,
    pub(super) clients: Clients,
    pub(super) stamps: Stamps,
    pub(super) broker: Arc<dyn Broker>,
    pub channels: Channels,
    pub(super) away: AwayClients,
    pub(super) emergencies: Emergencies,
    pub(super) mailroom: Mailroom,
    pub(super) upkeep: Upkeep,
    pub(super) published_once: Idempotency<Published>,
    /// The keys of clients. The keys of the application are apart, so that clients cannot displace them.
    pub(super) clients_published_once: Idempotency<Published>,
    pub(super) sent_once: Idempotency<Stamp>,
}

impl Node {
    pub fn new(config: Arc<Config>, broker: Arc<dyn Broker>, store: Arc<dyn Store>) -> Self {
        let key_ttl = config.idempotency_ttl;
        let key_limits = idempotency::Limits {
            total: config.max_idempotency_keys,
            of_one_client: config.max_client_keys,
        };
        let events = Arc::new(EventQueue::new(config.event_queue_bytes));
        let counters = Arc::new(Counters::default());
        let store = Arc::new(Storage::new(store, config.resume_ttl));
        let mailroom = Mailroom::new(
            Arc::clone(&config),
            Arc::clone(&counters),
            Arc::clone(&events),
            Arc::clone(&store),
        );
        Self {
            events,
            counters,
            broker,
            store,
            channels: Channels::new(Arc::clone(&config)),
            clients: Clients::default(),
            away: AwayClients::new(Arc::clone(&config)),
            emergencies: Emergencies::new(),
            mailroom,
            published_once: Idempotency::new(key_ttl, key_limits),
            clients_published_once: Idempotency::new(key_ttl, key_limits),
            sent_once: Idempotency::new(key_ttl, key_limits),
            shards: Shards::new(SocketLimits::of_settings(&config)),
            stamps: Stamps::new(),
            upkeep: Upkeep::new(),
            config,
        }
    }

    /// The stream of a channel. Opens the stream at the first use, at the position that was saved.
    pub(super) fn stream<'a>(&self, channel: &'a Channel) -> &'a Arc<dyn Stream> {
        channel.stream.get_or_init(|| {
            let mut settings = channel.settings;
            // an emergency does not wait for the disk, whatever the settings of its channel
            settings.durable &= &*channel.name != names::EMERGENCY_CHANNEL;
            self.broker.open(&channel.name, channel.kind, settings)
        })
    }

    /// True if a publication on the channel is delivered only after it is saved.
    pub(super) fn waits_for_saving(&self, channel: &Channel) -> bool {
        channel.settings.durable && self.store.is_durable()
    }

    /// True while the publishers of a channel wait for its subscribers.
    pub fn is_full(&self, channel: &Channel) -> bool {
        !self.config.publisher_hold.is_zero() && channel.is_full(self.config.max_pending_bytes / 4)
    }

    pub(super) fn check_size(&self, size: usize) -> Result<(), Error> {
        let limit = self.config.max_message_size;
        if size > limit {
            return Err(Error::Argument(format!(
                "the message is {size} bytes of JSON; max_message_size is {limit}"
            )));
        }
        Ok(())
    }
}
