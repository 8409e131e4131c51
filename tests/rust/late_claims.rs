//! Connections whose claim on their client comes late, through real sockets.

use crate::admission::{FRAMES, expect_refused, handshake, pipelined};
use crate::adversarial_sessions::LateSessions;
use crate::adversary::Behaviour;
use crate::peer::{PATIENCE, Peer, Served, eventually};
use _tantor::adapters::memory_sessions::MemorySessions;
use _tantor::adapters::memory_store::MemoryStore;
use _tantor::base::completion::{Later, Progress};
use _tantor::core::resume_secrets::Secret;
use _tantor::ports::broker::Failure;
use _tantor::ports::claim::ClaimNumber;
use _tantor::ports::saved_sessions::SavedClient;
use _tantor::ports::sessions::{
    Change, ClaimFailure, ClaimRequest, Claimed, SessionSink, SessionState, Sessions,
};
use _tantor::settings::config::Config;
use serde_json::Value as Json;
use std::collections::HashMap;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// Sessions whose claims wait until the test lets them go.
struct Holding {
    inner: MemorySessions,
    holds: AtomicBool,
    held: Mutex<Vec<Box<dyn FnOnce() + Send>>>,
}

impl Holding {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            inner: memory(),
            holds: AtomicBool::new(false),
            held: Mutex::default(),
        })
    }

    fn let_go(&self) {
        self.holds.store(false, Ordering::Relaxed);
        for complete in std::mem::take(&mut *self.held.lock().unwrap()) {
            complete();
        }
    }
}

impl Sessions for Holding {
    fn attach(&self, sink: Arc<dyn SessionSink>) {
        self.inner.attach(sink);
    }

    fn restore(&self, clients: &[SavedClient], memberships: &HashMap<Arc<str>, Vec<Arc<str>>>) {
        self.inner.restore(clients, memberships);
    }

    fn claim(
        &self,
        request: &ClaimRequest<'_>,
        later: &mut Later<'_, Claimed, ClaimFailure>,
    ) -> Progress<Claimed, ClaimFailure> {
        let progress = self.inner.claim(request, later);
        if !self.holds.load(Ordering::Relaxed) {
            return progress;
        }
        let Progress::Ended(outcome) = progress else {
            panic!("memory answers at once");
        };
        let completion = later();
        let complete = Box::new(move || completion.complete(outcome));
        self.held.lock().unwrap().push(complete);
        Progress::Begun(None)
    }

    fn confirm(&self, client: &Arc<str>, claim: ClaimNumber) {
        self.inner.confirm(client, claim);
    }

    fn release(&self, client: &Arc<str>, claim: ClaimNumber, state: &dyn Fn() -> SessionState) {
        self.inner.release(client, claim, state);
    }

    fn end(&self, client: &Arc<str>, claim: Option<ClaimNumber>) {
        self.inner.end(client, claim);
    }

    fn save(&self, client: &Arc<str>, claim: Option<ClaimNumber>, change: Change<'_>) {
        self.inner.save(client, claim, change);
    }

    fn token(
        &self,
        client: &Arc<str>,
        state: &dyn Fn() -> SessionState,
        later: &mut Later<'_, Secret, Failure>,
    ) -> Progress<Secret, Failure> {
        self.inner.token(client, state, later)
    }
}

/// Sessions that another process has too, and that keep the state of clients therefore.
fn memory() -> MemorySessions {
    let resume_ttl = Config::default().resume_ttl;
    let memory = MemorySessions::new(Arc::new(MemoryStore), resume_ttl);
    let _other = memory.of_another_process();
    memory
}

fn send(served: &Served, bytes: &[u8]) -> Peer {
    let mut peer = Peer::new(served.connect());
    peer.stream.write_all(bytes).unwrap();
    peer
}

/// The welcome of a client that was admitted.
fn welcome(peer: &mut Peer) -> Json {
    let head = peer.read_head();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let welcome = peer.json();
    assert_eq!(welcome["event"], "welcome");
    welcome
}

fn resume(welcome: &Json) -> String {
    format!("resume={}", welcome["resume"].as_str().unwrap())
}

#[test]
fn frames_behind_the_head_wait_for_the_claim() {
    let behaviour = Behaviour {
        seed: 3,
        ..Behaviour::LATE
    };
    let sessions = LateSessions::new(Arc::new(memory()), behaviour);
    let served = Served::with_sessions(&[("shards", 2)], Arc::new(sessions));
    let mut query = vec!["x=1".to_owned(); 30];
    for turn in 0..3 {
        let mut peers: Vec<Peer> = query
            .iter()
            .map(|query| send(&served, &pipelined(query)))
            .collect();
        query.clear();
        for peer in &mut peers {
            let welcome = welcome(peer);
            assert_eq!(welcome["resumed"] == true, turn > 0, "{welcome}");
            for number in 0..FRAMES {
                let reply = peer.json_where(|message| message["event"] == "reply");
                assert_eq!(reply["ref"], number);
            }
            query.push(resume(&welcome));
        }
        // a connection that is still open is displaced, one that has ended is resumed
        peers.truncate(15);
    }
    assert_eq!(served.0.node().counters.resumes.get(), 60);
}

#[test]
fn a_claim_that_comes_after_the_deadline_leaves_the_client_as_it_was() {
    let sessions = Holding::new();
    let settings = [("handshake_timeout", 2), ("shards", 1)];
    let served = Served::with_sessions(&settings, Arc::clone(&sessions) as _);
    let node = served.0.node();
    let mut first = send(&served, &handshake("x=1"));
    let token = resume(&welcome(&mut first));
    drop(first);
    eventually("the client is away", || node.stats().away == 1);

    sessions.holds.store(true, Ordering::Relaxed);
    let mut late = send(&served, &handshake(&token));
    let mut new = send(&served, &handshake("x=2"));
    for peer in [&mut late, &mut new] {
        assert!(expect_refused(peer, "503").contains("in time"));
    }
    sessions.let_go();
    // the claims are behind the connect of another client
    let mut healthy = send(&served, &handshake("x=3"));
    welcome(&mut healthy);
    assert_eq!((node.connection_count(), node.stats().away), (1, 1));
    let mut again = send(&served, &handshake(&token));
    assert_eq!(welcome(&mut again)["resumed"], true, "its token is good");
    assert_eq!((node.connection_count(), node.stats().away), (2, 0));
}

#[test]
fn a_server_that_stops_refuses_connections_that_wait_for_their_claim() {
    let sessions = Holding::new();
    let served = Served::with_sessions(&[("handshake_timeout", 600)], Arc::clone(&sessions) as _);
    sessions.holds.store(true, Ordering::Relaxed);
    let mut peers: Vec<Peer> = (0..10).map(|_| send(&served, &handshake("x=1"))).collect();
    eventually("all wait", || sessions.held.lock().unwrap().len() == 10);
    served.0.begin_stop();
    for peer in &mut peers {
        assert!(expect_refused(peer, "503").contains("stopping"));
    }
    sessions.let_go();
    drop(peers);
    assert!(served.0.wait_stopped(Some(PATIENCE)));
    assert_eq!(served.0.node().counters.connections_total.get(), 0);
}
