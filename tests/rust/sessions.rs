//! Clients that come, go and come back on several threads, while the application puts them on channels and takes them
//! off, ends channels, and sends emergencies: nothing hangs, and in the end everything adds up.

use crate::peer::{PATIENCE, broadcast, emergency, ended, eventually, members, not_later};
use crate::shards::{Shard, node_with_shards};
use _tantor::base::error::Disconnect;
use _tantor::base::random::random_u64;
use _tantor::node::Node;
use _tantor::settings::config::Config;
use _tantor::wire::messages::Body;
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

const SHARDS: usize = 4;
const CHANNELS: [&str; 4] = ["jungle", "den", "hut", "plaza"];
const TURNS: usize = 6000;

/// Tokens that somebody may come back with, good or not, and everybody's id.
#[derive(Default)]
struct Known {
    tokens: Mutex<Vec<String>>,
    ids: Mutex<BTreeSet<String>>,
}

#[test]
fn sessions_survive_whatever_happens_at_the_same_time() {
    let config = Config {
        history_size: 10,
        leave_delay: Duration::from_millis(2),
        resume_ttl: Duration::from_millis(15),
        message_ttl: Duration::from_millis(50),
        emergency_ttl: Duration::from_millis(50),
        ack_timeout: Duration::from_millis(4),
        max_away_clients: 12,
        max_empty_channels: 2,
        empty_channel_ttl: Duration::ZERO,
        ..Config::default()
    };
    let (node, shards) = node_with_shards(config, SHARDS);
    let known = Arc::new(Known::default());
    let is_over = Arc::new(AtomicBool::new(false));
    let (tell, told) = mpsc::channel();
    for (index, handle) in shards.iter().enumerate() {
        let shard = Shard::new(index, &node, handle);
        let (known, tell) = (Arc::clone(&known), tell.clone());
        thread::spawn(move || tell.send(serve(shard, &known)).unwrap());
    }
    for _ in 0..2 {
        let (node, known) = (Arc::clone(&node), Arc::clone(&known));
        let is_over = Arc::clone(&is_over);
        thread::spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                meddle(&node, &known);
            }
        });
    }
    let mut shards: Vec<Shard> = (0..SHARDS)
        .map(|_| {
            told.recv_timeout(3 * PATIENCE)
                .unwrap_or_else(|_| panic!("a shard hangs"))
        })
        .collect();
    is_over.store(true, Ordering::Relaxed);
    // whoever meddles may be in the middle of something
    eventually("nobody meddles any more", || {
        Arc::strong_count(&is_over) == 1
    });
    deliver_all(&mut shards);
    check_sums(&node, &mut shards);
    check_nothing_stays(&node, &mut shards, &known);
}

/// A shard's thread: its clients come, go, come back and ask, in any order.
fn serve(mut shard: Shard, known: &Known) -> Shard {
    for _ in 0..TURNS {
        shard.deliver(pick(20));
        let open = shard.open();
        let somebody = (!open.is_empty()).then(|| open[pick(open.len())].0);
        match (pick(10), somebody) {
            (0, _) if open.len() < 8 => enter(&mut shard, known, None),
            (1..=3, _) if open.len() < 8 => {
                let token = {
                    let tokens = known.tokens.lock().unwrap();
                    (!tokens.is_empty()).then(|| tokens[pick(tokens.len())].clone())
                };
                enter(&mut shard, known, token.as_deref());
            }
            (4, Some(slot)) => shard.end(slot, Disconnect::Lost),
            (5, Some(slot)) => {
                let disconnects = [
                    Disconnect::Closed(1000),
                    Disconnect::Closed(4900),
                    Disconnect::SlowConsumer,
                ];
                shard.end(slot, disconnects[pick(3)]);
            }
            (_, Some(slot)) => {
                let channel = CHANNELS[pick(CHANNELS.len())];
                let frame = match pick(5) {
                    0 => json!({"action": "leave_channel", "channel": channel}),
                    1 => json!({"action": "broadcast", "channel": channel}),
                    2 => json!({"action": "history", "channel": channel, "ref": 1}),
                    3 => json!({"action": "join_channel", "channel": channel, "ref": 1,
                        "recover": {"epoch": "0123456789abcdef", "offset": 1}}),
                    _ => json!({"action": "join_channel", "channel": channel}),
                };
                shard.receive(slot, &frame);
                while shard.read(slot).is_some() {}
            }
            _ => {}
        }
    }
    shard
}

fn enter(shard: &mut Shard, known: &Known, token: Option<&str>) {
    let greeted = shard.connect(token);
    let field = |name: &str| greeted.welcome[name].as_str().unwrap().to_owned();
    known.ids.lock().unwrap().insert(field("client_id"));
    let mut tokens = known.tokens.lock().unwrap();
    if tokens.len() > 40 {
        let at = pick(tokens.len());
        tokens.swap_remove(at);
    }
    tokens.push(field("resume"));
}

