//! What the fan-out must not do more often than once.

use crate::peer::{broadcast, connected, history_limits, ports_on};
use _tantor::adapters::memory_broker::MemoryBroker;
use _tantor::adapters::memory_store::MemoryStore;
use _tantor::node::{ConnectRequest, ConnectionId, Delivery, Node, ShardHandle};
use _tantor::ports::broker::CHANNEL_SIZE;
use _tantor::settings::config::Config;
use std::sync::Arc;

/// A node that keeps no history and saves nothing.
fn node(config: Config) -> Arc<Node> {
    let broker = MemoryBroker::new(Arc::new(MemoryStore), history_limits(0));
    let ports = ports_on(&config, Arc::new(broker), Arc::new(MemoryStore));
    Arc::new(Node::new(Arc::new(config), ports))
}

#[test]
fn no_more_connect_than_may_from_any_number_of_threads() {
    let config = Config {
        max_connections: 3,
        ..Config::default()
    };
    let node = node(config);
    let node = &node;
    let count: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|slot| {
                scope.spawn(move || {
                    let connection_id = ConnectionId {
                        shard: 0,
                        slot,
                        generation: 1,
                    };
                    let connecting = node.connect(connection_id, &ConnectRequest::default());
                    connected(connecting).is_some()
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| usize::from(thread.join().unwrap()))
            .sum()
    });
    assert_eq!((count, node.connection_count()), (3, 3));
    assert_eq!(node.counters.refused_full.get(), 5);
}

#[test]
fn one_encode_and_one_push_a_shard_for_ten_thousand_subscribers() {
    let config = Config {
        notice_limit: 0,
        ..Config::default()
    };
    let node = node(config);
    let shards: Vec<_> = (0..4)
        .map(|_| Arc::new(ShardHandle::new(usize::MAX)))
        .collect();
    node.shards.attach(shards.clone());
    for number in 0..10_000_u32 {
        let connection_id = ConnectionId {
            shard: number as usize % 3,
            slot: number,
            generation: 1,
        };
        let connecting = node.connect(connection_id, &ConnectRequest::default());
        let connected = connected(connecting).unwrap();
        node.join_default_channel(&connected);
    }
    let mut taken = Vec::new();
    for handle in &shards {
        handle.inbox.take(&mut taken);
        taken.clear();
    }
    let before = node.counters.encoded.get();
    assert_eq!(broadcast(&node, "jungle", "tick", b"{\"n\":1}"), 10_000);
    assert_eq!(node.counters.encoded.get() - before, 1);
    let mut frames = Vec::new();
    for (shard, handle) in shards.iter().enumerate() {
        handle.inbox.take(&mut taken);
        assert_eq!(taken.len(), usize::from(shard < 3), "shard {shard}");
        for delivery in taken.drain(..) {
            let Delivery::Publish { frame, .. } = delivery else {
                panic!("{delivery:?}")
            };
            frames.push(frame.bytes().as_ptr());
        }
    }
    assert!(
        frames.windows(2).all(|pair| pair[0] == pair[1]),
        "the shards do not share the frame's bytes"
    );
}

#[test]
fn channels_made_and_deleted_within_one_tick_count_as_freed() {
    const COUNT: usize = 1000;
    let config = Arc::new(Config::default());
    let broker = MemoryBroker::new(Arc::new(MemoryStore), history_limits(1 << 30));
    let ports = ports_on(&config, Arc::new(broker), Arc::new(MemoryStore));
    let node = Arc::new(Node::new(config, ports));
    node.tick();
    for number in 0..COUNT {
        broadcast(&node, &format!("channel {number}"), "tick", b"{\"n\":1}");
    }
    for number in 0..COUNT {
        assert!(node.delete_channel(&format!("channel {number}")).unwrap());
    }
    let freed = node.tick();
    assert!(freed > COUNT * CHANNEL_SIZE, "{freed}");
    assert_eq!(node.tick(), 0, "and only once");
}
