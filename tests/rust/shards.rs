//! Shards without sockets: the node's deliveries, carried out in the order of the inbox, end in a list per connection.

use crate::peer::{history_limits, ports_on};
use _tantor::adapters::memory_broker::MemoryBroker;
use _tantor::adapters::memory_store::MemoryStore;
use _tantor::base::error::Disconnect;
use _tantor::core::hub::{Hub, Slot};
use _tantor::node::{
    Awaited, Client, ConnectRequest, Connecting, ConnectionId, Delivery, Node, NotConnected, Ports,
    ShardHandle,
};
use _tantor::settings::config::Config;
use _tantor::wire::frame::EncodedFrame;
use serde_json::{Value as Json, json};
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

/// A node with so many shards behind it; nothing is taken from their inboxes yet.
pub fn node_with_shards(config: Config, shards: usize) -> (Arc<Node>, Vec<Arc<ShardHandle>>) {
    let broker = MemoryBroker::new(Arc::new(MemoryStore), history_limits(config.history_bytes));
    let ports = ports_on(&config, Arc::new(broker), Arc::new(MemoryStore));
    node_on(config, ports, shards)
}

/// A node on its ports, with so many shards behind it.
pub fn node_on(config: Config, ports: Ports, shards: usize) -> (Arc<Node>, Vec<Arc<ShardHandle>>) {
    let node = Arc::new(Node::new(Arc::new(config), ports));
    let shards: Vec<_> = (0..shards)
        .map(|_| Arc::new(ShardHandle::new(usize::MAX)))
        .collect();
    node.shards.attach(shards.clone());
    (node, shards)
}

/// What a shard does with its inbox, and the connections that it has.
pub struct Shard {
    index: usize,
    node: Arc<Node>,
    handle: Arc<ShardHandle>,
    hub: Hub,
    taken: Vec<Delivery>,
    pending: VecDeque<Delivery>,
    lines: Vec<Line>,
    /// The clients acknowledge messages.
    pub acknowledges: bool,
}

/// One connection: what was written to it and not read yet.
struct Line {
    stage: Stage,
    /// The emergencies that went out before the connection began.
    emergencies: u64,
    unread: VecDeque<Json>,
}

enum Stage {
    /// The connection waits for its claim.
    Coming,
    Open(Arc<Client>),
    Refused(NotConnected),
    Ended,
}

impl Line {
    fn client(&self) -> Option<&Arc<Client>> {
        match &self.stage {
            Stage::Open(client) => Some(client),
            Stage::Coming | Stage::Refused(_) | Stage::Ended => None,
        }
    }
}

/// A client that has connected.
pub struct Greeted {
    pub slot: Slot,
    pub welcome: Json,
}

impl Shard {
    pub fn new(index: usize, node: &Arc<Node>, handle: &Arc<ShardHandle>) -> Self {
        Self {
            index,
            node: Arc::clone(node),
            handle: Arc::clone(handle),
            hub: Hub::default(),
            taken: Vec::new(),
            pending: VecDeque::new(),
            lines: Vec::new(),
            acknowledges: false,
        }
    }

    /// A connection to the node, resumed with a token if there is one.
    pub fn connect(&mut self, token: Option<&str>) -> Greeted {
        let slot = self.begin(token);
        self.greeted(slot).unwrap().unwrap()
    }

    /// Begins a connection, which may be connected later.
    pub fn begin(&mut self, token: Option<&str>) -> Slot {
        let slot = self.lines.len() as Slot;
        self.lines.push(Line {
            stage: Stage::Coming,
            emergencies: 0,
            unread: VecDeque::new(),
        });
        let request = ConnectRequest {
            resume: token,
            ..self.request()
        };
        let connecting = self.node.connect(self.connection_id(slot), &request);
        self.conclude(slot, connecting);
        slot
    }

    /// The welcome of a connection that was begun, read once, or why it is refused; `None` while the connection waits.
    pub fn greeted(&mut self, slot: Slot) -> Option<Result<Greeted, NotConnected>> {
        match &self.lines[slot as usize].stage {
            Stage::Coming => None,
            Stage::Refused(why) => Some(Err(why.clone())),
            Stage::Ended => {
                let problem = "the connection has ended already".to_owned();
                Some(Err(NotConnected::NotClaimed(problem)))
            }
            Stage::Open(_) => {
                let welcome = self.lines[slot as usize].unread.pop_front().unwrap();
                assert_eq!(welcome["event"], "welcome");
                Some(Ok(Greeted { slot, welcome }))
            }
        }
    }

    /// A connection ends while it waits for its claim.
    pub fn abandon(&mut self, slot: Slot) {
        let stage = &mut self.lines[slot as usize].stage;
        assert!(matches!(stage, Stage::Coming));
        *stage = Stage::Ended;
    }

