//! The node: its parts, and what all operations on them share.

use super::away::AwayClients;
use super::channel::Channel;
use super::channels::Channels;
use super::client::Client;
use super::clients::Clients;
use super::counters::Counters;
use super::displaced::Displaced;
use super::emergencies::Emergencies;
use super::lease::Lease;
use super::mailroom::Mailroom;
use super::shards::Shards;
use super::sink::{ChannelSink, Distributor};
use super::stamps::Stamps;
use super::storage::Storage;
use super::upkeep::Upkeep;
use crate::base::error::Error;
use crate::base::names;
use crate::base::sync::Mutex;
use crate::core::events::EventQueue;
use crate::ports::broker::{Broker, Sink, Stream};
use crate::ports::mail::{Mail, MailSink};
use crate::ports::presence::{Presence, PresenceSink};
use crate::ports::sessions::Sessions;
use crate::ports::store::Store;
use crate::settings::config::Config;
use crate::settings::socket_limits::SocketLimits;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The parts of the node. Each part has private fields and its own locks. An operation that needs several parts is a
/// method of `Node`, in a file of its own, and runs on the thread that calls.
pub struct Node {
    pub config: Arc<Config>,
    pub events: Arc<EventQueue>,
    pub counters: Arc<Counters>,
    pub store: Arc<Storage>,
    pub shards: Arc<Shards>,
    pub(super) clients: Clients,
    pub(super) stamps: Arc<Stamps>,
    pub(super) broker: Arc<dyn Broker>,
    pub(super) presence: Arc<dyn Presence>,
    pub(super) lease: Arc<Lease>,
    pub(super) sessions: Arc<dyn Sessions>,
    pub(super) displaced: Arc<Displaced>,
    pub channels: Channels,
    pub(super) away: AwayClients,
    pub(super) emergencies: Emergencies,
    pub(super) mail: Arc<dyn Mail>,
    pub(super) mailroom: Arc<Mailroom>,
    pub(super) upkeep: Upkeep,
    pub(super) distributor: Arc<Distributor>,
    /// Enterings for which presence or the broker has failed, by client and number: tried again at the next tick.
    pub(super) failed_enterings: Mutex<Vec<(Arc<Client>, u64)>>,
    enterings: AtomicU64,
}

/// The implementations of the ports that a node works on.
pub struct Ports {
    pub broker: Arc<dyn Broker>,
    pub presence: Arc<dyn Presence>,
    pub store: Arc<dyn Store>,
    pub sessions: Arc<dyn Sessions>,
    pub mail: Arc<dyn Mail>,
}

impl Node {
    pub fn new(config: Arc<Config>, ports: Ports) -> Self {
        let Ports {
            broker,
            presence,
            store,
            sessions,
            mail,
        } = ports;
        let displaced = Arc::new(Displaced::default());
        sessions.attach(Arc::clone(&displaced) as _);
        let lease = Arc::new(Lease::default());
        presence.attach(&(Arc::clone(&lease) as Arc<dyn PresenceSink>));
        let events = Arc::new(EventQueue::new(config.event_queue_bytes));
        let counters = Arc::new(Counters::default());
        let store = Arc::new(Storage::new(store));
        let shards = Arc::new(Shards::new(SocketLimits::of_settings(&config)));
        let mailroom = Arc::new(Mailroom::new(
            Arc::clone(&shards),
            Arc::clone(&counters),
            Arc::clone(&events),
        ));
        mail.attach(Arc::clone(&mailroom) as Arc<dyn MailSink>);
        let stamps = Arc::new(Stamps::new());
        let distributor = Distributor::new(
            Arc::clone(&shards),
            Arc::clone(&counters),
            Arc::clone(&stamps),
            config.max_pending_bytes / 2,
        );
        Self {
            events,
            counters,
            broker,
            sessions,
            displaced,
            channels: Channels::new(Arc::clone(&config), Arc::clone(&presence)),
            presence,
            lease,
            store,
            clients: Clients::default(),
            away: AwayClients::new(Arc::clone(&config)),
            emergencies: Emergencies::new(),
            mail,
            mailroom,
            failed_enterings: Mutex::default(),
            enterings: AtomicU64::new(0),
            distributor: Arc::new(distributor),
            shards,
            stamps,
            upkeep: Upkeep::new(),
            config,
        }
    }

    /// The stream of a channel. Opens the stream at the first use, at the position that was saved.
    pub(super) fn stream<'a>(&self, channel: &'a Arc<Channel>) -> &'a Arc<dyn Stream> {
        channel.stream.get_or_init(|| {
            let mut settings = channel.settings;
            // an emergency does not wait for the disk, whatever the settings of its channel
            settings.durable &= &*channel.name != names::EMERGENCY_CHANNEL;
            let sink: Arc<dyn Sink> = Arc::new(ChannelSink::new(channel, &self.distributor));
            self.broker
                .attach(&channel.name, channel.kind, settings, &sink)
        })
    }

    /// The number of the next entering of a channel.
    pub(super) fn next_entering(&self) -> u64 {
        self.enterings.fetch_add(1, Ordering::Relaxed)
    }

    /// True if a publication on the channel ends only when it is saved.
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
