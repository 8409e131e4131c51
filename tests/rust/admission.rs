//! The contract of admission: against the implementation of the server, and against one that is as awkward as the
//! contract allows.

use crate::peer::{HANDSHAKE, PATIENCE, Peer, Served, eventually, masked};
use _tantor::adapters::admit_all::AdmitAll;
use _tantor::base::completion::Completion;
use _tantor::base::error::Error;
use _tantor::ports::auth::{Admission, AdmissionRequest, Auth, Deferral, Identity, Verdict};
use _tantor::wire::http::head::RequestHead;
use _tantor::wire::http::pages::{Denial, DenialStatus};
use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// Frames that each client sends right behind its request head.
pub const FRAMES: usize = 20;

/// The deadline is far away, also on a busy machine.
const PATIENT: (&str, i64) = ("handshake_timeout", 600);

/// Does with each connection what the query of the request says: `?do=...`.
#[derive(Default)]
pub struct Adversary {
    /// Completions of `do=hold` and `do=never`, until the test completes them.
    held: Mutex<Vec<Completion<Verdict>>>,
    /// How long `do=straddle` waited before it admitted the connection, by the parameter `id`.
    waited: Arc<Mutex<BTreeMap<String, Duration>>>,
}

impl Auth for Adversary {
    fn admit(&self, request: &AdmissionRequest<'_>, deferral: Deferral<'_>) -> Admission {
        let head = Arc::clone(request.head);
        match head.parameter("do").unwrap_or_default() {
            "admit" => Admission::Decided(Verdict::Admitted(identity(&head))),
            "deny" => Admission::Decided(denied()),
            "panic" => panic!("as the test wants"),
            "drop" => deferral.defer().1,
            "fail" => {
                let (completion, deferred) = deferral.defer();
                completion.complete(Err(Error::Storage("as the test wants".to_owned())));
                deferred
            }
            // the verdict is in the inbox before `admit` returns
            "early" => {
                let (completion, deferred) = deferral.defer();
                let verdict = Verdict::Admitted(identity(&head));
                thread::spawn(move || completion.complete(Ok(verdict)))
                    .join()
                    .unwrap();
                deferred
            }
            mode @ ("late" | "late-deny") => {
                let (completion, deferred) = deferral.defer();
                let verdict = if mode == "late" {
                    Verdict::Admitted(identity(&head))
                } else {
                    denied()
                };
                thread::spawn(move || {
                    thread::sleep(Duration::from_millis(5));
                    completion.complete(Ok(verdict));
                });
                deferred
            }
            "straddle" => {
                let (completion, deferred) = deferral.defer();
                let waited = Arc::clone(&self.waited);
                let begun = Instant::now();
                thread::spawn(move || {
                    let wait = head.parameter("wait").unwrap().parse().unwrap();
                    thread::sleep(Duration::from_millis(wait));
                    let id = head.parameter("id").unwrap().to_owned();
                    waited.lock().unwrap().insert(id, begun.elapsed());
                    completion.complete(Ok(Verdict::Admitted(None)));
                });
                deferred
            }
            "hold" | "never" => {
                let (completion, deferred) = deferral.defer();
                self.held.lock().unwrap().push(completion);
                deferred
            }
            other => panic!("the test knows no {other:?}"),
        }
    }
}

impl Adversary {
    fn admit_held(&self) {
        for completion in self.held.lock().unwrap().drain(..) {
            completion.complete(Ok(Verdict::Admitted(None)));
        }
    }
}

fn identity(head: &RequestHead) -> Option<Identity> {
    head.parameter("as").map(|id| Identity::new(id).unwrap())
}

fn denied() -> Verdict {
    Verdict::Denied(Denial::new(DenialStatus::Forbidden, "not on the list"))
}

pub fn handshake(query: &str) -> Vec<u8> {
    let text = String::from_utf8(HANDSHAKE.to_vec()).unwrap();
    text.replace("/chat", &format!("/chat?{query}"))
        .into_bytes()
}

