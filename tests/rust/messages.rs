//! Commands and messages as JSON.

use _tantor::base::clock::WallTime;
use _tantor::base::error::{Disconnect, ErrorCode};
use _tantor::wire::command::{Command, Recover, Request};
use _tantor::wire::frame::{EncodedFrame, Unsealed, UnsealedMail};
use _tantor::wire::json_limits::JsonLimits;
use _tantor::wire::messages::{self, Body, OwnFields, Publication, Reference, Stamp};
use proptest::prelude::*;
use serde_json::{Value, json};

const LIMITS: JsonLimits = JsonLimits {
    max_depth: 8,
    max_digits: 20,
};

fn parse(text: &str) -> Result<Command<'_>, ErrorCode> {
    Request::parse(text, "jungle", LIMITS)
        .map(|request| request.command)
        .map_err(|rejected| rejected.refusal.code)
}

#[test]
fn known_actions_have_the_documented_defaults() {
    assert_eq!(
        parse(r#"{"action":"join_channel"}"#),
        Ok(Command::Join {
            channel: "jungle".into(),
            recover: None,
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
        idempotency_key: None,
    };
    assert_eq!(parse(r#"{"action":"broadcast"}"#), Ok(broadcast));
    let broadcast = Command::Broadcast {
        channel: "c".into(),
        event: "e".into(),
        data: "[1, 2]",
        idempotency_key: None,
    };
    assert_eq!(
        parse(r#"{"data": [1, 2], "event":"e","channel":"x","channel":"c","action":"broadcast"}"#),
        Ok(broadcast)
    );
    for other in ["{}", r#"{"action":"chat"}"#, r#"{"message":"hi"}"#] {
        assert!(matches!(parse(other), Ok(Command::Other { .. })), "{other}");
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
        (r#"{"a":123456789012345678901}"#, ErrorCode::Unreadable),
        (
            r#"{"action":"broadcast","data":[-1e999]}"#,
            ErrorCode::Unreadable,
        ),
    ] {
        assert_eq!(parse(text), Err(code), "{text}");
    }
    assert!(matches!(
        parse(r#"{"a":[[[[[[["]]]]]]]\"[[[[["]]]]]]]}"#),
        Ok(Command::Other { action: None })
    ));
}

#[test]
fn a_reference_goes_with_the_command_and_with_its_refusal() {
    let request = |text| Request::parse(text, "jungle", LIMITS);
    let join = request(
        r#"{"action":"join_channel","channel":"a","ref":"x","recover":{"epoch":"e","offset":7}}"#,
    )
    .unwrap();
    let recover = Recover {
        epoch: "e".into(),
        offset: 7,
    };
    let wanted = Command::Join {
        channel: "a".into(),
        recover: Some(recover),
    };
    assert_eq!(
        (join.command, join.reference),
        (wanted, Some(Reference("\"x\"")))
    );
    let rejected = request(r#"{"action":"join_channel","channel":"","ref":-5}"#).unwrap_err();
    assert_eq!(rejected.reference, Some(Reference("-5")));
    let long = format!(r#"{{"action":"ping","ref":"{}"}}"#, "x".repeat(65));
    for (text, code) in [
        (long.as_str(), ErrorCode::BadField),
        (r#"{"action":"ping","ref":1.5}"#, ErrorCode::BadField),
        (r#"{"action":"ping","ref":[]}"#, ErrorCode::BadField),
        (
            r#"{"action":"join_channel","recover":7}"#,
            ErrorCode::BadField,
        ),
        (
            r#"{"action":"join_channel","recover":{"epoch":"e"}}"#,
            ErrorCode::BadField,
        ),
        (
            r#"{"action":"join_channel","recover":{"epoch":"e","offset":-1}}"#,
            ErrorCode::BadField,
        ),
        (
            r#"{"action":"join_channel","recover":{"epoch":"e","offset":9223372036854775808}}"#,
            ErrorCode::BadField,
        ),
        (r#"{"action":"history","after":-1}"#, ErrorCode::BadField),
        (
            r#"{"action":"history","limit":"many"}"#,
            ErrorCode::BadField,
        ),
        (r#"{"action":"ack"}"#, ErrorCode::BadField),
        (r#"{"action":"ack","id":7}"#, ErrorCode::BadField),
        (
            r#"{"action":"broadcast","idempotency_key":""}"#,
            ErrorCode::BadField,
        ),
    ] {
        assert_eq!(parse(text), Err(code), "{text}");
    }
    let ack = request(r#"{"action":"ack","ids":["msg_000000000000000a","msg_1"]}"#).unwrap();
    let wanted = Command::Ack {
        ids: vec![10],
        malformed: Some("msg_1".to_owned()),
    };
    assert_eq!(ack.command, wanted);
    // to the application a reference may mean something of its own
    assert_eq!(
        request(r#"{"action":"chat","ref":[1]}"#).unwrap().reference,
        None
    );
}

#[test]
fn a_field_of_the_wrong_type_is_named() {
    let rejected =
        Request::parse(r#"{"action":"broadcast","event":[1]}"#, "jungle", LIMITS).unwrap_err();
    assert_eq!(
        rejected.refusal.message,
        "event must be a string, not an array"
    );
}

fn stamp() -> Stamp {
    Stamp {
        id: 0xab,
        at: WallTime::from_micros(1_700_000_000_000_042),
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
        wants_ack: true,
    };
    messages::write_publication(&mut out, stamp(), &publication);
    let sealed = Unsealed::new(&out).seal(Some(7));
    let expected = json!({
        "id": "msg_00000000000000ab", "channel": "a\"b", "timestamp": 1_700_000_000.000_042, "sender": "tantor",
        "event": "e", "data": {"x": 1}, "trumpeted_by": "tantor", "from": "client_1",
        "offset": 7, "ack": true,
    });
    assert_eq!(
        serde_json::from_slice::<Value>(sealed.payload()).unwrap(),
        expected
    );
    assert!(!Unsealed::new(&out).seal(None).payload().ends_with(b"7}"));
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
        let fields = OwnFields { id, channel, timestamp, sender, ack: false };
        let ack_at = messages::write_direct(&mut out, stamp(), "jungle", Body::Fields(&bytes, fields));
        let mail = UnsealedMail::new(&out, ack_at);
        prop_assert_eq!(mail.can_want_ack(), !id);
        let mut expected = json!({
            "id": "msg_00000000000000ab", "channel": "jungle", "timestamp": 1_700_000_000.000_042, "sender": "tantor",
        });
        expected.as_object_mut().unwrap().extend(own);
        let parsed = |frame: EncodedFrame| serde_json::from_slice::<Value>(frame.payload()).unwrap();
        prop_assert_eq!(&parsed(mail.seal(false)), &expected);
        if !id {
            expected["ack"] = json!(true);
        }
        prop_assert_eq!(&parsed(mail.seal(true)), &expected);
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
