//! The messages of a link.

use super::frame::{Unsendable, append_frame};
use crate::base::error::Error;
use crate::ports::calls::{Call, Reply};
use serde::{Deserialize, Serialize};

/// The number of a call, unique on its link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CallNumber(pub u64);

/// From a process that calls to the process that has the node.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToNode<'a> {
    /// The first message of a link.
    Hello(Hello),
    /// A call, to be answered by `FromNode::Ended`.
    Call {
        number: CallNumber,
        #[serde(borrow)]
        call: Call<'a>,
    },
    /// Asks whether the node's process still reads; `FromNode::Pong` answers.
    Ping,
}

/// From the process that has the node.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromNode {
    /// The answer to `Hello`: calls are taken.
    Welcome(Welcome),
    /// The answer to `Hello`: the link ends.
    Refused(String),
    /// The outcome of a call.
    Ended {
        number: CallNumber,
        outcome: Result<Reply, Error>,
    },
    Pong,
    /// The process that has the node ends the link.
    Goodbye,
}

/// The process that begins a link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub process: u32,
}

/// The process that has the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    pub process: u32,
    /// The longest frame that the process takes.
    pub max_frame: usize,
}

/// The bytes of a call besides its message: names, options and numbers.
pub const CALL_OVERHEAD: usize = 64 << 10;

/// The most calls of one process that wait for their outcome, such as durable calls. Each takes a few hundred bytes.
pub const MAX_WAITING_CALLS: usize = 100_000;

/// Appends a message as a frame.
///
/// Errors: a call that does not cross the link; a message that is too long for a frame. `out` is then as before.
pub fn append(out: &mut Vec<u8>, message: &impl Serialize) -> Result<(), Unsendable> {
    append_frame(out, |out| {
        postcard::to_extend(message, Appender(out)).is_ok()
    })
}

/// Appends to a buffer that has other frames already.
struct Appender<'a>(&'a mut Vec<u8>);

impl Extend<u8> for Appender<'_> {
    fn extend<I: IntoIterator<Item = u8>>(&mut self, bytes: I) {
        self.0.extend(bytes);
    }
}

/// Reads the message of a frame; `None` for bytes that are none.
pub fn parse<'a, M: Deserialize<'a>>(frame: &'a [u8]) -> Option<M> {
    let (message, rest) = postcard::take_from_bytes(frame).ok()?;
    rest.is_empty().then_some(message)
}
