//! What a process knows, and the verbs that work on it. Every verb runs on the thread that calls it.
//!
//! `base/lock_rank.rs` has the order of locks.

mod answer;
mod away;
mod channel;
mod channels;
mod client;
mod clients;
mod counters;
mod delivery;
mod departure;
mod emergencies;
mod empty;
mod execute;
pub mod idempotency;
mod mail;
mod mail_upkeep;
mod mailroom;
mod membership;
mod publish;
mod recovery;
mod report;
mod restore;
mod session;
mod shards;
mod stamps;
mod storage;
mod tick;
mod token;
mod upkeep;

pub use answer::NodeCalls;
pub use channel::{BehindWith, Channel, InFlight, Notice};
pub use client::{Client, Peer};
pub use counters::Counters;
pub use delivery::{ConnectionId, Delivery, DeliveryOptions, ShardHandle};
pub use execute::{Backpressure, FanOut};
pub use session::{ConnectRequest, Connected};
pub use shards::{Incoming, Shards};

use crate::base::clock::WallTime;
use crate::base::error::{Disconnect, Error, Refusal};
use crate::base::names;
use crate::core::events::{Detail, Event, EventQueue};
use crate::core::outbound::Dropped;
use crate::ports::broker::{Broker, Stream};
use crate::ports::calls::Published;
use crate::ports::store::Store;
use crate::settings::config::Config;
use crate::settings::socket_limits::SocketLimits;
use crate::wire::frame::EncodedFrame;
use crate::wire::messages::{self, Stamp};
use away::AwayClients;
use channels::Channels;
use clients::Clients;
use emergencies::Emergencies;
use idempotency::Idempotency;
use mailroom::Mailroom;
use stamps::Stamps;
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use storage::Storage;
use upkeep::Upkeep;

