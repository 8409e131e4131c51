//! Results of publications by the key that their publishers gave them, so that a repeat publishes nothing.

use crate::store::{Committed, Fate, StoreError};
use crate::sync::Mutex;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// For which channel or client a key counts.
pub type Scope<'a> = &'a str;

/// Scope and key; shared by the two that hold it.
type Key = Arc<(Box<str>, Box<str>)>;

/// Results of type `T`, the oldest forgotten first.
pub struct Idempotency<T> {
    /// How long a key is known, by the caller's clock.
    ttl: u64,
    /// Keys that are known at once.
    limit: usize,
    results: Mutex<Results<T>>,
}

struct Results<T> {
    by_key: HashMap<Key, Entry<T>>,
    /// Keys with when they were first used, by the caller's clock.
    by_age: VecDeque<(u64, u64, Key)>,
    next_number: u64,
}

struct Entry<T> {
    number: u64,
    fate: Fate,
    state: State<T>,
}

enum State<T> {
    /// It is being published.
    Begun,
    /// It was saved before its publisher had said that it was published.
    Saved,
    /// It was published, and is being saved.
    Saving(T, Vec<Committed>),
    /// It was published, and nobody waited for its saving.
    Published(T),
    /// It is saved.
    Done(T),
}

impl<T> Default for Results<T> {
    fn default() -> Self {
        Self {
            by_key: HashMap::new(),
            by_age: VecDeque::new(),
            next_number: 0,
        }
    }
}

/// What is known of a key.
pub enum Known<T> {
    /// Nothing: the caller is to publish, and to say `published` with this number; the store tells this fate.
    Nothing(u64, Fate),
    /// The first result; the caller's `committed` is kept until that is saved.
    Repeat(T),
}

impl<T: Copy> Idempotency<T> {
    pub fn new(ttl: u64, limit: usize) -> Self {
        Self {
            ttl,
            limit,
            results: Mutex::default(),
        }
    }

