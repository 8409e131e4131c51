//! Looking after mail: what has expired, what has to come again, and room for all of it.

use super::Node;
use super::client::{Client, ClientState};
use crate::base::clock::{SteadyTime, WallTime};
use crate::core::mailbox::{Mail, Mailbox};
use crate::ports::store::SavedMail;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Clients with mail, in the order in which they are looked at; with some that have none any more.
#[derive(Default)]
pub struct Mailed {
    clients: VecDeque<Arc<Client>>,
    /// How many are still to be looked at in this round.
    left: usize,
    /// When this round began.
    round: Option<SteadyTime>,
}

/// Most time between two looks at what has expired.
const TEND_INTERVAL: Duration = Duration::from_secs(1);

/// The most time that one look takes; the round goes on with the next one.
const MAX_LOOK: Duration = Duration::from_millis(5);

/// Clients that are taken from the list at once.
const LOOKED_AT_TOGETHER: usize = 64;

/// The part of the space for mail that is left in use once it was exceeded.
const KEPT_PERCENT: usize = 90;

impl Node {
    /// Looks after mail: what has expired, and emergencies that were not acknowledged.
    pub(super) fn tend_mail(&self) {
        let begun = SteadyTime::now();
        let interval = TEND_INTERVAL.min(self.config.ack_timeout / 2);
        {
            let mut mailed = self.mailed.lock();
            if mailed.left == 0 {
                if mailed
                    .round
                    .is_some_and(|last| begun.since(last) < interval)
                {
                    return;
                }
                mailed.round = Some(begun);
                mailed.left = mailed.clients.len();
            }
        }
        while begun.elapsed() < MAX_LOOK {
            let batch: Vec<_> = {
                let mut mailed = self.mailed.lock();
                // some may be out, to make room
                let count = mailed
                    .left
                    .min(mailed.clients.len())
                    .min(LOOKED_AT_TOGETHER);
                mailed.left -= count;
                mailed.clients.drain(..count).collect()
            };
            if batch.is_empty() {
                return;
            }
            for client in batch {
                self.tend_mailbox(&client);
            }
        }
    }

    /// Lets go of mail of a mailbox that has expired.
    pub(super) fn expire_mail(&self, client_id: &Arc<str>, mailbox: &mut Mailbox) {
        let before = (mailbox.len(), mailbox.weight());
        let expired = mailbox.expire(SteadyTime::now());
        self.count_mail(before, mailbox);
        self.let_go(client_id, &expired, "mail_expired");
    }

    /// Takes in mail that was saved.
    pub(super) fn restore_mail(&self, mail: Vec<SavedMail>) {
        let (now, steady_now) = (WallTime::now(), SteadyTime::now());
        for saved in mail {
            let client = self.clients.get_or_add(&saved.client);
            let mut state = client.state.lock();
            let mailbox = state.mailbox.get_or_insert_default();
            // the storage was closed and opened again: what is known is known
            if mailbox.has(saved.message) {
                continue;
            }
            let before = (mailbox.len(), mailbox.weight());
            mailbox.push(Mail {
                number: saved.number,
                message: saved.message,
                expires: steady_now + saved.expires.since(now),
                is_emergency: saved.is_emergency,
                frame: saved.frame,
                handed_over: None,
            });
            self.count_mail(before, mailbox);
            self.note_mailed(&client, &mut state);
        }
        self.make_room_for_mail();
    }

    /// Has a client with mail looked at from now on.
    pub(super) fn note_mailed(&self, client: &Arc<Client>, state: &mut ClientState) {
        if !std::mem::replace(&mut state.is_mailed, true) {
            self.mailed.lock().clients.push_back(Arc::clone(client));
        }
    }

    /// Works on a client's mailbox, if it has one, and keeps the accounts.
    pub(super) fn with_mailbox<T: Default>(
        &self,
        state: &mut ClientState,
        work: impl FnOnce(&mut Mailbox) -> T,
    ) -> T {
        let Some(mailbox) = &mut state.mailbox else {
            return T::default();
        };
        let before = (mailbox.len(), mailbox.weight());
        let result = work(mailbox);
        self.count_mail(before, mailbox);
        result
    }

