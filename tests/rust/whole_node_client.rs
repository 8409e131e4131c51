//! A client of the property test of the whole node, as careful as `tantor.js`: it knows its position on each channel,
//! asks for what it missed, and removes duplicates by their offset.

use crate::shards::Greeted;
use _tantor::core::hub::Slot;
use serde_json::{Value as Json, json};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// What is known of a publication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    UnderWay,
    Made,
    /// The error says that nothing was done.
    Failed,
    /// The error says that the publication may be made, or the connection was lost before the answer.
    Unknown,
}

/// What an answer says about a publication.
pub fn fate(error: Option<&str>) -> Fate {
    match error {
        None => Fate::Made,
        Some(text) if text.contains("may be published") => Fate::Unknown,
        Some(_) => Fate::Failed,
    }
}

/// What all clients together have seen.
pub struct Sight {
    /// The store fails: a publication that could not be saved has taken an offset.
    has_holes: bool,
    /// The number of the publication at each place.
    at: BTreeMap<(String, u64, u64), usize>,
}

/// Keeps the state of one client over all its connections.
#[derive(Debug, Default)]
pub struct Visitor {
    pub id: String,
    pub token: Option<String>,
    /// The connection: its shard and its slot there.
    pub place: Option<(usize, Slot)>,
    /// The connection that waits for its claim.
    pub coming: Option<(usize, Slot)>,
    /// Frames to be sent.
    pub outgoing: Vec<Json>,
    /// Mail may come again on one connection, under the same id.
    mail_repeats: bool,
    /// The ids of the letters, by their texts.
    pub letters: HashMap<String, Json>,
    /// The letters in the order in which they came first.
    pub came: Vec<String>,
    /// The ids of the emergencies, by their texts.
    pub emergencies: HashMap<String, Json>,
    /// The mail of the connection.
    arrived: HashSet<String>,
    channels: BTreeMap<String, Follow>,
    /// The last notice of each channel: its client and total.
    notices: BTreeMap<String, (String, usize)>,
    next_ref: u64,
    /// Questions of this connection that were not answered, by `ref`.
    asked: BTreeMap<u64, Asked>,
    /// Publications with a key whose answer was lost: channel and key are known to the caller.
    to_repeat: BTreeSet<usize>,
    /// The publications with a key.
    keyed: BTreeSet<usize>,
}

#[derive(Debug)]
enum Asked {
    /// A channel, and which of the client's joins of it.
    Join(String, u64),
    Publish(usize),
    /// The acknowledged id.
    Ack(Json),
    Other,
}

/// A channel that the client wants to be on.
#[derive(Debug, Default)]
struct Follow {
    /// Which of the client's joins: an answer may be to a join before the last leave.
    number: u64,
    /// Epoch and offset.
    position: Option<(u64, u64)>,
    is_asking: bool,
    /// A gap was told while the client was asking.
    must_ask: bool,
    held: BTreeMap<u64, usize>,
    seen: BTreeMap<u64, BTreeSet<u64>>,
    /// By epoch: everything up to the offset came before the client, or was told to be lost.
    excused: BTreeMap<u64, u64>,
}

impl Sight {
    pub fn new(has_holes: bool) -> Self {
        Self {
            has_holes,
            at: BTreeMap::new(),
        }
    }

    pub fn note(&mut self, channel: &str, epoch: u64, offset: u64, number: usize) {
        let place = (channel.to_owned(), epoch, offset);
        let known = *self.at.entry(place).or_insert(number);
        assert_eq!(known, number, "{channel} {epoch:x} {offset}: two orders");
    }

    /// No publication has two places.
    pub fn check_once(&self) {
        let mut places = BTreeMap::new();
        for (place, number) in &self.at {
            let other = places.insert(number, place);
            assert_eq!(
                other, None,
                "{number} is published twice, also at {place:?}"
            );
        }
    }
}

impl Visitor {
    pub fn with_mail(mail_repeats: bool) -> Self {
        Self {
            mail_repeats,
            ..Self::default()
        }
    }

    pub fn welcome(&mut self, shard: usize, greeted: &Greeted) {
        let field = |name: &str| greeted.welcome[name].as_str().unwrap().to_owned();
        assert!(self.id.is_empty() || self.id == field("client_id"));
        (self.id, self.token) = (field("client_id"), Some(field("resume")));
        self.place = Some((shard, greeted.slot));
        self.ask_all();
    }

    /// The connection has ended. Returns the publications whose answers are lost.
    pub fn lost(&mut self) -> Vec<usize> {
        self.outgoing.clear();
        self.arrived.clear();
        let asked = std::mem::take(&mut self.asked);
        let published = asked.into_values().filter_map(|asked| match asked {
            Asked::Publish(number) => Some(number),
            Asked::Join(..) | Asked::Ack(_) | Asked::Other => None,
        });
        let published: Vec<usize> = published.collect();
        self.to_repeat.extend(
            published
                .iter()
                .filter(|number| self.keyed.contains(number)),
        );
        for follow in self.channels.values_mut() {
            follow.is_asking = false;
            follow.must_ask = false;
            follow.held.clear();
        }
        published
    }

