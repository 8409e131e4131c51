//! The results of calls by their idempotency keys. A repeated call gets the result of the first and does nothing.

use crate::base::clock::SteadyTime;
use crate::base::completion::{Abandoned, Completion, Later};
use crate::base::sync::{Mutex, Rank};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The scope of a key. The same key in another scope is another key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope<'a> {
    /// The client that publishes; `None` for the application.
    pub client: Option<&'a str>,
    /// The channel that is published on, or the client that a message is sent to.
    pub target: &'a str,
}

/// A flag that is set when a result that no caller waits for could not be saved. The store and later callers share it.
#[derive(Clone, Debug, Default)]
pub struct LostFlag(Arc<AtomicBool>);

impl LostFlag {
    pub fn lose(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub fn is_lost(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// The flag is not saved, so it does not count in comparisons.
impl PartialEq for LostFlag {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for LostFlag {}

/// A key with its scope; shared by the map and the queue of its owner.
type Key = Arc<(Owner, Box<str>, Box<str>)>;

/// The client that used a key; `None` for the application.
type Owner = Option<Arc<str>>;

/// Results of type `T`, or errors of type `E`. Where too many keys are known, the owner with the most keys loses its
/// oldest key, so that no owner displaces the keys of another.
pub struct Idempotency<T, E: Abandoned> {
    /// How long a key is known.
    ttl: Duration,
    limits: Limits,
    results: Mutex<Results<T, E>>,
}

/// How many keys are known at once.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub total: usize,
    pub of_one_client: usize,
}

struct Results<T, E: Abandoned> {
    by_key: HashMap<Key, Entry<T, E>>,
    owners: HashMap<Owner, VecDeque<Used>>,
    /// The owners of `owners` by how many keys each has.
    by_count: BTreeSet<(usize, Owner)>,
    next_number: u64,
    /// The number of keys that were forgotten before their time, to make room.
    displaced: u64,
}

/// A key in its owner's queue, oldest first.
struct Used {
    /// When the key was first used.
    begun: SteadyTime,
    number: u64,
    key: Key,
}

struct Entry<T, E: Abandoned> {
    number: u64,
    lost_flag: LostFlag,
    state: State<T, E>,
}

enum State<T, E: Abandoned> {
    /// The work is under way. Callers with the same key wait for its outcome.
    Begun(Vec<Waiting<T, E>>),
    /// The result is known and is being saved. Callers wait for the saving.
    Saving(T, Vec<Waiting<T, E>>),
    /// The result is known, and no caller waited for its saving.
    Done(T),
    /// The result is saved.
    Saved(T),
}

/// A caller that waits for the outcome of the first caller with its key.
pub struct Waiting<T, E: Abandoned> {
    pub completion: Completion<T, E>,
    /// The caller waits until the result is saved.
    pub needs_saved: bool,
}

/// The use of a key that was free. Reports name it.
#[derive(Debug)]
pub struct Ticket {
    key: Key,
    number: u64,
    /// Set when a result that no caller waits for could not be saved.
    pub lost_flag: LostFlag,
}

/// The result of looking up a key.
pub enum Lookup<T> {
    /// The key was free. The caller does the work, and reports with this ticket: `done`, or `saving` and then `ended`.
    Free(Ticket),
    /// The result of the first caller.
    Known(T),
    /// The result of the first caller; no caller waited for it to be saved. Wait for a barrier of the store, then look at
    /// the flag: the flag is set if the result was lost.
    Unsaved(T, LostFlag),
    /// The completion receives the outcome of the first caller. The result, if it is known.
    Queued(Option<T>),
}

impl Ticket {
    pub fn scope(&self) -> Scope<'_> {
        Scope {
            client: self.key.0.as_deref(),
            target: &self.key.1,
        }
    }

    pub fn key(&self) -> &str {
        &self.key.2
    }
}

impl<T, E: Abandoned> Default for Results<T, E> {
    fn default() -> Self {
        Self {
            by_key: HashMap::new(),
            owners: HashMap::new(),
            by_count: BTreeSet::new(),
            next_number: 0,
            displaced: 0,
        }
    }
}

impl<T: Copy, E: Abandoned> Idempotency<T, E> {
    pub fn new(ttl: Duration, limits: Limits) -> Self {
        Self {
            ttl,
            limits,
            results: Mutex::new(Rank::Idempotency, Results::default()),
        }
    }

    /// Looks a key up, and takes it when it is free. `result` is the result, where the caller knows it before the work, as
    /// the id of a message. `later` creates the completion of a caller that has to wait; it is called under the lock.
    pub fn begin(
        &self,
        scope: Scope<'_>,
        key: &str,
        now: SteadyTime,
        result: Option<T>,
        needs_saved: bool,
        later: &mut Later<'_, T, E>,
    ) -> Lookup<T> {
        let key = scope.key(key);
        let mut results = self.results.lock();
        results.forget_expired(&key.0, now, self.ttl);
        let mut wait = || Waiting {
            completion: later(),
            needs_saved,
        };
        if let Some(entry) = results.by_key.get_mut(&key) {
            return match &mut entry.state {
                State::Begun(waiting) => {
                    waiting.push(wait());
                    Lookup::Queued(None)
                }
                State::Saving(result, waiting) if needs_saved => {
                    waiting.push(wait());
                    Lookup::Queued(Some(*result))
                }
                State::Done(result) if needs_saved => {
                    Lookup::Unsaved(*result, entry.lost_flag.clone())
                }
                State::Saving(result, _) | State::Done(result) | State::Saved(result) => {
                    Lookup::Known(*result)
                }
            };
        }
        let lost_flag = LostFlag::default();
        let number = if self.ttl.is_zero() || self.limits.total == 0 {
            results.take_number()
        } else {
            results.make_room(&key.0, self.limits);
            let state = match result {
                None => State::Begun(Vec::new()),
                Some(result) => State::Saving(result, Vec::new()),
            };
            results.insert(Arc::clone(&key), now, lost_flag.clone(), state)
        };
        Lookup::Free(Ticket {
            key,
            number,
            lost_flag,
        })
    }

    /// Adds a key that was saved and is known for the time `left`. A key that is known already stays as it is.
    pub fn restore(&self, scope: Scope<'_>, key: &str, now: SteadyTime, left: Duration, result: T) {
        if self.limits.total == 0 {
            return;
        }
        let key = scope.key(key);
        let begun = now - self.ttl.saturating_sub(left);
        let mut results = self.results.lock();
        results.forget_expired(&key.0, now, self.ttl);
        if !results.by_key.contains_key(&key) {
            results.make_room(&key.0, self.limits);
            results.insert(key, begun, LostFlag::default(), State::Saved(result));
        }
    }

    /// Reports a result that no caller waits to be saved. Returns the callers that waited for the result, for the caller
    /// to complete without locks held; those that need the result saved wait until the store has saved it.
    pub fn done(&self, ticket: &Ticket, result: T) -> Vec<Waiting<T, E>> {
        let mut results = self.results.lock();
        let Some(entry) = results.entry(ticket) else {
            return Vec::new();
        };
        match std::mem::replace(&mut entry.state, State::Done(result)) {
            State::Begun(waiting) | State::Saving(_, waiting) => waiting,
            State::Done(_) | State::Saved(_) => Vec::new(),
        }
    }

    /// Reports a result that is being saved. Returns the callers that waited for the result alone, for the caller to
    /// complete without locks held.
    pub fn saving(&self, ticket: &Ticket, result: T) -> Vec<Waiting<T, E>> {
        let mut results = self.results.lock();
        let Some(entry) = results.entry(ticket) else {
            return Vec::new();
        };
        let State::Begun(waiting) = &mut entry.state else {
            // it is saved already
            return Vec::new();
        };
        let (waiting, told) = std::mem::take(waiting)
            .into_iter()
            .partition(|waiting| waiting.needs_saved);
        entry.state = State::Saving(result, waiting);
        told
    }

    /// Reports that a result is saved, or that the work has failed, and the key is free again. Returns the callers that
    /// wait, for the caller to complete without locks held.
    pub fn ended(&self, ticket: &Ticket, result: Option<T>) -> Vec<Waiting<T, E>> {
        let mut results = self.results.lock();
        let Some(entry) = results.entry(ticket) else {
            return Vec::new();
        };
        let waiting = match &mut entry.state {
            State::Begun(waiting) | State::Saving(_, waiting) => std::mem::take(waiting),
            State::Done(_) | State::Saved(_) => Vec::new(),
        };
        match result {
            Some(result) => entry.state = State::Saved(result),
            None => drop(results.by_key.remove(&ticket.key)),
        }
        waiting
    }

    /// Forgets the keys of a client that does not return, but for keys in use.
    pub fn forget_client(&self, client: &Arc<str>) {
        let owner = Some(Arc::clone(client));
        let mut results = self.results.lock();
        while results.forget_oldest(&owner) {}
    }

    /// Forgets the keys that have expired, of every owner.
    pub fn expire(&self, now: SteadyTime) {
        let mut results = self.results.lock();
        let owners: Vec<Owner> = results.owners.keys().cloned().collect();
        for owner in owners {
            results.forget_expired(&owner, now, self.ttl);
        }
    }

    /// How many keys are known, and how many were forgotten before their time to make room.
    pub fn size(&self) -> (usize, u64) {
        let results = self.results.lock();
        (results.by_key.len(), results.displaced)
    }
}

impl Scope<'_> {
    fn key(self, key: &str) -> Key {
        Key::new((self.client.map(Arc::from), self.target.into(), key.into()))
    }
}

impl<T, E: Abandoned> Results<T, E> {
    /// The entry of a use; `None` once the key was forgotten, or is in use anew.
    fn entry(&mut self, ticket: &Ticket) -> Option<&mut Entry<T, E>> {
        self.by_key
            .get_mut(&ticket.key)
            .filter(|entry| entry.number == ticket.number)
    }

