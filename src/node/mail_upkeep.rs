//! Regular work on mail: messages that expire, emergencies that are sent again, and room for all mailboxes.

use super::client::{Client, ClientState};
use super::wiring::Node;
use crate::base::clock::SteadyTime;
use crate::base::sync::MutexGuard;
use std::sync::Arc;
use std::time::Duration;

/// The longest time that one tick works on mailboxes. The next tick continues the round.
const MAX_TIME: Duration = Duration::from_millis(5);

/// The percentage of `mailboxes_bytes` that mailboxes may still take after they exceeded the limit.
const KEPT_PERCENT: usize = 90;

impl Node {
    /// Continues the round through the mailboxes: drops messages that have expired, and sends emergencies again that
    /// were not acknowledged.
    pub(super) fn expire_mail(&self) {
        let begun = SteadyTime::now();
        if !self.mailroom.begin_round(begun) {
            return;
        }
        while begun.elapsed() < MAX_TIME {
            let clients = self.mailroom.next_of_round();
            if clients.is_empty() {
                return;
            }
            for client in clients {
                self.visit_mailbox(&client);
            }
        }
    }

    /// Makes room while all mailboxes together take more than `mailboxes_bytes`: the mailboxes with the oldest messages
    /// lose theirs first, and emergencies go last. Must not be called with the state of a client locked.
    pub(super) fn make_room_for_mail(&self) {
        let limit = self.config.mailboxes_bytes;
        if self.mailroom.bytes() <= limit {
            return;
        }
        let oldest = |client: &Arc<Client>| {
            let state = client.state.lock();
            let mailbox = state.mailbox.as_ref();
            mailbox.and_then(|mailbox| mailbox.oldest())
        };
        let mut by_age: Vec<_> = self
            .mailroom
            .take_clients()
            .into_iter()
            .map(|client| (oldest(&client), client))
            .collect();
        // those with emergencies only come last
        by_age.sort_unstable_by_key(|(oldest, _)| (oldest.is_none(), *oldest));
        let target = limit / 100 * KEPT_PERCENT;
        for emergencies_too in [false, true] {
            for (_, client) in &by_age {
                let excess = self.mailroom.bytes().saturating_sub(target);
                if excess == 0 {
                    break;
                }
                let mut state = client.state.lock();
                self.mailroom
                    .release(&client.id, &mut state, excess, emergencies_too);
                self.drop_empty_mailbox(client, state);
            }
        }
        self.mailroom
            .put_back(by_age.into_iter().map(|(_, client)| client));
    }

    /// Drops the mailbox of a client if the mailbox is empty, and the client if nothing else is known of the client.
    pub(super) fn drop_empty_mailbox(
        &self,
        client: &Arc<Client>,
        mut state: MutexGuard<'_, ClientState>,
    ) {
        // the mailbox of a client that may resume still has the count of dropped messages, which its welcome tells
        if !state.has_session() {
            state.mailbox.take_if(|mailbox| mailbox.is_empty());
        }
        let is_idle = state.end_if_idle();
        drop(state);
        if is_idle {
            self.clients.remove(&client.id);
        }
    }

    fn visit_mailbox(&self, client: &Arc<Client>) {
        let mut guard = client.state.lock();
        let state = &mut *guard;
        state.is_in_round = false;
        if let Some(mailbox) = &mut state.mailbox {
            self.mailroom.expire(&client.id, mailbox);
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
                self.mailroom.add_to_round(client, state);
            }
        }
        self.drop_empty_mailbox(client, guard);
    }
}