/// A request head with this query, and commands right behind the head.
pub fn pipelined(query: &str) -> Vec<u8> {
    let mut bytes = handshake(query);
    for number in 0..FRAMES {
        let command = format!(r#"{{"action":"presence","ref":{number}}}"#);
        bytes.extend(masked(0x81, command.as_bytes()));
    }
    bytes
}

fn send(served: &Served, bytes: &[u8]) -> Peer {
    let mut peer = Peer::new(served.connect());
    peer.stream.write_all(bytes).unwrap();
    peer
}

/// The client was admitted: the welcome comes first, and every command gets its reply in order. Returns the client's id.
pub fn expect_admitted(peer: &mut Peer) -> String {
    let head = peer.read_head();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let welcome = peer.json();
    assert_eq!(welcome["event"], "welcome");
    for number in 0..FRAMES {
        let reply = peer.json_where(|message| message["event"] == "reply");
        assert_eq!(reply["ref"], number);
    }
    welcome["client_id"].as_str().unwrap().to_owned()
}

/// The client was refused with this status, and nothing follows. Returns the text of the answer.
pub fn expect_refused(peer: &mut Peer, status: &str) -> String {
    let mut answer = peer.read_head();
    assert!(
        answer.starts_with(&format!("HTTP/1.1 {status} ")),
        "{answer}"
    );
    // the bytes behind the head are not read, so the end may be a reset
    while let Some(text) = peer.some_text() {
        answer.push_str(&text);
    }
    answer
}

#[test]
fn frames_behind_the_head_are_answered_after_the_welcome() {
    let served = Served::with_auth(&[], Arc::new(AdmitAll));
    let mut peers: Vec<_> = (0..50).map(|_| send(&served, &pipelined("x=1"))).collect();
    for peer in &mut peers {
        expect_admitted(peer);
    }
}

#[test]
fn every_connection_gets_its_verdict_whatever_the_authorisation_does() {
    const MODES: &[(&str, Option<&str>)] = &[
        ("admit", None),
        ("early", None),
        ("late", None),
        ("deny", Some("403")),
        ("late-deny", Some("403")),
        ("drop", Some("503")),
        ("fail", Some("503")),
        ("panic", Some("500")),
    ];
    let adversary = Arc::new(Adversary::default());
    let served = Served::with_auth(&[("shards", 2), PATIENT], adversary);
    let mut seed = 0x9E37_79B9_u32;
    let connections: Vec<_> = (0..300)
        .map(|_| {
            // xorshift: the same choices in each run
            seed ^= seed << 13;
            seed ^= seed >> 17;
            seed ^= seed << 5;
            let (mode, refused) = MODES[seed as usize % MODES.len()];
            (send(&served, &pipelined(&format!("do={mode}"))), refused)
        })
        .collect();
    let count = |wanted: Option<&str>| {
        let has = |(_, refused): &&(Peer, Option<&str>)| *refused == wanted;
        connections.iter().filter(has).count() as u64
    };
    let refused = count(Some("403")) + count(Some("503"));
    let mut open = Vec::new();
    for (mut peer, status) in connections {
        if let Some(status) = status {
            expect_refused(&mut peer, status);
        } else {
            expect_admitted(&mut peer);
            open.push(peer);
        }
    }
    let node = served.0.node();
    assert_eq!(node.connection_count(), open.len());
    assert_eq!(node.counters.admissions_refused.get(), refused);
    eventually("no handshake and no unfinished input is left", || {
        let incoming = node.shards.incoming();
        (incoming.handshakes, incoming.unfinished_bytes) == (0, 0)
    });
}

#[test]
fn a_refusal_says_why() {
    let served = Served::with_auth(&[], Arc::new(Adversary::default()));
    let refused = |mode: &str, status: &str| {
        expect_refused(
            &mut send(&served, &handshake(&format!("do={mode}"))),
            status,
        )
    };
    assert!(refused("deny", "403").ends_with("\r\n\r\nnot on the list\n"));
    assert!(refused("drop", "503").contains("could not be checked"));
    assert!(refused("panic", "500").contains("failed"));
}

#[test]
fn a_connection_without_a_verdict_ends_at_its_deadline() {
    let adversary = Arc::new(Adversary::default());
    let auth = Arc::clone(&adversary) as Arc<dyn Auth>;
    let served = Served::with_auth(&[("handshake_timeout", 2)], auth);
    let mut peers: Vec<_> = (0..10)
        .map(|_| send(&served, &pipelined("do=never")))
        .collect();
    for peer in &mut peers {
        assert!(expect_refused(peer, "503").contains("in time"));
    }
    let node = served.0.node();
    assert_eq!(node.counters.admissions_expired.get(), 10);
    adversary.admit_held();
    // the verdicts are behind the connect of a healthy client
    let mut healthy = send(&served, &pipelined("do=admit"));
    expect_admitted(&mut healthy);
    assert_eq!(node.connection_count(), 1);
    assert_eq!(node.counters.connections_total.get(), 1);
}

#[test]
fn no_connection_is_admitted_after_its_deadline() {
    let adversary = Arc::new(Adversary::default());
    let auth = Arc::clone(&adversary) as Arc<dyn Auth>;
    let served = Served::with_auth(&[("handshake_timeout", 2)], auth);
    // some before the deadline, some about at the deadline, some after
    let peers: Vec<_> = (0..60)
        .map(|id| {
            let wait = 1000 + id * 40;
            send(
                &served,
                &handshake(&format!("do=straddle&id={id}&wait={wait}")),
            )
        })
        .collect();
    let heads: Vec<String> = peers.into_iter().map(|mut peer| peer.read_head()).collect();
    // on a busy machine a head may come too late to be decided about
    let asked = heads.iter().filter(|head| !head.contains(" 408 "));
    let asked = asked.count();
    eventually("every verdict is in", || {
        adversary.waited.lock().unwrap().len() == asked
    });
    // the shard counts time in eighths of the timeout
    let latest = Duration::from_millis(2250);
    for (id, waited) in &*adversary.waited.lock().unwrap() {
        let head = &heads[id.parse::<usize>().unwrap()];
        let is_admitted = head.starts_with("HTTP/1.1 101 ");
        assert!(
            !(is_admitted && *waited > latest),
            "{id} was admitted after {waited:?}"
        );
    }
}

#[test]
fn connections_that_wait_for_a_verdict_count_as_handshakes() {
    let adversary = Arc::new(Adversary::default());
    let auth = Arc::clone(&adversary) as Arc<dyn Auth>;
    let served = Served::with_auth(&[("shards", 1), ("max_handshakes", 20), PATIENT], auth);
    let node = served.0.node();
    let mut peers: Vec<_> = (0..10)
        .map(|_| send(&served, &pipelined("do=hold")))
        .collect();
    eventually("all wait", || adversary.held.lock().unwrap().len() == 10);
    eventually("all are counted", || {
        let incoming = node.shards.incoming();
        // each keeps its head, and the frames that came behind the head
        incoming.handshakes == 10 && incoming.unfinished_bytes > 10 * HANDSHAKE.len()
    });
    let mut more: Vec<_> = (0..20)
        .map(|_| send(&served, &pipelined("do=hold")))
        .collect();
    // half of the room is for handshakes, the other half for connections in their close
    for peer in &mut peers {
        assert!(expect_refused(peer, "503").contains("as many clients"));
    }
    eventually("the rest waits", || {
        adversary.held.lock().unwrap().len() == 30
    });
    assert!(node.counters.handshakes_shed.get() >= 10);
    adversary.admit_held();
    let admitted = more
        .iter_mut()
        .map(Peer::read_head)
        .filter(|head| head.starts_with("HTTP/1.1 101 "))
        .count();
    assert!((1..=20).contains(&admitted), "{admitted}");
    eventually("nothing waits any more", || {
        let incoming = node.shards.incoming();
        (incoming.handshakes, incoming.unfinished_bytes) == (0, 0)
    });
}

#[test]
fn heads_that_wait_for_a_verdict_are_within_the_budget_of_unfinished_input() {
    const BUDGET: usize = 1 << 16;
    let adversary = Arc::new(Adversary::default());
    let auth = Arc::clone(&adversary) as Arc<dyn Auth>;
    let budget = i64::try_from(BUDGET).unwrap();
    let served = Served::with_auth(&[("max_unfinished_bytes", budget), PATIENT], auth);
    let node = served.0.node();
    let mut peers: Vec<_> = (0..200)
        .map(|_| send(&served, &pipelined("do=hold")))
        .collect();
    eventually("all were asked about", || {
        adversary.held.lock().unwrap().len() == peers.len()
    });
    eventually("the budget holds", || {
        let shed = node.counters.handshakes_shed.get();
        shed > 0 && node.shards.incoming().unfinished_bytes <= BUDGET
    });
    adversary.admit_held();
    let admitted = peers
        .iter_mut()
        .map(Peer::read_head)
        .filter(|head| head.starts_with("HTTP/1.1 101 "))
        .count() as u64;
    assert_eq!(admitted + node.counters.handshakes_shed.get(), 200);
    assert!(admitted > 0);
}

#[test]
fn a_verdict_on_a_client_that_has_gone_leaves_nothing() {
    let adversary = Arc::new(Adversary::default());
    let auth = Arc::clone(&adversary) as Arc<dyn Auth>;
    let served = Served::with_auth(&[PATIENT], auth);
    let node = served.0.node();
    let peers: Vec<_> = (0..10)
        .map(|_| send(&served, &pipelined("do=hold")))
        .collect();
    eventually("all wait", || adversary.held.lock().unwrap().len() == 10);
    drop(peers);
    adversary.admit_held();
    eventually("all are connected, and gone", || {
        node.counters.connections_total.get() == 10 && node.connection_count() == 0
    });
    eventually("nothing is left", || {
        let incoming = node.shards.incoming();
        (incoming.handshakes, incoming.unfinished_bytes) == (0, 0)
    });
}

#[test]
fn a_server_that_stops_refuses_connections_that_wait_for_a_verdict() {
    let adversary = Arc::new(Adversary::default());
    let auth = Arc::clone(&adversary) as Arc<dyn Auth>;
    let served = Served::with_auth(&[PATIENT], auth);
    let mut peers: Vec<_> = (0..10)
        .map(|_| send(&served, &pipelined("do=hold")))
        .collect();
    eventually("all wait", || adversary.held.lock().unwrap().len() == 10);
    served.0.begin_stop();
    for peer in &mut peers {
        assert!(expect_refused(peer, "503").contains("stopping"));
    }
    drop(peers);
    assert!(served.0.wait_stopped(Some(PATIENCE)));
    adversary.admit_held();
    assert_eq!(served.0.node().counters.connections_total.get(), 0);
}
