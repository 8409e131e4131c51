//! Sockets that are handed to a shard together with their request.

use crate::admission::{Adversary, FRAMES, expect_admitted, handshake, pipelined};
use crate::peer::{PATIENCE, Peer, Served, eventually};
use _tantor::net::listener::Accepted;
use _tantor::node::{Adoption, Delivery, NotAdopted, ReadRequest, ShardHandle};
use _tantor::ports::auth::{Admission, AdmissionRequest, Auth, Deferral, Identity};
use _tantor::wire::http::head::RequestHead;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

/// Must not be asked.
struct Unasked;

impl Auth for Unasked {
    fn admit(&self, _: &AdmissionRequest<'_>, _: Deferral<'_>) -> Admission {
        panic!("an identity needs no decision")
    }
}

/// A client, and the other side of its socket.
fn socket_pair() -> (Peer, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    (Peer::new(client), listener.accept().unwrap().0)
}

/// Reads a request as an HTTP server does that knows nothing of web sockets: the head, and at least `behind` bytes behind
/// the head.
fn read_request(socket: &mut TcpStream, behind: usize) -> (RequestHead, Vec<u8>) {
    let mut bytes = Vec::new();
    loop {
        if let Some(head) = RequestHead::parse(&bytes).unwrap()
            && bytes.len() >= head.size() + behind
        {
            let rest = bytes.split_off(head.size());
            return (head, rest);
        }
        let mut chunk = [0; 512];
        let count = socket.read(&mut chunk).unwrap();
        assert!(count > 0, "the request ended");
        bytes.extend_from_slice(&chunk[..count]);
    }
}

fn shard(served: &Served) -> Arc<ShardHandle> {
    Arc::clone(&served.0.node().shards.all()[0])
}

type Answer = Receiver<Result<(), NotAdopted>>;

/// An adoption, and where its answer arrives.
fn adoption(socket: TcpStream, request: Option<ReadRequest>) -> (Delivery, Answer) {
    let (tell, answer) = channel();
    // some tests do not listen
    let mut adoption = Adoption::new(Accepted::Tcp(socket), false).answering(move |outcome| {
        let _ = tell.send(outcome);
    });
    if let Some(request) = request {
        adoption = adoption.with_request(request);
    }
    (Delivery::Adopt(adoption), answer)
}

/// Sends a request, reads it on the other side, and hands the socket to the shard. With how much behind the head.
fn hand_over(served: &Served, bytes: &[u8], behind: usize, id: Option<&str>) -> (Peer, Answer) {
    let (mut peer, mut socket) = socket_pair();
    peer.stream.write_all(bytes).unwrap();
    let (head, rest) = read_request(&mut socket, behind);
    let identity = id.map(|id| Identity::new(id).unwrap());
    let request = ReadRequest {
        head,
        rest,
        identity,
    };
    let (delivery, answer) = adoption(socket, Some(request));
    assert!(shard(served).inbox.push(delivery));
    (peer, answer)
}

fn outcome(answer: &Answer) -> Result<(), NotAdopted> {
    answer.recv_timeout(PATIENCE).unwrap()
}

#[test]
fn a_socket_comes_with_head_bytes_and_identity() {
    let served = Served::with_auth(&[("shards", 1)], Arc::new(Unasked));
    let bytes = pipelined("x=1");
    let size = bytes.len() - handshake("x=1").len();
    // what the giver has read ends in the middle of a frame, at its end, or at the end of the head
    for (number, behind) in [0, 1, 3, 50, size].into_iter().enumerate() {
        let id = format!("user_{number}");
        let (mut peer, answer) = hand_over(&served, &bytes, behind, Some(&id));
        assert_eq!(outcome(&answer), Ok(()));
        assert_eq!(expect_admitted(&mut peer), id);
        let node = served.0.node();
        assert!(node.has_connection(&id));
        peer.stream.shutdown(Shutdown::Both).unwrap();
        eventually("the client is gone", || !node.has_connection(&id));
    }
}

#[test]
fn an_identity_takes_the_place_of_its_older_connection() {
    let served = Served::with_auth(&[("shards", 1), ("max_connections", 1)], Arc::new(Unasked));
    let (mut older, _) = hand_over(&served, &handshake("x=1"), 0, Some("kai"));
    older.read_head();
    assert_eq!(older.json()["client_id"], "kai");
    let (mut newer, answer) = hand_over(&served, &pipelined("x=1"), 0, Some("kai"));
    assert_eq!(outcome(&answer), Ok(()));
    assert_eq!(expect_admitted(&mut newer), "kai");
    assert_eq!(older.close_code(), 3503);
    assert_eq!(served.0.node().connection_count(), 1);
}

