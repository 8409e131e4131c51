//! What a process knows, and the verbs that work on it. Every verb runs on the thread that calls it.
//!
//! `base/lock_rank.rs` has the order of locks.

mod answer;
mod away;
mod channel;
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
mod mailroom;
mod membership;
mod publish;
mod recovery;
mod report;
mod saved;
mod session;
mod shards;
mod stamps;
mod token;

pub use answer::NodeCalls;
pub use channel::{BehindWith, Channel, InFlight, Notice};
pub use client::{Client, Peer};
pub use counters::Counters;
pub use delivery::{ConnectionId, Delivery, DeliveryOptions, ShardHandle};
pub use execute::{Backpressure, FanOut};
pub use session::{ConnectRequest, Connected};
pub use shards::{Incoming, Shards};

use crate::base::clock::{LastTime, WallTime};
use crate::base::error::{Disconnect, Error, Refusal};
use crate::base::fork::{ForkSensitive, OwningProcess};
use crate::base::names;
use crate::base::sync::{Mutex, Rank, RwLock};
use crate::core::events::{Detail, Event, EventQueue, LogLevel};
use crate::core::hub::{ChannelKey, ChannelKeys};
use crate::core::outbound::Dropped;
use crate::core::receipt::Receipts;
use crate::ports::broker::{Broker, Stream};
use crate::ports::calls::Published;
use crate::ports::store::Store;
use crate::settings::config::Config;
use crate::settings::socket_limits::SocketLimits;
use crate::wire::frame::EncodedFrame;
use crate::wire::messages::{self, Stamp};
use away::AwayClients;
use clients::Clients;
use emergencies::Emergencies;
use empty::EmptyChannels;
use idempotency::Idempotency;
use mailroom::Mailed;
use stamps::Stamps;
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

pub struct Node {
    pub config: Arc<Config>,
    pub events: EventQueue,
    pub counters: Counters,
    pub shards: Shards,
    clients: Clients,
    stamps: Stamps,
    broker: Arc<dyn Broker>,
    store: Arc<dyn Store>,
    /// The process that opened the store and took in what was saved; none after `close_store`.
    store_opened_by: OwningProcess,
    /// Held by whoever opens or closes the store.
    restoring: Mutex<()>,
    store_use: ForkSensitive,
    channels: RwLock<HashMap<Arc<str>, Arc<Channel>>>,
    away: AwayClients,
    emergencies: Emergencies,
    /// Clients with mail.
    mailed: Mutex<Mailed>,
    mail_count: AtomicUsize,
    mail_bytes: AtomicUsize,
    /// As `watch_store` has seen it.
    was_degraded: AtomicBool,
    /// The log says that subprotocols were offered and none was selected.
    has_logged_subprotocols: AtomicBool,
    known_lost: AtomicU64,
    receipts: Receipts,
    published_once: Idempotency<Published>,
    /// Apart, so that clients cannot have the application's keys forgotten.
    clients_published_once: Idempotency<Published>,
    sent_once: Idempotency<Stamp>,
    /// When expired publications were last let go of.
    history_tended: LastTime,
    empty_channels: Mutex<EmptyChannels>,
    /// The most that the node has held since the last tick; see `note_held`.
    held_peak: AtomicUsize,
    /// Channels with notices that wait.
    noticed: Mutex<Vec<Arc<Channel>>>,
    channel_keys: ChannelKeys,
}

