//! Recover-and-merge against a model: in whatever order clients are lost, come back, join and leave, and however far
//! shards are behind, each of them has every publication once and in order, or is told that it has not.

use crate::peer::{broadcast, members};
use crate::shards::{Shard, node_with_shards};
use _tantor::base::error::Disconnect;
use _tantor::core::hub::Slot;
use _tantor::node::Node;
use _tantor::settings::config::Config;
use proptest::prelude::*;
use serde_json::{Value as Json, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

const CLIENTS: usize = 3;
const CHANNELS: [&str; 2] = ["den", "hut"];
const SHARDS: usize = 2;
const HISTORY: u64 = 5;

#[derive(Clone, Debug)]
enum Step {
    /// So many on a channel, by the application.
    Publish(usize, u8),
    /// By a client, which may be on it or not.
    PublishBy(usize, usize),
    Join(usize, usize),
    Leave(usize, usize),
    /// Its connection breaks.
    Lose(usize),
    /// It closes its connection, and connects as somebody else.
    Renew(usize),
    /// It comes back on a shard; if it was not lost, its older connection is displaced.
    Resume(usize, usize),
    /// An older connection of it, which was displaced, still sends.
    Ghost(usize, usize),
    /// It is a slow consumer: what it has not read is dropped, and it is told.
    Dropped(usize),
    TakeOff(usize, usize),
    Delete(usize),
    /// A shard carries out so many deliveries.
    Deliver(usize, u8),
    /// A client reads so many messages.
    Read(usize, u8),
    Tick,
}

fn step() -> impl Strategy<Value = Step> {
    let client = 0..CLIENTS;
    let channel = 0..CHANNELS.len();
    prop_oneof![
        6 => (channel.clone(), 1..4_u8).prop_map(|(channel, count)| Step::Publish(channel, count)),
        2 => (client.clone(), channel.clone()).prop_map(|(client, channel)| Step::PublishBy(client, channel)),
        6 => (client.clone(), channel.clone()).prop_map(|(client, channel)| Step::Join(client, channel)),
        1 => (client.clone(), channel.clone()).prop_map(|(client, channel)| Step::Leave(client, channel)),
        3 => client.clone().prop_map(Step::Lose),
        1 => client.clone().prop_map(Step::Renew),
        5 => (client.clone(), 0..SHARDS).prop_map(|(client, shard)| Step::Resume(client, shard)),
        1 => (client.clone(), channel.clone()).prop_map(|(client, channel)| Step::Ghost(client, channel)),
        4 => client.clone().prop_map(Step::Dropped),
        1 => (client.clone(), channel.clone()).prop_map(|(client, channel)| Step::TakeOff(client, channel)),
        1 => channel.prop_map(Step::Delete),
        10 => (0..SHARDS, 1..30_u8).prop_map(|(shard, most)| Step::Deliver(shard, most)),
        6 => (client, 1..8_u8).prop_map(|(client, most)| Step::Read(client, most)),
        1 => Just(Step::Tick),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, max_shrink_iters: 4000, ..ProptestConfig::default() })]

    #[test]
    fn every_publication_arrives_once_and_in_order_or_the_client_is_told(
        steps in prop::collection::vec(step(), 1..200),
        is_told_at_once in any::<bool>(),
    ) {
        let mut world = World::new(is_told_at_once);
        for step in &steps {
            world.take(step);
        }
        world.settle();
    }
}

/// A channel as it has to be.
#[derive(Default)]
struct Stream {
    /// How often it was deleted.
    incarnation: usize,
    top: u64,
}

/// Where a client is in a channel: the stream's incarnation, its epoch and the offset of what it saw last.
#[derive(Clone)]
struct Position {
    incarnation: usize,
    epoch: String,
    offset: u64,
}

/// A join that is not answered yet.
struct Asked {
    reference: u64,
    /// What the model says of the answer: whether what was missed comes with it, if that was asked.
    recovers: Option<bool>,
    incarnation: usize,
    top: u64,
    /// Offsets that came live meanwhile.
    held: Vec<u64>,
    /// Some of that was dropped.
    is_gapped: bool,
}

