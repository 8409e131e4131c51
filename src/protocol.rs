//! The wire's JSON: commands as clients write them, messages as clients read them (`docs/protocol.md`).

use crate::config::MAX_CHANNEL_NAME;
use crate::error::{ErrorCode, Refusal};
use serde::Deserialize;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;
use std::sync::LazyLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The channel of messages that belong to no channel: welcome, pong, errors, heartbeats.
pub const SYSTEM_CHANNEL: &str = "system";
/// The channel of emergencies, on which clients cannot publish.
pub const EMERGENCY_CHANNEL: &str = "emergency";

/// Events that only the server publishes.
const BUILT_IN_EVENTS: &[&str] = &[
    "welcome",
    "connect",
    "disconnect",
    "user_joined",
    "user_left",
    "emergency_alert",
    "server_shutdown",
    "ping",
    "pong",
    "error",
    "reply",
];

/// What a client asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Command<'a> {
    Join {
        channel: Cow<'a, str>,
    },
    Leave {
        channel: Cow<'a, str>,
    },
    Broadcast {
        channel: Cow<'a, str>,
        event: Cow<'a, str>,
        data: &'a str,
    },
    Ping,
    /// An action that is none of the known ones: the application's.
    Other,
}

impl<'a> Command<'a> {
    /// Reads one text frame. A channel that is not named is `default_channel`.
    ///
    /// Errors: what is wrong with the frame, as the client is told.
    pub fn parse(
        text: &'a str,
        default_channel: &'a str,
        max_depth: usize,
    ) -> Result<Self, Refusal> {
        check_depth(text, max_depth)?;
        if !text
            .trim_start_matches([' ', '\t', '\n', '\r'])
            .starts_with('{')
        {
            return Err(match serde_json::from_str::<IgnoredAny>(text) {
                Ok(_) => Refusal::new(
                    ErrorCode::NotAnObject,
                    "a message must be a JSON object, like {\"action\": \"ping\"}",
                ),
                Err(error) => not_json(&error),
            });
        }
        let fields: Fields<'a> = serde_json::from_str(text).map_err(|error| not_json(&error))?;
        let action = optional_text("action", fields.action)?;
        let channel = || -> Result<Cow<'a, str>, Refusal> {
            let channel =
                optional_text("channel", fields.channel)?.unwrap_or(Cow::Borrowed(default_channel));
            check_channel_name(&channel)?;
            if channel == SYSTEM_CHANNEL {
                return Err(Refusal::new(
                    ErrorCode::ReservedChannel,
                    "channel \"system\" is the server's own",
                ));
            }
            Ok(channel)
        };
        match action.as_deref() {
            Some("join_channel") => Ok(Command::Join {
                channel: channel()?,
            }),
            Some("leave_channel") => Ok(Command::Leave {
                channel: channel()?,
            }),
            Some("ping") => Ok(Command::Ping),
            Some("broadcast") => {
                let channel = channel()?;
                if channel == EMERGENCY_CHANNEL {
                    return Err(Refusal::new(
                        ErrorCode::ReservedChannel,
                        "only the server publishes on channel \"emergency\"",
                    ));
                }
                let event =
                    optional_text("event", fields.event)?.unwrap_or(Cow::Borrowed("message"));
                check_client_event(&event)?;
                Ok(Command::Broadcast {
                    channel,
                    event,
                    data: fields.data.map_or("{}", RawValue::get),
                })
            }
            _ => Ok(Command::Other),
        }
    }
}

/// Errors: empty, over 255 bytes, or with a control character.
pub fn check_channel_name(name: &str) -> Result<(), Refusal> {
    check_name("channel", name, ErrorCode::BadChannel)
}

/// Errors: a name as for a channel that is none, told as a bad `event`.
pub fn check_event_name(name: &str) -> Result<(), Refusal> {
    check_name("event", name, ErrorCode::BadField)
}

/// Errors: an id as for a channel that is none, told as a bad `client_id`.
pub fn check_client_id(name: &str) -> Result<(), Refusal> {
    check_name("client_id", name, ErrorCode::BadField)
}

/// What every message carries: its id and when it was made.
#[derive(Clone, Copy, Debug)]
pub struct Stamp {
    /// Shown as `msg_` and 16 hexadecimal digits.
    pub id: u64,
    /// Microseconds since 1970.
    pub micros: u64,
}

impl Stamp {
    pub fn id_text(self) -> String {
        format!("msg_{:016x}", self.id)
    }

    pub fn seconds(self) -> f64 {
        self.micros as f64 / 1e6
    }
}

pub fn now_micros() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_micros() as u64)
}

