//! What every presence must do.

use crate::adversarial_presence::{AdversarialPresence, PresenceBehaviour};
use crate::contract::outcome;
use crate::peer::eventually;
use _tantor::adapters::memory_presence::MemoryPresence;
use _tantor::base::completion::{Completion, Progress};
use _tantor::ports::broker::Failure;
use _tantor::ports::claim::ClaimNumber;
use _tantor::ports::presence::{
    Arrived, ChannelPresence, Departed, MAX_PAGE, Presence, PresencePage, PresenceSink,
};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};

/// Two processes on one backend.
struct Tested {
    name: &'static str,
    first: Arc<dyn Presence>,
    second: Arc<dyn Presence>,
}

/// Each presence; the adversary is late, on other threads, in odd order, and fails as told.
fn presences(unavailable: u64, unknown: u64) -> [Tested; 2] {
    let memory = Arc::new(MemoryPresence::default());
    let backend = Arc::new(MemoryPresence::default());
    let late = |seed| {
        let behaviour = PresenceBehaviour {
            seed,
            unavailable,
            unknown,
            ..PresenceBehaviour::LATE
        };
        Arc::new(AdversarialPresence::new(Arc::clone(&backend), behaviour))
    };
    [
        Tested {
            name: "memory",
            first: memory.clone(),
            second: memory,
        },
        Tested {
            name: "adversary",
            first: late(1),
            second: late(2),
        },
    ]
}

fn open(presence: &Arc<dyn Presence>) -> Arc<dyn ChannelPresence> {
    presence.open(&Arc::from("den"))
}

fn id(number: usize) -> Arc<str> {
    Arc::from(format!("client {number}"))
}

fn claim(number: usize) -> Option<ClaimNumber> {
    (0..number).fold(None, |claim, _| {
        Some(claim.map_or(ClaimNumber::FIRST, ClaimNumber::next))
    })
}

fn join(
    channel: &Arc<dyn ChannelPresence>,
    client: usize,
    claim: Option<ClaimNumber>,
) -> Result<Arrived, Failure> {
    outcome(|later| channel.join(&id(client), claim, later))
}

/// Joins until the join succeeds, as a caller does after `Unknown`.
fn join_at_last(channel: &Arc<dyn ChannelPresence>, client: usize) -> Arrived {
    (0..1000)
        .find_map(|_| join(channel, client, None).ok())
        .unwrap()
}

fn leave(
    channel: &Arc<dyn ChannelPresence>,
    client: usize,
    claim: Option<ClaimNumber>,
) -> Departed {
    outcome(|later| channel.leave(&id(client), claim, later)).unwrap()
}

fn page(
    channel: &Arc<dyn ChannelPresence>,
    after: Option<&PresencePage>,
    limit: usize,
) -> PresencePage {
    let after = after.map(|page| page.next.unwrap());
    let read = || outcome(|later| channel.page(after, limit, later)).ok();
    (0..1000).find_map(|_| read()).unwrap()
}

fn members(channel: &Arc<dyn ChannelPresence>) -> Vec<Arc<str>> {
    page(channel, None, MAX_PAGE).members
}

fn count(channel: &Arc<dyn ChannelPresence>) -> usize {
    let read = || outcome(|later| channel.count(later)).ok();
    let total = (0..1000).find_map(|_| read()).unwrap();
    total.members
}

#[test]
fn members_stand_in_the_order_in_which_they_came() {
    for Tested { name, first, .. } in presences(0, 0) {
        let channel = open(&first);
        for number in [2, 1, 3] {
            let arrived = join(&channel, number, None).unwrap();
            assert!(arrived.is_new, "{name}");
        }
        let again = join(&channel, 1, None).unwrap();
        assert_eq!((again.is_new, again.total.members), (false, 3), "{name}");
        let left = leave(&channel, 2, None);
        assert_eq!((left.has_moved, left.total.members), (false, 2), "{name}");
        assert!(left.total.version > again.total.version, "{name}");
        assert!(join(&channel, 2, None).unwrap().is_new, "{name}");
        assert_eq!(members(&channel), [id(1), id(3), id(2)], "{name}");
        assert_eq!(leave(&channel, 7, None).total.members, 3, "{name}: nobody");
    }
}

#[test]
fn pages_have_every_member_that_stays() {
    for Tested { name, first, .. } in presences(20, 0) {
        let channel = open(&first);
        for number in 0..2500 {
            join_at_last(&channel, number);
        }
        let one = page(&channel, None, usize::MAX);
        assert_eq!((one.members.len(), one.total.members), (MAX_PAGE, 2500));
        leave(&channel, 999, None);
        leave(&channel, 1000, None);
        join_at_last(&channel, 2500);
        let two = page(&channel, Some(&one), MAX_PAGE);
        let three = page(&channel, Some(&two), MAX_PAGE);
        assert_eq!(three.next, None, "{name}");
        let pages = [one.members, two.members, three.members].concat();
        let expected: Vec<_> = (0..=2500)
            .filter(|number| *number != 1000)
            .map(id)
            .collect();
        assert_eq!(pages, expected, "{name}");
    }
}

#[test]
fn a_member_that_has_moved_to_a_newer_claim_stays() {
    for tested in presences(0, 0) {
        let name = tested.name;
        let (here, there) = (open(&tested.first), open(&tested.second));
        assert!(join(&here, 1, claim(1)).unwrap().is_new, "{name}");
        assert!(!join(&there, 1, claim(2)).unwrap().is_new, "{name}: moved");
        assert!(!join(&here, 1, claim(1)).unwrap().is_new, "{name}: stale");
        let late = leave(&here, 1, claim(1));
        assert_eq!((late.has_moved, late.total.members), (true, 1), "{name}");
        assert!(leave(&here, 1, None).has_moved, "{name}: no claim is older");
        let left = leave(&there, 1, claim(2));
        assert_eq!((left.has_moved, left.total.members), (false, 0), "{name}");
        assert!(!leave(&here, 1, claim(1)).has_moved, "{name}: gone");
    }
}

