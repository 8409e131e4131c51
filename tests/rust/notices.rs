//! The order of notices when a client returns while its leave is being told.

use crate::peer::{PATIENCE, connected, eventually, history_limits, members, ports_on};
use _tantor::adapters::memory_broker::MemoryBroker;
use _tantor::adapters::memory_store::MemoryStore;
use _tantor::base::error::Disconnect;
use _tantor::core::history::StreamPosition;
use _tantor::node::{ConnectRequest, ConnectionId, Node, ShardHandle};
use _tantor::ports::broker::{Broker, Delivered, Sink};
use _tantor::settings::channel_kind::ChannelKind;
use _tantor::settings::config::Config;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

/// A sink that, once armed, holds every delivery until it is released.
struct Held {
    is_armed: AtomicBool,
    release: Mutex<mpsc::Receiver<()>>,
}

impl Sink for Held {
    fn deliver(&self, _: &Delivered<'_>) -> usize {
        if self.is_armed.load(Ordering::Acquire) {
            let _ = self.release.lock().unwrap().recv_timeout(PATIENCE);
        }
        0
    }

    fn gap(&self, _: Option<StreamPosition>) {}

    fn subscribers(&self) -> usize {
        0
    }
}

const LEAVE_DELAY: Duration = Duration::from_millis(1);

#[test]
fn a_client_cannot_return_while_its_leave_is_being_told() {
    let config = Config {
        leave_delay: LEAVE_DELAY,
        ..Config::default()
    };
    let (channel, settings) = ("jungle", config.of_channel("jungle"));
    let broker = Arc::new(MemoryBroker::new(Arc::new(MemoryStore), history_limits(0)));
    let (release, released) = mpsc::channel();
    let held = Arc::new(Held {
        is_armed: AtomicBool::new(false),
        release: Mutex::new(released),
    });
    // the first sink of a channel stays
    let sink = Arc::clone(&held) as Arc<dyn Sink>;
    broker.attach(&Arc::from(channel), ChannelKind::Public, settings, &sink);
    let ports = ports_on(&config, broker, Arc::new(MemoryStore));
    let node = Arc::new(Node::new(Arc::new(config), ports));
    node.shards
        .attach(vec![Arc::new(ShardHandle::new(usize::MAX))]);
    let connection_id = ConnectionId {
        shard: 0,
        slot: 0,
        generation: 1,
    };
    let connecting = node.connect(connection_id, &ConnectRequest::default());
    let connected = connected(connecting).unwrap();
    node.join_default_channel(&connected);
    let id = Arc::clone(&connected.client.id);
    node.disconnect(
        &connected.client,
        connection_id,
        Disconnect::Lost,
        Vec::new(),
    );

    let (is_free, free) = mpsc::channel();
    thread::scope(|scope| {
        held.is_armed.store(true, Ordering::Release);
        // the leave is due when the tick begins, which tells leaves before it waits for streams elsewhere
        thread::sleep(10 * LEAVE_DELAY);
        scope.spawn(|| node.tick());
        eventually("the client is off the channel", || {
            members(&node, channel).is_empty()
        });
        scope.spawn(|| {
            // needs the lock of the client, as its return does
            node.user_data(&id);
            is_free.send(()).unwrap();
        });
        let early = free.recv_timeout(Duration::from_millis(300));
        assert!(
            early.is_err(),
            "the client could return before its leave was told"
        );
        release.send(()).unwrap();
        free.recv_timeout(PATIENCE).unwrap();
    });
}
