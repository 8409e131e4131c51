//! A connection that is entering a channel.

use super::channel::Channel;
use super::gate::OpenGate;
use super::question::Question;
use std::sync::Arc;

/// Counts a connection as entering a channel until this is dropped: the gate of the channel keeps what is published.
pub struct Entry {
    channel: Arc<Channel>,
    /// The number of the first publication at the gate that concerns the connection.
    from: u64,
}

/// A channel that a client is entering: the broker has not answered yet.
pub struct Entering {
    /// Which of all enterings.
    pub number: u64,
    pub entry: Entry,
    /// What the client asked about the channel meanwhile.
    pub questions: Vec<Question<'static>>,
}

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
    pub fn new(number: u64, entry: Entry) -> Self {
        Self {
            number,
            entry,
            questions: Vec::new(),
        }
    }

    pub fn is_of(&self, channel: &str) -> bool {
        &*self.entry.channel.name == channel
    }
}
