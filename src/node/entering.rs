//! How a connection enters a channel: it is subscribed between two publications, behind its reply.
//!
//! The broker may answer at once, or later and on another thread. Until it does, the gate of the channel keeps what is
//! published, and the client's further questions about the channel wait.

use super::channel::Channel;
use super::client::{Client, ClientState, Joined, Live};
use super::delivery::{ConnectionId, Delivery};
use super::encode::encode;
use super::entry::{Entering, Entry, Purpose};
use super::gate::{GatedPublication, Place};
use super::question::Question;
use super::recovery::JoinReply;
use super::sink::LOST;
use super::wiring::Node;
use crate::base::completion::Completion;
use crate::base::error::{ErrorCode, Refusal};
use crate::core::events::LogLevel;
use crate::core::history::StreamPosition;
use crate::ports::broker::{Failure, Query, Reading, View};
use crate::wire::messages;
use std::sync::Arc;

/// A channel that a client has joined, and the number of its subscribers, to be announced to the channel.
pub(super) type NewMember = (Arc<Channel>, usize);

/// The outcome of entering a channel.
enum Entered {
    /// The client is a new subscriber; the number of subscribers.
    Joined(usize),
    /// The client was a subscriber; its new connection gets publications now.
    Live,
    /// The channel has ended.
    ChannelEnded,
    /// The broker has failed.
    Failed(Failure),
}

/// Why a question about a channel has no answer.
pub(super) const LEFT: &str = "the client has left the channel";

impl Node {
    /// Puts a client on a channel. Returns the channel and its number of subscribers if the client is a new subscriber; the
    /// caller then announces the join. Returns `None` if the client is on the channel already, or the broker has not
    /// answered yet. The question is answered before the connection gets anything that is published on the channel from
    /// then on. Without a question, the server wants the subscription, and asks a broker that has failed again. The caller saves the membership.
    pub(super) fn add_subscription(
        self: &Arc<Self>,
        client: &Arc<Client>,
        state: &mut ClientState,
        name: &str,
        question: Option<&Question<'_>>,
    ) -> Option<NewMember> {
        if let Some(entering) = state.entering_mut(name) {
            if question.is_none() && entering.purpose == Purpose::Asked {
                entering.purpose = Purpose::Required;
            }
            let question = question.filter(|question| question.wants_reply());
            if let Some(question) = question
                && !entering.add_question(question)
            {
                self.refuse_question(question, name, "too many questions wait for the broker");
            }
            return None;
        }
        if let Some(at) = state.position(name) {
            let joined = &state.channels[at];
            if joined.live.is_some() || state.connection_id.is_none() {
                if let Some(question) = question.filter(|question| question.wants_reply()) {
                    self.answer_joined(joined, question);
                }
                return None;
            }
            // the broker has failed when the connection began
            let channel = Arc::clone(&joined.channel);
            match self.enter(client, state, &channel, Purpose::Live, question)? {
                Entered::ChannelEnded => state.forget_ended(&channel),
                Entered::Failed(failure) => {
                    self.fail(client, state, (name, Purpose::Live), question, &failure);
                    return None;
                }
                Entered::Joined(_) | Entered::Live => return None,
            }
        }
        let purpose = question.map_or(Purpose::Required, |_| Purpose::Asked);
        loop {
            let channel = self.channel(name);
            match self.enter(client, state, &channel, purpose, question)? {
                Entered::Joined(total) => return Some((channel, total)),
                Entered::Live => return None,
                // its successor is another channel
                Entered::ChannelEnded => {}
                Entered::Failed(failure) => {
                    self.fail(client, state, (name, purpose), question, &failure);
                    return None;
                }
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
        let entered = self.enter(client, state, channel, Purpose::Live, None);
        if let Some(Entered::Failed(failure)) = entered {
            self.fail(
                client,
                state,
                (&channel.name, Purpose::Live),
                None,
                &failure,
            );
        }
    }

    /// Asks the broker again about channels that clients could not enter, because the broker had failed.
    pub(super) fn enter_again(self: &Arc<Self>) {
        let failed = std::mem::take(&mut *self.failed_enterings.lock());
        for (client, number) in failed {
            let mut state = client.state.lock();
            // the client may have left the channel, or lost the connection
            let Some(entering) = state.take_entering(number) else {
                continue;
            };
            let joined = self.enter_anew(&client, &mut state, &entering, None);
            drop(state);
            self.tell_joined(&client, joined);
        }
    }

    /// Reads the position of the stream, and subscribes the connection behind it; `None` if that happens later.
    fn enter(
        self: &Arc<Self>,
        client: &Arc<Client>,
        state: &mut ClientState,
        channel: &Arc<Channel>,
        purpose: Purpose,
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
            self.enter_later(client, &channel.name, next, question)
        });
        if let Reading::Ended(outcome) = reading {
            return Some(self.finish(client, state, &entry, outcome, question));
        }
        // a broker that answers later has made the completion
        state.entering.push(Entering {
            number: number?,
            purpose,
            channel: Arc::clone(&channel.name),
            entry: Some(entry),
            questions: Vec::new(),
        });
        None
    }

