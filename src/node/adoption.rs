//! A connected socket on its way to a shard.

use crate::base::completion::Completion;
use crate::net::listener::Accepted;
use crate::ports::auth::Identity;
use crate::wire::http::head::RequestHead;
use std::fmt;
use std::io;

/// A connected socket for a shard to serve, with the request that was read from it, if any.
///
/// The shard answers whether it takes the socket. An adoption that is dropped, by an inbox too, is refused.
pub struct Adoption {
    pub socket: Accepted,
    /// The socket has the options of a connection already.
    pub is_tuned: bool,
    /// `None` when nothing was read: the shard reads the request head.
    pub request: Option<Box<ReadRequest>>,
    /// Receives whether the shard takes the socket; `None` when no one waits for the answer.
    pub answer: Option<Completion<Result<(), NotAdopted>>>,
}

/// What was read from a socket before the socket was handed over.
#[derive(Debug)]
pub struct ReadRequest {
    pub head: RequestHead,
    /// Bytes that were read behind the head.
    pub rest: Vec<u8>,
    /// The client that the connection belongs to. `Auth` decides when this is `None`.
    pub identity: Option<Identity>,
}

/// Why a shard does not take a socket. The shard has written nothing, and has closed its descriptor of the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotAdopted {
    /// As many clients as allowed are connected.
    Full,
    /// The server is stopping.
    Draining,
    /// The shard has ended.
    ShardEnded,
    /// The socket cannot be used.
    Socket(io::ErrorKind),
}

impl Adoption {
    pub fn new(socket: Accepted, is_tuned: bool) -> Self {
        Self {
            socket,
            is_tuned,
            request: None,
            answer: None,
        }
    }

    /// Adds the request that was read from the socket.
    #[must_use]
    pub fn with_request(mut self, request: ReadRequest) -> Self {
        self.request = Some(Box::new(request));
        self
    }

    /// Has `receive` called, exactly once, with the answer of the shard. `receive` must not block.
    #[must_use]
    pub fn answering(
        mut self,
        receive: impl FnOnce(Result<(), NotAdopted>) + Send + 'static,
    ) -> Self {
        self.answer = Some(Completion::new(move |answer: Result<_, _>| {
            receive(answer.unwrap_or(Err(NotAdopted::ShardEnded)));
        }));
        self
    }
}

impl fmt::Debug for Adoption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Adoption")
            .field("socket", &self.socket)
            .field("request", &self.request)
            .finish_non_exhaustive()
    }
}
