//! Subscriptions, the notices of them, and channels that are created and deleted.

use super::backpressure::FanOut;
use super::channel::{Channel, Members, Notice, Tell};
use super::channels::kind_of;
use super::client::{Client, ClientState, Joined, Live};
use super::delivery::Delivery;
use super::encode::with_encoded;
use super::entering::{LEFT, NewMember};
use super::question::Question;
use super::wiring::Node;
use crate::base::clock::SteadyTime;
use crate::base::completion::{Completion, Progress};
use crate::base::error::{Error, ErrorCode, Refusal, argument};
use crate::base::names;
use crate::core::events::Detail;
use crate::ports::broker::Failure;
use crate::ports::presence::Departed;
use crate::settings::channel_kind::ChannelKind;
use crate::wire::messages::{self, Publication};
use std::sync::Arc;

impl Node {
    /// Subscribes a client to a channel, whether the client is connected or not.
    ///
    /// Errors: an id or channel name that cannot be one.
    pub fn subscribe(self: &Arc<Self>, client_id: &str, channel: &str) -> Result<(), Error> {
        names::check_client_id(client_id).map_err(argument)?;
        names::check_channel_name(channel).map_err(argument)?;
        loop {
            let client = self.clients.get_or_add(client_id);
            if self.add_member(&client, channel) {
                return Ok(());
            }
        }
    }

    /// Unsubscribes a client from a channel. Does nothing for a client without the subscription.
    ///
    /// Errors: as `subscribe`.
    pub fn unsubscribe(self: &Arc<Self>, client_id: &str, channel: &str) -> Result<(), Error> {
        names::check_client_id(client_id).map_err(argument)?;
        names::check_channel_name(channel).map_err(argument)?;
        let client = self.clients.get(client_id);
        if let Some(client) = client {
            self.leave(&client, channel);
        }
        Ok(())
    }

    /// A client asks to be on a channel, and perhaps for what it missed there.
    ///
    /// Errors: it is on as many as it may be.
    pub(super) fn join(
        self: &Arc<Self>,
        client: &Arc<Client>,
        channel: &str,
        question: &Question<'_>,
    ) -> Result<Option<FanOut>, Refusal> {
        let limit = self.config.max_channels_per_client;
        let mut state = client.state.lock();
        if state.connection_id != Some(question.connection_id) {
            // it was displaced in this moment
            return Ok(None);
        }
        let is_counted = state.position(channel).is_some() || state.entering_mut(channel).is_some();
        if !is_counted && state.channel_count() >= limit {
            let message = format!(
                "a client may be on {limit} channels; leave one before joining {channel:?}"
            );
            return Err(Refusal::new(ErrorCode::TooManyChannels, message));
        }
        if question.wants_reply() {
            client.set_wants_gaps(true);
        }
        let joined = self.add_subscription(client, &mut state, channel, Some(question));
        if let Some(member) = &joined {
            self.save_joined(client, &state, &member.channel.name);
        }
        Ok(self.tell_joined(client, joined))
    }

    /// Unsubscribes a client from a channel; returns the notice of the leave, if it was published.
    pub(super) fn leave(self: &Arc<Self>, client: &Arc<Client>, channel: &str) -> Option<FanOut> {
        let mut state = client.state.lock();
        let was_remembered = state.forget_channel(channel);
        let entering = state.stop_entering(&client.id, channel);
        if let Some(entering) = &entering {
            self.refuse_questions(&entering.questions, channel, LEFT);
        }
        let Some(at) = state.position(channel) else {
            // the channel may be saved although the client is still entering it
            if was_remembered || entering.is_some() {
                self.save_left(client, &state, channel);
            }
            let is_idle = state.end_if_idle();
            drop(state);
            if is_idle {
                self.clients.remove(&client.id);
            }
            return None;
        };
        let Joined { channel, live } = state.channels.remove(at);
        let departed = self.remove_member(client, &state, &channel);
        self.end_live(&state, live, &channel, &mut channel.members.lock());
        self.save_left(client, &state, &channel.name);
        let is_idle = state.end_if_idle();
        let told = departed.and_then(|departed| self.tell_left(&channel, &client.id, departed));
        drop(state);
        if is_idle {
            self.clients.remove(&client.id);
        }
        told
    }

    /// Creates a channel of a kind; false if there is a channel of this name.
    ///
    /// Errors: an invalid name; an unknown kind.
    pub fn create_channel(&self, name: &str, kind: &str) -> Result<bool, Error> {
        names::check_channel_name(name).map_err(argument)?;
        let kind = ChannelKind::from_name(kind).ok_or_else(|| {
            Error::Argument(format!("kind is {kind:?}; it takes {}", ChannelKind::TAKES))
        })?;
        let mut is_new = false;
        self.channel_with(name, || {
            is_new = true;
            kind
        });
        Ok(is_new)
    }

