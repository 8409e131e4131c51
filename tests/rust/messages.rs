//! Commands and messages as JSON.

use _tantor::error::{Disconnect, ErrorCode};
use _tantor::protocol::{self, Body, Command, OwnFields, Publication, Stamp};
use proptest::prelude::*;
use serde_json::{Value, json};

fn parse(text: &str) -> Result<Command<'_>, ErrorCode> {
    Command::parse(text, "jungle", 8).map_err(|refusal| refusal.code)
}

#[test]
fn known_actions_have_the_documented_defaults() {
    assert_eq!(
        parse(r#"{"action":"join_channel"}"#),
        Ok(Command::Join {
            channel: "jungle".into()
        })
    );
    assert_eq!(
        parse(r#" {"action":"leave_channel","channel":"a\u0062"}"#),
        Ok(Command::Leave {
            channel: "ab".into()
        })
    );
    assert_eq!(parse(r#"{"action":"ping","extra":[1]}"#), Ok(Command::Ping));
    let broadcast = Command::Broadcast {
        channel: "jungle".into(),
        event: "message".into(),
        data: "{}",
    };
    assert_eq!(parse(r#"{"action":"broadcast"}"#), Ok(broadcast));
    let broadcast = Command::Broadcast {
        channel: "c".into(),
        event: "e".into(),
        data: "[1, 2]",
    };
    assert_eq!(
        parse(r#"{"data": [1, 2], "event":"e","channel":"x","channel":"c","action":"broadcast"}"#),
        Ok(broadcast)
    );
    for other in ["{}", r#"{"action":"chat"}"#, r#"{"message":"hi"}"#] {
        assert_eq!(parse(other), Ok(Command::Other), "{other}");
    }
}

#[test]
fn what_is_wrong_gets_its_code() {
    let long = format!(
        r#"{{"action":"join_channel","channel":"{}"}}"#,
        "x".repeat(256)
    );
    for (text, code) in [
        ("", ErrorCode::NotJson),
        ("{", ErrorCode::NotJson),
        (r#"{"action":}"#, ErrorCode::NotJson),
        ("[]", ErrorCode::NotAnObject),
        ("17", ErrorCode::NotAnObject),
        (r#"{"action":5}"#, ErrorCode::BadField),
        (
            r#"{"action":"join_channel","channel":null}"#,
            ErrorCode::BadField,
        ),
        (
            r#"{"action":"join_channel","channel":"\ud800"}"#,
            ErrorCode::BadField,
        ),
        (r#"{"action":"broadcast","event":{}}"#, ErrorCode::BadField),
        (r#"{"action":"broadcast","event":""}"#, ErrorCode::BadField),
        (
            r#"{"action":"join_channel","channel":""}"#,
            ErrorCode::BadChannel,
        ),
        (
            r#"{"action":"join_channel","channel":"a\nb"}"#,
            ErrorCode::BadChannel,
        ),
        (&long, ErrorCode::BadChannel),
        (
            r#"{"action":"broadcast","event":"user_left"}"#,
            ErrorCode::ReservedEvent,
        ),
        (
            r#"{"action":"broadcast","channel":"emergency"}"#,
            ErrorCode::ReservedChannel,
        ),
        (
            r#"{"action":"join_channel","channel":"system"}"#,
            ErrorCode::ReservedChannel,
        ),
        (r#"{"a":[[[[[[[[]]]]]]]]}"#, ErrorCode::TooDeep),
    ] {
        assert_eq!(parse(text), Err(code), "{text}");
    }
    assert_eq!(
        parse(r#"{"a":[[[[[[["]]]]]]]\"[[[[["]]]]]]]}"#),
        Ok(Command::Other)
    );
}

#[test]
fn a_field_of_the_wrong_type_is_named() {
    let refusal = Command::parse(r#"{"action":"broadcast","event":[1]}"#, "jungle", 8).unwrap_err();
    assert_eq!(refusal.message, "event must be a string, not an array");
}

fn stamp() -> Stamp {
    Stamp {
        id: 0xab,
        micros: 1_700_000_000_000_042,
    }
}

#[test]
fn messages_have_the_documented_fields() {
    let mut out = Vec::new();
    let publication = Publication {
        channel: "a\"b",
        event: "e",
        data: b"{\"x\":1}",
        from: Some("client_1"),
    };
    protocol::write_publication(&mut out, stamp(), &publication);
    let expected = json!({
        "id": "msg_00000000000000ab", "channel": "a\"b", "timestamp": 1_700_000_000.000_042, "sender": "tantor",
        "event": "e", "data": {"x": 1}, "trumpeted_by": "tantor", "from": "client_1",
    });
    assert_eq!(serde_json::from_slice::<Value>(&out).unwrap(), expected);
}

proptest! {
    #[test]
    fn a_message_to_one_client_is_one_object_whose_own_fields_win(
        id in any::<bool>(), channel in any::<bool>(), timestamp in any::<bool>(), sender in any::<bool>(), other in any::<bool>(),
    ) {
        let mut own = serde_json::Map::new();
        for (name, is_own) in [("id", id), ("channel", channel), ("timestamp", timestamp), ("sender", sender), ("x", other)] {
            if is_own {
                own.insert(name.to_owned(), json!("own"));
            }
        }
        let bytes = serde_json::to_vec(&own).unwrap();
        let mut out = Vec::new();
        let fields = OwnFields { id, channel, timestamp, sender };
        protocol::write_direct(&mut out, stamp(), "jungle", Body::Fields(&bytes, fields));
        let mut expected = json!({
            "id": "msg_00000000000000ab", "channel": "jungle", "timestamp": 1_700_000_000.000_042, "sender": "tantor",
        });
        expected.as_object_mut().unwrap().extend(own);
        prop_assert_eq!(serde_json::from_slice::<Value>(&out).unwrap(), expected);
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in "\\PC*") {
        let _ = parse(&text);
        let _ = parse(&format!("{{\"action\":\"broadcast\",\"data\":{text}}}"));
    }
}

/// The rows of a table of `docs/protocol.md`, by their first cells.
fn documented(heading: &str) -> Vec<(u16, String)> {
    let text =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/protocol.md")).unwrap();
    let section = text
        .split("\n## ")
        .find(|section| section.starts_with(heading))
        .unwrap()
        .to_owned();
    section
        .lines()
        .filter_map(|line| {
            let mut cells = line.trim_matches('|').split('|').map(str::trim);
            let number = cells.next()?.parse().ok()?;
            Some((number, cells.next()?.trim_matches('`').to_owned()))
        })
        .collect()
}

#[test]
fn the_documented_tables_of_codes_are_those_of_the_code() {
    let errors: Vec<u16> = documented("Errors")
        .into_iter()
        .map(|(code, _)| code)
        .collect();
    assert_eq!(errors, ErrorCode::ALL.map(ErrorCode::number));
    let closes = documented("Close codes");
    let ours =
        Disconnect::OURS.map(|disconnect| (disconnect.code(), disconnect.reason().to_owned()));
    assert_eq!(closes, ours);
}
