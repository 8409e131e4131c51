//! What all sessions must do: a token is good once, a newer claim wins, and the state of a client comes back wherever the
//! client connects.

use crate::adversarial_sessions::LateSessions;
use crate::adversary::Behaviour;
use crate::peer::{PATIENCE, eventually};
use _tantor::adapters::memory_sessions::MemorySessions;
use _tantor::adapters::memory_store::MemoryStore;
use _tantor::base::clock::WallTime;
use _tantor::base::completion::{Abandoned, Completion, Later, Progress};
use _tantor::core::resume_secrets::Secret;
use _tantor::ports::claim::ClaimNumber;
use _tantor::ports::sessions::{
    Change, ClaimFailure, ClaimRequest, Claimed, Origin, Presented, SessionSink, SessionState,
    Sessions,
};
use bytes::Bytes;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

const TTL: Duration = Duration::from_secs(3600);

/// Remembers the claims of other processes.
#[derive(Default)]
struct Recorder(Mutex<BTreeSet<(Arc<str>, ClaimNumber)>>);

impl SessionSink for Recorder {
    fn displaced(&self, client: &Arc<str>, claim: ClaimNumber) {
        self.0.lock().unwrap().insert((Arc::clone(client), claim));
    }
}

impl Recorder {
    fn has(&self, client: &Arc<str>, claim: ClaimNumber) -> bool {
        self.0
            .lock()
            .unwrap()
            .contains(&(Arc::clone(client), claim))
    }
}

/// One process on sessions to test.
struct Tested {
    sessions: Arc<dyn Sessions>,
    sink: Arc<Recorder>,
}

impl Tested {
    fn new(sessions: Arc<dyn Sessions>) -> Self {
        let sink = Arc::new(Recorder::default());
        sessions.attach(Arc::clone(&sink) as _);
        Self { sessions, sink }
    }

    fn claim(&self, client: &Arc<str>, presented: Presented) -> Result<Claimed, ClaimFailure> {
        let request = ClaimRequest {
            client,
            presented,
            since: WallTime::now(),
        };
        outcome(|later| self.sessions.claim(&request, later))
    }

    fn take(&self, client: &Arc<str>, secret: Secret) -> Result<Claimed, ClaimFailure> {
        self.claim(client, Presented::Secret(secret))
    }

    /// Returns when all earlier calls for a client are carried out.
    fn settle(&self, client: &Arc<str>) {
        let made_up = self.take(client, Secret::new([7; 16]));
        assert!(made_up.is_err());
    }

    fn is_used(&self, client: &Arc<str>, secret: Secret) -> bool {
        matches!(self.take(client, secret), Err(ClaimFailure::Used))
    }
}

