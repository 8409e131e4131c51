//! Regular work on mailboxes: messages that expire, emergencies that are handed over again, and room for all mailboxes.

use super::backend::Backend;
use super::post::{Kept, Post};
use crate::base::clock::SteadyTime;
use crate::ports::mail::MailDrop;
use std::sync::Arc;
use std::time::Duration;

/// The most time between the starts of two rounds through the mailboxes.
const MAX_ROUND_INTERVAL: Duration = Duration::from_secs(1);

/// The longest time that one tick works on mailboxes. The next tick continues the round.
const MAX_TIME: Duration = Duration::from_millis(5);

/// The percentage of `mailboxes_bytes` that mailboxes may still take after they exceeded the limit.
const KEPT_PERCENT: usize = 90;

impl Backend {
    /// Continues the round through the mailboxes.
    pub fn go_round(&self, sink: u16) {
        let begun = SteadyTime::now();
        let interval = MAX_ROUND_INTERVAL.min(self.limits.ack_timeout / 2);
        if !self.rounds.lock().begin(begun, interval) {
            return;
        }
        while begun.elapsed() < MAX_TIME {
            let clients = self.rounds.lock().take_next();
            if clients.is_empty() {
                self.keys.expire();
                return;
            }
            for client in clients {
                self.change(&client, |post| self.visit(sink, post));
            }
        }
    }

    /// Makes room while all mailboxes together take more than `mailboxes_bytes`: the mailboxes with the oldest messages
    /// lose theirs first, and emergencies go last. Must not be called while a part of the map is locked.
    pub fn make_room(&self, sink: u16) {
        let limit = self.limits.mailboxes_bytes;
        if self.size().bytes <= limit {
            return;
        }
        let oldest = |client: &Arc<str>| {
            let oldest = self.change(client, |post| post.kept.as_ref()?.mailbox.oldest());
            oldest.flatten()
        };
        let clients = std::mem::take(&mut self.rounds.lock().clients);
        let mut by_age: Vec<_> = clients
            .into_iter()
            .map(|client| (oldest(&client), client))
            .collect();
        // those with emergencies only come last
        by_age.sort_unstable_by_key(|(oldest, _)| (oldest.is_none(), *oldest));
        let target = limit / 100 * KEPT_PERCENT;
        for emergencies_too in [false, true] {
            for (_, client) in &by_age {
                let excess = self.size().bytes.saturating_sub(target);
                if excess == 0 {
                    break;
                }
                self.change(client, |post| {
                    self.release(sink, post, excess, emergencies_too);
                });
            }
        }
        for (_, client) in by_age {
            self.change(&client, |post| self.put_back(post));
        }
    }

    /// Adds a client to the rounds.
    pub fn add_to_round(&self, kept: &mut Kept) {
        if !std::mem::replace(&mut kept.is_in_round, true) {
            let client = Arc::clone(&kept.client);
            self.rounds.lock().clients.push_back(client);
        }
    }

    fn visit(&self, sink: u16, post: &mut Post) {
        let line = post.line().filter(|line| line.acknowledges);
        let Some(kept) = &mut post.kept else {
            return;
        };
        kept.is_in_round = false;
        self.expire(sink, kept);
        if let Some(line) = line {
            let now = SteadyTime::now();
            let again = now - self.limits.ack_timeout;
            for mail in kept.mailbox.iter_mut() {
                if mail.is_emergency && mail.handed_over.is_none_or(|last| last <= again) {
                    mail.handed_over = Some(now);
                    self.hand_over_again(line, mail);
                }
            }
        }
        if !kept.mailbox.is_empty() {
            self.add_to_round(kept);
        }
    }

    /// Drops messages of a client until `bytes` are free or no message is left, emergencies only with
    /// `emergencies_too`.
    fn release(&self, sink: u16, post: &mut Post, bytes: usize, emergencies_too: bool) {
        if let Some(kept) = &mut post.kept {
            let released =
                self.with_mailbox(kept, |mailbox| mailbox.release(bytes, emergencies_too));
            self.drop_mail(sink, &kept.client, &released, MailDrop::MailboxesFull);
        }
    }

    /// Puts a client back that `make_room` took out of the rounds, unless the client has no mail.
    fn put_back(&self, post: &mut Post) {
        if let Some(kept) = &mut post.kept {
            kept.is_in_round = false;
            if !kept.mailbox.is_empty() {
                self.add_to_round(kept);
            }
        }
    }
}
