//! The wire's JSON: names, and messages as clients read them (`docs/protocol.md`).

use crate::base::clock::WallTime;
use crate::base::error::{ErrorCode, Refusal};
use crate::base::names::{SYSTEM_CHANNEL, check_event_name};
use crate::wire::frame::{ACK_FIELD, EncodedFrame};
use serde::{Deserialize, Serialize};

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
    "gap",
];

/// The id and the time of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Shown as `msg_` and 16 hexadecimal digits.
    pub id: u64,
    /// When the message was made.
    pub at: WallTime,
}

impl Stamp {
    pub fn id_text(self) -> String {
        message_id_text(self.id)
    }

    pub fn seconds(self) -> f64 {
        self.at.seconds()
    }
}

/// A message's id as it is on the wire: `msg_` and 16 hexadecimal digits.
pub fn message_id_text(id: u64) -> String {
    format!("msg_{id:016x}")
}

/// The id in `msg_` and 16 hexadecimal digits; `None` for what is no such text.
pub fn parse_message_id(text: &str) -> Option<u64> {
    let digits = text.strip_prefix("msg_")?;
    let is_id = digits.len() == 16 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_id
        .then(|| u64::from_str_radix(digits, 16).ok())
        .flatten()
}

/// An epoch as it is on the wire.
pub fn epoch_text(epoch: u64) -> String {
    format!("{epoch:016x}")
}

/// The field `ref`: JSON of a string or a whole number, which goes back as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reference<'a>(pub &'a str);

/// A broadcast: `event`, `data` and its publisher.
#[derive(Clone, Copy, Debug)]
pub struct Publication<'a> {
    pub channel: &'a str,
    pub event: &'a str,
    /// JSON.
    pub data: &'a [u8],
    /// The client that published it, if one did.
    pub from: Option<&'a str>,
    /// Clients that acknowledge messages are to acknowledge it.
    pub wants_ack: bool,
}

/// Writes a publication without its closing brace and its offset, which `Unsealed::seal` adds.
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
    if publication.wants_ack {
        out.extend_from_slice(ACK_FIELD);
    }
}

/// Which fields of the envelope a message to one client brings itself; its own win, as in the original.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "one for each field, set apart from each other"
)]
pub struct OwnFields {
    pub id: bool,
    pub channel: bool,
    pub timestamp: bool,
    pub sender: bool,
    /// Not of the envelope: it marks what is to be acknowledged.
    pub ack: bool,
}

/// The body of a message to one client.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Body<'a> {
    /// A JSON string, to go under `message`.
    Message(#[serde(borrow, with = "serde_bytes")] &'a [u8]),
    /// A JSON object, whose keys go to the top level.
    Fields(#[serde(borrow, with = "serde_bytes")] &'a [u8], OwnFields),
}

impl Body<'_> {
    /// True if the message can carry the field `ack` of the server: it has no field of this name itself.
    pub fn can_want_ack(&self) -> bool {
        !matches!(self, Body::Fields(_, own) if own.ack || own.id)
    }
}

/// Writes a message to one client. Returns the place for the field `ack`, which `UnsealedMail::seal` adds; `None` where
/// the message cannot carry it.
pub fn write_direct(
    out: &mut Vec<u8>,
    stamp: Stamp,
    channel: &str,
    body: Body<'_>,
) -> Option<usize> {
    let ack_at = match body {
        Body::Message(text) => {
            write_envelope(out, stamp, channel);
            out.extend_from_slice(b",\"message\":");
            out.extend_from_slice(text);
            let ack_at = out.len();
            out.push(b'}');
            ack_at
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
            let has_comma = out.last() == Some(&b',');
            let ack_at = out.len() - usize::from(has_comma);
            let fields = &object[1..];
            if fields == b"}" && has_comma {
                out.pop();
            }
            out.extend_from_slice(fields);
            ack_at
        }
    };
    body.can_want_ack().then_some(ack_at)
}

/// The fields of a welcome besides the id of the client.
#[derive(Clone, Copy, Debug, Default)]
pub struct WelcomeFields<'a> {
    /// The resume token, and for how many seconds it is good.
    pub resume: Option<(&'a str, f64)>,
    pub heartbeat_interval: f64,
    /// The channels that the client is on without a join, or again.
    pub channels: &'a [std::sync::Arc<str>],
    pub outcome: Option<ResumeOutcome<'a>>,
}

/// The outcome of resuming.
#[derive(Clone, Copy, Debug)]
pub enum ResumeOutcome<'a> {
    Resumed {
        /// Messages that follow.
        waiting: usize,
        /// Messages that could not be kept.
        dropped: u64,
    },
    Refused(&'a str),
}

