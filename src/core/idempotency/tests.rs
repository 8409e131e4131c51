//! Idempotency keys without a broker.

use super::*;

/// Why work has failed.
#[derive(Clone, Debug, PartialEq)]
struct Failed(String);

impl Abandoned for Failed {
    fn abandoned() -> Self {
        Self("abandoned".to_owned())
    }
}

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

type Keys = Idempotency<u32, Failed>;

fn nobody_waits() -> Completion<u32, Failed> {
    panic!("no caller waits")
}

/// True for a key that was free, and is used now.
fn is_new(keys: &Keys, scope: Scope<'_>, key: &str, now: u64) -> bool {
    match keys.begin(scope, key, at(now), None, false, &mut nobody_waits) {
        Lookup::Free(ticket) => {
            assert!(keys.done(&ticket, 1).is_empty());
            true
        }
        Lookup::Known(_) => false,
        Lookup::Unsaved(..) | Lookup::Queued(_) => panic!("nothing is to be saved"),
    }
}

fn begin(keys: &Keys, key: &str, now: u64) -> Result<Ticket, u32> {
    match keys.begin(SCOPE, key, at(now), None, false, &mut nobody_waits) {
        Lookup::Free(ticket) => Ok(ticket),
        Lookup::Known(result) => Err(result),
        Lookup::Unsaved(..) | Lookup::Queued(_) => panic!("nothing is to be saved"),
    }
}

/// The outcomes that the waiting callers of a test have got.
type Outcomes = Arc<Mutex<Vec<Result<u32, String>>>>;

fn wait(keys: &Keys, needs_saved: bool, outcomes: &Outcomes) -> Lookup<u32> {
    keys.begin(SCOPE, "a", at(1), None, needs_saved, &mut || {
        let outcomes = Arc::clone(outcomes);
        Completion::new(move |outcome: Result<u32, Failed>| {
            outcomes.lock().push(outcome.map_err(|error| error.0));
        })
    })
}

fn complete(waiting: Vec<Waiting<u32, Failed>>, outcome: &Result<u32, Failed>) {
    for waiting in waiting {
        waiting.completion.complete(outcome.clone());
    }
}

#[test]
fn a_repeat_gets_the_first_result_until_the_key_is_old() {
    let keys = Keys::new(TTL, LIMITS);
    let ticket = begin(&keys, "a", 0).expect("free");
    keys.done(&ticket, 7);
    assert_eq!(begin(&keys, "a", 99).unwrap_err(), 7);
    let elsewhere = Scope {
        client: None,
        target: "other",
    };
    assert!(is_new(&keys, elsewhere, "a", 99));
    assert!(begin(&keys, "a", 100).is_ok());
}

#[test]
fn the_oldest_keys_go_first() {
    let keys = Keys::new(TTL, LIMITS);
    for key in ["a", "b", "c"] {
        assert!(is_new(&keys, SCOPE, key, 0));
    }
    assert!(!is_new(&keys, SCOPE, "a", 1));
    assert!(is_new(&keys, SCOPE, "d", 1));
    assert!(!is_new(&keys, SCOPE, "b", 1));
    assert!(is_new(&keys, SCOPE, "a", 1));
}

#[test]
fn the_same_key_of_two_clients_is_two_keys() {
    let keys = Keys::new(TTL, LIMITS);
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
    let keys = Keys::new(TTL * 10, limits);
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
    let keys = Keys::new(TTL, LIMITS);
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
fn callers_with_a_key_that_is_in_use_wait_for_the_first() {
    for outcome in [Ok(7), Err(Failed("full".to_owned()))] {
        let keys = Keys::new(TTL, LIMITS);
        let ticket = begin(&keys, "a", 0).expect("free");
        let outcomes = Outcomes::default();
        for needs_saved in [false, true] {
            let known = wait(&keys, needs_saved, &outcomes);
            assert!(matches!(known, Lookup::Queued(None)));
        }
        complete(keys.saving(&ticket, 7), &Ok(7));
        assert_eq!(*outcomes.lock(), [Ok(7)], "the second waits for saving");
        assert!(matches!(wait(&keys, false, &outcomes), Lookup::Known(7)));
        assert!(matches!(
            wait(&keys, true, &outcomes),
            Lookup::Queued(Some(7))
        ));
        let result = outcome.as_ref().ok().copied();
        complete(keys.ended(&ticket, result), &outcome);
        let told = outcome.map_err(|error| error.0);
        let all = [Ok(7), told.clone(), told];
        assert_eq!(*outcomes.lock(), all);
        assert_eq!(begin(&keys, "a", 2).is_ok(), result.is_none());
    }
}

#[test]
fn a_result_that_nobody_waits_for_is_not_known_to_be_saved() {
    let keys = Keys::new(TTL, LIMITS);
    let ticket = begin(&keys, "a", 0).expect("free");
    let outcomes = Outcomes::default();
    for needs_saved in [false, true] {
        assert!(matches!(
            wait(&keys, needs_saved, &outcomes),
            Lookup::Queued(None)
        ));
    }
    let waiting = keys.done(&ticket, 1);
    let needs: Vec<bool> = waiting.iter().map(|waiting| waiting.needs_saved).collect();
    assert_eq!(needs, [false, true]);
    complete(waiting, &Ok(1));
    let Lookup::Unsaved(1, lost_flag) = wait(&keys, true, &outcomes) else {
        panic!("it may not be saved");
    };
    ticket.lost_flag.lose();
    assert!(lost_flag.is_lost());
    keys.restore(SCOPE, "b", at(0), Duration::from_micros(100), 2);
    let known = keys.begin(SCOPE, "b", at(1), None, true, &mut nobody_waits);
    assert!(matches!(known, Lookup::Known(2)));
}

#[test]
fn what_is_taken_in_grows_old_as_it_would_have() {
    let keys = Keys::new(TTL, LIMITS);
    assert!(begin(&keys, "used", 1000).is_ok_and(|ticket| { keys.done(&ticket, 1).is_empty() }));
    keys.restore(SCOPE, "b", at(1000), Duration::from_micros(60), 3);
    keys.restore(SCOPE, "a", at(1000), Duration::from_micros(50), 2);
    keys.restore(SCOPE, "used", at(1000), Duration::from_micros(40), 9);
    assert_eq!(begin(&keys, "used", 1001).unwrap_err(), 1);
    assert_eq!(begin(&keys, "a", 1049).unwrap_err(), 2);
    assert_eq!(begin(&keys, "b", 1050).unwrap_err(), 3);
    assert!(begin(&keys, "a", 1050).is_ok());
}

#[test]
fn saved_may_come_before_saving() {
    let keys = Keys::new(TTL, LIMITS);
    let ticket = begin(&keys, "a", 0).expect("free");
    assert!(keys.ended(&ticket, Some(1)).is_empty());
    assert!(keys.saving(&ticket, 1).is_empty());
    let known = keys.begin(SCOPE, "a", at(1), None, true, &mut nobody_waits);
    assert!(matches!(known, Lookup::Known(1)));
}
