//! Who is connected, who is on which channel, and who is told of it.

use super::channel::{Channel, Members, Notice, Tell};
use super::client::Client;
use super::delivery::{Delivery, Place};
use super::{Node, argument};
use crate::error::{Disconnect, Error, ErrorCode, Refusal};
use crate::events::Detail;
use crate::frame::EncodedFrame;
use crate::protocol::{self, Publication};
use crate::random::random_u64;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Node {
    /// A client has connected: gives it an id and the welcome that must reach it first. `None` when as many as may be
    /// are connected already.
    pub fn connect(&self, place: Place) -> Option<(Arc<Client>, EncodedFrame)> {
        let reserve =
            |connected| (connected < self.config.max_connections).then_some(connected + 1);
        if self
            .connected
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, reserve)
            .is_err()
        {
            self.counters.refused_full.add(1);
            return None;
        }
        let now = protocol::now_micros();
        let client = loop {
            let id: Arc<str> = format!("client_{:016x}", random_u64()).into();
            if let Entry::Vacant(vacant) = self.clients.write().entry(Arc::clone(&id)) {
                break Arc::clone(vacant.insert(Arc::new(Client::new(id, now, Some(place)))));
            }
        };
        self.counters.connections_total.add(1);
        let stamp = self.stamp();
        let welcome = super::encode(|out| protocol::write_welcome(out, stamp, &client.id));
        for event in ["welcome", "connect"] {
            self.client_event(event, &client, Some(protocol::SYSTEM_CHANNEL), || {
                Detail::Message(protocol::WELCOME.to_owned())
            });
        }
        Some((client, welcome))
    }

    /// After `connect` and its welcome: puts the client on the default channel.
    pub fn enter(&self, client: &Arc<Client>) {
        let name = self.config.default_channel.clone();
        self.add_member(client, &name);
    }

    /// A client's connection has ended: takes it off everything and tells of it.
    pub fn disconnect(&self, client: &Arc<Client>, disconnect: Disconnect) {
        let (channels, place) = {
            let mut state = client.state.lock();
            state.removed = true;
            (std::mem::take(&mut state.channels), state.place.take())
        };
        if place.is_some() {
            self.connected.fetch_sub(1, Ordering::AcqRel);
        }
        for channel in channels {
            let mut members = channel.members.lock();
            self.remove_member(&channel, &mut members, &client.id, place);
            let total = members.roster.len();
            drop(members);
            self.notice(&channel, Notice::Left, &client.id, total);
        }
        // last, so that nobody of the same id comes onto a channel before this one is off it
        self.clients.write().remove(&client.id);
        self.disconnected(client, disconnect);
    }

    /// Puts a client on a channel, whether it is connected or not.
    ///
    /// Errors: an id or channel name that cannot be one.
    pub fn subscribe(&self, client_id: &str, channel: &str) -> Result<(), Error> {
        protocol::check_client_id(client_id).map_err(argument)?;
        protocol::check_channel_name(channel).map_err(argument)?;
        loop {
            let client = self.client_or_new(client_id);
            if self.add_member(&client, channel) {
                return Ok(());
            }
        }
    }

    /// Takes a client off a channel; nothing happens when it is not on it.
    ///
    /// Errors: as `subscribe`.
    pub fn unsubscribe(&self, client_id: &str, channel: &str) -> Result<(), Error> {
        protocol::check_client_id(client_id).map_err(argument)?;
        protocol::check_channel_name(channel).map_err(argument)?;
        let client = self.clients.read().get(client_id).cloned();
        if let Some(client) = client {
            self.leave(&client, channel);
        }
        Ok(())
    }

    /// A client asks to be on a channel.
    ///
    /// Errors: it is on as many as it may be.
    pub(super) fn join(&self, client: &Arc<Client>, channel: &str) -> Result<(), Refusal> {
        let limit = self.config.max_channels_per_client;
        let state = client.state.lock();
        let is_new = !state.channels.iter().any(|joined| &*joined.name == channel);
        if is_new && state.channels.len() >= limit {
            let message = format!(
                "a client may be on {limit} channels; leave one before joining {channel:?}"
            );
            return Err(Refusal::new(ErrorCode::TooManyChannels, message));
        }
        drop(state);
        self.add_member(client, channel);
        Ok(())
    }

    pub(super) fn leave(&self, client: &Arc<Client>, channel: &str) {
        let mut state = client.state.lock();
        let Some(at) = state
            .channels
            .iter()
            .position(|joined| &*joined.name == channel)
        else {
            return;
        };
        let channel = state.channels.remove(at);
        let mut members = channel.members.lock();
        self.remove_member(&channel, &mut members, &client.id, state.place);
        let total = members.roster.len();
        if let Some(place) = state.place {
            self.push(
                place.shard,
                Delivery::Unsubscribe {
                    place,
                    channel: channel.key,
                },
            );
        }
        drop(members);
        let is_idle = state.end_if_idle();
        drop(state);
        if is_idle {
            self.clients.write().remove(&client.id);
        }
        self.notice(&channel, Notice::Left, &client.id, total);
    }

    /// Makes a channel of a kind; false when there is one of that name.
    ///
    /// Errors: a name that cannot be one.
    pub fn create_channel(&self, name: &str, kind: &str) -> Result<bool, Error> {
        protocol::check_channel_name(name).map_err(argument)?;
        let mut is_new = false;
        self.channel_with(name, || {
            is_new = true;
            kind
        });
        Ok(is_new)
    }

    /// Drops a channel and its subscriptions, without notices; false when there is none of that name.
    pub fn delete_channel(&self, name: &str) -> bool {
        let mut channels = self.channels.write();
        let Some(channel) = channels.remove(name) else {
            return false;
        };
        let ids: Vec<Arc<str>> = {
            let mut members = channel.members.lock();
            members.removed = true;
            members.roster.ids().cloned().collect()
        };
        self.broker.close(name);
        drop(channels);
        for id in ids {
            let Some(client) = self.clients.read().get(&id).cloned() else {
                continue;
            };
            let mut state = client.state.lock();
            if let Some(at) = state
                .channels
                .iter()
                .position(|joined| Arc::ptr_eq(joined, &channel))
            {
                state.channels.remove(at);
                let mut members = channel.members.lock();
                members.roster.remove(&id);
                if let Some(place) = state.place {
                    members.interest.remove(place.shard);
                    self.push(
                        place.shard,
                        Delivery::Unsubscribe {
                            place,
                            channel: channel.key,
                        },
                    );
                }
            }
            let is_idle = state.end_if_idle();
            drop(state);
            if is_idle {
                self.clients.write().remove(&id);
            }
        }
        true
    }

    /// The channel of this name, made if there is none.
    pub(super) fn channel(&self, name: &str) -> Arc<Channel> {
        self.channel_with(name, || match name {
            "treehouse" => "private",
            protocol::EMERGENCY_CHANNEL => "emergency",
            _ => "public",
        })
    }

    pub(super) fn tell_due_notices(&self) {
        let now = protocol::monotonic_micros();
        let noticed = std::mem::take(&mut *self.noticed.lock());
        let mut waiting = Vec::new();
        for channel in noticed {
            let mut members = channel.members.lock();
            let subscribers = members.roster.len();
            let joined = members.joins.take_due(subscribers, now);
            // joins go first, and leaves wait for them
            let left = if members.joins.is_waiting() {
                None
            } else {
                members.leaves.take_due(subscribers, now)
            };
            members.is_noticed = members.joins.is_waiting() || members.leaves.is_waiting();
            let is_waiting = members.is_noticed;
            drop(members);
            for (notice, due) in [(Notice::Joined, joined), (Notice::Left, left)] {
                if let Some((id, count)) = due {
                    self.publish_notice(&channel, notice, &id, Some(count));
                }
            }
            if is_waiting {
                waiting.push(channel);
            }
        }
        self.noticed.lock().append(&mut waiting);
    }

    /// Removes channels that stayed empty for long, or are too many to leave room for so many more;
    /// returns how many.
    pub(super) fn remove_empty_channels(&self, room: usize) -> usize {
        let ttl = self.config.empty_channel_ttl.as_micros() as u64;
        let now = protocol::monotonic_micros();
        let mut removed = 0;
        let mut looks = self.empty_channels.lock().len();
        while looks > 0 {
            looks -= 1;
            let (channel, too_many) = {
                let mut empty = self.empty_channels.lock();
                let too_many = empty.len() + room > self.config.max_empty_channels;
                match empty.front() {
                    Some((noted, _)) if too_many || now.saturating_sub(*noted) >= ttl => {
                        let Some((_, channel)) = empty.pop_front() else {
                            return removed;
                        };
                        (channel, too_many)
                    }
                    _ => return removed,
                }
            };
            let mut channels = self.channels.write();
            let mut members = channel.members.lock();
            members.noted_empty = false;
            if members.removed || !members.roster.is_empty() {
                continue;
            }
            // it may have been filled and emptied again since it was noted
            if !too_many && now.saturating_sub(members.empty_since) < ttl {
                self.note_empty(&channel, &mut members);
                continue;
            }
            members.removed = true;
            drop(members);
            channels.remove(&channel.name);
            self.broker.close(&channel.name);
            removed += 1;
        }
        removed
    }

    fn channel_with<'a>(&self, name: &str, kind: impl FnOnce() -> &'a str) -> Arc<Channel> {
        if let Some(channel) = self.channels.read().get(name) {
            return Arc::clone(channel);
        }
        // before, so that the new one is not the one to go
        if self.empty_channels.lock().len() >= self.config.max_empty_channels {
            self.remove_empty_channels(1);
        }
        let mut channels = self.channels.write();
        if let Some(channel) = channels.get(name) {
            return Arc::clone(channel);
        }
        let channel = Arc::new(Channel {
            key: self.next_channel.fetch_add(1, Ordering::Relaxed),
            name: name.into(),
            kind: kind().into(),
            created: protocol::now_micros(),
            stream: self.broker.open(name),
            members: parking_lot::Mutex::default(),
        });
        channels.insert(Arc::clone(&channel.name), Arc::clone(&channel));
        drop(channels);
        self.note_empty(&channel, &mut channel.members.lock());
        channel
    }

    fn client_or_new(&self, id: &str) -> Arc<Client> {
        if let Some(client) = self.clients.read().get(id) {
            return Arc::clone(client);
        }
        let mut clients = self.clients.write();
        let id: Arc<str> = id.into();
        let client = clients
            .entry(Arc::clone(&id))
            .or_insert_with(|| Arc::new(Client::new(id, protocol::now_micros(), None)));
        Arc::clone(client)
    }

    /// False when the client has ended meanwhile.
    fn add_member(&self, client: &Arc<Client>, name: &str) -> bool {
        let mut state = client.state.lock();
        if state.removed {
            return false;
        }
        if state.channels.iter().any(|joined| &*joined.name == name) {
            return true;
        }
        let (channel, total) = loop {
            let channel = self.channel(name);
            let mut members = channel.members.lock();
            if members.removed {
                continue;
            }
            members.roster.add(&client.id);
            if let Some(place) = state.place {
                members.interest.add(place.shard);
                // under the members' lock, so that it takes its place between publications
                self.push(
                    place.shard,
                    Delivery::Subscribe {
                        place,
                        channel: channel.key,
                    },
                );
            }
            let total = members.roster.len();
            drop(members);
            break (channel, total);
        };
        state.channels.push(Arc::clone(&channel));
        drop(state);
        self.notice(&channel, Notice::Joined, &client.id, total);
        true
    }

    fn remove_member(
        &self,
        channel: &Arc<Channel>,
        members: &mut Members,
        id: &Arc<str>,
        place: Option<Place>,
    ) {
        if !members.roster.remove(id) {
            return;
        }
        if let Some(place) = place {
            members.interest.remove(place.shard);
        }
        if members.roster.is_empty() {
            self.note_empty(channel, members);
        }
    }

    fn note_empty(&self, channel: &Arc<Channel>, members: &mut Members) {
        if self.permanent_channels().contains(&&*channel.name) {
            return;
        }
        members.empty_since = protocol::monotonic_micros();
        if !std::mem::replace(&mut members.noted_empty, true) {
            self.empty_channels
                .lock()
                .push_back((members.empty_since, Arc::clone(channel)));
        }
    }

    fn notice(&self, channel: &Arc<Channel>, notice: Notice, id: &Arc<str>, total: usize) {
        if let Some(name) = self.events.wanted(notice.event()) {
            self.event(
                name,
                Some(id),
                Some(&channel.name),
                Detail::TotalUsers(total),
            );
        }
        // goodbyes to all need no leaves
        if self.is_draining() || self.doors.load().is_empty() {
            return;
        }
        let (tell, joins_before) = {
            let mut members = channel.members.lock();
            let now = protocol::monotonic_micros();
            let limit = self.config.notice_limit;
            let subscribers = members.roster.len();
            match notice {
                Notice::Joined => (members.joins.add(id, subscribers, limit, now), None),
                // a leave must not overtake the joins that wait: its own may be among them
                Notice::Left if subscribers <= limit => {
                    let joins = members.joins.take_all(now);
                    (members.leaves.add(id, subscribers, limit, now), joins)
                }
                Notice::Left if members.joins.is_waiting() => (members.leaves.wait(id), None),
                Notice::Left => (members.leaves.add(id, subscribers, limit, now), None),
            }
        };
        if let Some((id, count)) = joins_before {
            self.publish_notice(channel, Notice::Joined, &id, Some(count));
        }
        match tell {
            Tell::Now(count) => self.publish_notice(channel, notice, id, count),
            Tell::Later => {
                if !std::mem::replace(&mut channel.members.lock().is_noticed, true) {
                    self.noticed.lock().push(Arc::clone(channel));
                }
            }
        }
    }

    fn publish_notice(
        &self,
        channel: &Arc<Channel>,
        notice: Notice,
        id: &str,
        count: Option<usize>,
    ) {
        let mut recipients = 0;
        channel.stream.notify(&mut |_| {
            let members = channel.members.lock();
            // counted here, so that totals go out in the order in which they were true
            let data = notice_data(id, members.roster.len(), count);
            let publication = Publication {
                channel: &channel.name,
                event: notice.event(),
                data: &data,
                from: None,
            };
            let frame = self.encode_publication(&publication);
            recipients = self.hand_over(channel, &members, &frame);
            frame
        });
        self.counters.messages_sent.add(recipients);
    }
}

fn notice_data(id: &str, total: usize, count: Option<usize>) -> Vec<u8> {
    let mut data = b"{\"client_id\":".to_vec();
    protocol::write_text(&mut data, id);
    data.extend_from_slice(format!(",\"total_users\":{total}").as_bytes());
    if let Some(count) = count {
        data.extend_from_slice(format!(",\"count\":{count}").as_bytes());
    }
    data.push(b'}');
    data
}