    /// Finishes entering once the broker has answered.
    fn enter_later(
        self: &Arc<Self>,
        client: &Arc<Client>,
        name: &Arc<str>,
        number: u64,
        question: Option<&Question<'_>>,
    ) -> Completion<View, Failure> {
        let (node, client) = (Arc::clone(self), Arc::clone(client));
        let (name, question) = (Arc::clone(name), question.map(Question::to_owned));
        Completion::new(move |outcome| {
            let mut state = client.state.lock();
            let question = question.as_ref();
            let entering = state.take_entering(number);
            let Some((entering, entry)) = entering.and_then(Entering::into_parts) else {
                // the client has left the channel, or lost the connection
                if let Some(question) = question
                    && state.connection_id == Some(question.connection_id)
                {
                    node.refuse_question(question, &name, LEFT);
                }
                return;
            };
            let joined = match node.finish(&client, &mut state, &entry, outcome, question) {
                Entered::Joined(total) => {
                    let channel = Arc::clone(entry.channel());
                    node.save_joined(&client, &state, &channel.name);
                    node.ask_all(&client, &mut state, &entering);
                    Some((channel, total))
                }
                Entered::Live => {
                    node.ask_all(&client, &mut state, &entering);
                    None
                }
                Entered::ChannelEnded => {
                    state.forget_ended(entry.channel());
                    node.enter_anew(&client, &mut state, &entering, question)
                }
                Entered::Failed(failure) => {
                    let name = &*entering.channel;
                    let attempt = (name, entering.purpose);
                    node.fail(&client, &mut state, attempt, question, &failure);
                    node.refuse_questions(&entering.questions, name, &failure.to_string());
                    None
                }
            };
            drop(state);
            node.tell_joined(&client, joined);
        })
    }

    /// Enters a channel another time: the broker had failed, or the channel has a successor.
    fn enter_anew(
        self: &Arc<Self>,
        client: &Arc<Client>,
        state: &mut ClientState,
        entering: &Entering,
        question: Option<&Question<'_>>,
    ) -> Option<NewMember> {
        let name = &entering.channel;
        // a client is not put again on a channel that was deleted while the client was on the channel
        let is_wanted = entering.purpose != Purpose::Live || state.position(name).is_some();
        let joined = if is_wanted || question.is_some() {
            self.add_subscription(client, state, name, question)
        } else {
            None
        };
        let joined_by_question = self.ask_all(client, state, entering);
        let joined = joined.or(joined_by_question);
        if joined.is_some() {
            self.save_joined(client, state, name);
        }
        joined
    }

