//! All errors, as closed sets: a refused command (`ErrorCode`), a closed connection (`Disconnect`)
//! and a refused call (`Error`).

use serde::{Deserialize, Serialize};
use std::fmt;

/// Why a frame or command of a client was refused; the connection lives on.
///
/// The number is `code` of the `error` message on the wire (`docs/protocol.md` holds the same table).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u16)]
pub enum ErrorCode {
    NotJson = 101,
    NotAnObject = 102,
    BadField = 103,
    Binary = 104,
    TooLarge = 105,
    TooDeep = 106,
    BadChannel = 107,
    ReservedEvent = 108,
    ReservedChannel = 109,
    TooManyChannels = 110,
    BadLimit = 112,
    UnknownMessage = 113,
    NotSaved = 114,
    /// A number that the JSON parsers of subscribers cannot hold.
    Unreadable = 115,
    /// The storage could not be read.
    NotRead = 116,
}

impl ErrorCode {
    /// Every code, in the order of the documented table.
    pub const ALL: [ErrorCode; 15] = [
        ErrorCode::NotJson,
        ErrorCode::NotAnObject,
        ErrorCode::BadField,
        ErrorCode::Binary,
        ErrorCode::TooLarge,
        ErrorCode::TooDeep,
        ErrorCode::BadChannel,
        ErrorCode::ReservedEvent,
        ErrorCode::ReservedChannel,
        ErrorCode::TooManyChannels,
        ErrorCode::BadLimit,
        ErrorCode::UnknownMessage,
        ErrorCode::NotSaved,
        ErrorCode::Unreadable,
        ErrorCode::NotRead,
    ];

    pub fn number(self) -> u16 {
        self as u16
    }
}

/// A refused command: the code and the text of the error message to the client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    pub code: ErrorCode,
    pub message: String,
}

impl Refusal {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

/// Why a connection ended: the close code on the wire and the `reason` word of the `disconnect` event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disconnect {
    /// The client closed it; the code is the client's (1005 when it gave none, RFC 6455 section 7.1.5).
    Closed(u16),
    /// The socket ended without a close frame.
    Lost,
    Shutdown,
    ProtocolError,
    InvalidUtf8,
    TooLarge,
    Internal,
    SlowConsumer,
    HeartbeatTimeout,
    /// The process holds too much unfinished input, and most of it is this connection's.
    InputOverload,
    /// A message has not arrived in full in its time.
    InputTimeout,
    /// Another connection has resumed the client.
    Displaced,
}

impl Disconnect {
    /// The reasons that the server decides on, in the order of the documented table.
    pub const OURS: [Disconnect; 10] = [
        Disconnect::Shutdown,
        Disconnect::ProtocolError,
        Disconnect::InvalidUtf8,
        Disconnect::TooLarge,
        Disconnect::Internal,
        Disconnect::SlowConsumer,
        Disconnect::HeartbeatTimeout,
        Disconnect::InputOverload,
        Disconnect::InputTimeout,
        Disconnect::Displaced,
    ];

    /// A close frame of the client. Firefox closes a page's connections with 1001 before the page knows that it is
    /// unloaded, and could say with 4900 that it will be back: a client says so when it connects (`may_return`).
    pub fn closed_by_client(code: Option<u16>, may_return: bool) -> Self {
        match code {
            Some(GOING_AWAY) if may_return => Disconnect::Closed(RETURNING),
            // stands for a close frame without a code
            None => Disconnect::Closed(1005),
            Some(code) => Disconnect::Closed(code),
        }
    }

    /// The close code: RFC 6455 section 7.4.1 below 3000; 3000 to 3499 ask the client to come back, 3500 to
    /// 3999 ask it not to.
    pub fn code(self) -> u16 {
        match self {
            Disconnect::Closed(code) => code,
            Disconnect::Lost => 1006,
            Disconnect::Shutdown => GOING_AWAY,
            Disconnect::ProtocolError => 1002,
            Disconnect::InvalidUtf8 => 1007,
            Disconnect::TooLarge => 1009,
            Disconnect::Internal => 1011,
            Disconnect::SlowConsumer => 3008,
            Disconnect::HeartbeatTimeout => 3012,
            Disconnect::InputOverload => 3015,
            Disconnect::InputTimeout => 3016,
            Disconnect::Displaced => 3503,
        }
    }