    /// Counts what has changed in a mailbox that had so many messages and this weight.
    pub(super) fn count_mail(&self, (messages, weight): (usize, usize), mailbox: &Mailbox) {
        let change = |counter: &AtomicUsize, before: usize, after: usize| {
            // wraps to a subtraction
            counter.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
        };
        change(&self.mail_count, messages, mailbox.len());
        change(&self.mail_bytes, weight, mailbox.weight());
    }

    /// Mail that goes though the client has not had it.
    pub(super) fn let_go(&self, client_id: &Arc<str>, mail: &[Mail], reason: &'static str) {
        if mail.is_empty() {
            return;
        }
        self.counters.dropped(reason, "*", mail.len());
        for mail in mail {
            self.note_waiting(mail.message, -1);
        }
        let numbers = mail.iter().map(|mail| mail.number).collect();
        self.unmail(client_id, numbers);
    }

    /// Makes room where all mailboxes together take more than they may: the mailboxes with the oldest mail lose theirs
    /// first, and emergencies go last. Not to be called with a client's state locked.
    pub(super) fn make_room_for_mail(&self) {
        let limit = self.config.mailboxes_bytes;
        let used = || self.mail_bytes.load(Ordering::Relaxed);
        if used() <= limit {
            return;
        }
        // taken out meanwhile, for a client's state is locked before the list
        let mailed = std::mem::take(&mut self.mailed.lock().clients);
        let oldest = |client: &Arc<Client>| {
            let state = client.state.lock();
            let mailbox = state.mailbox.as_ref();
            mailbox.and_then(|mailbox| mailbox.oldest())
        };
        let mut by_age: Vec<_> = mailed
            .into_iter()
            .map(|client| (oldest(&client), client))
            .collect();
        // those without a message that may go come last
        by_age.sort_unstable_by_key(|(oldest, _)| (oldest.is_none(), *oldest));
        let target = limit / 100 * KEPT_PERCENT;
        for emergencies_too in [false, true] {
            for (_, client) in &by_age {
                let excess = used().saturating_sub(target);
                if excess == 0 {
                    break;
                }
                let mut state = client.state.lock();
                let released = self.with_mailbox(&mut state, |mailbox| {
                    mailbox.release(excess, emergencies_too)
                });
                self.let_go(&client.id, &released, "mailboxes_full");
                self.drop_empty_mailbox(client, state);
            }
        }
        let still_has_mail = |client: &Arc<Client>| {
            let mut state = client.state.lock();
            let mailbox = state.mailbox.as_ref();
            state.is_mailed = mailbox.is_some_and(|mailbox| !mailbox.is_empty());
            state.is_mailed
        };
        let kept: Vec<_> = by_age
            .into_iter()
            .map(|(_, client)| client)
            .filter(still_has_mail)
            .collect();
        self.mailed.lock().clients.extend(kept);
    }

    /// An empty mailbox goes, and with it a client of whom nothing else is known.
    pub(super) fn drop_empty_mailbox(
        &self,
        client: &Arc<Client>,
        mut state: crate::base::sync::MutexGuard<'_, ClientState>,
    ) {
        // one that is expected is still to be told what was dropped
        if state.session.is_none() {
            state.mailbox.take_if(|mailbox| mailbox.is_empty());
        }
        let is_idle = state.end_if_idle();
        drop(state);
        if is_idle {
            self.clients.remove(&client.id);
        }
    }

    fn tend_mailbox(&self, client: &Arc<Client>) {
        let mut guard = client.state.lock();
        let state = &mut *guard;
        state.is_mailed = false;
        if let Some(mailbox) = &mut state.mailbox {
            self.expire_mail(&client.id, mailbox);
            if let Some(connection_id) = state.connection_id.filter(|_| state.acknowledges) {
                let now = SteadyTime::now();
                let again = now - self.config.ack_timeout;
                for mail in mailbox.iter_mut() {
                    if mail.is_emergency && mail.handed_over.is_none_or(|last| last <= again) {
                        mail.handed_over = Some(now);
                        self.push_mail(connection_id, mail);
                    }
                }
            }
            if !mailbox.is_empty() {
                self.note_mailed(client, state);
            }
        }
        self.drop_empty_mailbox(client, guard);
    }
}
