//! How a connection enters a channel: it is subscribed between two publications, behind its reply.
//!
//! The broker may answer at once, or later and on another thread. Until it does, the gate of the channel keeps what is
//! published, and the client's further questions about the channel wait.

use super::channel::Channel;
use super::client::{Client, ClientState, Joined, Live};
use super::delivery::{ConnectionId, Delivery};
use super::encode::encode;
use super::entry::{Entering, Entry};
use super::gate::GatedPublication;
use super::question::Question;
use super::recovery::JoinReply;
use super::wiring::Node;
use crate::base::completion::Completion;
use crate::base::error::{ErrorCode, Refusal};
use crate::core::history::StreamPosition;
use crate::ports::broker::{Failure, Query, Reading, View};
use crate::wire::messages;
use std::sync::Arc;

/// A channel that a client has joined, and the number of its subscribers, to be announced to the channel.
pub(super) type NewMember = (Arc<Channel>, usize);

/// What became of entering a channel.
enum Entered {
    /// The client is a new subscriber; the number of subscribers.
    Joined(usize),
    /// The client was a subscriber; its new connection gets publications now.
    Live,
    /// The channel has ended.
    ChannelEnded,
}

impl Node {
    /// Puts a client on a channel. Returns the channel, which is then to be told, unless the client is on the channel
    /// already, or the broker has not answered yet. The question is answered before the connection gets anything that is
    /// published on the channel from then on. The caller saves the membership.
    pub(super) fn add_subscription(
        self: &Arc<Self>,
        client: &Arc<Client>,
        state: &mut ClientState,
        name: &str,
        question: Option<&Question<'_>>,
    ) -> Option<NewMember> {
        let question = question.filter(|question| question.wants_reply());
        if let Some(entering) = state.entering_mut(name) {
            entering.questions.extend(question.map(Question::to_owned));
            return None;
        }
        if let Some(at) = state.position(name) {
            if let Some(question) = question {
                self.answer_joined(&state.channels[at], question);
            }
            return None;
        }
        loop {
            let channel = self.channel(name);
            match self.enter(client, state, &channel, question)? {
                Entered::Joined(total) => return Some((channel, total)),
                Entered::Live => return None,
                // its successor is another channel
                Entered::ChannelEnded => {}
            }
        }
    }

    /// Gives the new connection of a client what is published on a channel that the client is on.
    pub(super) fn go_live(
        self: &Arc<Self>,
        client: &Arc<Client>,
        state: &mut ClientState,
        channel: &Arc<Channel>,
    ) {
        self.enter(client, state, channel, None);
    }

    /// Reads the position of the stream, and subscribes the connection behind it; `None` if that happens later, or the
    /// broker has failed.
    fn enter(
        self: &Arc<Self>,
        client: &Arc<Client>,
        state: &mut ClientState,
        channel: &Arc<Channel>,
        question: Option<&Question<'_>>,
    ) -> Option<Entered> {
        let entry = Entry::new(channel);
        let query = question.map_or(Query::Position, |question| {
            question.query(None, self.max_reply_bytes())
        });
        let mut number = None;
        let reading = self.stream(channel).read(query, &mut || {
            let next = self.next_entering();
            number = Some(next);
            self.enter_later(client, next, question)
        });
        match (reading, number) {
            (Reading::Ended(outcome), _) => self.finish(client, state, &entry, outcome, question),
            (Reading::Begun(_), Some(number)) => {
                state.entering.push(Entering::new(number, entry));
                None
            }
            // a broker that answers later has made the completion
            (Reading::Begun(_), None) => None,
        }
    }