#[test]
fn an_identity_without_sessions_is_the_id_of_a_new_client() {
    let settings = [("shards", 1), ("resume_ttl", 0)];
    let served = Served::with_auth(&settings, Arc::new(Unasked));
    let (mut peer, _) = hand_over(&served, &pipelined("x=1"), 0, Some("kai"));
    assert_eq!(expect_admitted(&mut peer), "kai");
    let (mut second, _) = hand_over(&served, &pipelined("x=1"), 0, Some("kai"));
    assert!(expect_admitted(&mut second).starts_with("client_"));
    peer.text(r#"{"action":"ping"}"#);
    peer.json_where(|message| message["pong"] == true);
}

#[test]
fn a_socket_without_identity_is_decided_about() {
    let served = Served::with_auth(&[("shards", 1)], Arc::new(Adversary::default()));
    for mode in ["admit", "early", "late"] {
        let bytes = pipelined(&format!("do={mode}&as=mo"));
        let behind = bytes.len() - handshake(&format!("do={mode}&as=mo")).len() - FRAMES;
        let (mut peer, answer) = hand_over(&served, &bytes, behind, None);
        assert_eq!(outcome(&answer), Ok(()));
        assert_eq!(expect_admitted(&mut peer), "mo", "{mode}");
    }
    for (mode, status) in [("deny", "403"), ("drop", "503"), ("panic", "500")] {
        let (mut peer, answer) = hand_over(&served, &handshake(&format!("do={mode}")), 0, None);
        assert_eq!(
            outcome(&answer),
            Ok(()),
            "the shard has the socket, and answers"
        );
        let head = peer.read_head();
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
    }
}

#[test]
fn a_socket_may_come_with_a_request_for_a_page_or_with_nothing() {
    let served = Served::with_auth(&[("shards", 1)], Arc::new(Adversary::default()));
    let page = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n";
    let (mut peer, answer) = hand_over(&served, page, 0, None);
    assert_eq!(outcome(&answer), Ok(()));
    assert!(peer.read_head().starts_with("HTTP/1.1 200 "));
    let (mut peer, socket) = socket_pair();
    let (delivery, answer) = adoption(socket, None);
    shard(&served).inbox.push(delivery);
    assert_eq!(outcome(&answer), Ok(()));
    peer.stream.write_all(&pipelined("do=admit")).unwrap();
    expect_admitted(&mut peer);
}

#[test]
fn a_shard_that_does_not_take_a_socket_says_why_and_writes_nothing() {
    let served = Served::with_auth(&[("shards", 1), ("max_connections", 1)], Arc::new(Unasked));
    let refused = |served: &Served, reason: NotAdopted| {
        let (mut peer, answer) = hand_over(served, &handshake("x=1"), 0, Some("late"));
        assert_eq!(outcome(&answer), Err(reason));
        assert!(peer.some_text().is_none());
    };
    let (mut first, _) = hand_over(&served, &handshake("x=1"), 0, Some("first"));
    first.read_head();
    refused(&served, NotAdopted::Full);
    assert_eq!(served.0.node().counters.refused_full.get(), 1);
    shard(&served).inbox.push(Delivery::Drain);
    refused(&served, NotAdopted::Draining);
}

#[test]
fn a_shard_that_ends_refuses_what_it_has_not_taken() {
    let served = Served::with_auth(&[("shards", 1)], Arc::new(Unasked));
    let handle = shard(&served);
    let (_client, socket) = socket_pair();
    let (delivery, behind_the_end) = adoption(socket, None);
    handle.inbox.push_all(vec![Delivery::Finish, delivery]);
    assert_eq!(outcome(&behind_the_end), Err(NotAdopted::ShardEnded));
    served.0.begin_stop();
    assert!(served.0.wait_stopped(Some(PATIENCE)));
    let (_client, socket) = socket_pair();
    let (delivery, too_late) = adoption(socket, None);
    assert!(!handle.inbox.push(delivery));
    assert_eq!(outcome(&too_late), Err(NotAdopted::ShardEnded));
}

#[test]
fn an_inbox_that_closes_answers_for_what_waits_in_it() {
    let handle = ShardHandle::new(1 << 20);
    let (_client, socket) = socket_pair();
    let (delivery, answer) = adoption(socket, None);
    handle.inbox.push(delivery);
    handle.inbox.close();
    assert_eq!(outcome(&answer), Err(NotAdopted::ShardEnded));
}