pub fn write_welcome(out: &mut Vec<u8>, stamp: Stamp, client_id: &str, fields: &WelcomeFields<'_>) {
    write_envelope(out, stamp, SYSTEM_CHANNEL);
    out.extend_from_slice(b",\"event\":\"welcome\",\"message\":");
    write_text(out, WELCOME);
    out.extend_from_slice(b",\"client_id\":");
    write_text(out, client_id);
    write_json(out, "heartbeat_interval", fields.heartbeat_interval);
    if let Some((token, seconds)) = fields.resume {
        write_json(out, "resume", token);
        write_json(out, "resume_ttl", seconds);
    }
    let names: Vec<&str> = fields.channels.iter().map(|name| &**name).collect();
    write_json(out, "channels", names);
    match fields.outcome {
        None => {}
        Some(ResumeOutcome::Refused(reason)) => {
            write_json(out, "resumed", false);
            write_json(out, "reason", reason);
        }
        Some(ResumeOutcome::Resumed { waiting, dropped }) => {
            write_json(out, "resumed", true);
            write_json(out, "waiting", waiting);
            if dropped > 0 {
                write_json(out, "dropped", dropped);
            }
        }
    }
    out.push(b'}');
}

/// An answer to a command about a channel, or `SYSTEM_CHANNEL`; `write` adds its own fields, with the comma before each.
pub fn write_reply(
    out: &mut Vec<u8>,
    stamp: Stamp,
    reference: Option<Reference<'_>>,
    channel: &str,
    write: impl FnOnce(&mut Vec<u8>),
) {
    write_envelope(out, stamp, channel);
    out.extend_from_slice(b",\"event\":\"reply\"");
    write_reference(out, reference);
    out.extend_from_slice(b",\"ok\":true");
    write(out);
    out.push(b'}');
}

/// A field behind others.
pub fn write_json(out: &mut Vec<u8>, name: &str, value: impl serde::Serialize) {
    out.push(b',');
    write_text(out, name);
    out.push(b':');
    // writing to a Vec does not fail
    let _ = serde_json::to_writer(out, &value);
}

/// The field `publications`: messages as they were on the wire.
pub fn write_publications<'a>(
    out: &mut Vec<u8>,
    publications: impl IntoIterator<Item = &'a EncodedFrame>,
) {
    out.extend_from_slice(b",\"publications\":[");
    for (number, frame) in publications.into_iter().enumerate() {
        if number > 0 {
            out.push(b',');
        }
        out.extend_from_slice(frame.payload());
    }
    out.push(b']');
}

fn write_reference(out: &mut Vec<u8>, reference: Option<Reference<'_>>) {
    if let Some(Reference(text)) = reference {
        out.extend_from_slice(b",\"ref\":");
        out.extend_from_slice(text.as_bytes());
    }
}

/// The goodbye of a server that stops, with when to come back, in milliseconds.
pub fn write_shutdown(out: &mut Vec<u8>, stamp: Stamp, reconnect_after: u64) {
    write_envelope(out, stamp, SYSTEM_CHANNEL);
    out.extend_from_slice(b",\"event\":\"server_shutdown\",\"message\":");
    write_text(out, GOODBYE);
    write_json(out, "reconnect_after_ms", reconnect_after);
    out.push(b'}');
}

/// Messages of a channel were dropped; `write` adds its own fields, with the comma before each.
pub fn write_gap(out: &mut Vec<u8>, stamp: Stamp, channel: &str, write: impl FnOnce(&mut Vec<u8>)) {
    write_envelope(out, stamp, channel);
    out.extend_from_slice(b",\"event\":\"gap\"");
    write(out);
    out.push(b'}');
}

/// Publications of a channel are lost for this process: its subscribers are to recover. `top` is epoch and offset of the
/// newest lost publication, where they are known.
pub fn write_lost(out: &mut Vec<u8>, stamp: Stamp, channel: &str, top: Option<(u64, u64)>) {
    write_gap(out, stamp, channel, |out| {
        if let Some((epoch, offset)) = top {
            write_json(out, "epoch", epoch_text(epoch));
            write_json(out, "offset", offset);
        }
        write_json(out, "reason", "lost");
        write_json(out, "recover", true);
    });
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

pub fn write_error(
    out: &mut Vec<u8>,
    stamp: Stamp,
    reference: Option<Reference<'_>>,
    refusal: &Refusal,
) {
    write_envelope(out, stamp, SYSTEM_CHANNEL);
    out.extend_from_slice(b",\"event\":\"error\"");
    write_reference(out, reference);
    out.extend_from_slice(format!(",\"code\":{},\"message\":", refusal.code.number()).as_bytes());
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
        std::array::from_fn(|index| DIGITS[(stamp.id >> (60 - 4 * index) & 0xf) as usize]);
    out.extend_from_slice(&digits);
    out.extend_from_slice(b"\",");
}

fn write_timestamp(out: &mut Vec<u8>, stamp: Stamp) {
    const SECOND: u64 = 1_000_000;
    let micros = stamp.at.as_micros();
    let mut digits = itoa::Buffer::new();
    out.extend_from_slice(b"\"timestamp\":");
    out.extend_from_slice(digits.format(micros / SECOND).as_bytes());
    out.push(b'.');
    // the leading digit keeps the zeros behind it, and is left out
    let fraction = digits.format(SECOND + micros % SECOND).as_bytes();
    out.extend_from_slice(&fraction[1..]);
}

/// Errors: an event of the server's own, besides what `check_event_name` finds.
pub fn check_client_event(event: &str) -> Result<(), Refusal> {
    check_event_name(event)?;
    if BUILT_IN_EVENTS.contains(&event) {
        return Err(Refusal::new(
            ErrorCode::ReservedEvent,
            format!("event {event:?} is the server's own; choose another name"),
        ));
    }
    Ok(())
}
