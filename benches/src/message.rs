//! Messages of Tantor, as far as a measurement reads them, and commands to Tantor.

use std::borrow::Cow;

use serde::Deserialize;

use crate::frame::{Frame, TEXT, client_frame};

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Message<'a> {
    #[serde(borrow)]
    pub event: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub channel: Option<Cow<'a, str>>,
    /// What an error says.
    #[serde(borrow, rename = "message")]
    pub text: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub client_id: Option<Cow<'a, str>>,
    /// The token of a welcome.
    #[serde(borrow)]
    pub resume: Option<Cow<'a, str>>,
    pub resumed: bool,
    #[serde(borrow)]
    pub epoch: Option<Cow<'a, str>>,
    pub offset: Option<u64>,
    pub recovered: bool,
    pub publications: Vec<Publication>,
    pub pong: bool,
    /// Of the messages that `servers/tantor_resume.py` sends to a single client.
    pub mail: Option<u64>,
}

#[derive(Debug, Deserialize)]
pub struct Publication {
    pub offset: u64,
}

impl<'a> Message<'a> {
    /// What a frame says; `None` if it is no message.
    pub fn read(frame: Frame<'a>) -> Option<Self> {
        (frame.opcode == TEXT)
            .then(|| serde_json::from_slice(frame.payload).ok())
            .flatten()
    }

    pub fn is(&self, event: &str) -> bool {
        self.event.as_deref() == Some(event)
    }
}

/// A command to Tantor as a client sends it.
pub fn command(json: &serde_json::Value) -> Vec<u8> {
    client_frame(TEXT, json.to_string().as_bytes())
}

/// A command to publish on the channel `flood`.
pub fn broadcast(data_bytes: usize) -> Vec<u8> {
    let text = format!(
        r#"{{"action":"broadcast","channel":"flood","event":"flood","data":"{}"}}"#,
        "x".repeat(data_bytes)
    );
    client_frame(TEXT, text.as_bytes())
}

/// A command to join a channel.
pub fn join(channel: &str) -> Vec<u8> {
    let text = format!(r#"{{"action":"join_channel","channel":"{channel}"}}"#);
    client_frame(TEXT, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::PING;

    fn frame(text: &str) -> Frame<'_> {
        Frame {
            opcode: TEXT,
            payload_bytes: text.len() as u64,
            payload: text.as_bytes(),
        }
    }

    #[test]
    fn a_reply_is_read_with_its_publications() {
        let text = r#"{"id":"msg_1","channel":"be\u006ech","event":"reply","ref":"join","ok":true,"epoch":"ab",
            "offset":7,"recovered":true,"publications":[{"offset":6,"data":{"offset":1}},{"offset":7}]}"#;
        let message = Message::read(frame(text)).expect("a message");
        assert!(message.is("reply") && message.recovered && !message.resumed);
        assert_eq!(message.channel.as_deref(), Some("bench"));
        let offsets: Vec<u64> = message
            .publications
            .iter()
            .map(|kept| kept.offset)
            .collect();
        assert_eq!((message.offset, offsets), (Some(7), vec![6, 7]));
    }

    #[test]
    fn what_is_no_message_is_none() {
        assert!(Message::read(frame("[1")).is_none());
        let ping = Frame {
            opcode: PING,
            ..frame("{}")
        };
        assert!(Message::read(ping).is_none());
    }
}