/// The outcome of a call, whenever it comes.
fn outcome<T: Send + 'static, E: Abandoned + Send + 'static>(
    call: impl FnOnce(&mut Later<'_, T, E>) -> Progress<T, E>,
) -> Result<T, E> {
    let (tell, told) = mpsc::channel();
    let mut later = || {
        let tell = tell.clone();
        Completion::new(move |outcome| tell.send(outcome).unwrap())
    };
    match call(&mut later) {
        Progress::Ended(outcome) => outcome,
        Progress::Begun(_) => told.recv_timeout(PATIENCE).unwrap(),
    }
}

/// Two processes on the same sessions in memory.
fn memory() -> [MemorySessions; 2] {
    let one = MemorySessions::new(Arc::new(MemoryStore), TTL);
    let other = one.of_another_process();
    [one, other]
}

/// Two processes on the same sessions, with an adversary before each.
fn adversaries(behaviour: Behaviour) -> [Tested; 2] {
    memory().map(|inner| {
        let late = LateSessions::new(Arc::new(inner), behaviour);
        Tested::new(Arc::new(late))
    })
}

/// All sessions to test, with two processes on each.
fn all() -> Vec<[Tested; 2]> {
    let behaviour = Behaviour {
        seed: 11,
        ..Behaviour::LATE
    };
    vec![
        memory().map(|sessions| Tested::new(Arc::new(sessions))),
        adversaries(behaviour),
    ]
}

fn id(name: &str) -> Arc<str> {
    name.into()
}

fn state(channels: &[&str], user_data: &'static str) -> SessionState {
    SessionState {
        joined: WallTime::now(),
        last_ping: WallTime::now(),
        user_data: Some(Bytes::from_static(user_data.as_bytes())),
        channels: channels.iter().map(|name| id(name)).collect(),
    }
}

#[test]
fn a_token_is_good_once_and_the_one_before_until_the_newer_one_has_arrived() {
    for [tested, _] in all() {
        let dumbo = id("dumbo");
        let new = tested.claim(&dumbo, Presented::New).unwrap();
        assert_eq!((new.origin, new.state), (Origin::New, None));
        let first = new.secret.unwrap();
        let second = tested.take(&dumbo, first).unwrap();
        assert_eq!(second.origin, Origin::Here);
        assert!(second.claim > new.claim);
        // the answer with the second token was lost
        let third = tested.take(&dumbo, first).unwrap();
        assert!(tested.is_used(&dumbo, second.secret.unwrap()));
        tested.sessions.confirm(&dumbo, third.claim);
        assert!(tested.is_used(&dumbo, first));
        assert!(tested.take(&dumbo, third.secret.unwrap()).is_ok());
        let stranger = tested.take(&id("jumbo"), first);
        assert_eq!(stranger.unwrap_err(), ClaimFailure::NoSession);
    }
}

#[test]
fn of_eight_racers_with_one_token_one_stays() {
    for both in all() {
        let dumbo = id("dumbo");
        let new = both[0].claim(&dumbo, Presented::New).unwrap();
        let token = new.secret.unwrap();
        let mut racers: Vec<(ClaimNumber, Secret)> = thread::scope(|scope| {
            let racers: Vec<_> = (0..8)
                .map(|number| {
                    let (tested, dumbo) = (&both[number % 2], &dumbo);
                    scope.spawn(move || {
                        let claimed = tested.take(dumbo, token).unwrap();
                        (claimed.claim, claimed.secret.unwrap())
                    })
                })
                .collect();
            racers
                .into_iter()
                .map(|racer| racer.join().unwrap())
                .collect()
        });
        racers.sort_by_key(|(claim, _)| *claim);
        racers.dedup_by_key(|(claim, _)| *claim);
        assert_eq!(racers.len(), 8, "each has a number of its own");
        for (claim, _) in &racers {
            both[0].sessions.confirm(&dumbo, *claim);
        }
        both[0].settle(&dumbo);
        let (_, winner) = racers.pop().unwrap();
        assert!(both[1].is_used(&dumbo, token));
        for (_, secret) in racers {
            assert!(both[1].is_used(&dumbo, secret));
        }
        assert!(both[0].take(&dumbo, winner).is_ok());
    }
}

#[test]
fn an_older_claim_changes_nothing() {
    for [tested, other] in all() {
        let dumbo = id("dumbo");
        let old = tested.claim(&dumbo, Presented::New).unwrap();
        let sessions = &tested.sessions;
        let joined = id("jungle");
        sessions.save(&dumbo, Some(old.claim), Change::Joined(&joined));
        let token = old.secret.unwrap();
        let new = tested.take(&dumbo, token).unwrap();
        for claim in [Some(old.claim), None] {
            let data = Bytes::from_static(b"1");
            sessions.save(&dumbo, claim, Change::UserData(&data));
            sessions.save(&dumbo, claim, Change::Joined(&id("den")));
            sessions.save(&dumbo, claim, Change::Left("jungle"));
            let make = &|| state(&["hut"], "2");
            sessions.save(&dumbo, claim, Change::State { make });
            sessions.end(&dumbo, claim);
        }
        sessions.release(&dumbo, old.claim, &|| state(&["plaza"], "3"));
        sessions.confirm(&dumbo, old.claim);
        tested.settle(&dumbo);
        let claimed = other.take(&dumbo, token).expect("not confirmed");
        assert!(claimed.claim > new.claim);
        let saved = claimed.state.unwrap();
        assert_eq!((saved.user_data, saved.channels), (None, vec![joined]));
    }
}

#[test]
fn an_ended_session_has_no_token_and_its_numbers_do_not_come_back() {
    for [tested, other] in all() {
        let dumbo = id("dumbo");
        let claimed = tested.claim(&dumbo, Presented::New).unwrap();
        tested.sessions.end(&dumbo, Some(claimed.claim));
        tested.settle(&dumbo);
        for process in [&tested, &other] {
            let refused = process.take(&dumbo, claimed.secret.unwrap());
            assert_eq!(refused.unwrap_err(), ClaimFailure::NoSession);
        }
        let again = other.claim(&dumbo, Presented::Vouched).unwrap();
        assert_eq!((again.origin, again.state), (Origin::New, None));
        assert!(again.claim > claimed.claim);
    }
}

#[test]
fn the_state_of_a_client_goes_with_it_to_another_process() {
    for [one, other] in all() {
        let dumbo = id("dumbo");
        let first = one.claim(&dumbo, Presented::New).unwrap();
        let claim = Some(first.claim);
        for name in ["jungle", "den", "hut"] {
            one.sessions.save(&dumbo, claim, Change::Joined(&id(name)));
        }
        one.sessions.save(&dumbo, claim, Change::Left("den"));
        let data = Bytes::from_static(b"{}");
        one.sessions.save(&dumbo, claim, Change::UserData(&data));
        one.settle(&dumbo);

        let second = other.take(&dumbo, first.secret.unwrap()).unwrap();
        assert_eq!(second.origin, Origin::Elsewhere);
        let saved = second.state.unwrap();
        assert_eq!(saved.channels, [id("jungle"), id("hut")]);
        assert_eq!(saved.user_data, Some(data));
        eventually("the first process is told", || {
            one.sink.has(&dumbo, second.claim)
        });
        // the end of the older connection comes late
        one.sessions
            .release(&dumbo, first.claim, &|| state(&["den"], "1"));
        one.settle(&dumbo);
        let released = state(&["plaza"], "2");
        other
            .sessions
            .release(&dumbo, second.claim, &|| released.clone());
        other.settle(&dumbo);

        let third = one.take(&dumbo, second.secret.unwrap()).unwrap();
        assert_eq!(third.origin, Origin::Elsewhere);
        let saved = third.state.unwrap();
        assert_eq!(
            (saved.joined, saved.user_data),
            (released.joined, released.user_data)
        );
        assert_eq!(saved.channels, released.channels);
        eventually("the second process is told", || {
            other.sink.has(&dumbo, third.claim)
        });
        assert!(!one.sink.has(&dumbo, third.claim), "it was its own claim");
    }
}

#[test]
fn a_client_for_which_auth_vouches_needs_no_token() {
    for [tested, _] in all() {
        let dumbo = id("dumbo");
        let first = tested.claim(&dumbo, Presented::Vouched).unwrap();
        let second = tested.claim(&dumbo, Presented::Vouched).unwrap();
        assert_eq!((first.origin, second.origin), (Origin::New, Origin::Here));
        assert!(second.claim > first.claim);
        tested.sessions.confirm(&dumbo, second.claim);
        assert!(tested.is_used(&dumbo, first.secret.unwrap()));
        assert!(tested.take(&dumbo, second.secret.unwrap()).is_ok());
    }
}

#[test]
fn a_token_can_be_asked_for() {
    for [tested, other] in all() {
        let dumbo = id("dumbo");
        let ask = |channel: &'static str| {
            let make = &|| state(&[channel], "1");
            outcome(|later| tested.sessions.token(&dumbo, make, later)).unwrap()
        };
        let first = ask("jungle");
        assert_eq!(first, ask("hut"));
        tested
            .sessions
            .save(&dumbo, None, Change::Joined(&id("den")));
        tested.settle(&dumbo);
        let claimed = other.take(&dumbo, first).unwrap();
        assert_eq!(claimed.origin, Origin::Elsewhere);
        assert_eq!(claimed.state.unwrap().channels, [id("jungle"), id("den")]);
        eventually("the process that made the session is told", || {
            tested.sink.has(&dumbo, claimed.claim)
        });
        assert_eq!(ask("hut"), claimed.secret.unwrap());
    }
}