struct Member {
    id: String,
    token: String,
    connection: Option<(usize, Slot)>,
    displaced: Vec<(usize, Slot)>,
    /// Channels that it is on, connected or not.
    channels: BTreeSet<usize>,
    positions: BTreeMap<usize, Position>,
    asked: BTreeMap<usize, Asked>,
}

struct World {
    node: Arc<Node>,
    shards: Vec<Shard>,
    streams: Vec<Stream>,
    members: Vec<Member>,
    is_told_at_once: bool,
    next_reference: u64,
}

impl World {
    fn new(is_told_at_once: bool) -> Self {
        let config = Config {
            history_size: HISTORY as usize,
            leave_delay: Duration::from_secs(if is_told_at_once { 0 } else { 60 }),
            resume_ttl: Duration::from_secs(60),
            ..Config::default()
        };
        let (node, shards) = node_with_shards(config, SHARDS);
        let shards = shards.iter().enumerate();
        let mut world = Self {
            shards: shards
                .map(|(index, handle)| Shard::new(index, &node, handle))
                .collect(),
            node,
            streams: CHANNELS.iter().map(|_| Stream::default()).collect(),
            members: Vec::new(),
            is_told_at_once,
            next_reference: 0,
        };
        for number in 0..CLIENTS {
            let member = world.newcomer(number % SHARDS);
            world.members.push(member);
        }
        // most of the time they are on both
        for member in 0..CLIENTS {
            for channel in 0..CHANNELS.len() {
                world.join(member, channel);
            }
        }
        world
    }

