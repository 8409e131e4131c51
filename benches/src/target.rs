//! The servers that are measured, and what each wants to hear from a client.

use std::str::FromStr;

use crate::frame::{TEXT, client_frame};

/// A running server, named on the command line as `name:protocol:port:process`.
#[derive(Clone, Debug)]
pub struct Target {
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
    pub process: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Subscribers join a channel, the publisher sends broadcast commands.
    Tantor,
    /// Whatever comes in on the path `/publish` goes out to everyone else.
    Echo,
    /// The same in Socket.IO's framing.
    SocketIo,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Connected, and no more.
    Idle,
    Subscriber,
    Publisher,
}

/// Bytes of JSON in the `data` of a publish to Tantor.
const DATA_BYTES: usize = 100;

impl Protocol {
    pub fn path(self, role: Role) -> &'static str {
        match (self, role) {
            (Self::SocketIo, _) => "/socket.io/?EIO=4&transport=websocket",
            (Self::Echo, Role::Publisher) => "/publish",
            _ => "/",
        }
    }

    /// What a client sends as soon as it is connected.
    pub fn greeting(self, role: Role) -> Option<Vec<u8>> {
        match (self, role) {
            (Self::Tantor, Role::Subscriber) => Some(client_frame(
                TEXT,
                br#"{"action":"join_channel","channel":"bench"}"#,
            )),
            (Self::SocketIo, _) => Some(client_frame(TEXT, b"40")),
            _ => None,
        }
    }

    /// Whether the server sends the first message.
    pub fn server_speaks_first(self) -> bool {
        self != Self::Echo
    }

    /// One publish. Tantor adds its own fields to `DATA_BYTES` of data; from the others
    /// `delivered_bytes` come back as they are.
    pub fn publish(self, delivered_bytes: usize) -> Vec<u8> {
        let text = match self {
            Self::Tantor => return broadcast(""),
            Self::Echo => padded(r#"{"event":"tick","data":""#, r#""}"#, delivered_bytes),
            Self::SocketIo => padded(r#"42["tick",{"data":""#, r#""}]"#, delivered_bytes),
        };
        client_frame(TEXT, text.as_bytes())
    }
}

/// The same publish to Tantor, with a `ref` so that it is answered.
pub fn publish_with_ref(reference: &str) -> Vec<u8> {
    broadcast(&format!(r#""ref":"{reference}","#))
}

fn broadcast(fields: &str) -> Vec<u8> {
    let data = padded(r#"{"text":""#, r#""}"#, DATA_BYTES);
    let text = format!(
        r#"{{"action":"broadcast",{fields}"channel":"bench","event":"tick","data":{data}}}"#
    );
    client_frame(TEXT, text.as_bytes())
}

fn padded(opening: &str, closing: &str, bytes: usize) -> String {
    let filling = bytes.saturating_sub(opening.len() + closing.len());
    format!("{opening}{}{closing}", "x".repeat(filling))
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("--target takes name:protocol:port:process, not {text:?}");
        let [name, protocol, port, process] = text.split(':').collect::<Vec<_>>()[..] else {
            return Err(wrong());
        };
        let protocol = match protocol {
            "tantor" => Protocol::Tantor,
            "echo" => Protocol::Echo,
            "socketio" => Protocol::SocketIo,
            other => {
                return Err(format!(
                    "no protocol {other:?}; there are tantor, echo and socketio"
                ));
            }
        };
        Ok(Self {
            name: name.to_owned(),
            protocol,
            port: port.parse().map_err(|_| wrong())?,
            process: process.parse().map_err(|_| wrong())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::parse_head;

    #[test]
    fn an_echoed_publish_has_the_length_asked_for() {
        for protocol in [Protocol::Echo, Protocol::SocketIo] {
            let (frame, _) = parse_head(&protocol.publish(321)).expect("a whole head");
            assert_eq!(frame.payload_bytes, 321);
        }
    }

    #[test]
    fn a_target_is_read_and_a_wrong_one_is_named() {
        let target: Target = "bare:echo:8080:17".parse().expect("a target");
        assert_eq!((target.port, target.process), (8080, 17));
        assert!(
            "bare:smtp:1:1"
                .parse::<Target>()
                .is_err_and(|error| error.contains("smtp"))
        );
        assert!(
            "bare:echo:99999:1"
                .parse::<Target>()
                .is_err_and(|error| error.contains("99999"))
        );
    }
}
