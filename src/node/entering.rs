//! How a connection enters a channel: the client becomes a member, and its connection is subscribed between two
//! publications, behind its reply.
//!
//! Presence and the broker are asked one after the other. Each may answer at once, or later and on another thread. Until
//! the broker answers, the gate of the channel keeps what is published; until both have answered, the client's further
//! questions about the channel wait.
//!
//! Presence is asked, to join or to leave, only with the client locked, and each end of a subscription or of an entering
//! lets a leave follow. So what presence was asked last says whether the client is on the channel.

use super::channel::Channel;
use super::client::{Client, ClientState};
use super::entry::{Entering, Entry, Purpose, Step};
use super::question::Question;
use super::wiring::Node;
use crate::base::completion::{Completion, Progress};
use crate::base::error::{ErrorCode, Refusal};
use crate::core::events::LogLevel;
use crate::ports::broker::{Failure, Query, Reading, View};
use crate::ports::presence::Arrived;
use std::sync::Arc;

/// A client that this process has put on a channel.
pub(super) struct NewMember {
    pub channel: Arc<Channel>,
    /// The number of subscribers.
    pub total: usize,
    /// The client was on the channel in no process, so the join is announced to the channel.
    pub is_new: bool,
}

/// An attempt to enter a channel.
#[derive(Clone, Copy)]
pub(super) struct EntryAttempt<'a> {
    pub client: &'a Arc<Client>,
    pub channel: &'a Arc<Channel>,
    pub purpose: Purpose,
    pub question: Option<&'a Question<'a>>,
}

/// The outcome of entering a channel.
pub(super) enum Entered {
    /// The client is a new subscriber in this process.
    Joined(Arrived),
    /// The client was a subscriber; its new connection gets publications now.
    Live,
    /// The channel has ended.
    ChannelEnded,
    /// Presence or the broker has failed.
    Failed(Failure),
}

/// Why a question about a channel has no answer.
pub(super) const LEFT: &str = "the client has left the channel";