#[test]
fn a_client_whose_claims_fail_tries_again_with_its_token() {
    let behaviour = Behaviour {
        seed: 5,
        unavailable: 20,
        unknown: 40,
        lost: 0,
        delay: Duration::from_micros(50),
    };
    let both = adversaries(behaviour);
    let dumbo = id("dumbo");
    let try_until = |presented: Presented, mut number: usize| loop {
        number += 1;
        match both[number % 2].claim(&dumbo, presented) {
            Ok(claimed) => return (claimed, number % 2),
            Err(ClaimFailure::Failed(_)) => {}
            Err(refused) => panic!("{refused}"),
        }
    };
    let (mut claimed, _) = try_until(Presented::Vouched, 0);
    for turn in 0..200 {
        let before = claimed.claim;
        let at;
        (claimed, at) = try_until(Presented::Secret(claimed.secret.unwrap()), turn);
        assert!(claimed.claim > before);
        if turn % 3 > 0 {
            both[at].sessions.confirm(&dumbo, claimed.claim);
        }
    }
}

#[test]
fn without_sessions_a_claim_is_a_number() {
    let sessions = MemorySessions::new(Arc::new(MemoryStore), Duration::ZERO);
    let tested = Tested::new(Arc::new(sessions));
    let dumbo = id("dumbo");
    let first = tested.claim(&dumbo, Presented::New).unwrap();
    let second = tested.claim(&dumbo, Presented::New).unwrap();
    assert!(second.claim > first.claim);
    assert_eq!((first.secret, second.secret), (None, None));
}
