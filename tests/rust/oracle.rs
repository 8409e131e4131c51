//! The frame reader against tungstenite's, on bytes cut anywhere.

use crate::peer::{encode_frame, masked};
use _tantor::wire::frame_reader::{Reader, Received};
use proptest::prelude::*;
use std::io::{self, Read, Write};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocket, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

const LIMIT: usize = 4096;

#[derive(Clone, Debug, PartialEq)]
enum Seen {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong,
    Close,
    Violation,
}

/// What tungstenite makes of a client's bytes, up to the first violation or close.
fn oracle(bytes: &[u8]) -> Vec<Seen> {
    struct Input<'a>(&'a [u8]);
    impl Read for Input<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                Err(io::ErrorKind::WouldBlock.into())
            } else {
                self.0.read(buffer)
            }
        }
    }
    impl Write for Input<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let config = WebSocketConfig::default()
        .max_message_size(Some(LIMIT))
        .max_frame_size(Some(LIMIT));
    let mut socket = WebSocket::from_raw_socket(Input(bytes), Role::Server, Some(config));
    let mut seen = Vec::new();
    loop {
        match socket.read() {
            Ok(Message::Text(text)) => seen.push(Seen::Text(text.to_string())),
            Ok(Message::Binary(payload)) => seen.push(Seen::Binary(payload.to_vec())),
            Ok(Message::Ping(payload)) => seen.push(Seen::Ping(payload.to_vec())),
            Ok(Message::Pong(_)) => seen.push(Seen::Pong),
            Ok(Message::Close(frame)) => {
                // a close frame with a code that is none is handed on as its own answer to it
                let is_violation = frame.is_some_and(|frame| frame.reason == "Protocol violation");
                seen.push(if is_violation {
                    Seen::Violation
                } else {
                    Seen::Close
                });
                return seen;
            }
            Ok(Message::Frame(_)) => unreachable!("never read"),
            Err(Error::Io(_)) => return seen,
            Err(_) => {
                seen.push(Seen::Violation);
                return seen;
            }
        }
    }
}

fn ours(bytes: &[u8], cuts: &[usize]) -> Vec<Seen> {
    let mut reader = Reader::default();
    let mut seen = Vec::new();
    let mut rest = bytes;
    let mut cuts = cuts.iter().cycle();
    while !rest.is_empty() {
        let cut = cuts.next().map_or(rest.len(), |cut| *cut).min(rest.len());
        let mut part = rest[..cut].to_vec();
        rest = &rest[cut..];
        let result = reader.read(&mut part, LIMIT, &mut |received| {
            seen.push(match received {
                Received::Text(text) => Seen::Text(text.to_owned()),
                Received::Binary(payload) => Seen::Binary(payload.to_vec()),
                Received::Ping(payload) => Seen::Ping(payload.to_vec()),
                Received::Pong => Seen::Pong,
                Received::Close(_) => Seen::Close,
                Received::TooLarge(_) => Seen::Violation,
            });
            !matches!(seen.last(), Some(Seen::Close | Seen::Violation))
        });
        if result.is_err() {
            seen.push(Seen::Violation);
        }
        if matches!(seen.last(), Some(Seen::Close | Seen::Violation)) {
            break;
        }
    }
    seen
}

fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let payload = prop_oneof![
        proptest::string::string_regex("[a-zäöü🐘]{0,200}")
            .unwrap()
            .prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..10),
    ];
    // mostly what is allowed, sometimes anything
    let first = prop_oneof![
        8 => prop::sample::select(vec![0x81_u8, 0x82, 0x01, 0x00, 0x80, 0x89, 0x8A]),
        1 => Just(0x88),
        1 => any::<u8>(),
    ];
    (
        first,
        payload,
        prop::option::weighted(0.97, any::<[u8; 4]>()),
    )
        .prop_map(|(first, payload, mask)| encode_frame(first, &payload, mask))
}

/// A text frame of which `sent` bytes of the payload have come, and the rest will not.
fn cut_text(first: u8, payload: &[u8], sent: usize) -> Vec<u8> {
    let mask = [1, 2, 3, 4];
    let mut frame = vec![first, 0x80 | u8::try_from(payload.len()).unwrap()];
    frame.extend(mask);
    let masked = payload.iter().zip(mask.iter().cycle());
    frame.extend(masked.map(|(byte, key)| byte ^ key).take(sent));
    frame
}

#[test]
fn text_fails_at_its_first_wrong_bytes_before_its_frame_is_whole() {
    let mut payload = "κόσμε, и всё остальное".as_bytes().to_vec();
    let wrong = payload.len();
    payload.extend(b"\xf4\x90\x80\x80 and more text that never comes");
    let first_fragment = cut_text(0x01, "κ".as_bytes(), 2);
    for size in [1, 3, 4, 7, 100] {
        let cuts = [size];
        let valid = cut_text(0x81, &payload, wrong);
        assert_eq!(ours(&valid, &cuts), []);
        let broken = cut_text(0x81, &payload, wrong + 7);
        assert_eq!(ours(&broken, &cuts), [Seen::Violation], "cut to {size}");
        let in_fragments = [&*first_fragment, &cut_text(0x80, &payload, wrong + 7)].concat();
        assert_eq!(ours(&in_fragments, &cuts), [Seen::Violation]);
        // a character may be split by fragments
        let halves = [cut_text(0x01, b"\xce", 1), cut_text(0x80, b"\xba_____", 4)].concat();
        assert_eq!(ours(&halves, &cuts), []);
        let broken_half = [cut_text(0x01, b"\xce", 1), cut_text(0x80, b"_____", 4)].concat();
        assert_eq!(ours(&broken_half, &cuts), [Seen::Violation]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn reads_what_tungstenite_reads(
        frames in prop::collection::vec(any_frame(), 1..12),
        cuts in prop::collection::vec(1_usize..300, 1..8),
    ) {
        let bytes = frames.concat();
        let (ours, oracle) = (ours(&bytes, &cuts), oracle(&bytes));
        prop_assert_eq!(ours, oracle);
    }
}

#[test]
fn a_frame_that_arrives_in_parts_takes_no_more_memory_than_its_size() {
    let mut wire = masked(0x81, "x".repeat(60_000).as_bytes());
    let size = wire.len();
    let mut reader = Reader::default();
    let mut arrived = 0;
    for part in wire.chunks_mut(7_000) {
        arrived += part.len();
        let mut texts = 0;
        let mut count = |received: Received<'_>| {
            texts += usize::from(matches!(received, Received::Text(_)));
            true
        };
        reader.read(part, 1 << 20, &mut count).unwrap();
        assert!(reader.held() <= size, "{} of {size}", reader.held());
        assert_eq!(texts, usize::from(arrived == size));
    }
}