    /// Asks the questions that waited while the client was entering a channel.
    fn ask_all(
        self: &Arc<Self>,
        client: &Arc<Client>,
        state: &mut ClientState,
        entering: &Entering,
    ) -> Option<NewMember> {
        let mut joined = None;
        for question in &entering.questions {
            let new = self.add_subscription(client, state, &entering.channel, Some(question));
            joined = joined.or(new);
        }
        joined
    }

    /// Ends an attempt to enter a channel: the broker has failed. Tells the client that has asked; has the broker asked
    /// again where the server wants the subscription.
    fn fail(
        &self,
        client: &Arc<Client>,
        state: &mut ClientState,
        (name, purpose): (&str, Purpose),
        question: Option<&Question<'_>>,
        failure: &Failure,
    ) {
        if let Some(question) = question {
            self.refuse_question(question, name, &failure.to_string());
        }
        if purpose == Purpose::Asked {
            return;
        }
        self.events.log(LogLevel::Warning, "storage", || {
            let id = &client.id;
            format!("{id} could not enter {name:?}; the broker is asked again: {failure}")
        });
        let number = self.next_entering();
        state.entering.push(Entering {
            number,
            purpose,
            channel: name.into(),
            entry: None,
            questions: Vec::new(),
        });
        let failed = (Arc::clone(client), number);
        self.failed_enterings.lock().push(failed);
    }

    pub(super) fn refuse_question(&self, question: &Question<'_>, channel: &str, problem: &str) {
        let refusal = Refusal::new(ErrorCode::NotRead, format!("{channel:?}: {problem}"));
        self.refuse_command(question.connection_id, question.reference(), &refusal);
    }

    pub(super) fn refuse_questions(
        &self,
        questions: &[Question<'_>],
        channel: &str,
        problem: &str,
    ) {
        for question in questions {
            self.refuse_question(question, channel, problem);
        }
    }

    /// Subscribes a client behind the position that was read.
    fn finish(
        &self,
        client: &Arc<Client>,
        state: &mut ClientState,
        entry: &Entry,
        outcome: Result<View, Failure>,
        question: Option<&Question<'_>>,
    ) -> Entered {
        match outcome {
            Ok(view) => self.subscribe_behind(client, state, entry, &view, question),
            Err(Failure::Closed) => Entered::ChannelEnded,
            Err(failure) => Entered::Failed(failure),
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
        state.forget_predecessors(channel);
        let known = state.position(&channel.name);
        if known.is_none() {
            members.roster.add(&client.id);
        }
        let total = members.roster.len();
        if let Some(question) = question.filter(|question| question.wants_reply()) {
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
            let target = (connection_id, client.wants_gaps());
            let gated = gate.behind(view.position);
            self.push_entered(target, channel, gated);
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

    /// Subscribes a connection, and hands it what the gate has kept; in place of what the gate could not keep, a gap, if
    /// the client understands gaps.
    fn push_entered<'a>(
        &self,
        (connection_id, wants_gaps): (ConnectionId, bool),
        channel: &Channel,
        gated: Result<impl Iterator<Item = &'a GatedPublication>, Option<StreamPosition>>,
    ) {
        let shard = connection_id.shard;
        let missing = gated.as_ref().err().copied();
        if let Ok(gated) = gated {
            for publication in gated.filter(|gated| wants_gaps || gated.place != Place::Gap) {
                let delivery = Delivery::Direct {
                    connection_id,
                    frame: publication.frame.clone(),
                    priority: publication.priority,
                    receipt: None,
                };
                self.shards.push(shard, delivery);
            }
        } else {
            self.counters.dropped(LOST, &channel.name, 1);
        }
        if let Some(top) = missing.filter(|_| wants_gaps) {
            let stamp = self.stamps.next();
            let top = top.map(|top| (top.epoch, top.offset));
            let write = |out: &mut Vec<u8>| messages::write_lost(out, stamp, &channel.name, top);
            self.shards.push_direct(connection_id, encode(write));
        }
        let delivery = Delivery::Subscribe {
            connection_id,
            channel: channel.key,
        };
        self.shards.push(shard, delivery);
    }
}
