//! What is saved of clients, and taken in again: each change on its own, so that what a client causes to be written is
//! as much as it sent.

use super::Node;
use super::client::{Client, ClientState};
use super::token::Session;
use crate::base::clock::WallTime;
use crate::ports::store::{Change, SavedClient};
use std::collections::HashMap;
use std::sync::Arc;

impl Node {
    /// Saves a client's session, without its channels. Under the client's lock, as are the other two, so that changes of
    /// one client are saved in their order.
    pub(super) fn save_client(&self, client: &Client, state: &ClientState) {
        if !self.store.is_durable() {
            return;
        }
        let Some(session) = &state.session else {
            return;
        };
        let (root, rotation, previous) = session.saved();
        let is_away = state.connection_id.is_none();
        let saved = SavedClient {
            id: Arc::clone(&client.id),
            root,
            rotation,
            previous,
            expires: is_away.then(|| WallTime::now() + self.config.resume_ttl),
            joined: client.joined,
            last_ping: client.last_ping(),
            user_data: state.user_data.clone(),
        };
        let client = Box::new(saved);
        self.store.save(Change::ClientSaved { client }, None);
    }

    /// Saves that a client is on a channel.
    pub(super) fn save_joined(&self, client: &Client, state: &ClientState, channel: &Arc<str>) {
        if self.store.is_durable() && state.session.is_some() {
            let change = Change::Joined {
                client: Arc::clone(&client.id),
                channel: Arc::clone(channel),
                at: WallTime::now(),
            };
            self.store.save(change, None);
        }
    }

    /// Saves that a client is on a channel no longer.
    pub(super) fn save_left(&self, client: &Client, state: &ClientState, channel: &str) {
        if self.store.is_durable() && state.session.is_some() {
            let change = Change::Left {
                client: Arc::clone(&client.id),
                channel: channel.into(),
            };
            self.store.save(change, None);
        }
    }

    /// Takes in clients that were saved: they are away, and have all of `resume_ttl` to come back.
    pub(super) fn restore_clients(
        &self,
        clients: Vec<SavedClient>,
        mut memberships: HashMap<Arc<str>, Vec<Arc<str>>>,
    ) {
        for saved in clients {
            let client = Client::new(Arc::clone(&saved.id), saved.joined, None);
            client.ping(saved.last_ping);
            client.note_spoken();
            let Some(client) = self.clients.add(client) else {
                continue;
            };
            let mut state = client.state.lock();
            state.session = Some(Session::restored(
                saved.root,
                saved.rotation,
                saved.previous,
            ));
            state.user_data = saved.user_data;
            let channels = memberships.remove(&saved.id).unwrap_or_default();
            self.away.add(&client, &mut state, channels);
        }
        self.forget_surplus();
    }
}
