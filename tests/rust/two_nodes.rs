//! Two nodes on the same sessions: a client moves between them with what it has, and each lets go of it.

use crate::adversarial_sessions::LateSessions;
use crate::adversary::Behaviour;
use crate::peer::{PATIENCE, history_limits, members, ports_on};
use crate::shards::{Greeted, Shard, node_on};
use _tantor::adapters::memory_broker::MemoryBroker;
use _tantor::adapters::memory_sessions::MemorySessions;
use _tantor::adapters::memory_store::MemoryStore;
use _tantor::base::completion::{Completion, Progress};
use _tantor::base::error::Disconnect;
use _tantor::core::hub::Slot;
use _tantor::node::{Node, Ports};
use _tantor::ports::sessions::Sessions;
use _tantor::settings::config::Config;
use serde_json::json;
use std::sync::{Arc, mpsc};
use std::time::Instant;

struct Process {
    late: Option<Arc<LateSessions>>,
    node: Arc<Node>,
    shard: Shard,
}

impl Process {
    fn over_memory(memory: MemorySessions) -> Self {
        Self::new(Arc::new(memory), None)
    }

    /// With an adversary before the sessions.
    fn late(memory: MemorySessions) -> Self {
        let late = Arc::new(LateSessions::new(Arc::new(memory), Behaviour::LATE));
        Self::new(Arc::clone(&late) as _, Some(late))
    }

    fn new(sessions: Arc<dyn Sessions>, late: Option<Arc<LateSessions>>) -> Self {
        let store = Arc::new(MemoryStore);
        let broker = MemoryBroker::new(store.clone(), history_limits(1 << 20));
        let config = Config::default();
        let ports = Ports {
            sessions,
            ..ports_on(&config, Arc::new(broker), store)
        };
        let (node, handles) = node_on(config, ports, 1);
        let shard = Shard::new(0, &node, &handles[0]);
        Self { late, node, shard }
    }

    fn connect(&mut self, token: Option<&str>) -> Greeted {
        let slot = self.shard.begin(token);
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(greeted) = self.shard.greeted(slot) {
                return greeted.unwrap();
            }
            assert!(Instant::now() < deadline, "no claim comes");
            self.shard.deliver(100);
            std::thread::yield_now();
        }
    }

    /// A token that the application asks for.
    fn token(&self, id: &str) -> String {
        let (tell, told) = mpsc::channel();
        let mut later = || {
            let tell = tell.clone();
            Completion::new(move |outcome| tell.send(outcome).unwrap())
        };
        match self.node.resume_token(id, &mut later) {
            Progress::Ended(token) => token.unwrap(),
            Progress::Begun(_) => told.recv_timeout(PATIENCE).unwrap().unwrap(),
        }
    }

    fn until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self) {
            assert!(Instant::now() < deadline, "it never came about that {what}");
            self.node.tick();
            while self.shard.deliver(100) {}
        }
    }

    /// Waits until what was saved so far is there for the other process.
    fn settle(&self) {
        if let Some(late) = &self.late {
            late.drain();
        }
    }

    fn presence(&self, channel: &str) -> Vec<String> {
        let ids = members(&self.node, channel);
        ids.iter().map(ToString::to_string).collect()
    }
}

/// Two processes on the same sessions: in memory, and with an adversary before each.
fn pairs() -> Vec<[Process; 2]> {
    let memory = || {
        let resume_ttl = Config::default().resume_ttl;
        let one = MemorySessions::new(Arc::new(MemoryStore), resume_ttl);
        let other = one.of_another_process();
        [one, other]
    };
    vec![
        memory().map(Process::over_memory),
        memory().map(Process::late),
    ]
}

fn text(greeted: &Greeted, field: &str) -> String {
    greeted.welcome[field].as_str().unwrap().to_owned()
}

/// Sends a frame, which confirms the token of the connection.
fn speak(process: &Process, slot: Slot) {
    let frame = json!({"action": "join_channel", "channel": "den"});
    process.shard.receive(slot, &frame);
}

#[test]
fn a_connected_client_moves_to_another_node() {
    for [mut one, mut other] in pairs() {
        let first = one.connect(None);
        let id = text(&first, "client_id");
        speak(&one, first.slot);
        one.node.set_user_data(&id, b"{\"name\":\"Ada\"}".to_vec());
        assert_eq!(one.presence("den"), [&*id]);
        one.settle();

        let mut second = other.connect(Some(&text(&first, "resume")));
        assert_eq!(second.welcome["resumed"], true);
        assert_eq!(text(&second, "client_id"), id);
        assert!(other.node.user_data(&id).is_some());
        assert_eq!(other.presence("den"), [&*id]);
        one.until("the older connection is closed", |one| {
            !one.shard.is_open(first.slot)
        });
        assert_eq!(one.node.connection_count(), 0);
        assert!(one.presence("den").is_empty());
        assert_eq!(
            one.node.user_data(&id),
            None,
            "the client is not known here"
        );

        // and back, from a node where the client is away
        speak(&other, second.slot);
        other.shard.end(second.slot, Disconnect::Lost);
        assert_eq!(other.node.stats().away, 1);
        other.settle();
        second = one.connect(Some(&text(&second, "resume")));
        assert_eq!(second.welcome["resumed"], true);
        other.until("the client is not expected any more", |other| {
            other.node.stats().away == 0
        });
        assert!(other.presence("den").is_empty());
        assert_eq!(one.presence("den"), [&*id]);
    }
}

#[test]
fn a_token_that_one_node_gives_is_good_at_another() {
    for [mut one, mut other] in pairs() {
        one.node.subscribe("ada", "den").unwrap();
        let token = one.token("ada");
        assert_eq!(one.node.stats().away, 1);
        let greeted = other.connect(Some(&token));
        assert_eq!(greeted.welcome["resumed"], true);
        assert_eq!(text(&greeted, "client_id"), "ada");
        assert_eq!(greeted.welcome["channels"], json!(["den", "jungle"]));
        one.until("the client is not expected any more", |one| {
            one.node.stats().away == 0
        });
        assert!(one.presence("den").is_empty());
        assert_eq!(other.presence("den"), ["ada"]);
    }
}
