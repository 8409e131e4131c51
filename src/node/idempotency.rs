//! Results of publications by the idempotency key that their publishers gave them, so that a repeat publishes nothing.

use crate::base::clock::SteadyTime;
use crate::base::sync::{Mutex, Rank};
use crate::ports::store::{Committed, LostFlag, StoreError};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// Where a key counts. The same key elsewhere is another key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope<'a> {
    /// The client that publishes; `None` for the application.
    pub client: Option<&'a str>,
    /// The channel that is published on, or the client that a message is sent to.
    pub target: &'a str,
}

/// A key with its scope; shared by the map and the queue of its owner.
type Key = Arc<(Owner, Box<str>, Box<str>)>;

/// The client that used a key; `None` for the application.
type Owner = Option<Arc<str>>;

/// Results of type `T`. Where there are too many, the owner with the most keys loses its oldest, so that nobody can
/// have the keys of others forgotten.
pub struct Idempotency<T> {
    /// How long a key is known.
    ttl: Duration,
    limits: Limits,
    results: Mutex<Results<T>>,
}

/// How many keys are known at once.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub total: usize,
    pub of_one_client: usize,
}

struct Results<T> {
    by_key: HashMap<Key, Entry<T>>,
    owners: HashMap<Owner, VecDeque<Used>>,
    /// The owners of `owners` by how many keys each has.
    by_count: BTreeSet<(usize, Owner)>,
    next_number: u64,
    /// Keys that had to make room before their time.
    displaced: u64,
}

/// A key in its owner's queue, oldest first.
struct Used {
    /// When the key was first used.
    begun: SteadyTime,
    number: u64,
    key: Key,
}

struct Entry<T> {
    number: u64,
    lost_flag: LostFlag,
    state: State<T>,
}

enum State<T> {
    /// The publication is under way.
    Begun,
    /// The publication was saved before its publisher reported it as published.
    Saved,
    /// The publication was made and is being saved; those that wait for that.
    Saving(T, Vec<Committed>),
    /// The publication was made, and nobody waits for its saving.
    Published(T),
    /// The publication is saved.
    Done(T),
}

impl<T> Default for Results<T> {
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

/// What is known of a key.
pub enum Known<T> {
    /// Nothing: the caller has to publish, and to report `published` with this number; the store marks this fate when
    /// the publication is lost.
    Nothing(u64, LostFlag),
    /// The first result; the caller's `committed` is called when that is saved.
    Repeat(T),
}

impl<T: Copy> Idempotency<T> {
    pub fn new(ttl: Duration, limits: Limits) -> Self {
        Self {
            ttl,
            limits,
            results: Mutex::new(Rank::Idempotency, Results::default()),
        }
    }

    /// Looks a key up, and takes it when it is free. If this is a repeat, `committed` is called when the first
    /// publication is saved; where nobody waited for that, it is given to `mark`. Returns `None` while another thread
    /// publishes the same.
    pub fn begin(
        &self,
        scope: Scope<'_>,
        key: &str,
        now: SteadyTime,
        committed: &mut dyn FnMut() -> Option<Committed>,
        mark: &dyn Fn(Committed),
    ) -> Option<Known<T>> {
        let key = scope.key(key);
        let mut results = self.results.lock();
        results.forget_expired(&key.0, now, self.ttl);
        if let Some(entry) = results.by_key.get_mut(&key) {
            return match &mut entry.state {
                State::Begun | State::Saved => None,
                State::Published(result) => {
                    let (result, lost_flag) = (*result, entry.lost_flag.clone());
                    drop(results);
                    if let Some(committed) = committed() {
                        mark(unless_lost(lost_flag, committed));
                    }
                    Some(Known::Repeat(result))
                }
                State::Done(result) => {
                    let result = *result;
                    drop(results);
                    if let Some(committed) = committed() {
                        committed(Ok(()));
                    }
                    Some(Known::Repeat(result))
                }
                State::Saving(result, waiting) => {
                    waiting.extend(committed());
                    Some(Known::Repeat(*result))
                }
            };
        }
        let lost_flag = LostFlag::default();
        if self.ttl.is_zero() || self.limits.total == 0 {
            return Some(Known::Nothing(results.take_number(), lost_flag));
        }
        results.make_room(&key.0, self.limits);
        let number = results.insert(key, now, lost_flag.clone(), State::Begun);
        Some(Known::Nothing(number, lost_flag))
    }