    /// True when the client did not mean to leave, and may be back soon.
    pub fn is_abrupt(self) -> bool {
        matches!(
            self,
            Disconnect::Closed(RETURNING)
                | Disconnect::Lost
                | Disconnect::Shutdown
                | Disconnect::SlowConsumer
                | Disconnect::HeartbeatTimeout
                | Disconnect::InputOverload
                | Disconnect::InputTimeout
                | Disconnect::Internal
        )
    }

    /// True when the client seems to take nothing any more.
    pub fn is_of_stalled(self) -> bool {
        matches!(
            self,
            Disconnect::SlowConsumer | Disconnect::HeartbeatTimeout
        )
    }

    pub fn reason(self) -> &'static str {
        match self {
            Disconnect::Closed(_) => "closed",
            Disconnect::Lost => "lost",
            Disconnect::Shutdown => "shutdown",
            Disconnect::ProtocolError => "protocol_error",
            Disconnect::InvalidUtf8 => "invalid_utf8",
            Disconnect::TooLarge => "too_large",
            Disconnect::Internal => "internal_error",
            Disconnect::SlowConsumer => "slow_consumer",
            Disconnect::HeartbeatTimeout => "heartbeat_timeout",
            Disconnect::InputOverload => "input_overload",
            Disconnect::InputTimeout => "input_timeout",
            Disconnect::Displaced => "displaced",
        }
    }
}

/// With this code a client says that it will be back: its place is kept as if it had been lost.
const RETURNING: u16 = 4900;

/// A server that stops, or a page that is unloaded.
const GOING_AWAY: u16 = 1001;

/// Why a call was refused. The Python layer maps each to one exception.
#[derive(Debug, Serialize, Deserialize)]
pub enum Error {
    /// A setting's value is not one it takes.
    Setting(String),
    /// There is no setting of this name.
    UnknownSetting(String),
    /// An argument is of the right type, but not one that can be used.
    Argument(String),
    /// Listening failed.
    Bind {
        address: String,
        #[serde(with = "system_error")]
        source: std::io::Error,
        /// A hint that the error of the system does not give.
        hint: Option<String>,
    },
    /// A thread could not be started, or ended before it served.
    Start(String),
    /// The operation did not end within the given time.
    TimedOut(String),
    /// The storage cannot be opened or has failed.
    Storage(String),
    /// A call of a client was refused.
    Refused(Refusal),
    /// The process that has the node cannot be reached, or has ended before it answered.
    Link(String),
}

/// An error of the system as its number and its text. The number has the same meaning in every process of a machine.
mod system_error {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::io::Error;

    pub fn serialize<S: Serializer>(error: &Error, serializer: S) -> Result<S::Ok, S::Error> {
        (error.raw_os_error(), error.to_string()).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Error, D::Error> {
        let (number, text) = <(Option<i32>, String)>::deserialize(deserializer)?;
        Ok(number.map_or_else(|| Error::other(text), Error::from_raw_os_error))
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Error::Refused(refusal)
    }
}

/// The error of a call that has an argument for which a command would be refused.
pub fn argument(refusal: Refusal) -> Error {
    Error::Argument(refusal.message)
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Setting(message)
            | Error::Argument(message)
            | Error::Start(message)
            | Error::TimedOut(message)
            | Error::Storage(message)
            | Error::Link(message) => f.write_str(message),
            Error::Refused(refusal) => f.write_str(&refusal.message),
            Error::UnknownSetting(name) => write!(f, "there is no setting {name:?}"),
            Error::Bind {
                address,
                source,
                hint,
            } => {
                let problem = source.to_string();
                // Python's OSError shows the number
                let problem = match source.raw_os_error() {
                    Some(number) => problem
                        .strip_suffix(&format!(" (os error {number})"))
                        .unwrap_or(&problem),
                    None => &problem,
                };
                write!(f, "cannot listen on {address}: {problem}")?;
                match hint {
                    Some(hint) => write!(f, " ({hint})"),
                    None => Ok(()),
                }
            }
        }
    }
}

impl std::error::Error for Error {}