/// Microseconds since some moment of this process, for intervals: it goes on when the clock is set.
pub fn monotonic_micros() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    // past any interval that is measured, so that "never" is 0
    START.elapsed().as_micros() as u64 + MONOTONIC_START
}

const MONOTONIC_START: u64 = 1 << 50;

/// A broadcast: `event`, `data` and who published it.
#[derive(Clone, Copy, Debug)]
pub struct Publication<'a> {
    pub channel: &'a str,
    pub event: &'a str,
    /// JSON.
    pub data: &'a [u8],
    /// The client that published it, if one did.
    pub from: Option<&'a str>,
}

pub fn write_publication(out: &mut Vec<u8>, stamp: Stamp, publication: &Publication<'_>) {
    write_envelope(out, stamp, publication.channel);
    out.extend_from_slice(b",\"event\":");
    write_text(out, publication.event);
    out.extend_from_slice(b",\"data\":");
    out.extend_from_slice(publication.data);
    out.extend_from_slice(b",\"trumpeted_by\":\"tantor\"");
    if let Some(from) = publication.from {
        out.extend_from_slice(b",\"from\":");
        write_text(out, from);
    }
    out.push(b'}');
}

/// Which fields of the envelope a message to one client brings itself; its own win, as in the original.
#[derive(Clone, Copy, Debug, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "one for each field, set apart from each other"
)]
pub struct OwnFields {
    pub id: bool,
    pub channel: bool,
    pub timestamp: bool,
    pub sender: bool,
}

/// What `send` sends.
#[derive(Clone, Copy, Debug)]
pub enum Body<'a> {
    /// A JSON string, to go under `message`.
    Message(&'a [u8]),
    /// A JSON object, whose keys go to the top level.
    Fields(&'a [u8], OwnFields),
}

pub fn write_direct(out: &mut Vec<u8>, stamp: Stamp, channel: &str, body: Body<'_>) {
    match body {
        Body::Message(text) => {
            write_envelope(out, stamp, channel);
            out.extend_from_slice(b",\"message\":");
            out.extend_from_slice(text);
            out.push(b'}');
        }
        Body::Fields(object, own) => {
            out.push(b'{');
            if !own.id {
                write_id(out, stamp);
            }
            if !own.channel {
                out.extend_from_slice(b"\"channel\":");
                write_text(out, channel);
                out.push(b',');
            }
            if !own.timestamp {
                write_timestamp(out, stamp);
                out.push(b',');
            }
            if !own.sender {
                out.extend_from_slice(b"\"sender\":\"tantor\",");
            }
            let fields = &object[1..];
            if fields == b"}" && out.last() == Some(&b',') {
                out.pop();
            }
            out.extend_from_slice(fields);
        }
    }
}

pub fn write_welcome(out: &mut Vec<u8>, stamp: Stamp, client_id: &str) {
    write_envelope(out, stamp, SYSTEM_CHANNEL);
    out.extend_from_slice(b",\"event\":\"welcome\",\"message\":");
    write_text(out, WELCOME);
    out.extend_from_slice(b",\"client_id\":");
    write_text(out, client_id);
    out.push(b'}');
}

pub fn write_shutdown(out: &mut Vec<u8>, stamp: Stamp) {
    write_envelope(out, stamp, SYSTEM_CHANNEL);
    out.extend_from_slice(b",\"event\":\"server_shutdown\",\"message\":");
    write_text(out, GOODBYE);
    out.push(b'}');
}

/// `{"ping": true}`, the heartbeat that pages can see.
pub fn write_ping(out: &mut Vec<u8>, stamp: Stamp) {
    write_envelope(out, stamp, SYSTEM_CHANNEL);
    out.extend_from_slice(b",\"ping\":true}");
}

/// `{"pong": true}`, the answer to a client's ping.
pub fn write_pong(out: &mut Vec<u8>, stamp: Stamp) {
    write_envelope(out, stamp, SYSTEM_CHANNEL);
    out.extend_from_slice(b",\"pong\":true}");
}

pub fn write_error(out: &mut Vec<u8>, stamp: Stamp, refusal: &Refusal) {
    write_envelope(out, stamp, SYSTEM_CHANNEL);
    out.extend_from_slice(
        format!(
            ",\"event\":\"error\",\"code\":{},\"message\":",
            refusal.code.number()
        )
        .as_bytes(),
    );
    write_text(out, &refusal.message);
    out.push(b'}');
}

/// A JSON string.
pub fn write_text(out: &mut Vec<u8>, text: &str) {
    // writing to a Vec does not fail
    let _ = serde_json::to_writer(out, text);
}

pub const WELCOME: &str = "Welcome to Tantor's jungle! 🐘";
pub const GOODBYE: &str = "Tantor is going to sleep. Goodbye! 🐘💤";

fn write_envelope(out: &mut Vec<u8>, stamp: Stamp, channel: &str) {
    out.push(b'{');
    write_id(out, stamp);
    out.extend_from_slice(b"\"channel\":");
    write_text(out, channel);
    out.push(b',');
    write_timestamp(out, stamp);
    out.extend_from_slice(b",\"sender\":\"tantor\"");
}

fn write_id(out: &mut Vec<u8>, stamp: Stamp) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.extend_from_slice(b"\"id\":\"msg_");
    let digits: [u8; 16] =
        std::array::from_fn(|place| DIGITS[(stamp.id >> (60 - 4 * place) & 0xf) as usize]);
    out.extend_from_slice(&digits);
    out.extend_from_slice(b"\",");
}