    /// Adds a key that was saved, and is known for the time `left`; a key that is known already stays as it is.
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
            results.insert(key, begun, LostFlag::default(), State::Done(result));
        }
    }

    /// Reports the result of a publication; with `is_saving`, `saved` is called too, before or after.
    pub fn published(&self, scope: Scope<'_>, key: &str, number: u64, result: T, is_saving: bool) {
        let mut results = self.results.lock();
        if let Some(entry) = results.entry(&scope.key(key), number) {
            entry.state = match entry.state {
                State::Begun if is_saving => State::Saving(result, Vec::new()),
                State::Begun => State::Published(result),
                _ => State::Done(result),
            };
        }
    }

    /// Reports whether the publication was saved: if saving failed, the key is free again.
    pub fn saved(
        &self,
        scope: Scope<'_>,
        key: &str,
        number: u64,
        outcome: &Result<(), StoreError>,
    ) {
        let key = scope.key(key);
        let mut results = self.results.lock();
        let Some(entry) = results.entry(&key, number) else {
            return;
        };
        let before = std::mem::replace(&mut entry.state, State::Saved);
        if let State::Saving(result, _) | State::Published(result) | State::Done(result) = &before {
            entry.state = State::Done(*result);
        }
        if outcome.is_err() {
            results.by_key.remove(&key);
        }
        drop(results);
        if let State::Saving(_, waiting) = before {
            for committed in waiting {
                committed(outcome.clone());
            }
        }
    }

    /// Forgets the keys of a client that will not be back, but for those of publications that are being saved.
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

/// Completes a repeat when everything before it is saved.
fn unless_lost(lost_flag: LostFlag, committed: Committed) -> Committed {
    Box::new(move |outcome| {
        let lost = || StoreError("what was first published under this key was lost".to_owned());
        committed(outcome.and_then(|()| {
            if lost_flag.is_lost() {
                Err(lost())
            } else {
                Ok(())
            }
        }));
    })
}

impl<T> Results<T> {
    fn entry(&mut self, key: &Key, number: u64) -> Option<&mut Entry<T>> {
        self.by_key
            .get_mut(key)
            .filter(|entry| entry.number == number)
    }

