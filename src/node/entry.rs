//! A connection that is entering a channel.

use super::channel::Channel;
use super::gate::OpenGate;
use super::question::Question;
use crate::ports::presence::Arrived;
use std::sync::Arc;

/// Counts a connection as entering a channel until this is dropped: the gate of the channel keeps what is published.
pub struct Entry {
    channel: Arc<Channel>,
    /// The number of the first publication at the gate that concerns the connection.
    from: u64,
}

/// A channel that a client is entering: presence or the broker has not answered yet, or has failed and is asked again.
pub struct Entering {
    /// A number that is unique among all attempts to enter a channel.
    pub number: u64,
    pub purpose: Purpose,
    pub channel: Arc<str>,
    pub step: Step,
    /// What the client has asked about the channel since the entering began.
    pub questions: Vec<Question<'static>>,
}

/// How far a client has come on its way into a channel.
pub enum Step {
    /// Presence was asked to make the client a member.
    Joining(Arc<Channel>),
    /// Presence has answered, and the broker was asked.
    Reading(Entry, Arrived),
    /// One of them has failed, and is asked again at the next tick.
    Failed,
}

/// Why a client enters a channel. The purpose decides what follows when presence or the broker fails, or when the
/// channel ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The client has asked. After a failure the client gets an error and may ask again.
    Asked,
    /// The application, or the server, subscribes the client. After a failure the node asks again.
    Required,
    /// The client is on the channel, and its new connection needs the publications. After a failure the node asks
    /// again; a channel that was deleted is not entered anew.
    Live,
}

/// A broker that answers late must not let one client fill the memory with questions about one channel.
const MAX_QUESTIONS: usize = 64;

impl Entry {
    /// To be made before the connection reads the position of the stream.
    pub fn new(channel: &Arc<Channel>) -> Self {
        Self {
            from: channel.gate.begin(),
            channel: Arc::clone(channel),
        }
    }

    pub fn channel(&self) -> &Arc<Channel> {
        &self.channel
    }

    /// Locks the gate, so that the connection can be subscribed between two publications.
    pub fn lock(&self) -> OpenGate<'_> {
        self.channel.gate.lock(self.from)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.channel.gate.end();
    }
}

impl Entering {
    pub fn is_of(&self, channel: &str) -> bool {
        &*self.channel == channel
    }

    /// The channel whose presence may have the client as a member because of this entering.
    pub fn joined(&self) -> Option<&Arc<Channel>> {
        match &self.step {
            Step::Joining(channel) => Some(channel),
            Step::Reading(entry, _) => Some(entry.channel()),
            Step::Failed => None,
        }
    }

    /// Keeps a question until the client is on the channel; false if too many wait.
    pub fn add_question(&mut self, question: &Question<'_>) -> bool {
        let has_room = self.questions.len() < MAX_QUESTIONS;
        if has_room {
            self.questions.push(question.to_owned());
        }
        has_room
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::client::ClientState;
    use crate::node::delivery::ConnectionId;

    fn entering(channel: &str, purpose: Purpose) -> Entering {
        Entering {
            number: 1,
            purpose,
            channel: channel.into(),
            step: Step::Failed,
            questions: Vec::new(),
        }
    }

    #[test]
    fn only_so_many_questions_wait() {
        let connection_id = ConnectionId {
            shard: 0,
            slot: 0,
            generation: 1,
        };
        let question = Question::new(connection_id, None, None);
        let mut entering = entering("a", Purpose::Asked);
        for _ in 0..MAX_QUESTIONS {
            assert!(entering.add_question(&question));
        }
        assert!(!entering.add_question(&question));
    }

    #[test]
    fn a_client_keeps_what_the_server_has_promised_when_its_connection_ends() {
        let mut state = ClientState::default();
        state.entering.push(entering("a", Purpose::Asked));
        state.entering.push(entering("b", Purpose::Required));
        state.entering.push(entering("c", Purpose::Live));
        assert_eq!(state.channel_count(), 3);
        assert!(!state.end_if_idle(), "the client enters channels");
        assert_eq!(state.stop_all_entering(&"dumbo".into()), [Arc::from("b")]);
        assert!(state.end_if_idle());
    }
}
