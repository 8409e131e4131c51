//! What is known of one client: its connection, and what is kept for it.

use crate::core::mailbox::Mailbox;
use crate::ports::claim::ClaimNumber;
use crate::ports::mail::{Address, Backlog};
use std::sync::Arc;

/// A client. Every connected client has one, so it is small.
#[derive(Default)]
pub(super) struct Post {
    /// The newest claim; `None` for a client that was never connected, or does not return.
    pub claim: Option<ClaimNumber>,
    pub phase: Phase,
    /// `None` until something is kept for the client.
    pub kept: Option<Box<Kept>>,
}

/// Where a client is.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Phase {
    /// Only its mail is known.
    #[default]
    Unknown,
    /// It may come, or return.
    Expected,
    Connected(Line),
}

/// The connection of a client.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Line {
    /// The process that has the connection, by the number of its sink.
    pub sink: u16,
    pub acknowledges: bool,
    pub address: Address,
}

/// What is kept for a client.
pub(super) struct Kept {
    pub client: Arc<str>,
    pub mailbox: Mailbox,
    /// The known emergencies that the client acknowledged although they were not kept for the client.
    pub acknowledged: Vec<u64>,
    /// The client is in the rounds.
    pub is_in_round: bool,
}

impl Kept {
    pub fn backlog(&self) -> Backlog {
        Backlog {
            waiting: self.mailbox.len(),
            dropped: self.mailbox.dropped(),
        }
    }
}

impl Post {
    pub fn line(&self) -> Option<Line> {
        match self.phase {
            Phase::Connected(line) => Some(line),
            Phase::Unknown | Phase::Expected => None,
        }
    }

    /// The client has acknowledged something, and so acknowledges.
    pub fn acknowledge_from_now_on(&mut self) {
        if let Phase::Connected(line) = &mut self.phase {
            line.acknowledges = true;
        }
    }

    /// Keeps something for a client.
    pub fn kept_for(&mut self, client: &str) -> &mut Kept {
        self.kept.get_or_insert_with(|| {
            Box::new(Kept {
                client: client.into(),
                mailbox: Mailbox::default(),
                acknowledged: Vec::new(),
                is_in_round: false,
            })
        })
    }

    /// Emergencies are kept for the client.
    pub fn keeps_emergencies(&self) -> bool {
        match self.phase {
            Phase::Unknown => false,
            Phase::Expected => true,
            Phase::Connected(line) => line.acknowledges,
        }
    }

    /// True if nothing is known of the client any more. The mailbox of a client that may return still counts dropped
    /// messages, which its welcome tells.
    pub fn is_idle(&self) -> bool {
        let is_kept = |kept: &Kept| kept.is_in_round || !kept.mailbox.is_empty();
        self.phase == Phase::Unknown && !self.kept.as_deref().is_some_and(is_kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_without_mail_takes_little_memory() {
        assert!(size_of::<Post>() <= 32, "{}", size_of::<Post>());
    }
}