    fn newcomer(&mut self, shard: usize) -> Member {
        let greeted = self.shards[shard].connect(None);
        Member {
            id: text(&greeted.welcome["client_id"]),
            token: text(&greeted.welcome["resume"]),
            connection: Some((shard, greeted.slot)),
            displaced: Vec::new(),
            channels: BTreeSet::new(),
            positions: BTreeMap::new(),
            asked: BTreeMap::new(),
        }
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Publish(channel, count) => {
                for _ in 0..count {
                    let recipients = broadcast(&self.node, CHANNELS[channel], "n", b"1");
                    self.streams[channel].top += 1;
                    assert_eq!(recipients, self.connected_on(channel), "{step:?}");
                }
            }
            Step::PublishBy(member, channel) => {
                if let Some((shard, slot)) = self.members[member].connection {
                    let frame =
                        json!({"action": "broadcast", "channel": CHANNELS[channel], "event": "n"});
                    self.shards[shard].receive(slot, &frame);
                    self.streams[channel].top += 1;
                }
            }
            Step::Join(member, channel) => self.join(member, channel),
            Step::Leave(member, channel) => {
                let Some((shard, slot)) = self.members[member].connection else {
                    return;
                };
                if self.members[member].asked.contains_key(&channel) {
                    return;
                }
                let frame = json!({"action": "leave_channel", "channel": CHANNELS[channel]});
                self.shards[shard].receive(slot, &frame);
                self.members[member].channels.remove(&channel);
            }
            Step::Lose(member) => self.lose(member, Disconnect::Lost),
            Step::Renew(member) => {
                self.lose(member, Disconnect::Closed(1000));
                let newcomer = self.newcomer(member % SHARDS);
                let left = std::mem::replace(&mut self.members[member], newcomer);
                for channel in left.channels {
                    // if it was away already, it is expected still
                    self.node.unsubscribe(&left.id, CHANNELS[channel]).unwrap();
                }
            }
            Step::Resume(member, shard) => self.resume(member, shard),
            Step::Ghost(member, channel) => {
                for (shard, slot) in &self.members[member].displaced {
                    let join = json!({"action": "join_channel", "channel": CHANNELS[channel], "ref": "ghost"});
                    self.shards[*shard].receive(*slot, &join);
                    let leave = json!({"action": "leave_channel", "channel": CHANNELS[channel]});
                    self.shards[*shard].receive(*slot, &leave);
                }
            }
            Step::Dropped(member) => {
                if let Some((shard, slot)) = self.members[member].connection {
                    self.shards[shard].dropped(slot);
                }
            }
            Step::TakeOff(member, channel) => {
                let id = &self.members[member].id;
                self.node.unsubscribe(id, CHANNELS[channel]).unwrap();
                self.members[member].channels.remove(&channel);
            }
            Step::Delete(channel) => {
                self.node.delete_channel(CHANNELS[channel]).unwrap();
                self.streams[channel].incarnation += 1;
                self.streams[channel].top = 0;
                for member in &mut self.members {
                    member.channels.remove(&channel);
                }
            }
            Step::Deliver(shard, most) => {
                self.shards[shard].deliver(most.into());
            }
            Step::Read(member, most) => {
                for _ in 0..most {
                    self.read(member);
                }
            }
            Step::Tick => {
                self.node.tick();
            }
        }
        for (channel, name) in CHANNELS.iter().enumerate() {
            let present = members(&self.node, name).len();
            assert_eq!(present, self.present_on(channel), "present after {step:?}");
        }
    }

    /// In the end everybody is back, has read everything and misses nothing.
    fn settle(&mut self) {
        for member in 0..CLIENTS {
            self.resume(member, member % SHARDS);
        }
        for _ in 0..2 {
            for member in 0..CLIENTS {
                for channel in 0..CHANNELS.len() {
                    self.join(member, channel);
                }
            }
            while self.shards.iter_mut().any(|shard| shard.deliver(100)) {}
            for member in 0..CLIENTS {
                while self.read(member) {}
            }
        }
        for member in &self.members {
            assert!(member.asked.is_empty(), "a join was not answered");
            for (channel, stream) in self.streams.iter().enumerate() {
                let position = &member.positions[&channel];
                let seen = (position.incarnation, position.offset);
                assert_eq!(seen, (stream.incarnation, stream.top));
            }
        }
        assert_eq!(self.node.connection_count(), CLIENTS);
        for name in CHANNELS {
            assert_eq!(broadcast(&self.node, name, "n", b"1"), CLIENTS);
        }
    }

    fn join(&mut self, member: usize, channel: usize) {
        let Some((shard, slot)) = self.members[member].connection else {
            return;
        };
        if self.members[member].asked.contains_key(&channel) {
            return;
        }
        let stream = &self.streams[channel];
        self.next_reference += 1;
        let member = &mut self.members[member];
        let position = member.positions.get(&channel);
        let mut frame = json!({
            "action": "join_channel", "channel": CHANNELS[channel], "ref": self.next_reference
        });
        if let Some(position) = position {
            frame["recover"] = json!({"epoch": position.epoch, "offset": position.offset});
        }
        let asked = Asked {
            reference: self.next_reference,
            recovers: position.map(|position| {
                position.incarnation == stream.incarnation
                    && position.offset >= stream.top.saturating_sub(HISTORY)
            }),
            incarnation: stream.incarnation,
            top: stream.top,
            held: Vec::new(),
            is_gapped: false,
        };
        member.asked.insert(channel, asked);
        member.channels.insert(channel);
        self.shards[shard].receive(slot, &frame);
    }

    fn lose(&mut self, member: usize, disconnect: Disconnect) {
        let member = &mut self.members[member];
        let Some((shard, slot)) = member.connection.take() else {
            return;
        };
        member.asked.clear();
        self.shards[shard].end(slot, disconnect);
        if !disconnect.is_abrupt() {
            member.channels.clear();
        }
    }

    fn resume(&mut self, member: usize, shard: usize) {
        let token = self.members[member].token.clone();
        let greeted = self.shards[shard].connect(Some(&token));
        let member_number = member;
        let member = &mut self.members[member];
        assert_eq!(greeted.welcome["resumed"], true, "{}", greeted.welcome);
        assert_eq!(greeted.welcome["client_id"], *member.id);
        member.token = text(&greeted.welcome["resume"]);
        member.asked.clear();
        member.displaced.extend(member.connection.take());
        member.connection = Some((shard, greeted.slot));
        // it is on the default channel all the while
        let told: BTreeSet<String> = greeted.welcome["channels"]
            .as_array()
            .unwrap()
            .iter()
            .map(text)
            .filter(|name| name != "jungle")
            .collect();
        let wanted: BTreeSet<String> = member
            .channels
            .iter()
            .map(|channel| CHANNELS[*channel].to_owned())
            .collect();
        assert_eq!(told, wanted, "channels of the welcome");
        for channel in member.channels.clone() {
            self.join(member_number, channel);
        }
    }

    /// A client reads one message, as a client has to; false when there is none.
    fn read(&mut self, number: usize) -> bool {
        let member = &mut self.members[number];
        let Some((shard, slot)) = member.connection else {
            return false;
        };
        assert!(
            self.shards[shard].is_open(slot),
            "the newest connection was closed"
        );
        let Some(message) = self.shards[shard].read(slot) else {
            return false;
        };
        let Some(channel) = CHANNELS.iter().position(|name| message["channel"] == *name) else {
            assert_ne!(message["event"], "error", "{message}");
            return true;
        };
        match message["event"].as_str() {
            Some("n") => {
                let offset = message["offset"].as_u64().unwrap();
                match member.asked.get_mut(&channel) {
                    Some(asked) => asked.held.push(offset),
                    None => member.see(channel, offset),
                }
            }
            Some("reply") => {
                let asked = member.asked.remove(&channel).unwrap();
                assert_eq!(message["ref"], asked.reference, "answers come in order");
                member.answered(channel, &asked, &message);
                if asked.is_gapped {
                    self.join(number, channel);
                }
            }
            Some("gap") => match member.asked.get_mut(&channel) {
                Some(asked) => asked.is_gapped = true,
                None => self.join(number, channel),
            },
            Some("user_joined" | "user_left") => {}
            other => panic!("{other:?}: {message}"),
        }
        true
    }

    fn connected_on(&self, channel: usize) -> usize {
        let is_there =
            |member: &&Member| member.connection.is_some() && member.channels.contains(&channel);
        self.members.iter().filter(is_there).count()
    }

    fn present_on(&self, channel: usize) -> usize {
        let is_there = |member: &&Member| {
            (member.connection.is_some() || !self.is_told_at_once)
                && member.channels.contains(&channel)
        };
        self.members.iter().filter(is_there).count()
    }
}