    /// Deletes a channel, its history and its subscriptions, without notices; false if there is no channel of this name.
    ///
    /// Errors: the storage cannot be opened.
    pub fn delete_channel(self: &Arc<Self>, name: &str) -> Result<bool, Error> {
        self.restore()?;
        let Some(channel) = self.channels.get(name) else {
            return Ok(false);
        };
        self.record_held();
        let mut ids: Vec<Arc<str>> = Vec::new();
        let is_removed = self.channels.remove_if(&channel, || {
            {
                let mut members = channel.members.lock();
                if members.removed {
                    return false;
                }
                members.removed = true;
            }
            ids = channel.presence.own();
            self.presence.remove(name);
            // a thread that still has the channel must not open the stream of its successor
            self.stream(&channel);
            self.broker.remove(name);
            true
        });
        if !is_removed {
            return Ok(false);
        }
        for id in ids {
            let Some(client) = self.clients.get(&id) else {
                continue;
            };
            let mut state = client.state.lock();
            // the client may have gone away since the ids were read
            let was_remembered = state.forget_channel(name);
            if let Some(at) = state
                .channels
                .iter()
                .position(|joined| Arc::ptr_eq(&joined.channel, &channel))
            {
                let live = state.channels.remove(at).live;
                // a join may have taken effect behind the removal of all members
                state.leave_silently(&id, &channel);
                let mut members = channel.members.lock();
                members.own = members.own.saturating_sub(1);
                self.end_live(&state, live, &channel, &mut members);
                drop(members);
                self.save_left(&client, &state, name);
            } else if was_remembered {
                self.save_left(&client, &state, name);
            }
            let is_idle = state.end_if_idle();
            drop(state);
            if is_idle {
                self.clients.remove(&id);
            }
        }
        self.forget_channel(name);
        Ok(true)
    }

    /// The channel of this name; adds a channel if there is none.
    pub(super) fn channel(&self, name: &str) -> Arc<Channel> {
        self.channel_with(name, || kind_of(name))
    }

