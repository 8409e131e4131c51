//! Mailboxes and idempotency keys against models, and what the node keeps of messages to one client.

use crate::peer::{connected, emergency, ended, history_limits, not_later, ports_on};
use crate::stores::WaitedFor;
use _tantor::adapters::memory_broker::MemoryBroker;
use _tantor::adapters::memory_store::MemoryStore;
use _tantor::base::clock::SteadyTime;
use _tantor::base::completion::{Completion, Progress};
use _tantor::base::error::Error;
use _tantor::base::priority::Priority;
use _tantor::base::sync::Mutex;
use _tantor::core::idempotency::{Idempotency, Limits, Lookup, Scope};
use _tantor::core::mailbox::{Mail, Mailbox};
use _tantor::node::{ConnectRequest, ConnectionId, Delivery, Node, ShardHandle};
use _tantor::ports::calls::{PublishOptions, Sent};
use _tantor::ports::durability::{Committed, StoreError};
use _tantor::ports::store::Store;
use _tantor::settings::config::Config;
use _tantor::wire::frame::EncodedFrame;
use _tantor::wire::messages::Body;
use proptest::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const PLACE: ConnectionId = ConnectionId {
    shard: 0,
    slot: 1,
    generation: 1,
};

fn at(micros: u64) -> SteadyTime {
    SteadyTime::START + Duration::from_micros(micros)
}

fn mail(message: u64, expires: u64, is_emergency: bool) -> Mail {
    Mail {
        number: 0,
        message,
        expires: at(expires),
        is_emergency,
        frame: EncodedFrame::text(&vec![b'x'; message as usize % 50]),
        handed_over: None,
    }
}

fn messages<'a>(mail: impl IntoIterator<Item = &'a Mail>) -> Vec<u64> {
    mail.into_iter().map(|mail| mail.message).collect()
}

#[derive(Clone, Debug)]
enum Step {
    Push(u64, bool),
    Acknowledge(Vec<u64>),
    Expire(u64),
    Trim(usize),
    Release(usize, bool),
    Tell(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0_u64..20, prop::bool::weighted(0.3)).prop_map(|(expires, emergency)| Step::Push(expires, emergency)),
        2 => prop::collection::vec(0_u64..60, 0..5).prop_map(Step::Acknowledge),
        1 => (0_u64..20).prop_map(Step::Expire),
        1 => (0_usize..8).prop_map(Step::Trim),
        1 => (0_usize..400, any::<bool>()).prop_map(|(bytes, too)| Step::Release(bytes, too)),
        1 => any::<bool>().prop_map(Step::Tell),
    ]
}

/// Takes the oldest that `goes` says out of a model, while `is_over` says so.
fn take_oldest(
    model: &mut Vec<Mail>,
    goes: impl Fn(&Mail) -> bool,
    is_over: impl Fn(&[Mail]) -> bool,
) -> Vec<u64> {
    let mut taken = Vec::new();
    while is_over(model)
        && let Some(at) = model.iter().position(&goes)
    {
        taken.push(model.remove(at).message);
    }
    taken
}