    fn take_number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    /// Adds a key at its place by age in its owner's queue; returns its number.
    fn insert(
        &mut self,
        key: Key,
        begun: SteadyTime,
        lost_flag: LostFlag,
        state: State<T, E>,
    ) -> u64 {
        let number = self.take_number();
        let owner = key.0.clone();
        let queue = self.owners.entry(owner.clone()).or_default();
        let index = queue.partition_point(|other| other.begun <= begun);
        let used = Used {
            begun,
            number,
            key: Arc::clone(&key),
        };
        queue.insert(index, used);
        let count = queue.len();
        self.by_count.remove(&(count - 1, owner.clone()));
        self.by_count.insert((count, owner));
        let entry = Entry {
            number,
            lost_flag,
            state,
        };
        self.by_key.insert(key, entry);
        number
    }

    /// Makes room for one more key of an owner: of its own, if it has as many as one client may have, else of the owner
    /// that has most.
    fn make_room(&mut self, owner: &Owner, limits: Limits) {
        let own = self.owners.get(owner).map_or(0, VecDeque::len);
        if owner.is_some() && own >= limits.of_one_client && self.forget_oldest(owner) {
            self.displaced += 1;
        }
        while self.by_key.len() >= limits.total {
            let Some((_, largest)) = self.by_count.last().cloned() else {
                return;
            };
            if !self.forget_oldest(&largest) {
                return;
            }
            self.displaced += 1;
        }
    }