    /// Publications with a key that are to be tried again.
    pub fn unanswered(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.to_repeat).into_iter().collect()
    }

    pub fn is_quiet(&self) -> bool {
        self.place.is_some()
            && self.asked.is_empty()
            && self.to_repeat.is_empty()
            && self.outgoing.is_empty()
    }

    /// The client wants to be on the channel.
    pub fn follows(&self, channel: &str) -> bool {
        self.channels.contains_key(channel)
    }

    /// The last notice of the channel is of this client, with this total.
    pub fn was_told(&self, channel: &str, id: &str, total: usize) -> bool {
        let last = self.notices.get(channel);
        last.is_some_and(|(last, of)| last == id && *of == total)
    }

    pub fn publish(&mut self, number: usize, channel: &str, key: Option<&str>) {
        let mut frame =
            json!({"action": "broadcast", "channel": channel, "event": "n", "data": number});
        if let Some(key) = key {
            frame["idempotency_key"] = json!(key);
            self.keyed.insert(number);
        }
        self.ask(frame, Asked::Publish(number));
    }

    pub fn join(&mut self, channel: &str) {
        if self.place.is_some() && !self.channels.contains_key(channel) {
            let follow = Follow {
                number: self.next_ref,
                ..Follow::default()
            };
            self.channels.insert(channel.to_owned(), follow);
            self.recover(channel);
        }
    }

    pub fn leave(&mut self, channel: &str) {
        if self.place.is_some() && self.channels.remove(channel).is_some() {
            self.ask(
                json!({"action": "leave_channel", "channel": channel}),
                Asked::Other,
            );
        }
    }

    /// Asks on each channel for what came behind the position.
    pub fn ask_all(&mut self) {
        let channels: Vec<String> = self.channels.keys().cloned().collect();
        for channel in channels {
            self.recover(&channel);
        }
    }

    fn recover(&mut self, channel: &str) {
        let Some(follow) = self.channels.get_mut(channel) else {
            return;
        };
        if follow.is_asking {
            follow.must_ask = true;
            return;
        }
        follow.is_asking = true;
        let mut frame = json!({"action": "join_channel", "channel": channel});
        if let Some((epoch, offset)) = follow.position {
            frame["recover"] = json!({"epoch": format!("{epoch:016x}"), "offset": offset});
        }
        let asked = Asked::Join(channel.to_owned(), follow.number);
        self.ask(frame, asked);
    }

    fn ask(&mut self, mut frame: Json, asked: Asked) {
        self.next_ref += 1;
        frame["ref"] = json!(self.next_ref);
        self.asked.insert(self.next_ref, asked);
        self.outgoing.push(frame);
    }

    /// Takes a message in. Returns the outcome of a publication that the message answers.
    pub fn read(&mut self, message: &Json, sight: &mut Sight) -> Option<(usize, Option<String>)> {
        let channel = message["channel"].as_str().unwrap_or_default();
        let event = message["event"].as_str().unwrap_or_default();
        if message["ack"] == true {
            self.acknowledge(&message["id"]);
            self.mailed(message);
            return None;
        }
        match event {
            "reply" | "error" => return self.answered(message, sight),
            "gap" => self.recover(channel),
            "user_joined" | "user_left" => {
                let id = message["data"]["client_id"].as_str().unwrap().to_owned();
                let total = message["data"]["total_users"].as_u64().unwrap() as usize;
                self.notices.insert(channel.to_owned(), (id, total));
            }
            "n" => {
                let (offset, number) = (&message["offset"], &message["data"]);
                self.live(
                    channel,
                    offset.as_u64().unwrap(),
                    number.as_u64().unwrap() as usize,
                    sight,
                );
            }
            _ => {}
        }
        None
    }

    fn acknowledge(&mut self, id: &Json) {
        let frame = json!({"action": "ack", "ids": [id]});
        self.ask(frame, Asked::Ack(id.clone()));
    }

    /// Takes a letter or an emergency in. Every copy of it has the same id.
    fn mailed(&mut self, message: &Json) {
        let is_emergency = message["event"] == "emergency_alert";
        let (known, text) = if is_emergency {
            (&mut self.emergencies, &message["data"]["message"])
        } else {
            (&mut self.letters, &message["message"])
        };
        let (id, text) = (&message["id"], text.as_str().unwrap().to_owned());
        let first = known.entry(text.clone()).or_insert_with(|| {
            if !is_emergency {
                self.came.push(text.clone());
            }
            id.clone()
        });
        assert_eq!(first, id, "{text} came under two ids");
        let is_new = self.arrived.insert(id.to_string());
        assert!(is_new || self.mail_repeats, "{text} came twice");
    }

    fn live(&mut self, channel: &str, offset: u64, number: usize, sight: &mut Sight) {
        // what was on its way when the client left
        let Some(follow) = self.channels.get_mut(channel) else {
            return;
        };
        let Some(position) = follow.position.filter(|_| !follow.is_asking) else {
            follow.held.insert(offset, number);
            return;
        };
        if offset <= position.1 {
            return;
        }
        if offset > position.1 + 1 {
            assert!(sight.has_holes, "{channel} {offset}: no gap was told");
            follow.held.insert(offset, number);
            self.recover(channel);
            return;
        }
        follow.show(channel, position.0, offset, number, sight);
    }

    fn answered(&mut self, message: &Json, sight: &mut Sight) -> Option<(usize, Option<String>)> {
        let reference = message["ref"].as_u64();
        assert!(reference.is_some(), "{message}");
        let asked = self.asked.remove(&reference?);
        let is_error = message["event"] == "error";
        match asked {
            None => panic!("answered twice, or never asked: {message}"),
            Some(Asked::Publish(number)) => {
                let error = is_error.then(|| message["message"].to_string());
                if error.is_some() && self.keyed.contains(&number) {
                    self.to_repeat.insert(number);
                }
                return Some((number, error));
            }
            Some(Asked::Join(channel, number)) => {
                let follow = self.channels.get_mut(&channel);
                let follow = follow.filter(|follow| follow.number == number)?;
                follow.is_asking = false;
                if is_error {
                    assert_eq!(message["code"], 116, "{message}");
                    self.recover(&channel);
                } else if follow.joined(&channel, message, sight) {
                    self.recover(&channel);
                }
            }
            // 113: acknowledged already; anything else is tried again
            Some(Asked::Ack(id)) if is_error => match message["code"].as_u64() {
                Some(113) => assert!(self.mail_repeats, "{message}"),
                _ => self.acknowledge(&id),
            },
            Some(Asked::Ack(_)) => {}
            Some(Asked::Other) => assert!(!is_error, "{message}"),
        }
        None
    }

    /// The client has everything that is in the history behind what it was excused.
    pub fn check_complete(&self, channel: &str, epoch: u64, history: &BTreeMap<u64, usize>) {
        let Some(follow) = self.channels.get(channel) else {
            return;
        };
        let excused = follow.excused.get(&epoch).copied().unwrap_or(0);
        let nothing = BTreeSet::new();
        let seen = follow.seen.get(&epoch).unwrap_or(&nothing);
        for offset in history.keys().filter(|offset| **offset > excused) {
            assert!(
                seen.contains(offset),
                "{} has no {offset} of {channel}: {follow:?}",
                self.id
            );
        }
    }
}

