//! Commands, as clients write them (`docs/protocol.md`).

use crate::base::error::{ErrorCode, Refusal};
use crate::base::names;
use crate::base::names::{EMERGENCY_CHANNEL, SYSTEM_CHANNEL, check_channel_name};
use crate::wire::json_limits::{JsonLimits, check_limits};
use crate::wire::messages::{Reference, check_client_event, parse_message_id};
use serde::Deserialize;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;

/// A command of a client, and the reference for its reply.
#[derive(Debug, PartialEq, Eq)]
pub struct Request<'a> {
    pub command: Command<'a>,
    pub reference: Option<Reference<'a>>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Command<'a> {
    Join {
        channel: Cow<'a, str>,
        recover: Option<Recover<'a>>,
    },
    Leave {
        channel: Cow<'a, str>,
    },
    Broadcast {
        channel: Cow<'a, str>,
        event: Cow<'a, str>,
        data: &'a str,
        idempotency_key: Option<Cow<'a, str>>,
    },
    Ping,
    Presence {
        channel: Cow<'a, str>,
    },
    History {
        channel: Cow<'a, str>,
        limit: Option<i64>,
        after: Option<u64>,
        before: Option<u64>,
    },
    /// The messages that a client has taken, by id; and a text among the ids that is none.
    Ack {
        ids: Vec<u64>,
        malformed: Option<String>,
    },
    /// An action that is none of the known ones: the application's.
    Other {
        action: Option<Cow<'a, str>>,
    },
}

/// The position up to which a client has seen a channel.
#[derive(Debug, PartialEq, Eq)]
pub struct Recover<'a> {
    pub epoch: Cow<'a, str>,
    pub offset: u64,
}

/// A frame that is no command, and what the client called it.
#[derive(Debug, PartialEq, Eq)]
pub struct Rejected<'a> {
    pub refusal: Refusal,
    pub reference: Option<Reference<'a>>,
}

/// Longest `ref`, in bytes of its text.
pub const MAX_REFERENCE: usize = 64;

/// Most ids in one acknowledgement.
const MAX_ACKED: usize = 10_000;

impl Command<'_> {
    /// The channel that the command names.
    pub fn channel(&self) -> Option<&str> {
        match self {
            Command::Join { channel, .. }
            | Command::Leave { channel }
            | Command::Broadcast { channel, .. }
            | Command::Presence { channel }
            | Command::History { channel, .. } => Some(channel),
            Command::Ping | Command::Ack { .. } | Command::Other { .. } => None,
        }
    }
}

impl<'a> Request<'a> {
    /// Reads one text frame. A channel that is not named is `default_channel`.
    ///
    /// Errors: what is wrong with the frame, as the error message to the client says it.
    pub fn parse(
        text: &'a str,
        default_channel: &'a str,
        limits: JsonLimits,
    ) -> Result<Self, Rejected<'a>> {
        let unreadable = |refusal| Rejected {
            refusal,
            reference: None,
        };
        if let Err(refusal) = check_limits(text, limits) {
            let fields = Fields::read(text).ok();
            let reference = fields.and_then(|fields| read_reference(fields.reference?).ok());
            return Err(Rejected { refusal, reference });
        }
        let fields = Fields::read(text).map_err(unreadable)?;
        let action = optional_text("action", fields.action).map_err(unreadable)?;
        let is_known = action
            .as_deref()
            .is_some_and(|action| ACTIONS.contains(&action));
        let reference = match fields.reference.map(read_reference).transpose() {
            Ok(reference) => reference,
            // the application may mean something of its own by it
            Err(_) if !is_known => None,
            Err(refusal) => return Err(unreadable(refusal)),
        };
        match Command::read(action, &fields, default_channel) {
            Ok(command) => Ok(Self { command, reference }),
            Err(refusal) => Err(Rejected { refusal, reference }),
        }
    }
}

/// The actions that the server carries out itself.
pub const ACTIONS: &[&str] = &[
    "join_channel",
    "leave_channel",
    "broadcast",
    "ping",
    "presence",
    "history",
    "ack",
];

impl<'a> Command<'a> {
    fn read(
        action: Option<Cow<'a, str>>,
        fields: &Fields<'a>,
        default_channel: &'a str,
    ) -> Result<Self, Refusal> {
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
        Ok(match action.as_deref() {
            Some("join_channel") => Command::Join {
                channel: channel()?,
                recover: fields.recover.map(read_recover).transpose()?,
            },
            Some("leave_channel") => Command::Leave {
                channel: channel()?,
            },
            Some("ping") => Command::Ping,
            Some("presence") => Command::Presence {
                channel: channel()?,
            },
            Some("history") => Command::History {
                channel: channel()?,
                limit: fields
                    .limit
                    .map(|limit| whole_number("limit", limit))
                    .transpose()?,
                after: fields
                    .after
                    .map(|after| read_offset("after", after))
                    .transpose()?,
                before: fields
                    .before
                    .map(|before| read_offset("before", before))
                    .transpose()?,
            },
            Some("ack") => {
                let (ids, malformed) = read_ids(fields)?;
                Command::Ack { ids, malformed }
            }
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
                let idempotency_key = optional_text("idempotency_key", fields.idempotency_key)?;
                if let Some(key) = &idempotency_key {
                    names::check_idempotency_key(key)?;
                }
                Command::Broadcast {
                    channel,
                    event,
                    data: fields.data.map_or("{}", RawValue::get),
                    idempotency_key,
                }
            }
            _ => Command::Other { action },
        })
    }
}

