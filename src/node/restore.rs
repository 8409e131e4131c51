//! The state that the store brings back: streams, clients and mail.

use super::client::{Client, SessionStatus};
use super::wiring::Node;
use crate::base::error::Error;
use crate::ports::saved_sessions::SavedClient;
use crate::ports::store::Saved;
use std::collections::HashMap;
use std::sync::Arc;

impl Node {
    /// Opens the store and restores what was saved, at the first use and again after each stop.
    ///
    /// Errors: the store cannot be opened.
    pub fn restore(self: &Arc<Self>) -> Result<(), Error> {
        self.store.open(|saved| self.restore_saved(saved))
    }

    fn restore_saved(self: &Arc<Self>, saved: Saved) {
        let channels: Vec<_> = saved
            .streams
            .iter()
            .map(|stream| (Arc::clone(&stream.channel), stream.kind))
            .collect();
        self.mail.restore(saved.mail, &saved.used_keys);
        self.broker.restore(saved.streams, saved.used_keys);
        for (name, kind) in channels {
            let channel = self.channel_with(&name, || kind);
            self.stream(&channel);
        }
        self.sessions.restore(&saved.clients, &saved.memberships);
        self.restore_clients(saved.clients, saved.memberships);
    }

    /// Restores clients. They are away, and have all of `resume_ttl` to return.
    fn restore_clients(
        self: &Arc<Self>,
        clients: Vec<SavedClient>,
        mut memberships: HashMap<Arc<str>, Vec<Arc<str>>>,
    ) {
        for saved in clients {
            let client = Client::new(Arc::clone(&saved.id), saved.joined);
            client.ping(saved.last_ping);
            client.set_spoken();
            let Some(client) = self.clients.add(client) else {
                continue;
            };
            let mut state = client.state.lock();
            state.session = SessionStatus::Kept;
            state.user_data = saved.user_data.map(Box::new);
            let channels = memberships.remove(&saved.id).unwrap_or_default();
            self.away.add(&client, &mut state, channels);
            self.mail.expect(&client.id);
        }
        self.forget_surplus();
    }
}