impl Member {
    /// A live publication: the next, or one that it has seen.
    fn see(&mut self, channel: usize, offset: u64) {
        let position = self
            .positions
            .get_mut(&channel)
            .unwrap_or_else(|| panic!("{} was never joined", CHANNELS[channel]));
        assert!(
            offset <= position.offset + 1,
            "a gap: {offset} after {}",
            position.offset
        );
        position.offset = position.offset.max(offset);
    }

    fn answered(&mut self, channel: usize, asked: &Asked, reply: &Json) {
        let top = reply["offset"].as_u64().unwrap();
        assert_eq!(top, asked.top);
        assert_eq!(reply["recovered"].as_bool(), asked.recovers, "{reply}");
        let start = Position {
            incarnation: asked.incarnation,
            epoch: text(&reply["epoch"]),
            offset: top,
        };
        if asked.recovers != Some(true) {
            // what came before the answer is not behind it
            if asked.recovers == Some(false) {
                assert_eq!(reply["publications"], json!([]));
            }
            self.positions.insert(channel, start);
            return;
        }
        let position = &self.positions[&channel];
        assert_eq!(position.epoch, start.epoch);
        let missed = reply["publications"].as_array().unwrap();
        let missed: Vec<u64> = missed
            .iter()
            .map(|publication| publication["offset"].as_u64().unwrap())
            .collect();
        let wanted: Vec<u64> =
            (position.offset + 1..=position.offset + missed.len() as u64).collect();
        assert_eq!(missed, wanted, "what was missed, without a gap");
        for offset in missed.iter().chain(&asked.held) {
            if !asked.is_gapped || *offset <= self.positions[&channel].offset + 1 {
                self.see(channel, *offset);
            }
        }
        if asked.is_gapped {
            return;
        }
        assert_eq!(
            self.positions[&channel].offset, top,
            "with what came live before the answer, that is all"
        );
    }
}

fn text(value: &Json) -> String {
    value.as_str().unwrap().to_owned()
}
