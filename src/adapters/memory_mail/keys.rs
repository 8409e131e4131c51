//! Idempotency keys of letters: a repeat gets the outcome of the first letter, and sends nothing.

use super::limits::MailLimits;
use crate::base::clock::{SteadyTime, WallTime};
use crate::base::completion::{Completion, Later, Progress};
use crate::core::idempotency::{Idempotency, Limits, Lookup, Scope, Ticket, Waiting};
use crate::ports::broker::Failure;
use crate::ports::calls::Sent;
use crate::ports::durability::{Committed, KeyResult, UsedKey, complete_when_saved};
use crate::ports::mail::Letter;
use crate::ports::saved_sessions::SavedSessions;
use std::sync::Arc;
use std::time::Duration;

pub(super) struct Keys {
    /// For how long a key is saved; `None` where keys are not known.
    ttl: Option<Duration>,
    sessions: Arc<dyn SavedSessions>,
    known: Idempotency<Sent, Failure>,
}

impl Keys {
    pub fn new(limits: &MailLimits, sessions: Arc<dyn SavedSessions>) -> Self {
        let ttl = limits.key_ttl;
        Self {
            ttl: (!ttl.is_zero() && limits.keys > 0).then_some(ttl),
            sessions,
            known: Idempotency::new(
                ttl,
                Limits {
                    total: limits.keys,
                    // every key is the application's
                    of_one_client: limits.keys,
                },
            ),
        }
    }

    /// Takes the key of a letter, if it has one that is free. `Err` for a key that is known or in use: where the repeat
    /// stands.
    pub fn begin(
        &self,
        letter: &Letter<'_>,
        sent: Sent,
        later: &mut Later<'_, Sent, Failure>,
    ) -> Result<Option<Arc<Ticket>>, Progress<Sent, Failure>> {
        let Some(key) = letter.key else {
            return Ok(None);
        };
        let (scope, now) = (scope_of(letter.client), SteadyTime::now());
        let is_durable = letter.is_durable;
        match self
            .known
            .begin(scope, key, now, Some(sent), is_durable, later)
        {
            Lookup::Free(ticket) => Ok(Some(Arc::new(ticket))),
            Lookup::Known(sent) => Err(Progress::Ended(Ok(repeated(sent)))),
            Lookup::Queued(sent) => Err(Progress::Begun(sent.map(repeated))),
            Lookup::Unsaved(sent, lost_flag) => {
                let saved = (repeated(sent), lost_flag);
                complete_when_saved(&*self.sessions, saved, later());
                Err(Progress::Begun(Some(repeated(sent))))
            }
        }
    }

    /// The key, to be saved with its letter; `None` where nothing is saved.
    pub fn to_save(&self, used: &Ticket, sent: Sent) -> Option<Box<UsedKey>> {
        let ttl = self.ttl.filter(|_| self.sessions.is_durable())?;
        let expires = WallTime::now() + ttl;
        Some(UsedKey::of(used, expires, KeyResult::Sent(sent.stamp)))
    }

    /// Reports a letter that no caller waits to be saved.
    pub fn done(&self, used: &Ticket, sent: Sent) {
        for waiting in self.known.done(used, sent) {
            let Waiting {
                completion,
                needs_saved,
            } = waiting;
            if needs_saved {
                let saved = (repeated(sent), used.lost_flag.clone());
                complete_when_saved(&*self.sessions, saved, completion);
            } else {
                completion.complete(Ok(repeated(sent)));
            }
        }
    }

    /// Receives the outcome of saving a letter, for its caller and those that repeat it.
    pub fn when_saved(
        self: &Arc<Self>,
        sent: Sent,
        used: Option<Arc<Ticket>>,
        completion: Completion<Sent, Failure>,
    ) -> Committed {
        let keys = Arc::clone(self);
        Committed::new(move |outcome| {
            let outcome = outcome.map(|()| sent).map_err(Failure::from);
            if let Some(used) = used {
                for waiting in keys.known.ended(&used, outcome.as_ref().ok().copied()) {
                    waiting.completion.complete(outcome.clone().map(repeated));
                }
            }
            completion.complete(outcome);
        })
    }

    /// Takes in keys of letters that were saved.
    pub fn restore(&self, used_keys: &[UsedKey]) {
        let (now, steady_now) = (WallTime::now(), SteadyTime::now());
        for used in used_keys {
            if let KeyResult::Sent(stamp) = used.result {
                let (scope, left) = (scope_of(&used.target), used.expires.since(now));
                let sent = Sent {
                    stamp,
                    is_duplicate: false,
                };
                self.known.restore(scope, &used.key, steady_now, left, sent);
            }
        }
    }

    pub fn expire(&self) {
        self.known.expire(SteadyTime::now());
    }

    /// How many keys are known, and how many were forgotten before their time to make room.
    pub fn size(&self) -> (usize, u64) {
        self.known.size()
    }
}

/// Where the idempotency key of a letter counts.
fn scope_of(client: &str) -> Scope<'_> {
    Scope {
        client: None,
        target: client,
    }
}

fn repeated(sent: Sent) -> Sent {
    Sent {
        is_duplicate: true,
        ..sent
    }
}
