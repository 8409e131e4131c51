//! The node on a presence that answers late, fails, or is shared with another node.

use crate::adversarial_presence::{AdversarialPresence, PresenceBehaviour};
use crate::peer::{PATIENCE, eventually, history_limits, members, ports_on};
use crate::shards::{Shard, node_on};
use _tantor::adapters::memory_broker::MemoryBroker;
use _tantor::adapters::memory_presence::MemoryPresence;
use _tantor::adapters::memory_store::MemoryStore;
use _tantor::base::completion::{Completion, Progress};
use _tantor::base::error::{Disconnect, Error};
use _tantor::core::hub::Slot;
use _tantor::node::{Node, NodeCalls, Ports};
use _tantor::ports::calls::{Call, Calls, Reply};
use _tantor::ports::presence::Presence;
use _tantor::settings::config::Config;
use serde_json::{Value as Json, json};
use std::collections::BTreeSet;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// A node on top of a presence, with one shard.
fn node_with(presence: Arc<dyn Presence>) -> (Arc<Node>, Shard) {
    let broker = MemoryBroker::new(Arc::new(MemoryStore), history_limits(1 << 20));
    let config = Config {
        leave_delay: Duration::ZERO,
        ..Config::default()
    };
    let ports = Ports {
        presence,
        ..ports_on(&config, Arc::new(broker), Arc::new(MemoryStore))
    };
    let (node, handles) = node_on(config, ports, 1);
    let shard = Shard::new(0, &node, &handles[0]);
    (node, shard)
}

fn adversary(behaviour: PresenceBehaviour) -> Arc<dyn Presence> {
    Arc::new(AdversarialPresence::new(Arc::default(), behaviour))
}

/// The reply to a call, whenever it comes.
fn ask(node: &Arc<Node>, call: Call<'_>) -> Result<Reply, Error> {
    let (tell, told) = mpsc::channel();
    let mut later = || {
        let tell = tell.clone();
        Completion::new(move |reply| tell.send(reply).unwrap())
    };
    match NodeCalls::new(Arc::clone(node)).call(call, &mut later) {
        Progress::Ended(reply) => reply,
        Progress::Begun(_) => told.recv_timeout(PATIENCE).unwrap(),
    }
}

#[test]
fn calls_about_members_may_end_later() {
    let (node, mut shard) = node_with(adversary(PresenceBehaviour::LATE));
    let slot = shard.connect(None).slot;
    let ids: BTreeSet<Arc<str>> = (0..2300).map(|n| Arc::from(format!("{n:04}"))).collect();
    for id in &ids {
        node.subscribe(id, "den").unwrap();
    }
    eventually("all are on the channel", || {
        members(&node, "den").len() == ids.len()
    });
    let Ok(Reply::Ids(present)) = ask(&node, Call::Presence { channel: "den" }) else {
        panic!("the members");
    };
    assert_eq!(present.into_iter().collect::<BTreeSet<_>>(), ids);
    let Ok(Reply::Channel(Some(info))) = ask(&node, Call::Channel { name: "den" }) else {
        panic!("the channel");
    };
    assert_eq!((&*info.name, info.subscribers.len()), ("den", ids.len()));
    let Ok(Reply::Census(census)) = ask(&node, Call::Census) else {
        panic!("the census");
    };
    let count = |name: &str| census.iter().find(|(known, _)| &**known == name).unwrap().1;
    assert_eq!(
        (count("den"), count("jungle"), count("treehouse")),
        (ids.len(), 1, 0)
    );

    shard.receive(
        slot,
        &json!({"action": "presence", "channel": "den", "ref": 7}),
    );
    let reply = reply_to(&mut shard, slot, 7);
    assert_eq!(reply["online"], ids.len());
    assert_eq!(reply["users"].as_array().unwrap().len(), 1000);
    let Ok(Reply::Ids(present)) = ask(&node, Call::Presence { channel: "cave" }) else {
        panic!("the members of no channel");
    };
    assert!(present.is_empty());
    assert!(matches!(
        ask(&node, Call::Channel { name: "cave" }),
        Ok(Reply::Channel(None))
    ));
}

#[test]
fn calls_about_members_fail_with_presence() {
    let (node, mut shard) = node_with(adversary(PresenceBehaviour {
        unavailable: 100,
        ..PresenceBehaviour::LATE
    }));
    let slot = shard.connect(None).slot;
    for call in [
        Call::Presence { channel: "jungle" },
        Call::Channel { name: "jungle" },
        Call::Census,
    ] {
        assert!(
            matches!(ask(&node, call), Err(Error::Storage(_))),
            "{call:?}"
        );
    }
    shard.receive(
        slot,
        &json!({"action": "presence", "channel": "jungle", "ref": 1}),
    );
    assert_eq!(reply_to(&mut shard, slot, 1)["code"], 116);
    shard.receive(
        slot,
        &json!({"action": "join_channel", "channel": "den", "ref": 2}),
    );
    assert_eq!(reply_to(&mut shard, slot, 2)["code"], 116);
    // the client may still leave, and end
    shard.receive(
        slot,
        &json!({"action": "leave_channel", "channel": "jungle", "ref": 3}),
    );
    assert_eq!(reply_to(&mut shard, slot, 3)["event"], "reply");
    shard.end(slot, Disconnect::Closed(1000));
    assert_eq!(node.connection_count(), 0);
}

#[test]
fn members_that_presence_has_lost_are_joined_anew() {
    let presence = Arc::new(AdversarialPresence::new(
        Arc::default(),
        PresenceBehaviour {
            lost: 100,
            unavailable: 30,
            ..PresenceBehaviour::LATE
        },
    ));
    let (node, _shard) = node_with(presence.clone());
    for id in ["a", "b", "c"] {
        node.subscribe(id, "den").unwrap();
    }
    // a join may have failed, and is tried again
    let all = BTreeSet::from(["a", "b", "c"].map(Arc::from));
    presence.be_safe();
    eventually("all are members again", || {
        node.tick();
        all == members(&node, "den").into_iter().collect()
    });
    node.unsubscribe("b", "den").unwrap();
    eventually("one has left", || members(&node, "den").len() == 2);
}

#[test]
fn two_nodes_on_one_presence_count_the_members_of_both() {
    let presence = Arc::new(MemoryPresence::default());
    let (here, mut shard) = node_with(presence.clone());
    let (there, _) = node_with(presence);
    let slot = shard.connect(None).slot;
    here.subscribe("a", "den").unwrap();
    there.subscribe("b", "den").unwrap();
    for node in [&here, &there] {
        assert_eq!(members(node, "den"), [Arc::from("a"), Arc::from("b")]);
    }
    for (reference, total) in [(1, 3), (2, 3)] {
        let join = json!({"action": "join_channel", "channel": "den", "ref": reference});
        shard.receive(slot, &join);
        assert_eq!(reply_to(&mut shard, slot, reference)["subscribers"], total);
    }
    // a client that is on the channel by way of the other node, too, does not join anew
    here.subscribe("b", "den").unwrap();
    here.unsubscribe("a", "den").unwrap();
    assert_eq!(members(&there, "den").len(), 2);
    assert!(there.delete_channel("den").unwrap());
    assert!(members(&here, "den").is_empty());
}

/// The answer to a command.
fn reply_to(shard: &mut Shard, slot: Slot, reference: u64) -> Json {
    let deadline = Instant::now() + PATIENCE;
    loop {
        shard.deliver(1000);
        while let Some(message) = shard.read(slot) {
            if message["ref"] == reference {
                return message;
            }
        }
        assert!(Instant::now() < deadline, "no answer to {reference}");
        std::thread::yield_now();
    }
}