    fn take_number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    /// Adds a key at its place by age in its owner's queue; returns its number.
    fn insert(&mut self, key: Key, begun: SteadyTime, lost_flag: LostFlag, state: State<T>) -> u64 {
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

    /// Forgets the oldest key of an owner; false if there is none, or if callers wait for its publication to be saved.
    fn forget_oldest(&mut self, owner: &Owner) -> bool {
        let Some(queue) = self.owners.get_mut(owner) else {
            return false;
        };
        let Some(oldest) = queue.front() else {
            return false;
        };
        let is_same = |entry: &&Entry<T>| entry.number == oldest.number;
        match self.by_key.get(&oldest.key).filter(is_same) {
            Some(Entry {
                state: State::Saving(..),
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
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// The time to live of the keys of most tests.
    const TTL: Duration = Duration::from_micros(100);

    const SCOPE: Scope<'static> = Scope {
        client: None,
        target: "jungle",
    };

    const LIMITS: Limits = Limits {
        total: 3,
        of_one_client: 2,
    };

    fn at(micros: u64) -> SteadyTime {
        SteadyTime::START + Duration::from_micros(micros)
    }

    fn of_client(client: &str) -> Scope<'_> {
        Scope {
            client: Some(client),
            target: "jungle",
        }
    }

    /// True for a key that was free, and is used now.
    fn is_new(keys: &Idempotency<u32>, scope: Scope<'_>, key: &str, now: u64) -> bool {
        match keys.begin(scope, key, at(now), &mut || None, &|_| ()) {
            Some(Known::Nothing(number, _)) => {
                keys.published(scope, key, number, 1, false);
                true
            }
            Some(Known::Repeat(_)) => false,
            None => panic!("the key is being published"),
        }
    }

    fn begin(keys: &Idempotency<u32>, key: &str, now: u64) -> Result<u64, Option<u32>> {
        match keys.begin(SCOPE, key, at(now), &mut || None, &|_| ()) {
            Some(Known::Nothing(number, _)) => Ok(number),
            None => Err(None),
            Some(Known::Repeat(result)) => Err(Some(result)),
        }
    }

    #[test]
    fn a_repeat_gets_the_first_result_until_the_key_is_old() {
        let keys = Idempotency::new(TTL, LIMITS);
        let number = begin(&keys, "a", 0).expect("free");
        assert_eq!(begin(&keys, "a", 1), Err(None));
        keys.published(SCOPE, "a", number, 7, false);
        assert_eq!(begin(&keys, "a", 99), Err(Some(7)));
        assert!(matches!(
            keys.begin(
                Scope {
                    client: None,
                    target: "other"
                },
                "a",
                at(99),
                &mut || None,
                &|_| ()
            ),
            Some(Known::Nothing(..))
        ));
        assert!(begin(&keys, "a", 100).is_ok());
    }

    #[test]
    fn the_oldest_keys_go_first() {
        let keys = Idempotency::new(TTL, LIMITS);
        for key in ["a", "b", "c"] {
            let number = begin(&keys, key, 0).expect("free");
            keys.published(SCOPE, key, number, 1, false);
        }
        assert_eq!(begin(&keys, "a", 1), Err(Some(1)));
        assert!(begin(&keys, "d", 1).is_ok());
        assert_eq!(begin(&keys, "b", 1), Err(Some(1)));
        assert!(begin(&keys, "a", 1).is_ok());
    }

    #[test]
    fn the_same_key_of_two_clients_is_two_keys() {
        let keys = Idempotency::new(TTL, LIMITS);
        assert!(is_new(&keys, of_client("a"), "key", 0));
        assert!(is_new(&keys, of_client("b"), "key", 0));
        assert!(is_new(&keys, SCOPE, "key", 0));
        assert!(!is_new(&keys, of_client("a"), "key", 1));
    }

    #[test]
    fn a_client_has_only_its_own_keys_forgotten() {
        let limits = Limits {
            total: 10,
            of_one_client: 4,
        };
        let keys = Idempotency::new(TTL * 10, limits);
        assert!(is_new(&keys, of_client("honest"), "order", 0));
        for number in 0..1000 {
            assert!(is_new(&keys, of_client("flood"), &format!("{number}"), 1));
        }
        assert_eq!(keys.size(), (5, 996));
        assert!(!is_new(&keys, of_client("honest"), "order", 2));
        // several clients together: the one that has most loses its oldest
        for flood in 0..3 {
            for number in 0..4 {
                let client = format!("flood {flood}");
                assert!(is_new(&keys, of_client(&client), &format!("{number}"), 3));
            }
        }
        assert_eq!(keys.size().0, 10);
        assert!(!is_new(&keys, of_client("honest"), "order", 4));
    }

    #[test]
    fn keys_end_with_their_client_and_with_their_time() {
        let keys = Idempotency::new(TTL, LIMITS);
        assert!(is_new(&keys, of_client("a"), "key", 0));
        assert!(is_new(&keys, of_client("b"), "key", 50));
        keys.forget_client(&Arc::from("a"));
        assert_eq!(keys.size().0, 1);
        keys.expire(at(149));
        assert_eq!(keys.size().0, 1);
        keys.expire(at(150));
        assert_eq!(keys.size(), (0, 0));
        let results = keys.results.lock();
        assert!(results.owners.is_empty() && results.by_count.is_empty());
    }

    #[test]
    fn repeats_wait_for_the_first_to_be_saved() {
        let keys = Idempotency::new(TTL, LIMITS);
        let number = begin(&keys, "a", 0).expect("free");
        keys.published(SCOPE, "a", number, 1, true);
        let failures = Arc::new(AtomicUsize::new(0));
        let mut waiting = || {
            let failures = Arc::clone(&failures);
            let committed: Committed = Box::new(move |result| {
                failures.fetch_add(usize::from(result.is_err()), Ordering::Relaxed);
            });
            Some(committed)
        };
        for _ in 0..2 {
            assert!(matches!(
                keys.begin(SCOPE, "a", at(1), &mut waiting, &|_| panic!(
                    "it is being saved"
                )),
                Some(Known::Repeat(1))
            ));
        }
        keys.saved(SCOPE, "a", number, &Err(StoreError("full".to_owned())));
        assert_eq!(failures.load(Ordering::Relaxed), 2);
        assert!(begin(&keys, "a", 2).is_ok());
    }

    #[test]
    fn repeats_of_what_nobody_waited_for_wait_for_all_before_them_to_be_saved() {
        let keys = Idempotency::new(TTL, LIMITS);
        let number = begin(&keys, "a", 0).expect("free");
        keys.published(SCOPE, "a", number, 1, false);
        let marks = AtomicUsize::new(0);
        let mut waiting = || {
            let committed: Committed = Box::new(|_| -> () { panic!("it may not be saved") });
            Some(committed)
        };
        let mark = |_| {
            marks.fetch_add(1, Ordering::Relaxed);
        };
        for _ in 0..2 {
            assert!(matches!(
                keys.begin(SCOPE, "a", at(1), &mut waiting, &mark),
                Some(Known::Repeat(1))
            ));
        }
        assert_eq!(marks.load(Ordering::Relaxed), 2);
        keys.restore(SCOPE, "b", at(0), Duration::from_micros(100), 2);
        let mut told = false;
        let mut committed = || {
            told = true;
            Some(Box::new(|outcome: Result<(), StoreError>| outcome.unwrap()) as Committed)
        };
        let known = keys.begin(SCOPE, "b", at(1), &mut committed, &|_| {
            panic!("it is saved")
        });
        assert!(matches!(known, Some(Known::Repeat(2))) && told);
    }

    #[test]
    fn what_is_taken_in_grows_old_as_it_would_have() {
        let keys = Idempotency::new(TTL, LIMITS);
        let number = begin(&keys, "used", 1000).expect("free");
        keys.published(SCOPE, "used", number, 1, false);
        keys.restore(SCOPE, "b", at(1000), Duration::from_micros(60), 3);
        keys.restore(SCOPE, "a", at(1000), Duration::from_micros(50), 2);
        keys.restore(SCOPE, "used", at(1000), Duration::from_micros(40), 9);
        assert_eq!(begin(&keys, "used", 1001), Err(Some(1)));
        assert_eq!(begin(&keys, "a", 1049), Err(Some(2)));
        assert_eq!(begin(&keys, "b", 1050), Err(Some(3)));
        assert!(begin(&keys, "a", 1050).is_ok());
    }

    #[test]
    fn saved_may_come_before_published() {
        let keys = Idempotency::new(TTL, LIMITS);
        let number = begin(&keys, "a", 0).expect("free");
        keys.saved(SCOPE, "a", number, &Ok(()));
        assert_eq!(begin(&keys, "a", 1), Err(None));
        keys.published(SCOPE, "a", number, 7, true);
        assert_eq!(begin(&keys, "a", 1), Err(Some(7)));
    }
}