/// What the application, its handlers and the clock do meanwhile.
fn meddle(node: &Arc<Node>, known: &Known) {
    let id = {
        let ids = known.ids.lock().unwrap();
        ids.iter().nth(pick(ids.len().max(1))).cloned()
    };
    let channel = CHANNELS[pick(CHANNELS.len())];
    let Some(id) = id else { return };
    match pick(13) {
        0 => node.unsubscribe(&id, channel).unwrap(),
        1 if node.has_connection(&id) => node.subscribe(&id, channel).unwrap(),
        2 => drop(node.delete_channel(CHANNELS[1 + pick(3)]).unwrap()),
        3 => drop(emergency(node, "lions")),
        4 => {
            let token = ended(node.resume_token(&id, &mut not_later));
            known.tokens.lock().unwrap().push(token);
        }
        5 => node.set_user_data(&id, b"1".to_vec()),
        6 => drop((
            ended(node.census(&mut not_later)),
            node.connection_ids(),
            node.worst_connections(3),
        )),
        7 => drop((
            node.connection_info(&id),
            ended(node.channel_info(channel, &mut not_later)),
        )),
        8 if node.has_connection(&id) => {
            let body = Body::Message(b"\"hello\"");
            let options = _tantor::ports::calls::PublishOptions::default();
            ended(node.send(&id, channel, body, &options, &mut not_later));
        }
        9 | 10 => drop(node.tick()),
        _ => drop(broadcast(node, channel, "n", b"1")),
    }
}

fn deliver_all(shards: &mut [Shard]) {
    // closing a connection may tell others
    while shards.iter_mut().any(|shard| shard.deliver(1000)) {}
    for shard in shards {
        for (slot, _) in shard.open() {
            while shard.read(slot).is_some() {}
        }
    }
}

/// Who is connected, who is on a channel, who is counted and who gets what is published are the same.
fn check_sums(node: &Arc<Node>, shards: &mut [Shard]) {
    let open: Vec<_> = shards.iter().flat_map(Shard::open).collect();
    assert_eq!(node.connection_count(), open.len());
    let ids: BTreeSet<_> = open.iter().map(|(_, client)| client.id.clone()).collect();
    assert_eq!(ids.len(), open.len(), "one connection for each client");
    assert_eq!(ids, node.connection_ids().into_iter().collect());
    for channel in CHANNELS {
        let present: BTreeSet<_> = members(node, channel).into_iter().collect();
        let wanted: BTreeSet<_> = present.intersection(&ids).cloned().collect();
        let says_so = |id: &Arc<str>| {
            let info = node.connection_info(id).unwrap();
            info.channels.iter().any(|name| &**name == channel)
        };
        assert!(ids.iter().all(|id| says_so(id) == wanted.contains(id)));
        let recipients = broadcast(node, channel, "last", b"1");
        while shards.iter_mut().any(|shard| shard.deliver(1000)) {}
        let mut reached = Vec::new();
        for shard in shards.iter_mut() {
            for (slot, client) in shard.open() {
                while let Some(message) = shard.read(slot) {
                    if message["event"] == "last" {
                        reached.push(client.id.clone());
                    }
                }
            }
        }
        assert_eq!(reached.len(), recipients);
        assert_eq!(reached.len(), wanted.len(), "each once");
        assert_eq!(reached.into_iter().collect::<BTreeSet<_>>(), wanted);
    }
}

/// When all have left or were forgotten, nothing is known of anybody.
fn check_nothing_stays(node: &Arc<Node>, shards: &mut [Shard], known: &Known) {
    for shard in shards.iter_mut() {
        for (slot, _) in shard.open() {
            shard.end(slot, Disconnect::Closed(1000));
        }
    }
    eventually("nobody is expected back", || {
        node.tick();
        node.stats().away == 0
    });
    let ids = known.ids.lock().unwrap();
    assert!(ids.len() > 100, "only {} clients were there", ids.len());
    for id in ids.iter() {
        for channel in CHANNELS {
            // the application may have put it there
            node.unsubscribe(id, channel).unwrap();
        }
    }
    eventually("no mail is kept", || {
        node.tick();
        node.stats().mail == (0, 0)
    });
    for channel in CHANNELS {
        assert_eq!(members(node, channel).len(), 0, "{channel}");
    }
    for id in ids.iter() {
        node.set_user_data(id, b"1".to_vec());
        assert_eq!(node.user_data(id), None, "{id} is still known");
    }
}

fn pick(below: usize) -> usize {
    (random_u64() % below as u64) as usize
}