    pub(super) fn publish_due_notices(&self) {
        let now = SteadyTime::now();
        let noticed = self.channels.take_noticed();
        let mut waiting = Vec::new();
        for channel in noticed {
            let mut members = channel.members.lock();
            let subscribers = members.total.members;
            let joined = members.joins.take_due(subscribers, now);
            // leaves wait until the joins are published
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
        self.channels.add_noticed(waiting);
    }

    pub(super) fn channel_with(
        &self,
        name: &str,
        kind: impl FnOnce() -> ChannelKind,
    ) -> Arc<Channel> {
        if let Some(channel) = self.channels.get(name) {
            return channel;
        }
        // before the new channel is added, so that the new channel is not the one that ends
        self.remove_empty_channels(1);
        self.channels.get_or_add(name, kind)
    }

    /// Puts a client on a channel; false when the client has ended meanwhile.
    pub(super) fn add_member(self: &Arc<Self>, client: &Arc<Client>, name: &str) -> bool {
        let mut state = client.state.lock();
        if state.removed {
            return false;
        }
        let joined = self.add_subscription(client, &mut state, name, None);
        if let Some(member) = &joined {
            self.save_joined(client, &state, &member.channel.name);
        }
        self.tell_joined(client, joined);
        true
    }

    /// Tells a channel that a client has joined; returns the notice. To be called with the client locked, so that the
    /// notice of its leave follows.
    pub(super) fn tell_joined(&self, client: &Client, joined: Option<NewMember>) -> Option<FanOut> {
        let member = joined.filter(|member| member.is_new)?;
        let channel = &member.channel;
        Some(self.notice(channel, Notice::Joined, &client.id, member.total))
    }

    /// Ends the membership of a client whose subscription has ended. Returns the outcome, which the caller announces;
    /// `None` if presence answers later, which then announces the leave. To be called with the client locked.
    pub(super) fn remove_member(
        self: &Arc<Self>,
        client: &Client,
        state: &ClientState,
        channel: &Arc<Channel>,
    ) -> Option<Departed> {
        let leaving = channel.presence.leave(&client.id, state.claim, &mut || {
            let (node, channel) = (Arc::clone(self), Arc::clone(channel));
            let id = Arc::clone(&client.id);
            // the completion of a later join runs behind this one, so the notice of a return follows
            Completion::new(move |outcome| {
                let departed = departed(&mut channel.members.lock(), outcome);
                node.tell_left(&channel, &id, departed);
            })
        });
        let mut members = channel.members.lock();
        members.own = members.own.saturating_sub(1);
        if members.own == 0 && !members.removed {
            self.channels.mark_empty(channel, &mut members);
        }
        match leaving {
            Progress::Ended(outcome) => Some(departed(&mut members, outcome)),
            Progress::Begun(_) => None,
        }
    }

    /// Tells a channel that a client has left; returns the notice.
    pub(super) fn tell_left(
        &self,
        channel: &Arc<Channel>,
        id: &Arc<str>,
        departed: Departed,
    ) -> Option<FanOut> {
        // the process that the client has moved to announces its leave
        let has_left = !departed.has_moved;
        has_left.then(|| self.notice(channel, Notice::Left, id, departed.total.members))
    }

    /// Ends the subscription of a connection, if it has one.
    fn end_live(
        &self,
        state: &ClientState,
        live: Option<Live>,
        channel: &Channel,
        members: &mut Members,
    ) {
        let Some(live) = live else { return };
        members.interest.remove(live.shard);
        if let Some(connection_id) = state.connection_id {
            self.shards.push(
                connection_id.shard,
                Delivery::Unsubscribe {
                    connection_id,
                    channel: channel.key,
                },
            );
        }
    }

    /// Publishes the notice of a join or a leave, now or later; returns the notices that were published now.
    pub(super) fn notice(
        &self,
        channel: &Arc<Channel>,
        notice: Notice,
        id: &Arc<str>,
        total: usize,
    ) -> FanOut {
        let mut told = FanOut {
            channel: Arc::clone(channel),
            recipients: 0,
            can_be_joined: false,
        };
        self.events
            .emit(notice.event(), Some(id), Some(&channel.name), || {
                Detail::TotalUsers(total)
            });
        // during a drain every client gets a goodbye, and no notices of leaves
        if self.shards.is_draining() || self.shards.is_empty() {
            return told;
        }
        let (tell, joins_before) = {
            let mut members = channel.members.lock();
            let now = SteadyTime::now();
            let limit = self.config.notice_limit;
            let subscribers = members.total.members;
            match notice {
                Notice::Joined => (members.joins.add(id, subscribers, limit, now), None),
                // a leave must not overtake the joins that wait: the join of the same client may be one of them
                Notice::Left if subscribers <= limit => {
                    let joins = members.joins.take_all(now);
                    (members.leaves.add(id, subscribers, limit, now), joins)
                }
                Notice::Left if members.joins.is_waiting() => (members.leaves.wait(id), None),
                Notice::Left => (members.leaves.add(id, subscribers, limit, now), None),
            }
        };
        if let Some((id, count)) = joins_before {
            told.recipients += self.publish_notice(channel, Notice::Joined, &id, Some(count));
        }
        match tell {
            Tell::Now(count) => {
                told.recipients += self.publish_notice(channel, notice, id, count);
            }
            Tell::Later => {
                if !std::mem::replace(&mut channel.members.lock().is_noticed, true) {
                    self.channels.add_noticed([Arc::clone(channel)]);
                }
            }
        }
        told
    }

    fn publish_notice(
        &self,
        channel: &Arc<Channel>,
        notice: Notice,
        id: &str,
        count: Option<usize>,
    ) -> usize {
        let stream = self.stream(channel);
        // totals go out in the order in which they were true
        let _order = channel.notices.lock();
        let data = notice_data(id, channel.members.lock().total.members, count);
        let publication = Publication {
            channel: &channel.name,
            event: notice.event(),
            data: &data,
            from: None,
            wants_ack: false,
        };
        self.counters.encoded.add(1);
        with_encoded(self.stamps.next(), &publication, |body| stream.notify(body))
    }
}

/// Takes in the outcome of a leave.
fn departed(members: &mut Members, outcome: Result<Departed, Failure>) -> Departed {
    if let Ok(departed) = &outcome {
        members.note(departed.total);
    }
    // a leave does not fail, but its outcome may be lost
    outcome.unwrap_or(Departed {
        total: members.total,
        has_moved: false,
    })
}

fn notice_data(id: &str, total: usize, count: Option<usize>) -> Vec<u8> {
    let mut data = b"{\"client_id\":".to_vec();
    messages::write_text(&mut data, id);
    data.extend_from_slice(format!(",\"total_users\":{total}").as_bytes());
    if let Some(count) = count {
        data.extend_from_slice(format!(",\"count\":{count}").as_bytes());
    }
    data.push(b'}');
    data
}