    /// Finishes entering once the broker has answered.
    fn enter_later(
        self: &Arc<Self>,
        client: &Arc<Client>,
        number: u64,
        question: Option<&Question<'_>>,
    ) -> Completion<View, Failure> {
        let (node, client) = (Arc::clone(self), Arc::clone(client));
        let question = question.map(Question::to_owned);
        Completion::new(move |outcome| {
            let mut state = client.state.lock();
            // the client may have left the channel, or lost the connection
            let Some(entering) = state.take_entering(number) else {
                return;
            };
            let channel = Arc::clone(entering.entry.channel());
            let question = question.as_ref();
            let entered = node.finish(&client, &mut state, &entering.entry, outcome, question);
            let joined = match entered {
                Some(Entered::Joined(total)) => Some((channel, total)),
                Some(Entered::Live) | None => None,
                Some(Entered::ChannelEnded) => {
                    node.add_subscription(&client, &mut state, &channel.name, question)
                }
            };
            if let Some((channel, _)) = &joined {
                node.store.save_joined(&client, &state, &channel.name);
                for question in &entering.questions {
                    node.add_subscription(&client, &mut state, &channel.name, Some(question));
                }
            }
            drop(state);
            node.tell_joined(&client, joined);
        })
    }

    /// Subscribes a client behind the position that was read; tells the client where the broker has failed.
    fn finish(
        &self,
        client: &Arc<Client>,
        state: &mut ClientState,
        entry: &Entry,
        outcome: Result<View, Failure>,
        question: Option<&Question<'_>>,
    ) -> Option<Entered> {
        match outcome {
            Ok(view) => Some(self.subscribe_behind(client, state, entry, &view, question)),
            Err(Failure::Closed) => Some(Entered::ChannelEnded),
            Err(failure) => {
                if let Some(connection_id) = state.connection_id {
                    let reference = question.and_then(Question::reference);
                    let message = format!("{:?}: {failure}", &*entry.channel().name);
                    let refusal = Refusal::new(ErrorCode::NotRead, message);
                    self.refuse_command(connection_id, reference, &refusal);
                }
                None
            }
        }
    }

    fn subscribe_behind(
        &self,
        client: &Arc<Client>,
        state: &mut ClientState,
        entry: &Entry,
        view: &View,
        question: Option<&Question<'_>>,
    ) -> Entered {
        let channel = entry.channel();
        let gate = entry.lock();
        let mut members = channel.members.lock();
        if members.removed {
            return Entered::ChannelEnded;
        }
        let known = state.position(&channel.name);
        if known.is_none() {
            members.roster.add(&client.id);
        }
        let total = members.roster.len();
        if let Some(question) = question {
            let reply = JoinReply {
                view,
                through: view.position.offset,
                subscribers: total,
            };
            let frame = self.join_reply(question, &channel.name, &reply);
            self.shards.push_direct(question.connection_id, frame);
        }
        let live = state.connection_id.map(|connection_id| {
            members.interest.add(connection_id.shard);
            self.push_entered(
                connection_id,
                channel,
                view.position,
                gate.behind(view.position),
            );
            Live {
                from: view.position.offset,
                shard: connection_id.shard,
            }
        });
        let Some(at) = known else {
            drop(members);
            state.forget_channel(&channel.name);
            state.channels.push(Joined {
                channel: Arc::clone(channel),
                live,
            });
            return Entered::Joined(total);
        };
        // the connection that was displaced gets nothing more
        if let Some(before) = std::mem::replace(&mut state.channels[at].live, live) {
            members.interest.remove(before.shard);
        }
        Entered::Live
    }

    /// Subscribes a connection, and hands it what the gate has kept; in place of what the gate could not keep, a gap.
    fn push_entered<'a>(
        &self,
        connection_id: ConnectionId,
        channel: &Channel,
        position: StreamPosition,
        gated: Option<impl Iterator<Item = &'a GatedPublication>>,
    ) {
        let shard = connection_id.shard;
        if let Some(gated) = gated {
            for publication in gated {
                let delivery = Delivery::Direct {
                    connection_id,
                    frame: publication.frame.clone(),
                    priority: publication.priority,
                    receipt: None,
                };
                self.shards.push(shard, delivery);
            }
        } else {
            let stamp = self.stamps.next();
            let write = |out: &mut Vec<u8>| {
                messages::write_lost(
                    out,
                    stamp,
                    &channel.name,
                    Some((position.epoch, position.offset)),
                );
            };
            self.shards.push_direct(connection_id, encode(write));
        }
        let delivery = Delivery::Subscribe {
            connection_id,
            channel: channel.key,
        };
        self.shards.push(shard, delivery);
    }
}