/// Messages of which it is known what became of them.
const KNOWN_RECEIPTS: usize = 100_000;

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
        let node = Self {
            events: EventQueue::new(config.event_queue_bytes),
            counters: Counters::default(),
            broker,
            store,
            store_opened_by: OwningProcess::default(),
            restoring: Mutex::new(Rank::Restore, ()),
            store_use: ForkSensitive::default(),
            channels: RwLock::new(Rank::Channels, HashMap::new()),
            clients: Clients::default(),
            away: AwayClients::new(Arc::clone(&config)),
            emergencies: Emergencies::new(),
            mailed: Mutex::default(),
            mail_count: AtomicUsize::new(0),
            mail_bytes: AtomicUsize::new(0),
            was_degraded: AtomicBool::new(false),
            has_logged_subprotocols: AtomicBool::new(false),
            known_lost: AtomicU64::new(0),
            receipts: Receipts::new(KNOWN_RECEIPTS),
            published_once: Idempotency::new(key_ttl, key_limits),
            clients_published_once: Idempotency::new(key_ttl, key_limits),
            sent_once: Idempotency::new(key_ttl, key_limits),
            history_tended: LastTime::never(),
            empty_channels: Mutex::default(),
            held_peak: AtomicUsize::new(0),
            noticed: Mutex::default(),
            shards: Shards::new(SocketLimits::of_settings(&config)),
            stamps: Stamps::new(),
            channel_keys: ChannelKeys::default(),
            config,
        };
        for name in node.permanent_channels() {
            node.channel(name);
        }
        node
    }

    /// Opens the storage and takes in what was saved, at the first use and again after each stop.
    ///
    /// Errors: the storage cannot be opened.
    pub fn restore(&self) -> Result<(), Error> {
        if self.is_restored() {
            return Ok(());
        }
        let _worker = self.store_use.begin();
        let _only_one = self.restoring.lock();
        if self.is_restored() {
            return Ok(());
        }
        let saved = self.store.open().map_err(|error| Error::Storage(error.0))?;
        let channels: Vec<_> = saved
            .streams
            .iter()
            .map(|stream| (Arc::clone(&stream.channel), stream.kind))
            .collect();
        self.broker.restore(saved.streams);
        for (name, kind) in channels {
            let channel = self.channel_with(&name, || kind);
            self.stream(&channel);
        }
        self.restore_clients(saved.clients, saved.memberships);
        self.restore_mail(saved.mail);
        self.restore_keys(saved.used_keys);
        self.store_opened_by.claim();
        Ok(())
    }

    /// True while the storage is open.
    pub fn is_restored(&self) -> bool {
        self.store_opened_by.is_some()
    }

    /// True in a child of the process that opened the storage, or was about to: the storage's writer is a thread that the
    /// child does not have.
    pub fn has_inherited_store(&self) -> bool {
        let was_opened = self.store.is_durable() && self.store_opened_by.is_ancestor();
        was_opened || self.store_use.was_cut()
    }

    /// Has everything saved that is still to be, and lets go of the storage until it is needed again.
    pub fn close_store(&self, within: Duration) {
        let _worker = self.store_use.begin();
        let _only_one = self.restoring.lock();
        if self.store_opened_by.release() {
            self.store.close(within);
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

    /// The channel with this key, if there still is one; takes a look at all.
    pub fn channel_of(&self, key: ChannelKey) -> Option<Arc<Channel>> {
        let channels = self.channels.read();
        channels
            .values()
            .find(|channel| channel.key == key)
            .cloned()
    }

    /// The heartbeat that pages can see; one for all connections that are due.
    pub fn heartbeat(&self) -> EncodedFrame {
        let stamp = self.stamps.next();
        encode(|out| messages::write_ping(out, stamp))
    }

    /// Work that is due from time to time: notices that waited, clients that stay away, mail, channels that stayed
    /// empty, publications that have expired. Returns approximately how many bytes less the node holds now than at its
    /// peak since the last tick.
    pub fn tick(&self) -> usize {
        self.tell_due_notices();
        self.expire_away();
        self.tend_mail();
        self.watch_store();
        self.events.log_withheld();
        self.count_evicted();
        self.expire_kept();
        self.remove_empty_channels(0);
        let held = self.held_bytes();
        let peak = self.held_peak.swap(held, Ordering::Relaxed);
        peak.saturating_sub(held)
    }

    /// Logs when what is to be saved cannot be, and when it can be again.
    fn watch_store(&self) {
        let health = self.store.health();
        let was_degraded = self
            .was_degraded
            .swap(health.is_degraded, Ordering::Relaxed);
        match (was_degraded, health.is_degraded) {
            (false, true) => self.events.log(LogLevel::Error, "storage", || {
                let problem = health.error.unwrap_or_default();
                format!("{problem}; messages are delivered, but those that wait may be lost with the process")
            }),
            (true, false) => self.events.log(LogLevel::Info, "storage", || {
                "the database can be written again".to_owned()
            }),
            _ => {}
        }
        let lost = health.changes_lost;
        let known = self.known_lost.swap(lost, Ordering::Relaxed);
        if lost > known {
            self.events.log(LogLevel::Warning, "storage", || {
                format!(
                    "{} changes could not be saved ({lost} since the start)",
                    lost - known
                )
            });
        }
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

    fn permanent_channels(&self) -> [&str; 4] {
        [
            &self.config.default_channel,
            "jungle",
            "treehouse",
            names::EMERGENCY_CHANNEL,
        ]
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