fn write_timestamp(out: &mut Vec<u8>, stamp: Stamp) {
    use std::io::Write;
    // writing to a Vec does not fail
    let _ = write!(
        out,
        "\"timestamp\":{}.{:06}",
        stamp.micros / 1_000_000,
        stamp.micros % 1_000_000
    );
}

fn check_name(field: &str, name: &str, code: ErrorCode) -> Result<(), Refusal> {
    let problem = if name.is_empty() {
        "is empty".to_owned()
    } else if name.len() > MAX_CHANNEL_NAME {
        format!("is {} bytes long", name.len())
    } else if let Some(control) = name.chars().find(|character| character.is_control()) {
        format!("has the control character U+{:04X}", control as u32)
    } else {
        return Ok(());
    };
    Err(Refusal::new(
        code,
        format!(
            "{field} {problem}; it takes 1 to {MAX_CHANNEL_NAME} bytes without control characters"
        ),
    ))
}

fn check_client_event(event: &str) -> Result<(), Refusal> {
    check_event_name(event)?;
    if BUILT_IN_EVENTS.contains(&event) {
        return Err(Refusal::new(
            ErrorCode::ReservedEvent,
            format!("event {event:?} is the server's own; choose another name"),
        ));
    }
    Ok(())
}

/// Brackets are counted in the text, because what is passed on unread is skipped without recursion or limit.
fn check_depth(text: &str, max_depth: usize) -> Result<(), Refusal> {
    // a text too short to nest so deep needs no scan
    if text.len() < 2 * max_depth {
        return Ok(());
    }
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in text.bytes() {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'[' | b'{' => {
                depth += 1;
                if depth > max_depth {
                    return Err(Refusal::new(
                        ErrorCode::TooDeep,
                        format!("a message may nest {max_depth} deep, not more"),
                    ));
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(())
}

fn not_json(error: &serde_json::Error) -> Refusal {
    Refusal::new(
        ErrorCode::NotJson,
        format!("a message must be JSON: {error}"),
    )
}

fn optional_text<'a>(
    field: &str,
    raw: Option<&'a RawValue>,
) -> Result<Option<Cow<'a, str>>, Refusal> {
    let Some(raw) = raw else { return Ok(None) };
    let raw = raw.get();
    let kind = match raw.as_bytes().first() {
        Some(b'"') => {
            return match serde_json::from_str::<Text<'a>>(raw) {
                Ok(text) => Ok(Some(text.0)),
                // an escape that is no character, such as half a surrogate pair
                Err(error) => Err(Refusal::new(
                    ErrorCode::BadField,
                    format!("{field}: {error}"),
                )),
            };
        }
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ => "a number",
    };
    Err(Refusal::new(
        ErrorCode::BadField,
        format!("{field} must be a string, not {kind}"),
    ))
}

/// The known fields of a command, unread; of one given twice the last counts.
#[derive(Default)]
struct Fields<'a> {
    action: Option<&'a RawValue>,
    channel: Option<&'a RawValue>,
    event: Option<&'a RawValue>,
    data: Option<&'a RawValue>,
}

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FieldsVisitor;
        impl<'de> Visitor<'de> for FieldsVisitor {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Fields::default();
                while let Some(Text(key)) = map.next_key()? {
                    match key.as_ref() {
                        "action" => fields.action = Some(map.next_value()?),
                        "channel" => fields.channel = Some(map.next_value()?),
                        "event" => fields.event = Some(map.next_value()?),
                        "data" => fields.data = Some(map.next_value()?),
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(fields)
            }
        }
        deserializer.deserialize_map(FieldsVisitor)
    }
}

/// A string that borrows where it has no escapes.
struct Text<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}