    /// Looks a key up, and takes it when it is free. `committed` hears when the first publication is saved, if this
    /// is a repeat; it is given to `mark` where nobody waited for that. `None` while another thread publishes the same.
    pub fn begin(
        &self,
        scope: Scope<'_>,
        key: &str,
        now: u64,
        committed: &mut dyn FnMut() -> Option<Committed>,
        mark: &dyn Fn(Committed),
    ) -> Option<Known<T>> {
        let key = Key::new((scope.into(), key.into()));
        let mut results = self.results.lock();
        results.forget(now, self.ttl, usize::MAX);
        if let Some(entry) = results.by_key.get_mut(&key) {
            return match &mut entry.state {
                State::Begun | State::Saved => None,
                State::Published(result) => {
                    let (result, fate) = (*result, entry.fate.clone());
                    drop(results);
                    if let Some(committed) = committed() {
                        mark(unless_lost(fate, committed));
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
        let number = results.next_number;
        results.next_number += 1;
        let fate = Fate::default();
        if self.ttl == 0 || self.limit == 0 {
            return Some(Known::Nothing(number, fate));
        }
        results.forget(now, self.ttl, self.limit);
        results.by_age.push_back((now, number, Arc::clone(&key)));
        let entry = Entry {
            number,
            fate: fate.clone(),
            state: State::Begun,
        };
        results.by_key.insert(key, entry);
        Some(Known::Nothing(number, fate))
    }

    /// Takes a key in that was saved, and is known for the time `left`; one that is known already stays as it is.
    pub fn restore(&self, scope: Scope<'_>, key: &str, now: u64, left: u64, result: T) {
        if self.limit == 0 {
            return;
        }
        let key = Key::new((scope.into(), key.into()));
        let begun = now.saturating_sub(self.ttl.saturating_sub(left));
        let mut results = self.results.lock();
        results.forget(now, self.ttl, usize::MAX);
        if results.by_key.contains_key(&key) {
            return;
        }
        let number = results.next_number;
        results.next_number += 1;
        let place = results
            .by_age
            .partition_point(|(other, _, _)| *other <= begun);
        results
            .by_age
            .insert(place, (begun, number, Arc::clone(&key)));
        let entry = Entry {
            number,
            fate: Fate::default(),
            state: State::Done(result),
        };
        results.by_key.insert(key, entry);
    }

    /// It is published; with `is_saving`, `saved` is called too, before or after.
    pub fn published(&self, scope: Scope<'_>, key: &str, number: u64, result: T, is_saving: bool) {
        let mut results = self.results.lock();
        if let Some(entry) = results.entry(scope, key, number) {
            entry.state = match entry.state {
                State::Begun if is_saving => State::Saving(result, Vec::new()),
                State::Begun => State::Published(result),
                _ => State::Done(result),
            };
        }
    }

    /// What became of saving it: when it failed, the key is free again.
    pub fn saved(
        &self,
        scope: Scope<'_>,
        key: &str,
        number: u64,
        outcome: &Result<(), StoreError>,
    ) {
        let mut results = self.results.lock();
        let Some(entry) = results.entry(scope, key, number) else {
            return;
        };
        let before = std::mem::replace(&mut entry.state, State::Saved);
        if let State::Saving(result, _) | State::Published(result) | State::Done(result) = &before {
            entry.state = State::Done(*result);
        }
        if outcome.is_err() {
            results.by_key.remove(&(scope.into(), key.into()));
        }
        drop(results);
        if let State::Saving(_, waiting) = before {
            for committed in waiting {
                committed(outcome.clone());
            }
        }
    }
}

/// What a repeat hears when all before it is saved.
fn unless_lost(fate: Fate, committed: Committed) -> Committed {
    Box::new(move |outcome| {
        let lost = || StoreError("what was first published under this key was lost".to_owned());
        committed(outcome.and_then(|()| if fate.is_lost() { Err(lost()) } else { Ok(()) }));
    })
}

impl<T> Results<T> {
    fn entry(&mut self, scope: Scope<'_>, key: &str, number: u64) -> Option<&mut Entry<T>> {
        self.by_key
            .get_mut(&(scope.into(), key.into()))
            .filter(|entry| entry.number == number)
    }

    fn forget(&mut self, now: u64, ttl: u64, limit: usize) {
        while let Some((begun, number, key)) = self.by_age.front() {
            if now.saturating_sub(*begun) < ttl && self.by_age.len() < limit {
                return;
            }
            match self.by_key.get(key).filter(|entry| entry.number == *number) {
                // whoever waits for it has to hear
                Some(Entry {
                    state: State::Saving(..),
                    ..
                }) => return,
                Some(_) => drop(self.by_key.remove(key)),
                None => {}
            }
            self.by_age.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const SCOPE: Scope<'static> = "jungle";

    fn begin(keys: &Idempotency<u32>, key: &str, now: u64) -> Result<u64, Option<u32>> {
        match keys.begin(SCOPE, key, now, &mut || None, &|_| ()) {
            Some(Known::Nothing(number, _)) => Ok(number),
            None => Err(None),
            Some(Known::Repeat(result)) => Err(Some(result)),
        }
    }

    #[test]
    fn a_repeat_gets_the_first_result_until_the_key_is_old() {
        let keys = Idempotency::new(100, 3);
        let number = begin(&keys, "a", 0).expect("free");
        assert_eq!(begin(&keys, "a", 1), Err(None));
        keys.published(SCOPE, "a", number, 7, false);
        assert_eq!(begin(&keys, "a", 99), Err(Some(7)));
        assert!(matches!(
            keys.begin("other", "a", 99, &mut || None, &|_| ()),
            Some(Known::Nothing(..))
        ));
        assert!(begin(&keys, "a", 100).is_ok());
    }

    #[test]
    fn the_oldest_keys_go_first() {
        let keys = Idempotency::new(100, 3);
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
    fn repeats_wait_for_the_first_to_be_saved() {
        let keys = Idempotency::new(100, 3);
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
                keys.begin(SCOPE, "a", 1, &mut waiting, &|_| panic!(
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
        let keys = Idempotency::new(100, 3);
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
                keys.begin(SCOPE, "a", 1, &mut waiting, &mark),
                Some(Known::Repeat(1))
            ));
        }
        assert_eq!(marks.load(Ordering::Relaxed), 2);
        keys.restore(SCOPE, "b", 0, 100, 2);
        let mut told = false;
        let mut committed = || {
            told = true;
            Some(Box::new(|outcome: Result<(), StoreError>| outcome.unwrap()) as Committed)
        };
        let known = keys.begin(SCOPE, "b", 1, &mut committed, &|_| panic!("it is saved"));
        assert!(matches!(known, Some(Known::Repeat(2))) && told);
    }

    #[test]
    fn what_is_taken_in_grows_old_as_it_would_have() {
        let keys = Idempotency::new(100, 3);
        let number = begin(&keys, "used", 1000).expect("free");
        keys.published(SCOPE, "used", number, 1, false);
        keys.restore(SCOPE, "b", 1000, 60, 3);
        keys.restore(SCOPE, "a", 1000, 50, 2);
        keys.restore(SCOPE, "used", 1000, 40, 9);
        assert_eq!(begin(&keys, "used", 1001), Err(Some(1)));
        assert_eq!(begin(&keys, "a", 1049), Err(Some(2)));
        assert_eq!(begin(&keys, "b", 1050), Err(Some(3)));
        assert!(begin(&keys, "a", 1050).is_ok());
    }

    #[test]
    fn saved_may_come_before_published() {
        let keys = Idempotency::new(100, 3);
        let number = begin(&keys, "a", 0).expect("free");
        keys.saved(SCOPE, "a", number, &Ok(()));
        assert_eq!(begin(&keys, "a", 1), Err(None));
        keys.published(SCOPE, "a", number, 7, true);
        assert_eq!(begin(&keys, "a", 1), Err(Some(7)));
    }
}