impl Node {
    /// Puts a client on a channel. Returns the new member; the caller then announces the join. Returns `None` if the
    /// client is on the channel already, or presence or the broker has not answered yet. The question is answered before
    /// the connection gets anything that is published on the channel from then on. Without a question, the server wants
    /// the subscription, and asks again after a failure. The caller saves the membership.
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
        let purpose = question.map_or(Purpose::Required, |_| Purpose::Asked);
        let mut known = None;
        if let Some(at) = state.position(name) {
            let joined = &state.channels[at];
            if joined.live.is_some() || state.connection_id.is_none() {
                if let Some(question) = question.filter(|question| question.wants_reply()) {
                    self.answer_joined(joined, question);
                }
                return None;
            }
            // presence or the broker has failed when the connection began
            known = Some(Arc::clone(&joined.channel));
        }
        loop {
            let (channel, purpose) = match known.take() {
                Some(channel) => (channel, Purpose::Live),
                None => (self.channel(name), purpose),
            };
            let attempt = EntryAttempt {
                client,
                channel: &channel,
                purpose,
                question,
            };
            match self.enter(state, &attempt)? {
                Entered::Joined(arrived) => return Some(NewMember::new(channel, arrived)),
                Entered::Live => return None,
                // its successor is another channel
                Entered::ChannelEnded => state.forget_ended(&channel),
                Entered::Failed(failure) => {
                    self.fail(state, &attempt, &failure);
                    return None;
                }
            }
        }
    }

    /// Gives the new connection of a client what is published on a channel that the client is on, and moves its
    /// membership to the claim of this connection.
    pub(super) fn go_live(
        self: &Arc<Self>,
        client: &Arc<Client>,
        state: &mut ClientState,
        channel: &Arc<Channel>,
    ) {
        // the connection that was displaced gets nothing more, and the new one is not taken for subscribed if this fails
        let joined = state.position(&channel.name);
        if let Some(before) = joined.and_then(|at| state.channels[at].live.take()) {
            channel.members.lock().interest.remove(before.shard);
        }
        let attempt = EntryAttempt {
            client,
            channel,
            purpose: Purpose::Live,
            question: None,
        };
        if let Some(Entered::Failed(failure)) = self.enter(state, &attempt) {
            self.fail(state, &attempt, &failure);
        }
    }

    /// Asks again about channels that clients could not enter, because presence or the broker had failed.
    pub(super) fn enter_again(self: &Arc<Self>) {
        let failed = std::mem::take(&mut *self.failed_enterings.lock());
        for (client, number) in failed {
            let mut state = client.state.lock();
            // the client may have left the channel, or lost the connection
            let Some(entering) = state.take_entering(number) else {
                continue;
            };
            let joined = self.enter_anew(&client, &mut state, &entering, None);
            self.tell_joined(&client, joined);
        }
    }

    /// Makes the client a member, and goes on as `read_position`; `None` if that ends later.
    fn enter(
        self: &Arc<Self>,
        state: &mut ClientState,
        attempt: &EntryAttempt<'_>,
    ) -> Option<Entered> {
        let (client, channel) = (attempt.client, attempt.channel);
        let mut number = None;
        let joining = channel.presence.join(&client.id, state.claim, &mut || {
            let next = self.next_entering();
            number = Some(next);
            self.when_joined(attempt, next)
        });
        if let Progress::Ended(outcome) = joining {
            return self.read_position(state, attempt, outcome, &mut Vec::new());
        }
        // an adapter that answers later has made the completion
        state.entering.push(Entering {
            number: number?,
            purpose: attempt.purpose,
            channel: Arc::clone(&channel.name),
            step: Step::Joining(Arc::clone(channel)),
            questions: Vec::new(),
        });
        None
    }

    /// Goes on once presence has answered.
    fn when_joined(
        self: &Arc<Self>,
        attempt: &EntryAttempt<'_>,
        number: u64,
    ) -> Completion<Arrived, Failure> {
        let (node, client) = (Arc::clone(self), Arc::clone(attempt.client));
        let channel = Arc::clone(attempt.channel);
        let question = attempt.question.map(Question::to_owned);
        Completion::new(move |outcome| {
            let mut state = client.state.lock();
            let question = question.as_ref();
            let Some(mut entering) = state.take_entering(number) else {
                node.refuse_late_question(&state, &channel, question);
                return;
            };
            let attempt = EntryAttempt {
                client: &client,
                channel: &channel,
                purpose: entering.purpose,
                question,
            };
            let questions = &mut entering.questions;
            let entered = node.read_position(&mut state, &attempt, outcome, questions);
            if let Some(entered) = entered {
                node.conclude(&mut state, &attempt, &entering, entered);
            }
        })
    }

    /// Reads the position of the stream, and subscribes the connection behind it; `None` if that happens later. Then
    /// `questions` wait until the client is on the channel.
    fn read_position(
        self: &Arc<Self>,
        state: &mut ClientState,
        attempt: &EntryAttempt<'_>,
        joined: Result<Arrived, Failure>,
        questions: &mut Vec<Question<'static>>,
    ) -> Option<Entered> {
        let arrived = match joined {
            Ok(arrived) => arrived,
            Err(failure) => return Some(not_entered(state, attempt, failure)),
        };
        let channel = attempt.channel;
        let entry = Entry::new(channel);
        let query = attempt.question.map_or(Query::Position, |question| {
            question.query(None, self.max_reply_bytes())
        });
        let mut number = None;
        let reading = self.stream(channel).read(query, &mut || {
            let next = self.next_entering();
            number = Some(next);
            self.when_read(attempt, next)
        });
        if let Reading::Ended(outcome) = reading {
            return Some(self.finish(state, attempt, (&entry, arrived), outcome));
        }
        // a broker that answers later has made the completion
        state.entering.push(Entering {
            number: number?,
            purpose: attempt.purpose,
            channel: Arc::clone(&channel.name),
            step: Step::Reading(entry, arrived),
            questions: std::mem::take(questions),
        });
        None
    }

    /// Finishes entering once the broker has answered.
    fn when_read(
        self: &Arc<Self>,
        attempt: &EntryAttempt<'_>,
        number: u64,
    ) -> Completion<View, Failure> {
        let (node, client) = (Arc::clone(self), Arc::clone(attempt.client));
        let channel = Arc::clone(attempt.channel);
        let question = attempt.question.map(Question::to_owned);
        Completion::new(move |outcome| {
            let mut state = client.state.lock();
            let question = question.as_ref();
            let mut entering = state.take_entering(number);
            let step = entering
                .as_mut()
                .map(|entering| std::mem::replace(&mut entering.step, Step::Failed));
            let (Some(entering), Some(Step::Reading(entry, arrived))) = (entering, step) else {
                node.refuse_late_question(&state, &channel, question);
                return;
            };
            let attempt = EntryAttempt {
                client: &client,
                channel: &channel,
                purpose: entering.purpose,
                question,
            };
            let entered = node.finish(&mut state, &attempt, (&entry, arrived), outcome);
            node.conclude(&mut state, &attempt, &entering, entered);
        })
    }

    /// Subscribes a client behind the position that was read. Where that fails, the client is no member.
    fn finish(
        &self,
        state: &mut ClientState,
        attempt: &EntryAttempt<'_>,
        entry: (&Entry, Arrived),
        outcome: Result<View, Failure>,
    ) -> Entered {
        let outcome = outcome.and_then(|view| {
            self.subscribe_behind(state, attempt, entry, &view)
                .ok_or(Failure::Closed)
        });
        outcome.unwrap_or_else(|failure| not_entered(state, attempt, failure))
    }

    /// Ends an attempt that did not end inside the call, with the client locked, so that the client's leave is told
    /// behind its join.
    fn conclude(
        self: &Arc<Self>,
        state: &mut ClientState,
        attempt: &EntryAttempt<'_>,
        entering: &Entering,
        entered: Entered,
    ) {
        let (client, channel) = (attempt.client, attempt.channel);
        let joined = match entered {
            Entered::Joined(arrived) => {
                self.save_joined(client, state, &channel.name);
                self.ask_all(client, state, entering);
                Some(NewMember::new(Arc::clone(channel), arrived))
            }
            Entered::Live => {
                self.ask_all(client, state, entering);
                None
            }
            Entered::ChannelEnded => {
                state.forget_ended(channel);
                self.enter_anew(client, state, entering, attempt.question)
            }
            Entered::Failed(failure) => {
                self.fail(state, attempt, &failure);
                self.refuse_questions(&entering.questions, &channel.name, &failure.to_string());
                None
            }
        };
        self.tell_joined(client, joined);
    }

    /// Enters a channel another time: presence or the broker had failed, or the channel has a successor.
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

    /// Ends an attempt to enter a channel: presence or the broker has failed. Tells the client that has asked; asks again
    /// where the server wants the subscription.
    fn fail(&self, state: &mut ClientState, attempt: &EntryAttempt<'_>, failure: &Failure) {
        let (client, name) = (attempt.client, &attempt.channel.name);
        if let Some(question) = attempt.question {
            self.refuse_question(question, name, &failure.to_string());
        }
        if attempt.purpose == Purpose::Asked {
            return;
        }
        self.events.log(LogLevel::Warning, "storage", || {
            let id = &client.id;
            format!("{id} could not enter {name:?}; the broker is asked again: {failure}")
        });
        let number = self.next_entering();
        state.entering.push(Entering {
            number,
            purpose: attempt.purpose,
            channel: Arc::clone(name),
            step: Step::Failed,
            questions: Vec::new(),
        });
        let failed = (Arc::clone(client), number);
        self.failed_enterings.lock().push(failed);
    }

    /// Refuses a question whose client has left the channel meanwhile, or lost the connection.
    fn refuse_late_question(
        &self,
        state: &ClientState,
        channel: &Channel,
        question: Option<&Question<'_>>,
    ) {
        if let Some(question) = question
            && state.connection_id == Some(question.connection_id)
        {
            self.refuse_question(question, &channel.name, LEFT);
        }
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
}

impl NewMember {
    fn new(channel: Arc<Channel>, arrived: Arrived) -> Self {
        Self {
            channel,
            total: arrived.total.members,
            is_new: arrived.is_new,
        }
    }
}

/// Ends a failed attempt: the client is no member, unless it was on the channel before and the channel lasts.
fn not_entered(state: &ClientState, attempt: &EntryAttempt<'_>, failure: Failure) -> Entered {
    let (client, channel) = (attempt.client, attempt.channel);
    match failure {
        Failure::Closed => {
            state.leave_silently(&client.id, channel);
            return Entered::ChannelEnded;
        }
        _ if state.position(&channel.name).is_none() => {
            state.leave_silently(&client.id, channel);
        }
        _ => {}
    }
    Entered::Failed(match failure {
        // what may have been done was taken back
        Failure::Unknown(problem) => Failure::Unavailable(problem),
        failure => failure,
    })
}
