//! The order of notices when a client returns while its leave is being told.

use crate::peer::{PATIENCE, eventually, history_limits};
use _tantor::adapters::memory_broker::MemoryBroker;
use _tantor::adapters::memory_store::MemoryStore;
use _tantor::base::error::Disconnect;
use _tantor::node::{ConnectRequest, ConnectionId, Node, ShardHandle};
use _tantor::ports::broker::Broker;
use _tantor::settings::channel_kind::ChannelKind;
use _tantor::settings::config::Config;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

const LEAVE_DELAY: Duration = Duration::from_millis(1);

#[test]
fn a_client_cannot_return_while_its_leave_is_being_told() {
    let config = Config {
        leave_delay: LEAVE_DELAY,
        ..Config::default()
    };
    let (channel, settings) = ("jungle", config.of_channel("jungle"));
    let broker = Arc::new(MemoryBroker::new(Arc::new(MemoryStore), history_limits(0)));
    let as_broker = Arc::clone(&broker) as Arc<dyn Broker>;
    let node = Arc::new(Node::new(
        Arc::new(config),
        as_broker,
        Arc::new(MemoryStore),
    ));
    node.shards
        .attach(vec![Arc::new(ShardHandle::new(usize::MAX))]);
    let connection_id = ConnectionId {
        shard: 0,
        slot: 0,
        generation: 1,
    };
    let connected = node
        .connect(connection_id, &ConnectRequest::default())
        .unwrap();
    node.join_default_channel(&connected);
    let id = Arc::clone(&connected.client.id);
    let stream = broker.open(&Arc::from(channel), ChannelKind::Public, settings);
    node.disconnect(
        &connected.client,
        connection_id,
        Disconnect::Lost,
        Vec::new(),
    );

    let (is_held, held) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let (is_free, free) = mpsc::channel();
    thread::scope(|scope| {
        // a notice waits for the lock of its stream, which this reader holds
        scope.spawn(move || {
            stream.read(&mut |_| {
                is_held.send(()).unwrap();
                let _ = released.recv_timeout(PATIENCE);
            });
        });
        held.recv_timeout(PATIENCE).unwrap();
        // the leave is due when the tick begins, which tells leaves before it waits for streams elsewhere
        thread::sleep(10 * LEAVE_DELAY);
        scope.spawn(|| node.tick());
        eventually("the client is off the channel", || {
            node.presence(channel).is_empty()
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