    fn forget_expired(&mut self, owner: &Owner, now: SteadyTime, ttl: Duration) {
        let is_expired = |used: &Used| now.since(used.begun) >= ttl;
        while self
            .owners
            .get(owner)
            .and_then(VecDeque::front)
            .is_some_and(is_expired)
        {
            if !self.forget_oldest(owner) {
                return;
            }
        }
    }

    /// Forgets the oldest key of an owner; false if there is none, or if callers may wait for it.
    fn forget_oldest(&mut self, owner: &Owner) -> bool {
        let Some(queue) = self.owners.get_mut(owner) else {
            return false;
        };
        let Some(oldest) = queue.front() else {
            return false;
        };
        let is_same = |entry: &&Entry<T, E>| entry.number == oldest.number;
        match self.by_key.get(&oldest.key).filter(is_same) {
            Some(Entry {
                state: State::Begun(_) | State::Saving(..),
                ..
            }) => return false,
            Some(_) => drop(self.by_key.remove(&oldest.key)),
            // saving failed, and the key is free or used anew
            None => {}
        }
        let count = queue.len();
        queue.pop_front();
        self.by_count.remove(&(count, owner.clone()));
        if count > 1 {
            self.by_count.insert((count - 1, owner.clone()));
        } else {
            self.owners.remove(owner);
        }
        true
    }
}

#[cfg(test)]
mod tests;
