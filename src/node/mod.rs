//! What a process knows, and the verbs that work on it. Every verb runs on the thread that calls it.
//!
//! Lock order: a client's state, the map of channels, a channel's stream, the channel's members, then lists and
//! inboxes. The map of clients is always locked alone.

mod channel;
mod client;
mod counters;
mod delivery;
mod membership;
mod report;

pub use channel::{Channel, Notice};
pub use client::Client;
pub use counters::Counters;
pub use delivery::{Delivery, Door, Place};
pub use report::{ChannelInfo, ConnectionInfo};

use channel::Members;

use crate::broker::Broker;
use crate::config::Config;
use crate::error::{Disconnect, Error, Refusal};
use crate::events::{Detail, Event, EventQueue};
use crate::frame::EncodedFrame;
use crate::protocol::{self, Body, Command, Publication, Stamp};
use arc_swap::ArcSwap;
use parking_lot::{Mutex, RwLock};
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

pub struct Node {
    pub config: Arc<Config>,
    pub events: EventQueue,
    pub counters: Counters,
    broker: Arc<dyn Broker>,
    channels: RwLock<HashMap<Arc<str>, Arc<Channel>>>,
    clients: RwLock<HashMap<Arc<str>, Arc<Client>>>,
    /// Clients of `clients` that are connected.
    connected: AtomicUsize,
    /// Channels that lost their last subscriber, oldest first, with when.
    empty_channels: Mutex<VecDeque<(u64, Arc<Channel>)>>,
    /// Channels with notices that wait.
    noticed: Mutex<Vec<Arc<Channel>>>,
    doors: ArcSwap<Vec<Arc<Door>>>,
    draining: AtomicBool,
    next_channel: AtomicU64,
    next_message: AtomicU64,
    message_seed: u64,
}

/// What a client's frame made for others to do. Whoever is behind with it may have the client held back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// For shards.
    pub published: bool,
    /// For Python.
    pub told: bool,
}

/// How long a publisher of the application waits for a full inbox before it goes on all the same.
const MAX_HOLD: Duration = Duration::from_secs(5);

/// What a channel takes, roughly, with its place in all the maps.
const CHANNEL_SIZE: usize = 1024;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A scratch buffer larger than this is given back.
const KEPT_SCRATCH: usize = 64 << 10;

impl Node {
    pub fn new(config: Arc<Config>, broker: Arc<dyn Broker>) -> Self {
        let node = Self {
            events: EventQueue::new(config.event_queue_bytes),
            config,
            counters: Counters::default(),
            broker,
            channels: RwLock::default(),
            clients: RwLock::default(),
            connected: AtomicUsize::new(0),
            empty_channels: Mutex::default(),
            noticed: Mutex::default(),
            doors: ArcSwap::default(),
            draining: AtomicBool::new(false),
            next_channel: AtomicU64::new(1),
            next_message: AtomicU64::new(0),
            message_seed: crate::random::random_u64(),
        };
        for name in node.permanent_channels() {
            node.channel(name);
        }
        node
    }

    /// Puts shards behind the node. Their inboxes get what follows.
    pub fn attach(&self, doors: Vec<Arc<Door>>) {
        self.draining.store(false, Ordering::Release);
        self.doors.store(Arc::new(doors));
    }

    pub fn detach(&self) {
        self.doors.store(Arc::default());
    }

    pub fn doors(&self) -> Arc<Vec<Arc<Door>>> {
        self.doors.load_full()
    }

    /// Tells every shard to say goodbye and end.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        let stamp = self.stamp();
        let goodbye = encode(|out| protocol::write_shutdown(out, stamp));
        if let Some(name) = self.events.wanted("server_shutdown") {
            self.event(
                name,
                None,
                Some(protocol::SYSTEM_CHANNEL),
                Detail::Message(protocol::GOODBYE.to_owned()),
            );
        }
        for door in self.doors.load().iter() {
            door.inbox.push(Delivery::Drain {
                goodbye: goodbye.clone(),
            });
        }
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Publishes on a channel, which it makes if there is none; returns to how many connected subscribers.
    ///
    /// `data` is JSON. Errors: a channel or event name that cannot be one; a message over the limit.
    pub fn broadcast(&self, channel: &str, event: &str, data: &[u8]) -> Result<usize, Error> {
        protocol::check_channel_name(channel).map_err(argument)?;
        protocol::check_event_name(event).map_err(argument)?;
        self.check_size(data.len())?;
        self.wait_for_room();
        Ok(self.publish(channel, event, data, None))
    }