fn read_reference(raw: &RawValue) -> Result<Reference<'_>, Refusal> {
    let text = raw.get();
    let is_taken = match text.as_bytes().first() {
        Some(b'"') => serde_json::from_str::<Text<'_>>(text).is_ok(),
        _ => serde_json::from_str::<i64>(text).is_ok() || serde_json::from_str::<u64>(text).is_ok(),
    };
    if is_taken && text.len() <= MAX_REFERENCE + 2 {
        return Ok(Reference(text));
    }
    Err(bad_field(format!(
        "ref is {}; it takes a string of at most {MAX_REFERENCE} bytes or a whole number",
        shown(text)
    )))
}

fn read_recover(raw: &RawValue) -> Result<Recover<'_>, Refusal> {
    #[derive(Deserialize)]
    struct Position<'a> {
        #[serde(borrow)]
        epoch: Option<&'a RawValue>,
        #[serde(borrow)]
        offset: Option<&'a RawValue>,
    }
    let shape = || {
        bad_field(format!(
            "recover is {}; it takes an object like {{\"epoch\": \"0123456789abcdef\", \"offset\": 7}}",
            shown(raw.get())
        ))
    };
    let position: Position<'_> = if raw.get().starts_with('{') {
        serde_json::from_str(raw.get()).map_err(|_| shape())?
    } else {
        return Err(shape());
    };
    let (Some(epoch), Some(offset)) = (position.epoch, position.offset) else {
        return Err(shape());
    };
    let epoch = optional_text("recover.epoch", Some(epoch))?.ok_or_else(shape)?;
    if epoch.len() > MAX_REFERENCE {
        return Err(bad_field(format!(
            "recover.epoch is {} bytes long; an epoch has at most {MAX_REFERENCE}",
            epoch.len()
        )));
    }
    Ok(Recover {
        epoch,
        offset: read_offset("recover.offset", offset)?,
    })
}

fn read_offset(field: &str, raw: &RawValue) -> Result<u64, Refusal> {
    match whole_number(field, raw) {
        Ok(offset) if offset >= 0 => Ok(offset.unsigned_abs()),
        _ => Err(bad_field(format!(
            "{field} is {}; an offset is a whole number from 0 to {}",
            shown(raw.get()),
            i64::MAX
        ))),
    }
}

fn whole_number(field: &str, raw: &RawValue) -> Result<i64, Refusal> {
    serde_json::from_str(raw.get()).map_err(|_| {
        bad_field(format!(
            "{field} is {}; it takes a whole number",
            shown(raw.get())
        ))
    })
}

/// Message ids, and the last text that is none.
fn read_ids(fields: &Fields<'_>) -> Result<(Vec<u64>, Option<String>), Refusal> {
    let mut malformed = None;
    let mut read = |text: &str| {
        let id = parse_message_id(text);
        if id.is_none() {
            malformed = Some(shown(text).into_owned());
        }
        id
    };
    if let Some(id) = optional_text("id", fields.id)? {
        let ids = read(&id).into_iter().collect();
        return Ok((ids, malformed));
    }
    let Some(raw) = fields.ids else {
        return Err(bad_field("ack takes id, or ids with several".to_owned()));
    };
    let ids: Vec<Text<'_>> = serde_json::from_str(raw.get()).map_err(|_| {
        bad_field(format!(
            "ids is {}; it takes a list of message ids",
            shown(raw.get())
        ))
    })?;
    if ids.len() > MAX_ACKED {
        return Err(bad_field(format!(
            "ids has {} ids; it takes at most {MAX_ACKED}",
            ids.len()
        )));
    }
    let ids = ids.iter().filter_map(|id| read(&id.0)).collect();
    Ok((ids, malformed))
}

fn bad_field(message: String) -> Refusal {
    Refusal::new(ErrorCode::BadField, message)
}

/// A value as an error shows it: its beginning.
fn shown(text: &str) -> Cow<'_, str> {
    const MOST: usize = 80;
    if text.len() <= MOST {
        return Cow::Borrowed(text);
    }
    let end = (0..=MOST)
        .rev()
        .find(|end| text.is_char_boundary(*end))
        .unwrap_or(0);
    Cow::Owned(format!("{}…", &text[..end]))
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
    reference: Option<&'a RawValue>,
    recover: Option<&'a RawValue>,
    idempotency_key: Option<&'a RawValue>,
    limit: Option<&'a RawValue>,
    after: Option<&'a RawValue>,
    before: Option<&'a RawValue>,
    id: Option<&'a RawValue>,
    ids: Option<&'a RawValue>,
}

impl<'a> Fields<'a> {
    fn read(text: &'a str) -> Result<Self, Refusal> {
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
        serde_json::from_str(text).map_err(|error| not_json(&error))
    }
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
                    let field = match key.as_ref() {
                        "action" => &mut fields.action,
                        "channel" => &mut fields.channel,
                        "event" => &mut fields.event,
                        "data" => &mut fields.data,
                        "ref" => &mut fields.reference,
                        "recover" => &mut fields.recover,
                        "idempotency_key" => &mut fields.idempotency_key,
                        "limit" => &mut fields.limit,
                        "after" => &mut fields.after,
                        "before" => &mut fields.before,
                        "id" => &mut fields.id,
                        "ids" => &mut fields.ids,
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                            continue;
                        }
                    };
                    *field = Some(map.next_value()?);
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
