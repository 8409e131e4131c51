//! Names that clients and applications choose, and those that the server keeps to itself.

use crate::base::error::{ErrorCode, Refusal};

/// The channel of messages that belong to no channel: welcome, pong, errors, heartbeats.
pub const SYSTEM_CHANNEL: &str = "system";
/// The channel of emergencies, on which clients cannot publish.
pub const EMERGENCY_CHANNEL: &str = "emergency";

/// Longest name of a channel, an event, a key or a client, in bytes of UTF-8.
pub const MAX_CHANNEL_NAME: usize = 255;

/// Errors: empty, over 255 bytes, or with a control character.
pub fn check_channel_name(name: &str) -> Result<(), Refusal> {
    check_name("channel", name, ErrorCode::BadChannel)
}

/// Errors: as `check_channel_name`; the error names the field `event`.
pub fn check_event_name(name: &str) -> Result<(), Refusal> {
    check_name("event", name, ErrorCode::BadField)
}

/// Errors: as `check_channel_name`; the error names the field `idempotency_key`.
pub fn check_idempotency_key(key: &str) -> Result<(), Refusal> {
    check_name("idempotency_key", key, ErrorCode::BadField)
}

/// Errors: as `check_channel_name`; the error names the field `client_id`.
pub fn check_client_id(name: &str) -> Result<(), Refusal> {
    check_name("client_id", name, ErrorCode::BadField)
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