    /// Sends to one client; returns the message's stamp. A client that is not connected gets nothing, which is
    /// counted.
    ///
    /// Errors: as `broadcast`.
    pub fn send(&self, client_id: &str, channel: &str, body: Body<'_>) -> Result<Stamp, Error> {
        protocol::check_client_id(client_id).map_err(argument)?;
        protocol::check_channel_name(channel).map_err(argument)?;
        let (Body::Message(bytes) | Body::Fields(bytes, _)) = body;
        self.check_size(bytes.len())?;
        self.wait_for_room();
        let stamp = self.stamp();
        let client = self.clients.read().get(client_id).cloned();
        let place = client.as_ref().and_then(|client| client.state.lock().place);
        match place {
            Some(place) => {
                self.push(
                    place.shard,
                    Delivery::Direct {
                        place,
                        frame: encode(|out| protocol::write_direct(out, stamp, channel, body)),
                    },
                );
                self.counters.messages_sent.add(1);
            }
            None => self.counters.undelivered.add(1),
        }
        Ok(stamp)
    }

    /// To every connected client once, before all that waits for it; returns to how many.
    ///
    /// Errors: a message over the limit.
    pub fn emergency(&self, message: &str) -> Result<usize, Error> {
        self.check_size(message.len())?;
        self.wait_for_room();
        let mut data = b"{\"message\":".to_vec();
        protocol::write_text(&mut data, message);
        data.extend_from_slice(
            b",\"severity\":\"critical\",\"source\":\"tantor_emergency_system\"}",
        );
        let publication = Publication {
            channel: protocol::EMERGENCY_CHANNEL,
            event: "emergency_alert",
            data: &data,
            from: None,
        };
        let mut recipients = 0;
        self.publish_on(protocol::EMERGENCY_CHANNEL, |_| {
            let frame = self.encode_publication(&publication);
            let doors = self.doors.load();
            if !doors.is_empty() {
                recipients = self.connected.load(Ordering::Acquire);
            }
            for door in doors.iter() {
                door.inbox.push(Delivery::Urgent {
                    frame: frame.clone(),
                });
            }
            frame
        });
        self.counters.publications.add(1);
        self.counters.messages_sent.add(recipients);
        if let Some(name) = self.events.wanted("emergency_alert") {
            let detail = Detail::Emergency {
                message: message.to_owned(),
                recipients,
            };
            self.event(name, None, Some(protocol::EMERGENCY_CHANNEL), detail);
        }
        Ok(recipients)
    }

    /// Carries out what a connected client sent; refused commands are answered, not returned.
    pub fn execute(&self, client: &Arc<Client>, text: &str) -> Work {
        self.counters.frames_received.add(1);
        let command = Command::parse(text, &self.config.default_channel, self.config.max_depth);
        match command {
            Ok(Command::Join { channel }) => {
                if let Err(refusal) = self.join(client, &channel) {
                    self.refuse(client, &refusal);
                }
                Work {
                    published: true,
                    told: self.events.wanted(Notice::Joined.event()).is_some(),
                }
            }
            Ok(Command::Leave { channel }) => {
                self.leave(client, &channel);
                Work {
                    published: true,
                    told: self.events.wanted(Notice::Left.event()).is_some(),
                }
            }
            Ok(Command::Broadcast {
                channel,
                event,
                data,
            }) => {
                self.publish(&channel, &event, data.as_bytes(), Some(client));
                Work {
                    published: true,
                    told: self.events.wanted(&event).is_some(),
                }
            }
            Ok(Command::Ping) => {
                client.ping(protocol::now_micros());
                let stamp = self.stamp();
                self.reply(client, encode(|out| protocol::write_pong(out, stamp)));
                let told =
                    self.client_event("ping", client, Some(protocol::SYSTEM_CHANNEL), || {
                        Detail::None
                    });
                Work {
                    published: false,
                    told,
                }
            }
            Ok(Command::Other) => {
                self.counters.messages_received.add(1);
                let told = self.client_event("message", client, None, || {
                    Detail::Frame(text.as_bytes().into())
                });
                Work {
                    published: false,
                    told,
                }
            }
            Err(refusal) => {
                self.refuse(client, &refusal);
                Work::default()
            }
        }
    }

    /// Tells a client what was wrong with its frame.
    pub fn refuse(&self, client: &Arc<Client>, refusal: &Refusal) {
        self.counters.errors_sent.add(1);
        let stamp = self.stamp();
        self.reply(
            client,
            encode(|out| protocol::write_error(out, stamp, refusal)),
        );
    }