impl Follow {
    fn show(&mut self, channel: &str, epoch: u64, offset: u64, number: usize, sight: &mut Sight) {
        sight.note(channel, epoch, offset, number);
        self.position = Some((epoch, offset));
        assert!(self.seen.entry(epoch).or_default().insert(offset));
    }

    /// Takes the reply to a join in; true if the client has to ask again.
    fn joined(&mut self, channel: &str, reply: &Json, sight: &mut Sight) -> bool {
        let epoch = u64::from_str_radix(reply["epoch"].as_str().unwrap(), 16).unwrap();
        let top = reply["offset"].as_u64().unwrap();
        if let Some((before, _)) = self.position.filter(|_| reply["recovered"] == true) {
            assert_eq!(before, epoch, "{channel}");
            for publication in reply["publications"].as_array().unwrap() {
                let offset = publication["offset"].as_u64().unwrap();
                let at = self.position.unwrap().1;
                if offset > at {
                    let is_next = offset == at + 1 || sight.has_holes;
                    assert!(is_next, "{channel} {offset}: a hole in what was recovered");
                    let number = publication["data"].as_u64().unwrap() as usize;
                    self.show(channel, epoch, offset, number, sight);
                }
            }
            let through = reply["through"].as_u64().unwrap();
            let at = self.position.unwrap().1;
            assert!(at >= through || sight.has_holes, "{channel}: {reply}");
            self.position = Some((epoch, at.max(through)));
        } else {
            // the first join, or another stream: what was held may be of the stream before
            self.position = Some((epoch, top));
            self.excused.insert(epoch, top);
            self.held.clear();
            self.must_ask = true;
        }
        for (offset, number) in std::mem::take(&mut self.held) {
            let at = self.position.unwrap().1;
            if offset == at + 1 {
                self.show(channel, epoch, offset, number, sight);
            } else if offset > at {
                let is_told = self.must_ask || sight.has_holes;
                assert!(is_told, "{channel} {offset}: no gap was told");
                self.must_ask = true;
            }
        }
        std::mem::take(&mut self.must_ask)
    }
}