#[test]
fn two_processes_have_the_same_members() {
    for tested in presences(0, 0) {
        let name = tested.name;
        let (here, there) = (open(&tested.first), open(&tested.second));
        join(&here, 1, None).unwrap();
        let arrived = join(&there, 2, None).unwrap();
        assert_eq!((arrived.is_new, arrived.total.members), (true, 2), "{name}");
        assert_eq!(members(&here), [id(1), id(2)], "{name}");
        assert!(here.own().contains(&id(1)) && there.own().contains(&id(2)));
        let other = tested.first.open(&Arc::from("cave"));
        assert_eq!((count(&there), count(&other)), (2, 0), "{name}");
    }
}

#[test]
fn a_removal_ends_all_memberships() {
    for tested in presences(0, 0) {
        let name = tested.name;
        let (here, there) = (open(&tested.first), open(&tested.second));
        let before = join(&here, 1, None).unwrap();
        join(&there, 2, None).unwrap();
        tested.first.remove("den");
        assert_eq!((count(&here), count(&there)), (0, 0), "{name}");
        assert_eq!(members(&there), [] as [Arc<str>; 0], "{name}");
        let left = leave(&here, 1, None);
        assert_eq!((left.has_moved, left.total.members), (false, 0), "{name}");
        let successor = open(&tested.first);
        let arrived = join(&successor, 1, None).unwrap();
        assert_eq!((arrived.is_new, arrived.total.members), (true, 1), "{name}");
        assert!(arrived.total.version > before.total.version, "{name}");
        tested.first.remove("nothing");
    }
}

#[test]
fn a_join_is_repeated_until_it_succeeds_and_a_leave_takes_it_back() {
    for Tested { name, first, .. } in presences(20, 40) {
        let channel = open(&first);
        for number in 0..40 {
            // nothing is known of an outcome that is lost, so a leave comes before the next attempt
            let arrived = loop {
                match join(&channel, number, None) {
                    Ok(arrived) => break arrived,
                    Err(Failure::Unknown(_)) => drop(leave(&channel, number, None)),
                    Err(failure) => assert!(matches!(failure, Failure::Unavailable(_))),
                }
            };
            assert!(arrived.is_new, "{name} {number}");
            assert_eq!(join_at_last(&channel, number).total.members, number + 1);
        }
        assert_eq!(count(&channel), 40, "{name}");
    }
}

#[test]
fn the_calls_for_one_client_take_effect_and_end_in_their_order() {
    for Tested { name, first, .. } in presences(0, 0) {
        let channel = open(&first);
        let (tell, told) = mpsc::channel();
        let mut expected = Vec::new();
        for round in 0..100 {
            for number in 0..5 {
                let (joins, tell) = (round % 2 == 0, tell.clone());
                expected.push((number, round, joins));
                if joins {
                    outcome_to(
                        move |arrived: Result<Arrived, _>| {
                            tell.send((number, round, arrived.unwrap().is_new)).unwrap();
                        },
                        |later| channel.join(&id(number), None, later),
                    );
                } else {
                    outcome_to(
                        move |left: Result<Departed, _>| {
                            tell.send((number, round, left.unwrap().has_moved)).unwrap();
                        },
                        |later| channel.leave(&id(number), None, later),
                    );
                }
            }
        }
        drop(tell);
        let all: Vec<_> = told.iter().collect();
        for number in 0..5 {
            let of = |all: &[(usize, usize, bool)]| {
                let own = all.iter().filter(|(own, ..)| *own == number);
                own.copied().collect::<Vec<_>>()
            };
            assert_eq!(of(&all), of(&expected), "{name}");
        }
        assert_eq!(count(&channel), 0, "{name}");
    }
}

/// Makes a call, and gives its outcome to `receive`, at once or later.
fn outcome_to<T: Send + 'static>(
    receive: impl FnOnce(Result<T, Failure>) + Send + 'static,
    call: impl FnOnce(&mut dyn FnMut() -> Completion<T, Failure>) -> Progress<T, Failure>,
) {
    let mut receive = Some(receive);
    let mut later = || Completion::new(receive.take().unwrap());
    if let Progress::Ended(outcome) = call(&mut later) {
        receive.take().unwrap()(outcome);
    }
}

#[derive(Default)]
struct Losses(AtomicUsize);

impl PresenceSink for Losses {
    fn lease_lost(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }
}

#[test]
fn what_was_lost_is_own_until_it_leaves() {
    let behaviour = PresenceBehaviour {
        lost: 100,
        ..PresenceBehaviour::LATE
    };
    let backend = Arc::new(MemoryPresence::default());
    let presence = Arc::new(AdversarialPresence::new(backend, behaviour));
    let losses = Arc::new(Losses::default());
    presence.attach(&(Arc::clone(&losses) as Arc<dyn PresenceSink>));
    let presence = presence as Arc<dyn Presence>;
    let channel = open(&presence);
    join(&channel, 1, None).unwrap();
    join(&channel, 2, None).unwrap();
    eventually("the loss is told", || losses.0.load(Ordering::Acquire) > 0);
    assert_eq!(count(&channel), 0);
    let own: BTreeSet<_> = channel.own().into_iter().collect();
    assert_eq!(own, BTreeSet::from([id(1), id(2)]));
    leave(&channel, 1, None);
    assert_eq!(channel.own(), [id(2)]);
}