proptest! {
    #[test]
    fn a_mailbox_keeps_order_and_bounds_and_counts_what_it_drops(steps in prop::collection::vec(step(), 1..60)) {
        let (mut mailbox, mut model) = (Mailbox::default(), Vec::<Mail>::new());
        let mut dropped = 0;
        let each = {
            let mut alone = Mailbox::default();
            alone.push(mail(50, 1, false));
            alone.bytes() - EncodedFrame::text(b"").len()
        };
        let bytes_of = |mail: &[Mail]| mail.iter().map(|mail| mail.frame.len() + each).sum::<usize>();
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Push(expires, is_emergency) => {
                    let new = mail(number as u64, expires, is_emergency);
                    model.push(new.clone());
                    mailbox.push(new);
                }
                Step::Acknowledge(ids) => {
                    let taken = mailbox.take_each(&ids);
                    prop_assert!(messages(&taken).iter().all(|id| ids.contains(id)));
                    let before = model.len();
                    model.retain(|mail| !ids.contains(&mail.message));
                    prop_assert_eq!(taken.len(), before - model.len());
                }
                Step::Expire(now) => {
                    let expired = mailbox.expire(at(now));
                    let (kept, gone) = model.into_iter().partition(|mail| mail.expires > at(now));
                    model = kept;
                    let gone: Vec<Mail> = gone;
                    prop_assert_eq!(messages(&expired), messages(&gone));
                    dropped += gone.len() as u64;
                }
                Step::Trim(size) => {
                    let is_over = |mail: &[Mail]| mail.len() > size;
                    let mut gone = take_oldest(&mut model, |mail| !mail.is_emergency, is_over);
                    gone.extend(take_oldest(&mut model, |_| true, is_over));
                    prop_assert_eq!(messages(&mailbox.trim(size, usize::MAX)), gone.clone());
                    dropped += gone.len() as u64;
                }
                Step::Release(bytes, too) => {
                    let wanted = bytes_of(&model).saturating_sub(bytes);
                    let gone = take_oldest(&mut model, |mail| too || !mail.is_emergency, |mail| bytes_of(mail) > wanted);
                    let released = messages(&mailbox.release(bytes, too));
                    prop_assert_eq!(&released, &gone);
                    dropped += released.len() as u64;
                }
                Step::Tell(arrives) => {
                    prop_assert_eq!(mailbox.dropped(), dropped);
                    mailbox.tell();
                    if arrives {
                        mailbox.confirm();
                        dropped = 0;
                    }
                }
            }
            prop_assert_eq!(messages(mailbox.iter_mut().map(|mail| &*mail)), messages(&model));
            prop_assert_eq!(mailbox.bytes(), bytes_of(&model));
            prop_assert_eq!(mailbox.weight() > 0, !model.is_empty());
        }
        let numbers: Vec<u64> = mailbox.iter_mut().map(|mail| mail.number).collect();
        prop_assert!(numbers.is_sorted_by(|one, other| one < other));
    }

    #[test]
    fn a_key_is_known_for_its_time_and_among_so_many(
        uses in prop::collection::vec((0_usize..6, 0_u64..30), 1..60), limit in 1_usize..5,
    ) {
        const TTL: u64 = 50;
        const SCOPE: Scope<'static> = Scope { client: None, target: "scope" };
        let limits = Limits { total: limit, of_one_client: 1 };
        let keys = Idempotency::<usize, StoreError>::new(Duration::from_micros(TTL), limits);
        // key, when it was first used, its result; oldest first
        let mut model: Vec<(usize, u64, usize)> = Vec::new();
        let mut now = 0;
        for (number, (key, later)) in uses.into_iter().enumerate() {
            now += later;
            model.retain(|(_, begun, _)| now - begun < TTL);
            let name = key.to_string();
            let known = keys.begin(SCOPE, &name, at(now), None, false, &mut not_later);
            match (known, model.iter().find(|(known, ..)| *known == key)) {
                (Lookup::Known(result), Some((_, _, first))) => prop_assert_eq!(result, *first),
                (Lookup::Free(ticket), None) => {
                    keys.done(&ticket, number);
                    if model.len() == limit {
                        model.remove(0);
                    }
                    model.push((key, now, number));
                }
                (known, model) => {
                    prop_assert!(false, "free: {}, {model:?}", matches!(known, Lookup::Free(_)));
                }
            }
        }
    }
}

/// Callers that wait until a test completes them.
type Held = Arc<Mutex<Vec<Committed>>>;

/// A store that completes no change by itself, and the callers that wait for it.
fn held_store() -> (Arc<dyn Store>, Held) {
    let held = Held::default();
    let waiting = Arc::clone(&held);
    let store = WaitedFor(move |committed: Option<Committed>| {
        waiting.lock().extend(committed);
        Ok(())
    });
    (Arc::new(store), held)
}

fn settle(held: &Held, outcome: &Result<(), StoreError>) {
    // no lock is held while a waiting caller is completed
    let waiting = std::mem::take(&mut *held.lock());
    for committed in waiting {
        committed.complete(outcome.clone());
    }
}

fn node_over(store: Arc<dyn Store>, config: Config) -> Arc<Node> {
    let broker = MemoryBroker::new(store.clone(), history_limits(config.history_bytes));
    let ports = ports_on(&config, Arc::new(broker), store);
    Arc::new(Node::new(Arc::new(config), ports))
}

const BODY: Body<'static> = Body::Message(b"\"hello\"");

/// Sends to `user`; counts in `saved` and `failed` what became of saving it.
fn send_durably(node: &Arc<Node>, outcomes: &Arc<[AtomicUsize; 2]>, body: Body<'_>) -> u64 {
    let options = PublishOptions {
        durable: true,
        idempotency_key: Some("key"),
        ..PublishOptions::default()
    };
    let count = |outcomes: &[AtomicUsize; 2], is_failure: bool| {
        outcomes[usize::from(is_failure)].fetch_add(1, Ordering::Relaxed);
    };
    let mut later = || {
        let outcomes = Arc::clone(outcomes);
        Completion::new(move |outcome: Result<Sent, Error>| count(&outcomes, outcome.is_err()))
    };
    match node.send("user", "jungle", body, &options, &mut later) {
        Progress::Begun(sent) => sent.unwrap().stamp.id,
        Progress::Ended(sent) => {
            count(outcomes, sent.is_err());
            sent.unwrap().stamp.id
        }
    }
}

