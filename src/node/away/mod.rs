//! Clients that lost their connection and may resume: how many, how much memory they take, and until when they are kept.

mod queue;

use crate::base::clock::SteadyTime;
use crate::base::sync::{Mutex, Rank};
use crate::node::client::{Away, Client, ClientState};
use crate::settings::config::Config;
use queue::{Due, Expected};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// The clients that are away. Methods that take a `ClientState` change the state of one client, which the
/// caller has locked.
pub struct AwayClients {
    config: Arc<Config>,
    count: AtomicUsize,
    bytes: AtomicUsize,
    next_number: AtomicU64,
    /// Clients whose leave is not announced yet.
    leaving: Mutex<Due>,
    /// All clients that are away, by when they are forgotten.
    expiring: Mutex<Expected>,
}

impl AwayClients {
    pub fn new(config: Arc<Config>) -> Self {
        Self {
            config,
            count: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            next_number: AtomicU64::new(1),
            leaving: Mutex::default(),
            expiring: Mutex::new(Rank::Away, Expected::default()),
        }
    }

    /// Adds a client, which is kept for `resume_ttl`. On its return the client joins the channels `remembered`.
    pub fn add(&self, client: &Arc<Client>, state: &mut ClientState, remembered: Vec<Arc<str>>) {
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        state.away = Some(Box::new(Away {
            number,
            remembered,
            bytes: 0,
        }));
        self.count.fetch_add(1, Ordering::Relaxed);
        self.weigh(state);
        let wait = self.config.resume_ttl;
        self.expiring.lock().push(wait, number, client);
    }

    /// Has `pop_leaving` return a client that is away, after `leave_delay`.
    pub fn delay_leave(&self, client: &Arc<Client>, state: &ClientState) {
        if let Some(away) = &state.away {
            let wait = self.config.leave_delay;
            self.leaving.lock().push(wait, away.number, client);
        }
    }

    /// Updates the bytes that are counted for a client that is away.
    pub fn weigh(&self, state: &mut ClientState) {
        let bytes = state.away_weight();
        if let Some(away) = &mut state.away {
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
            let before = std::mem::replace(&mut away.bytes, bytes);
            self.bytes.fetch_sub(before, Ordering::Relaxed);
        }
    }

    /// Removes a client that returns, if the client is away. Returns the channels that the client is to join again.
    pub fn remove(&self, state: &mut ClientState) -> Vec<Arc<str>> {
        let Some(away) = state.away.take() else {
            return Vec::new();
        };
        self.uncount(&away);
        self.expiring.lock().remove(away.number);
        away.remembered
    }

    /// Removes a client whose absence `number` one of the `pop_` methods returned; false if this absence is over.
    pub fn forget(&self, state: &mut ClientState, number: u64) -> bool {
        let away = state.away.take_if(|away| away.number == number);
        if let Some(away) = &away {
            self.uncount(away);
        }
        away.is_some()
    }

    /// Takes the next client whose leave is due, with the number of its absence.
    pub fn pop_leaving(&self, now: SteadyTime) -> Option<(u64, Arc<Client>)> {
        self.leaving.lock().pop_due(now)
    }

    /// Takes the next client whose time to return is over, with the number of its absence.
    pub fn pop_expired(&self, now: SteadyTime) -> Option<(u64, Arc<Client>)> {
        self.expiring.lock().pop_due(now)
    }

    /// Takes the client that makes room, with the number of its absence; `None` while the clients keep within
    /// `max_away_clients` and `away_bytes`.
    pub fn pop_surplus(&self) -> Option<(u64, Arc<Client>)> {
        let is_over =
            self.count() > self.config.max_away_clients || self.bytes() > self.config.away_bytes;
        is_over
            .then(|| self.expiring.lock().pop_surplus())
            .flatten()
    }

    pub fn clients(&self) -> Vec<Arc<Client>> {
        self.expiring.lock().clients()
    }

    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// The approximate memory of the clients, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    fn uncount(&self, away: &Away) {
        self.bytes.fetch_sub(away.bytes, Ordering::Relaxed);
        self.count.fetch_sub(1, Ordering::Relaxed);
        self.leaving.lock().remove(away.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::WallTime;

    #[test]
    fn clients_are_counted_until_they_return_or_are_forgotten() {
        let away = AwayClients::new(Arc::new(Config {
            max_away_clients: 1,
            ..Config::default()
        }));
        let clients =
            ["dumbo", "jumbo"].map(|id| Arc::new(Client::new(id.into(), WallTime::now())));
        for client in &clients {
            let remembered = vec![Arc::from("jungle")];
            away.add(client, &mut client.state.lock(), remembered);
        }
        assert_eq!(away.count(), 2);
        assert!(away.bytes() > 0);

        let (number, surplus) = away.pop_surplus().unwrap();
        assert!(Arc::ptr_eq(&surplus, &clients[0]), "the longest away");
        let mut state = surplus.state.lock();
        assert!(!away.forget(&mut state, number + 1), "another absence");
        assert!(away.forget(&mut state, number));
        assert!(!away.forget(&mut state, number), "this absence is over");
        drop(state);
        assert!(away.pop_surplus().is_none());

        let mut state = clients[1].state.lock();
        assert_eq!(away.remove(&mut state), [Arc::from("jungle")]);
        assert!(away.remove(&mut state).is_empty());
        assert_eq!((away.count(), away.bytes()), (0, 0));
        assert!(away.clients().is_empty());
    }
}
