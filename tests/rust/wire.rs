//! The server byte by byte, over real sockets.

use crate::peer::{HANDSHAKE, Peer, Served, broadcast, emergency, eventually, masked};
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;

#[test]
fn welcome_comes_first_then_the_notice_of_joining() {
    let served = Served::with(&[]);
    let mut peer = served.client();
    let joined = peer.json();
    assert_eq!(
        (&joined["event"], &joined["channel"]),
        (&"user_joined".into(), &"jungle".into())
    );
    assert_eq!(joined["data"]["client_id"], peer.id.as_str());
    assert_eq!(joined["data"]["total_users"], 1);
}

#[test]
fn a_handshake_may_come_byte_by_byte_and_frames_right_behind_it() {
    let served = Served::with(&[]);
    let mut peer = Peer::new(served.connect());
    for byte in HANDSHAKE {
        peer.stream.write_all(&[*byte]).unwrap();
    }
    assert!(peer.read_head().starts_with("HTTP/1.1 101 "));
    let mut other = Peer::new(served.connect());
    let mut bytes = HANDSHAKE.to_vec();
    bytes.extend(masked(0x81, br#"{"action": "ping"}"#));
    other.stream.write_all(&bytes).unwrap();
    other.read_head();
    let events: Vec<_> = (0..3).map(|_| other.json()).collect();
    assert_eq!(events[0]["event"], "welcome");
    assert_eq!(events[2]["pong"], true, "{events:?}");
}

#[test]
fn replies_keep_their_place_among_broadcasts() {
    let served = Served::with(&[]);
    let mut peer = served.client();
    peer.json();
    let mut bytes = Vec::new();
    for number in 0..50 {
        let command = format!(r#"{{"action":"broadcast","event":"n","data":{number}}}"#);
        bytes.extend(masked(0x81, command.as_bytes()));
        bytes.extend(masked(0x81, br#"{"action":"ping"}"#));
        bytes.extend(masked(0x81, b"no json"));
    }
    peer.stream.write_all(&bytes).unwrap();
    for number in 0..50 {
        assert_eq!(peer.json()["data"], number);
        assert_eq!(peer.json()["pong"], true);
        assert_eq!(peer.json()["code"], 101);
    }
}

#[test]
fn a_ping_is_answered_with_its_payload_and_a_close_with_its_code() {
    let served = Served::with(&[]);
    let mut peer = served.client();
    peer.json();
    peer.frame(0x89, b"are you there");
    assert_eq!(peer.next_frame(), Some((0x8A, b"are you there".to_vec())));
    peer.frame(0x88, &[0x0F, 0xA0, b'b', b'y', b'e']);
    assert_eq!(peer.close_code(), 4000);
}

#[test]
fn a_close_counts_though_the_stream_ends_with_it() {
    let served = Served::with(&[]);
    let mut peer = served.client();
    peer.json();
    let mut bytes = masked(0x81, br#"{"action":"ping"}"#);
    bytes.extend(masked(0x88, &[0x03, 0xE9]));
    peer.stream.write_all(&bytes).unwrap();
    peer.stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(peer.json()["pong"], true);
    assert_eq!(peer.close_code(), 1001);
    let node = served.0.node();
    eventually("the connection is gone", || node.connection_count() == 0);
    assert_eq!(
        node.counters.disconnects().into_iter().collect::<Vec<_>>(),
        [("closed", 1)]
    );
}

#[test]
fn what_was_asked_before_the_stream_ended_is_answered() {
    let served = Served::with(&[]);
    for _ in 0..20 {
        let mut peer = served.client();
        peer.json();
        peer.text(r#"{"action":"ping"}"#);
        peer.stream.shutdown(std::net::Shutdown::Write).unwrap();
        peer.json_where(|message| message["pong"] == true);
        let mut stream = served.connect();
        stream
            .write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
            .unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer:?}");
    }
    eventually("all are gone", || served.0.node().connection_count() == 0);
}

#[test]
fn protocol_violations_get_their_close_code_and_others_notice_nothing() {
    let served = Served::with(&[("max_message_size", 1024)]);
    let mut healthy = served.client();
    healthy.json();
    let huge = {
        let mut header = vec![0x81, 0x80 | 127];
        header.extend((1_u64 << 62).to_be_bytes());
        header.extend([0; 4]);
        header
    };
    let cases: &[(&str, Vec<u8>, u16)] = &[
        ("unmasked", vec![0x81, 2, b'{', b'}'], 1002),
        ("a reserved bit", masked(0xC1, b"{}"), 1002),
        ("a reserved opcode", masked(0x83, b"{}"), 1002),
        ("a fragmented ping", masked(0x09, b""), 1002),
        ("a long ping", masked(0x89, &[b'x'; 126]), 1002),
        ("a continuation of nothing", masked(0x80, b"x"), 1002),
        (
            "a message within a message",
            [masked(0x01, b"{"), masked(0x81, b"}")].concat(),
            1002,
        ),
        ("text that is not UTF-8", masked(0x81, &[0xFF, 0xFE]), 1007),
        ("a close code that is none", masked(0x88, &[0, 5]), 1002),
        ("a close frame of one byte", masked(0x88, &[3]), 1002),
        ("a frame far over the limit", huge, 1009),
    ];
    for (what, bytes, code) in cases {
        let mut peer = served.client();
        peer.stream.write_all(bytes).unwrap();
        assert_eq!(peer.close_code(), *code, "{what}");
    }
    healthy.text(r#"{"action":"ping"}"#);
    healthy.json_where(|message| message["pong"] == true);
    eventually("all but the healthy one are gone", || {
        served.0.node().connection_count() == 1
    });
}

#[test]
fn a_message_over_the_limit_is_skipped_and_told() {
    let served = Served::with(&[("max_message_size", 1000)]);
    let mut peer = served.client();
    peer.json();
    peer.text(&"x".repeat(5000));
    peer.frame(0x01, &[b'x'; 600]);
    peer.frame(0x00, &[b'x'; 600]);
    peer.frame(0x80, b"x");
    peer.frame(0x01, &[b'x'; 2000]);
    peer.frame(0x80, &[b'x'; 2000]);
    peer.text(r#"{"action":"ping"}"#);
    for size in ["5000", "1201", "4000"] {
        let error = peer.json();
        assert_eq!(error["code"], 105);
        assert!(error["message"].as_str().unwrap().contains(size), "{error}");
    }
    assert_eq!(peer.json()["pong"], true);
}

#[test]
fn a_message_in_a_thousand_fragments_is_one_message() {
    let served = Served::with(&[]);
    let mut peer = served.client();
    peer.json();
    let text = format!(
        r#"{{"action":"broadcast","event":"long","data":"{}"}}"#,
        "ä".repeat(500)
    );
    let bytes = text.as_bytes();
    let mut frames = masked(0x01, &bytes[..1]);
    for byte in &bytes[1..bytes.len() - 1] {
        frames.extend(masked(0x00, &[*byte]));
        frames.extend(masked(0x00, b""));
    }
    frames.extend(masked(0x89, b"in between"));
    frames.extend(masked(0x80, &bytes[bytes.len() - 1..]));
    peer.stream.write_all(&frames).unwrap();
    assert_eq!(peer.next_frame(), Some((0x8A, b"in between".to_vec())));
    assert_eq!(peer.json()["data"], "ä".repeat(500));
}

#[test]
fn a_slow_consumer_is_closed_with_3008_and_others_get_everything() {
    let served = Served::with(&[("max_pending_bytes", 100_000), ("shards", 1)]);
    let mut slow = served.client();
    let mut quick = served.client();
    quick.json();
    let data = format!("\"{}\"", "x".repeat(10_000));
    let node = served.0.node();
    let mut published = 0;
    while node.counters.disconnects().is_empty() {
        broadcast(node, "jungle", "big", data.as_bytes());
        published += 1;
        quick.json_where(|message| message["event"] == "big");
        assert!(published < 100_000, "the slow consumer was never closed");
    }
    assert_eq!(
        node.counters.disconnects().into_iter().collect::<Vec<_>>(),
        [("slow_consumer", 1)]
    );
    assert!(node.counters.dropped_slow_consumer.get() > 0);
    assert_eq!(slow.close_code(), 3008);
    eventually("nothing waits any more", || node.shards.queued() == (0, 0));
}

#[test]
fn an_emergency_overtakes_what_waits() {
    let served = Served::with(&[("shards", 1), ("max_pending_bytes", 1 << 28)]);
    let mut peer = served.client();
    let node = served.0.node();
    let data = format!("\"{}\"", "x".repeat(100_000));
    let handle = Arc::clone(&node.shards.all()[0]);
    // what is counted after a turn is what the socket did not take
    while handle.queued_bytes.load(Ordering::Relaxed) < 5_000_000 {
        broadcast(node, "jungle", "big", data.as_bytes());
        eventually("it is taken", || handle.inbox.is_empty());
    }
    let before = node.counters.publications.get();
    assert_eq!(emergency(node, "fire"), 1);
    eventually("the emergency is queued", || {
        served.0.node().shards.all()[0].inbox.is_empty()
    });
    let mut ahead = 0;
    while peer.json()["event"] != "emergency_alert" {
        ahead += 1;
    }
    let rest = before - ahead + 1;
    assert!(
        rest > 40,
        "{ahead} of {before} messages came before the emergency"
    );
}

#[test]
fn http_is_answered_on_the_same_port() {
    let served = Served::with(&[("max_header_size", 2000)]);
    let answer = |request: &str| {
        let mut stream = served.connect();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let health = answer("GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(
        health.starts_with("HTTP/1.1 200 OK\r\n") && health.contains("{\"status\":\"ok\""),
        "{health}"
    );
    assert!(answer("GET / HTTP/1.1\r\nHost: a\r\n\r\n").contains("new WebSocket"));
    assert!(answer("GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n").starts_with("HTTP/1.1 404 "));
    assert!(answer("DELETE / HTTP/1.1\r\nHost: a\r\n\r\n").starts_with("HTTP/1.1 405 "));
    assert!(answer("nonsense\r\n\r\n").starts_with("HTTP/1.1 400 "));
    let long = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(100_000));
    assert!(answer(&long).starts_with("HTTP/1.1 431 "));
}

#[test]
fn a_restarted_server_serves_again() {
    let served = Served::with(&[]);
    let mut peer = served.client();
    peer.json();
    served.0.begin_stop();
    assert!(served.0.wait_stopped(Some(crate::peer::PATIENCE)));
    assert_eq!(peer.json()["event"], "server_shutdown");
    assert_eq!(peer.close_code(), 1001);
    assert_eq!(served.0.node().connection_count(), 0);
    assert!(served.0.start(None).unwrap() && !served.0.start(None).unwrap());
    served.client();
}

#[test]
fn what_waits_is_counted_right_when_emergencies_meet_half_written_runs() {
    let served = Served::with(&[("shards", 1), ("max_pending_bytes", 1 << 28)]);
    let mut peer = served.client();
    let node = served.0.node();
    let data = format!("\"{}\"", "x".repeat(9_000));
    let mut sent = 0;
    for _ in 0..200 {
        // several at once, so that they become one run
        for _ in 0..20 {
            broadcast(node, "jungle", "big", data.as_bytes());
        }
        emergency(node, "fire");
        sent += 21;
    }
    for _ in 0..sent {
        peer.json_where(|message| {
            message["event"] == "big" || message["event"] == "emergency_alert"
        });
    }
    eventually("nothing waits any more", || node.shards.queued() == (0, 0));
}

#[test]
fn emergencies_are_bounded_too() {
    let served = Served::with(&[("shards", 1), ("max_pending_bytes", 100_000)]);
    let mut slow = served.client();
    let node = served.0.node();
    let message = "x".repeat(50_000);
    let mut sounded = 0;
    while node.counters.disconnects().is_empty() {
        emergency(node, &message);
        sounded += 1;
        assert!(sounded < 100_000, "the slow consumer was never closed");
    }
    assert_eq!(
        node.counters.disconnects().into_iter().collect::<Vec<_>>(),
        [("slow_consumer", 1)]
    );
    assert_eq!(slow.close_code(), 3008);
}

#[test]
fn floods_of_replies_leave_others_served_and_memory_bounded() {
    let served = Served::with(&[("shards", 1), ("max_pending_bytes", 65_536)]);
    let mut healthy = served.client();
    let bad: Vec<u8> = masked(0x81, b"{").repeat(2_000);
    let pings: Vec<u8> = masked(0x89, &[b'x'; 100]).repeat(2_000);
    let flooding: Vec<_> = (0..6)
        .map(|number| {
            let mut peer = served.client();
            let bytes = if number % 2 == 0 {
                bad.clone()
            } else {
                pings.clone()
            };
            // it never reads, so it is closed in the end
            std::thread::spawn(move || while peer.stream.write_all(&bytes).is_ok() {})
        })
        .collect();
    let node = served.0.node();
    let mut most = 0;
    while node.connection_count() > 1 {
        most = most.max(node.shards.queued().1);
        healthy.text(r#"{"action":"ping"}"#);
        healthy.json_where(|message| message["pong"] == true);
    }
    for thread in flooding {
        thread.join().unwrap();
    }
    assert!(most < 6 << 20, "{most} bytes waited");
}

#[test]
fn a_new_channel_is_not_the_empty_one_to_go() {
    // a channel with history would not go
    let served = Served::with(&[
        ("shards", 1),
        ("max_empty_channels", 1),
        ("history_size", 0),
    ]);
    let mut peer = served.client();
    for name in ["a", "b", "c"] {
        peer.text(&format!(
            r#"{{"action":"join_channel","channel":"{name}"}}"#
        ));
        peer.json_where(|message| message["channel"] == name && message["event"] == "user_joined");
    }
    let node = served.0.node();
    for number in 0..1000 {
        broadcast(node, &format!("invented {number}"), "x", b"1");
    }
    assert!(
        node.channels.count() < 10,
        "{} channels",
        node.channels.count()
    );
    assert!(node.channels.contains("invented 999"));
}