    fn request(&self) -> ConnectRequest<'static> {
        ConnectRequest {
            acknowledges: self.acknowledges,
            ..ConnectRequest::default()
        }
    }

    fn conclude(&mut self, slot: Slot, connecting: Connecting) {
        let line = &mut self.lines[slot as usize];
        match connecting {
            Connecting::Connected(connected) => {
                line.stage = Stage::Open(Arc::clone(&connected.client));
                line.emergencies = connected.emergencies;
                line.unread.push_back(parsed(&connected.welcome));
                self.node.join_default_channel(&connected);
            }
            Connecting::NotConnected(why) => line.stage = Stage::Refused(why),
            Connecting::Begun => {}
        }
    }

    /// A client's frame has come on a connection.
    pub fn receive(&self, slot: Slot, frame: &Json) {
        if let Some(client) = self.lines[slot as usize].client() {
            self.node
                .execute(client, self.connection_id(slot), &frame.to_string());
        }
    }

    /// A connection has ended; what was written to it and not read is lost.
    pub fn end(&mut self, slot: Slot, disconnect: Disconnect) {
        let connection_id = self.connection_id(slot);
        let line = &mut self.lines[slot as usize];
        line.unread.clear();
        if let Stage::Open(client) = std::mem::replace(&mut line.stage, Stage::Ended) {
            self.hub.remove(slot);
            self.node
                .disconnect(&client, connection_id, disconnect, Vec::new());
        }
    }

    pub fn is_open(&self, slot: Slot) -> bool {
        self.lines[slot as usize].client().is_some()
    }

    /// The open connections, and whose they are.
    pub fn open(&self) -> Vec<(Slot, Arc<Client>)> {
        let lines = self.lines.iter().enumerate();
        lines
            .filter_map(|(slot, line)| Some((slot as Slot, Arc::clone(line.client()?))))
            .collect()
    }

    /// The next message that a client reads.
    pub fn read(&mut self, slot: Slot) -> Option<Json> {
        self.lines[slot as usize].unread.pop_front()
    }

    /// Lets go of the publications that a client has not read, as of a slow consumer's where that is the policy; each
    /// of their channels is told before all that is left.
    pub fn dropped(&mut self, slot: Slot) {
        let unread = &mut self.lines[slot as usize].unread;
        let mut channels = BTreeSet::new();
        unread.retain(|message| {
            let is_kept = message["offset"].is_null()
                || message["event"] == "reply"
                || message["ack"] == true;
            if !is_kept {
                channels.insert(message["channel"].to_string());
            }
            is_kept
        });
        for channel in channels {
            let channel: Json = serde_json::from_str(&channel).unwrap();
            unread.push_front(json!({"event": "gap", "channel": channel}));
        }
    }

    /// Carries out at most so many deliveries; false when none was left.
    pub fn deliver(&mut self, most: usize) -> bool {
        self.handle.inbox.take(&mut self.taken);
        self.pending.extend(self.taken.drain(..));
        let had_some = !self.pending.is_empty();
        for _ in 0..most {
            let Some(delivery) = self.pending.pop_front() else {
                break;
            };
            self.carry_out(delivery);
        }
        had_some
    }

    fn carry_out(&mut self, delivery: Delivery) {
        match delivery {
            Delivery::Publish { channel, frame, .. } => {
                for slot in self.hub.subscribers(channel.key) {
                    self.lines[*slot as usize].unread.push_back(parsed(&frame));
                }
            }
            Delivery::Gap { channel, frame } => {
                for slot in self.hub.subscribers(channel) {
                    let line = &mut self.lines[*slot as usize];
                    if line.client().is_some_and(|client| client.wants_gaps()) {
                        line.unread.push_back(parsed(&frame));
                    }
                }
            }
            Delivery::Direct {
                connection_id,
                frame,
                ..
            } if self.has(connection_id) => {
                let line = &mut self.lines[connection_id.slot as usize];
                line.unread.push_back(parsed(&frame));
            }
            Delivery::Subscribe {
                connection_id,
                channel,
            } if self.has(connection_id) => {
                self.hub.subscribe(connection_id.slot, channel);
            }
            Delivery::Unsubscribe {
                connection_id,
                channel,
            } if self.has(connection_id) => {
                self.hub.unsubscribe(connection_id.slot, channel);
            }
            Delivery::Close {
                connection_id,
                disconnect,
                ..
            } if self.has(connection_id) => self.end(connection_id.slot, disconnect),
            Delivery::Awaited {
                connection_id,
                awaited,
            } => {
                let Awaited::Claim(claim) = *awaited else {
                    panic!("nobody is asked for a verdict");
                };
                let slot = connection_id.slot;
                if matches!(self.lines[slot as usize].stage, Stage::Coming) {
                    let node = Arc::clone(&self.node);
                    let connecting = node.connect_claimed(connection_id, &self.request(), claim);
                    self.conclude(slot, connecting);
                } else {
                    self.node.give_up(claim);
                }
            }
            Delivery::Urgent { number, frame, .. } => {
                let is_meant =
                    |line: &&mut Line| line.client().is_some() && line.emergencies < number;
                for line in self.lines.iter_mut().filter(is_meant) {
                    line.unread.push_back(parsed(&frame));
                }
            }
            _ => {}
        }
    }

    fn has(&self, connection_id: ConnectionId) -> bool {
        assert_eq!(connection_id.shard, self.index);
        let line = self.lines.get(connection_id.slot as usize);
        line.is_some_and(|line| {
            line.client().is_some() && connection_id == self.connection_id(connection_id.slot)
        })
    }

    /// No slot is used twice, so its number is the generation as well.
    fn connection_id(&self, slot: Slot) -> ConnectionId {
        ConnectionId {
            shard: self.index,
            slot,
            generation: slot + 1,
        }
    }
}

fn parsed(frame: &EncodedFrame) -> Json {
    serde_json::from_slice(frame.payload()).unwrap()
}