pub struct Node {
    pub config: Arc<Config>,
    pub events: Arc<EventQueue>,
    pub counters: Arc<Counters>,
    pub store: Arc<Storage>,
    pub shards: Shards,
    clients: Clients,
    stamps: Stamps,
    broker: Arc<dyn Broker>,
    pub channels: Channels,
    away: AwayClients,
    emergencies: Emergencies,
    mailroom: Mailroom,
    upkeep: Upkeep,
    /// The log says that subprotocols were offered and none was selected.
    has_logged_subprotocols: AtomicBool,
    published_once: Idempotency<Published>,
    /// Apart, so that clients cannot have the application's keys forgotten.
    clients_published_once: Idempotency<Published>,
    sent_once: Idempotency<Stamp>,
}

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A scratch buffer larger than this is given back.
const KEPT_SCRATCH: usize = 64 << 10;

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
            has_logged_subprotocols: AtomicBool::new(false),
            published_once: Idempotency::new(key_ttl, key_limits),
            clients_published_once: Idempotency::new(key_ttl, key_limits),
            sent_once: Idempotency::new(key_ttl, key_limits),
            shards: Shards::new(SocketLimits::of_settings(&config)),
            stamps: Stamps::new(),
            upkeep: Upkeep::new(),
            config,
        }
    }

    /// Tells every shard to close its connections and to end.
    pub fn drain(&self) {
        if let Some(name) = self.events.wanted("server_shutdown") {
            self.event(
                name,
                None,
                Some(names::SYSTEM_CHANNEL),
                Detail::Message(messages::GOODBYE.to_owned()),
            );
        }
        self.shards.drain();
    }

    /// One client's goodbye: with a time of its own to come back, so that they do not all come at once.
    pub fn goodbye(&self) -> EncodedFrame {
        let window = self.config.reconnect_window.as_millis() as u64;
        let after = crate::base::random::random_u64() % (window + 1);
        let stamp = self.stamps.next();
        encode(|out| messages::write_shutdown(out, stamp, after))
    }

    /// Tells a client that messages of a channel were dropped for it. It need not recover, for the channel's policy is
    /// to go on without them; it can.
    pub fn gap(&self, channel: &Channel, dropped: &Dropped) -> EncodedFrame {
        let stamp = self.stamps.next();
        encode(|out| {
            messages::write_gap(out, stamp, &channel.name, |out| {
                if let Some(epoch) = channel.epoch() {
                    messages::write_json(out, "epoch", messages::epoch_text(epoch));
                }
                if let Some(offset) = dropped.offset {
                    messages::write_json(out, "offset", offset);
                }
                messages::write_json(out, "dropped", dropped.frames);
                messages::write_json(out, "reason", dropped.policy.name());
                messages::write_json(out, "recover", false);
            });
        })
    }

    /// Counts what a slow consumer's queue has lost of a channel, or of none.
    pub fn count_dropped(&self, reason: &'static str, channel: Option<&Channel>, frames: usize) {
        let name = channel.map_or(counters::OTHER_CHANNELS, |channel| &channel.name);
        self.counters.dropped(reason, name, frames);
    }

    /// The heartbeat that pages can see; one for all connections that are due.
    pub fn heartbeat(&self) -> EncodedFrame {
        let stamp = self.stamps.next();
        encode(|out| messages::write_ping(out, stamp))
    }

    /// The stream of a channel, opened where it was left.
    fn stream<'a>(&self, channel: &'a Channel) -> &'a Arc<dyn Stream> {
        channel.stream.get_or_init(|| {
            let mut settings = channel.settings;
            // an emergency waits for no disk, whatever is asked of its channel
            settings.durable &= &*channel.name != names::EMERGENCY_CHANNEL;
            self.broker.open(&channel.name, channel.kind, settings)
        })
    }

    /// Whoever publishes on a channel waits until that is saved.
    fn waits_for_saving(&self, channel: &Channel) -> bool {
        channel.settings.durable && self.store.is_durable()
    }

    /// True while the publishers of a channel wait for its subscribers.
    pub fn is_full(&self, channel: &Channel) -> bool {
        !self.config.publisher_hold.is_zero() && channel.is_full(self.config.max_pending_bytes / 4)
    }

    fn check_size(&self, size: usize) -> Result<(), Error> {
        let limit = self.config.max_message_size;
        if size > limit {
            return Err(Error::Argument(format!(
                "the message is {size} bytes of JSON; max_message_size is {limit}"
            )));
        }
        Ok(())
    }

    /// Tells Python of something that a client did; false when nobody there wants to know.
    fn client_event(
        &self,
        event: &str,
        client: &Client,
        channel: Option<&str>,
        detail: impl FnOnce() -> Detail,
    ) -> bool {
        let wanted = self.events.wanted(event);
        let is_wanted = wanted.is_some();
        if let Some(name) = wanted {
            self.event(name, Some(&client.id), channel, detail());
        }
        is_wanted
    }

    fn event(
        &self,
        name: Arc<str>,
        client_id: Option<&Arc<str>>,
        channel: Option<&str>,
        detail: Detail,
    ) {
        self.events.event(Event {
            name,
            at: WallTime::now(),
            client_id: client_id.cloned(),
            channel: channel.map(Arc::from),
            detail,
        });
    }

    /// Counts an ended connection and tells of it.
    fn disconnected(&self, client: &Client, disconnect: Disconnect) {
        self.counters.disconnected(disconnect);
        self.client_event("disconnect", client, Some(names::SYSTEM_CHANNEL), || {
            Detail::Disconnect {
                reason: disconnect.reason(),
                code: disconnect.code(),
            }
        });
    }
}

/// Encodes a text frame by way of a buffer of the thread's own.
fn encode(write: impl FnOnce(&mut Vec<u8>)) -> EncodedFrame {
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.clear();
        write(scratch);
        let frame = EncodedFrame::text(scratch);
        if scratch.capacity() > KEPT_SCRATCH {
            *scratch = Vec::new();
        }
        frame
    })
}

fn argument(refusal: Refusal) -> Error {
    Error::Argument(refusal.message)
}