fn counts(outcomes: &[AtomicUsize; 2]) -> [usize; 2] {
    [0, 1].map(|which| outcomes[which].load(Ordering::Relaxed))
}

#[test]
fn a_repeat_of_a_durable_message_waits_until_the_first_is_saved() {
    let (store, held) = held_store();
    let node = node_over(store, Config::default());
    let outcomes = Arc::default();
    let first = send_durably(&node, &outcomes, BODY);
    assert_eq!(send_durably(&node, &outcomes, BODY), first);
    assert_eq!(counts(&outcomes), [0, 0]);
    settle(&held, &Ok(()));
    assert_eq!(counts(&outcomes), [2, 0]);
    assert_eq!(send_durably(&node, &outcomes, BODY), first);
    assert_eq!(counts(&outcomes), [3, 0]);
    assert_eq!(node.stats().mail.0, 1);
}

#[test]
fn a_durable_message_that_was_not_saved_may_be_sent_again() {
    let (store, held) = held_store();
    let node = node_over(store, Config::default());
    let outcomes = Arc::default();
    let first = send_durably(&node, &outcomes, BODY);
    settle(&held, &Err(StoreError("full".to_owned())));
    assert_eq!(counts(&outcomes), [0, 1]);
    assert_ne!(send_durably(&node, &outcomes, BODY), first);
}

#[test]
fn a_durable_message_that_no_mailbox_can_hold_is_not_said_to_be_saved() {
    let config = Config {
        mailbox_bytes: 200,
        ..Config::default()
    };
    let node = node_over(held_store().0, config);
    let outcomes = Arc::default();
    let large = format!("\"{}\"", "x".repeat(500));
    send_durably(&node, &outcomes, Body::Message(large.as_bytes()));
    assert_eq!(counts(&outcomes), [0, 1]);
}

#[test]
fn durable_is_refused_where_nothing_is_kept() {
    let options = PublishOptions {
        durable: true,
        ..PublishOptions::default()
    };
    let nothing_kept = [
        Config {
            history_size: 0,
            ..Config::default()
        },
        Config {
            history_bytes: 0,
            ..Config::default()
        },
        Config {
            message_ttl: Duration::ZERO,
            ..Config::default()
        },
    ];
    for config in nothing_kept {
        let keeps_mail = !config.message_ttl.is_zero();
        let node = node_over(held_store().0, config);
        let published = node.broadcast("jungle", "news", b"1", &options, &mut not_later);
        let Progress::Ended(Err(Error::Argument(why))) = published else {
            panic!("nothing is kept");
        };
        assert!(why.contains("history_size"));
        let sent = node.send("user", "jungle", BODY, &options, &mut || {
            Completion::new(drop)
        });
        assert_eq!(matches!(sent, Progress::Begun(_)), keeps_mail);
    }
    let node = node_over(Arc::new(MemoryStore), Config::default());
    let published = node.broadcast("jungle", "news", b"1", &options, &mut not_later);
    assert!(
        matches!(published, Progress::Ended(Err(Error::Argument(why))) if why.contains("database"))
    );
}

#[test]
fn an_emergency_waits_for_no_shard_that_is_behind() {
    let node = node_over(Arc::new(MemoryStore), Config::default());
    let handle = Arc::new(ShardHandle::new(1));
    node.shards.attach(vec![Arc::clone(&handle)]);
    connected(node.connect(PLACE, &ConnectRequest::default())).unwrap();
    handle.inbox.push(Delivery::Drain);
    assert!(handle.inbox.is_full());
    let begun = Instant::now();
    assert_eq!(emergency(&node, "fire"), 1);
    let options = PublishOptions {
        priority: Priority::Emergency,
        ..PublishOptions::default()
    };
    ended(node.broadcast("jungle", "news", b"1", &options, &mut not_later));
    ended(node.send("user", "jungle", BODY, &options, &mut not_later));
    // a publisher is held back for 5 s
    assert!(begun.elapsed() < Duration::from_secs(4));
}

#[test]
fn a_connection_knows_which_emergencies_went_out_before_it_came() {
    let node = node_over(Arc::new(MemoryStore), Config::default());
    let handle = Arc::new(ShardHandle::new(1 << 20));
    node.shards.attach(vec![Arc::clone(&handle)]);
    assert_eq!(emergency(&node, "one"), 0);
    assert_eq!(
        connected(node.connect(PLACE, &ConnectRequest::default()))
            .unwrap()
            .emergencies,
        1
    );
    assert_eq!(emergency(&node, "two"), 1);
    let mut taken = Vec::new();
    handle.inbox.take(&mut taken);
    let numbers: Vec<u64> = taken
        .iter()
        .filter_map(|delivery| match delivery {
            Delivery::Urgent { number, .. } => Some(*number),
            _ => None,
        })
        .collect();
    assert_eq!(numbers, [1, 2]);
}