    /// A client answered the protocol's ping.
    pub fn ponged(&self, client: &Arc<Client>) -> Work {
        client.ping(protocol::now_micros());
        let told = self.client_event("pong", client, Some(protocol::SYSTEM_CHANNEL), || {
            Detail::None
        });
        Work {
            published: false,
            told,
        }
    }

    /// The heartbeat that pages can see; one for all connections that are due.
    pub fn heartbeat(&self) -> EncodedFrame {
        let stamp = self.stamp();
        encode(|out| protocol::write_ping(out, stamp))
    }

    /// What has to be done from time to time: notices that waited, channels that stayed empty. Returns about how many
    /// bytes were let go.
    pub fn tick(&self) -> usize {
        self.tell_due_notices();
        self.remove_empty_channels(0) * CHANNEL_SIZE
    }

    /// True while some shard has more to do than may wait: clients are to be read no further.
    pub fn is_congested(&self) -> bool {
        self.doors.load().iter().any(|door| door.inbox.is_full())
    }

    /// Wakes every shard, to look again at what it held back.
    pub fn wake_shards(&self) {
        for door in self.doors.load().iter() {
            door.inbox.wake();
        }
    }

    fn publish(
        &self,
        channel: &str,
        event: &str,
        data: &[u8],
        from: Option<&Arc<Client>>,
    ) -> usize {
        let publication = Publication {
            channel,
            event,
            data,
            from: from.map(|client| &*client.id),
        };
        let mut recipients = 0;
        self.publish_on(channel, |channel| {
            let frame = self.encode_publication(&publication);
            recipients = self.hand_over(channel, &channel.members.lock(), &frame);
            frame
        });
        self.counters.publications.add(1);
        if recipients > 0 {
            self.counters.messages_sent.add(recipients);
        }
        if let Some(client) = from {
            self.client_event(event, client, Some(channel), || Detail::Data(data.into()));
        }
        recipients
    }

    /// Publishes on the channel of this name, which is made if there is none.
    fn publish_on(&self, name: &str, mut hand_over: impl FnMut(&Channel) -> EncodedFrame) {
        loop {
            let channel = self.channel(name);
            // a channel that ended in between is looked up again
            if channel
                .stream
                .publish(&mut |_| hand_over(&channel))
                .is_some()
            {
                return;
            }
        }
    }

    /// One inbox push for each shard that has a subscriber; returns how many subscribers.
    fn hand_over(&self, channel: &Channel, members: &Members, frame: &EncodedFrame) -> usize {
        if members.interest.total() > 0 {
            let doors = self.doors.load();
            for door in members
                .interest
                .shards()
                .filter_map(|shard| doors.get(shard))
            {
                door.inbox.push(Delivery::Publish {
                    channel: channel.key,
                    frame: frame.clone(),
                });
            }
        }
        members.interest.total()
    }

    fn encode_publication(&self, publication: &Publication<'_>) -> EncodedFrame {
        self.counters.encoded.add(1);
        let stamp = self.stamp();
        encode(|out| protocol::write_publication(out, stamp, publication))
    }

    /// Through the inbox, so that it leaves behind what was published before it.
    fn reply(&self, client: &Arc<Client>, frame: EncodedFrame) {
        if let Some(place) = client.state.lock().place {
            self.push(place.shard, Delivery::Direct { place, frame });
        }
    }

    fn push(&self, shard: usize, delivery: Delivery) {
        if let Some(door) = self.doors.load().get(shard) {
            door.inbox.push(delivery);
        }
    }

    /// Holds the application back while a shard has more to do than may wait.
    fn wait_for_room(&self) {
        for door in self.doors.load().iter() {
            door.inbox.wait_for_room(MAX_HOLD);
        }
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
            micros: protocol::now_micros(),
            client_id: client_id.cloned(),
            channel: channel.map(Arc::from),
            detail,
        });
    }

    fn stamp(&self) -> Stamp {
        let number = self.next_message.fetch_add(1, Ordering::Relaxed);
        Stamp {
            id: mix(self.message_seed.wrapping_add(number)),
            micros: protocol::now_micros(),
        }
    }

    fn permanent_channels(&self) -> [&str; 4] {
        [
            &self.config.default_channel,
            "jungle",
            "treehouse",
            protocol::EMERGENCY_CHANNEL,
        ]
    }

    /// Counts an ended connection and tells of it.
    fn disconnected(&self, client: &Client, disconnect: Disconnect) {
        self.counters.disconnected(disconnect);
        self.client_event("disconnect", client, Some(protocol::SYSTEM_CHANNEL), || {
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

/// A permutation of the 64-bit numbers (the finalizer of `SplitMix64`), so that ids in a row look unlike.
fn mix(mut number: u64) -> u64 {
    number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}
