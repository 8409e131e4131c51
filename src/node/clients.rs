//! The clients that the node knows, by id, and how many of them are connected.

use super::client::Client;
use super::delivery::ConnectionId;
use crate::base::capacity::shrink_map;
use crate::base::clock::WallTime;
use crate::base::random::random_u64;
use crate::base::sync::RwLock;
use crate::ports::claim::ClaimNumber;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The map of clients. No method holds the lock of the map when it returns, and none takes another lock under it.
#[derive(Default)]
pub struct Clients {
    by_id: RwLock<HashMap<Arc<str>, Arc<Client>>>,
    connected: AtomicUsize,
}

impl Clients {
    pub fn get(&self, id: &str) -> Option<Arc<Client>> {
        self.by_id.read().get(id).cloned()
    }

    /// The client with this id; adds a client that is not connected if there is none.
    pub fn get_or_add(&self, id: &str) -> Arc<Client> {
        self.get_or_add_of(id, WallTime::now)
    }

    /// As `get_or_add`, for a client that is known since `joined` if it is added.
    pub fn get_or_add_of(&self, id: &str, joined: impl FnOnce() -> WallTime) -> Arc<Client> {
        if let Some(client) = self.get(id) {
            return client;
        }
        let mut by_id = self.by_id.write();
        let id: Arc<str> = id.into();
        let client = by_id
            .entry(Arc::clone(&id))
            .or_insert_with(|| Arc::new(Client::new(id, joined())));
        Arc::clone(client)
    }

    /// Adds a client; `None` if its id is in use.
    pub fn add(&self, client: Client) -> Option<Arc<Client>> {
        match self.by_id.write().entry(Arc::clone(&client.id)) {
            Entry::Vacant(vacant) => Some(Arc::clone(vacant.insert(Arc::new(client)))),
            Entry::Occupied(_) => None,
        }
    }

    /// Adds a connected client, with its own id if no other client has that id, else with a new id. `reserve` has counted
    /// its connection.
    pub fn add_connected(
        &self,
        own_id: &Arc<str>,
        claim: ClaimNumber,
        connection_id: ConnectionId,
    ) -> Arc<Client> {
        let now = WallTime::now();
        let mut id = Arc::clone(own_id);
        loop {
            let client = Client::connected(id, now, claim, connection_id);
            if let Some(client) = self.add(client) {
                return client;
            }
            id = new_client_id();
        }
    }

    pub fn remove(&self, id: &str) {
        let mut by_id = self.by_id.write();
        by_id.remove(id);
        shrink_map(&mut by_id);
    }

    pub fn all(&self) -> Vec<Arc<Client>> {
        self.by_id.read().values().cloned().collect()
    }

    pub fn len(&self) -> usize {
        self.by_id.read().len()
    }

    /// Counts one more connection, unless there are `limit` connections; false then.
    pub fn reserve(&self, limit: usize) -> bool {
        let one_more = |connected| (connected < limit).then_some(connected + 1);
        self.connected
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more)
            .is_ok()
    }

    /// Counts one connection less.
    pub fn release(&self) {
        self.connected.fetch_sub(1, Ordering::AcqRel);
    }

    /// How many clients are connected.
    pub fn connected(&self) -> usize {
        self.connected.load(Ordering::Acquire)
    }
}

/// An id for a client that has none.
pub fn new_client_id() -> Arc<str> {
    format!("client_{:016x}", random_u64()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_counted_up_to_the_limit() {
        let clients = Clients::default();
        assert!(clients.reserve(2) && clients.reserve(2) && !clients.reserve(2));
        clients.release();
        assert_eq!(clients.connected(), 1);
        assert!(clients.reserve(2));
    }

    #[test]
    fn an_id_is_used_once_until_its_client_is_removed() {
        let clients = Clients::default();
        let new = || Client::new("dumbo".into(), WallTime::now());
        let client = clients.add(new()).unwrap();
        assert!(clients.add(new()).is_none());
        assert!(Arc::ptr_eq(&clients.get_or_add("dumbo"), &client));
        clients.remove("dumbo");
        assert_eq!(clients.len(), 0);
        assert!(clients.add(new()).is_some());
    }
}
