//! Mail in the memory of this process. Every call ends inside the call, but for durable letters, which end when they are
//! saved.

mod backend;
mod keeping;
mod keys;
mod limits;
mod post;
mod rounds;
mod upkeep;

use crate::base::completion::{Later, Progress};
use crate::core::mailbox::Mailbox;
use crate::core::outbound::Unwritten;
use crate::ports::broker::Failure;
use crate::ports::calls::Sent;
use crate::ports::claim::ClaimNumber;
use crate::ports::durability::UsedKey;
use crate::ports::mail::{Acknowledged, Backlog, Letter, Mail, MailSink, MailSize, Opening};
use crate::ports::saved_sessions::{SavedMail, SavedSessions};
use crate::wire::frame::EncodedFrame;
use backend::Backend;
pub use limits::MailLimits;
use post::{Kept, Line, Phase};
use std::sync::Arc;

/// The mail of one process. Processes on one backend have a `MemoryMail` each.
pub struct MemoryMail {
    backend: Arc<Backend>,
    /// The number of this process's sink.
    sink: u16,
}

impl MemoryMail {
    pub fn new(sessions: Arc<dyn SavedSessions>, limits: MailLimits) -> Self {
        Self {
            backend: Arc::new(Backend::new(sessions, limits)),
            sink: 0,
        }
    }

    /// What waits for a client. Drops what has expired.
    pub fn backlog(&self, client: &str) -> Backlog {
        let backlog = self.backend.change(client, |post| {
            let kept = post.kept.as_mut()?;
            self.backend.expire(self.sink, kept);
            Some(kept.backlog())
        });
        backlog.flatten().unwrap_or_default()
    }

    /// As `open`, where the welcome does not tell what has waited.
    pub fn open_untold(&self, client: &Arc<str>, opening: Opening) {
        self.open_telling(client, opening, |_| {});
    }

    /// Another process on the same backend. `number` is another one for each process, from 1 to 3.
    #[must_use]
    pub fn beside(&self, number: u16) -> Self {
        Self {
            backend: Arc::clone(&self.backend),
            sink: number,
        }
    }

    /// Opens a connection; calls `tell` with the mailbox before what waits is handed over.
    fn open_telling(&self, client: &Arc<str>, opening: Opening, tell: impl FnOnce(&mut Kept)) {
        let line = Line {
            sink: self.sink,
            acknowledges: opening.acknowledges,
            address: opening.address,
        };
        self.backend.change_or_add(client, |post| {
            if post.claim.is_some_and(|newest| opening.claim <= newest) {
                return;
            }
            post.claim = Some(opening.claim);
            post.phase = Phase::Connected(line);
            if let Some(kept) = &mut post.kept {
                self.backend.expire(self.sink, kept);
                tell(kept);
                self.backend.hand_over_all(line, kept);
            }
        });
    }
}

impl Mail for MemoryMail {
    fn attach(&self, sink: Arc<dyn MailSink>) {
        self.backend.attach(self.sink, sink);
    }

    fn restore(&self, mail: Vec<SavedMail>, used_keys: &[UsedKey]) {
        self.backend.keys.restore(used_keys);
        self.backend.restore(self.sink, mail);
        self.backend.make_room(self.sink);
    }

    fn open(&self, client: &Arc<str>, opening: Opening) -> Option<Backlog> {
        let mut backlog = Backlog::default();
        self.open_telling(client, opening, |kept| {
            backlog = kept.backlog();
            kept.mailbox.tell();
        });
        Some(backlog)
    }

    fn confirm(&self, client: &str, claim: ClaimNumber) {
        self.backend.change(client, |post| {
            if post.claim <= Some(claim)
                && let Some(kept) = &mut post.kept
            {
                kept.mailbox.confirm();
            }
        });
    }

    fn close(&self, client: &Arc<str>, claim: ClaimNumber, unwritten: Vec<Unwritten>) {
        self.backend.change_or_add(client, |post| {
            if post.claim <= Some(claim) {
                (post.claim, post.phase) = (Some(claim), Phase::Expected);
                self.backend
                    .keep_unwritten(self.sink, client, post, unwritten);
            }
        });
    }

    fn expect(&self, client: &Arc<str>) {
        self.backend.change_or_add(client, |post| {
            if post.phase == Phase::Unknown {
                post.phase = Phase::Expected;
            }
        });
    }

    fn forget(&self, client: &str, claim: Option<ClaimNumber>) {
        self.backend.change(client, |post| {
            if post.claim > claim {
                return;
            }
            (post.claim, post.phase) = (None, Phase::Unknown);
            if let Some(kept) = &mut post.kept {
                kept.acknowledged = Vec::new();
                if kept.mailbox.is_empty() {
                    // it only counts dropped messages, and the client never asks for that count
                    kept.mailbox = Mailbox::default();
                }
            }
        });
    }

    fn send(
        &self,
        letter: &Letter<'_>,
        later: &mut Later<'_, Sent, Failure>,
    ) -> Progress<Sent, Failure> {
        let sent = Sent {
            stamp: letter.stamp,
            is_duplicate: false,
        };
        match self.backend.keys.begin(letter, sent, later) {
            Ok(used) => self.backend.send(self.sink, letter, used.as_ref(), later),
            Err(progress) => progress,
        }
    }

    fn acknowledge(
        &self,
        client: &str,
        claim: ClaimNumber,
        ids: &[u64],
        _: &mut Later<'_, Acknowledged, Failure>,
    ) -> Progress<Acknowledged, Failure> {
        let acknowledged = self.backend.change(client, |post| {
            (post.claim <= Some(claim)).then(|| self.backend.acknowledge(client, post, ids))
        });
        let stale = Acknowledged {
            count: 0,
            unknown: ids.last().copied(),
        };
        Progress::Ended(Ok(acknowledged.flatten().unwrap_or(stale)))
    }

    fn keep_emergency(&self, message: u64, frame: &EncodedFrame) {
        self.backend.keep_emergency(self.sink, message, frame);
        self.backend.make_room(self.sink);
    }

    fn tick(&self) {
        self.backend.go_round(self.sink);
    }

    fn size(&self) -> MailSize {
        self.backend.size()
    }

    fn keys(&self) -> (usize, u64) {
        self.backend.keys.size()
    }
}
