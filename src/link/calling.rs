//! The end of a link at a process that calls: sends calls, and completes them with the replies.

use super::frame::{FrameReader, PREAMBLE, Rejected};
use super::message::{self, CALL_OVERHEAD, CallNumber, FromNode, Hello, ToNode, Welcome};
use crate::base::completion::{Completion, Later, Progress};
use crate::base::error::Error;
use crate::base::fork::{ClosedInChild, CountedThread, ForkGuard};
use crate::base::sync::{Mutex, Rank};
use crate::net::unix_socket;
use crate::ports::calls::{Call, Calls, Reply};
use socket2::{Domain, SockAddr, Socket, Type};
use std::collections::HashMap;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// Calls on the node of another process.
///
/// A call is sent at once, on the thread that calls. One thread takes the replies and completes the calls.
pub struct LinkedCalls {
    link: Arc<Link>,
    welcome: Welcome,
}

struct Link {
    stream: UnixStream,
    sending: Mutex<Sending>,
    /// The completions of the calls without an outcome; the reason once the link has ended.
    waiting: Mutex<Result<HashMap<CallNumber, Completion<Reply>>, String>>,
    process: u32,
}

/// What is needed to send; one thread at a time sends.
#[derive(Default)]
struct Sending {
    last: u64,
    buffer: Vec<u8>,
}

/// The longest time for the process of the node to answer the hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// After so long without a message, the process of the node is asked whether it still reads; after as long again, the link
/// ends. One call may take 5 seconds while the inboxes of shards are full.
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// The link ends if the process of the node takes no bytes for so long.
const WRITE_TIMEOUT: Duration = Duration::from_secs(20);

/// The longest frame that is taken from the process of the node.
const MAX_FRAME: usize = u32::MAX as usize;

/// A buffer that is larger than this is given back.
const KEPT_BUFFER: usize = 256 << 10;

impl LinkedCalls {
    /// Attaches to the process that listens on this socket; `None` if no process listens there.
    ///
    /// Errors: `Error::Link` if the process refuses this process, or does not speak the protocol; the text says why.
    pub fn attach(socket: &Path) -> Result<Option<Self>, Error> {
        let cannot =
            |why: String| Error::Link(format!("cannot attach to {}: {why}", socket.display()));
        let (stream, registered) = {
            let _whole = ForkGuard::new();
            let stream = match connect(socket) {
                Ok(stream) => stream,
                Err(error) if is_nobody(&error) => return Ok(None),
                Err(error) => return Err(cannot(failed(&error))),
            };
            let registered = ClosedInChild::register(&stream);
            (stream, registered)
        };
        let mut reader = FrameReader::new(MAX_FRAME);
        let welcome = greet(&stream, &mut reader).map_err(cannot)?;
        let link = Arc::new(Link {
            stream,
            sending: Mutex::new(Rank::Link, Sending::default()),
            waiting: Mutex::new(Rank::Leaf, Ok(HashMap::new())),
            process: welcome.process,
        });
        let own = Arc::clone(&link);
        let _whole = ForkGuard::new();
        thread::Builder::new()
            .name("tantor-link".to_owned())
            .spawn(move || own.take_replies(reader, registered))
            .map_err(|error| cannot(format!("no thread can be started: {error}")))?;
        Ok(Some(Self { link, welcome }))
    }

    /// The id of the process that has the node.
    pub fn process(&self) -> u32 {
        self.welcome.process
    }

    /// False once the link has ended.
    pub fn is_attached(&self) -> bool {
        self.link.waiting.lock().is_ok()
    }
}

impl Drop for LinkedCalls {
    fn drop(&mut self) {
        let _ = self.link.stream.shutdown(Shutdown::Both);
    }
}

/// A call that was not sent, so nothing was done.
pub struct NotSent {
    pub error: Error,
    /// The completion of the call, if it was made already.
    pub completion: Option<Completion<Reply>>,
}

impl LinkedCalls {
    /// Sends a call, whose completion gets the outcome.
    ///
    /// Errors: `Error::Link` if the link has ended, and may be tried on another link; `Error::Argument` if the call has no
    /// room on the link.
    pub fn send(&self, call: Call<'_>, later: &mut Later<'_, Reply>) -> Result<(), NotSent> {
        self.link.send(call, self.welcome.max_frame, later)
    }
}

impl Calls for LinkedCalls {
    fn call(&self, call: Call<'_>, later: &mut Later<'_, Reply>) -> Progress<Reply> {
        match self.send(call, later) {
            Ok(()) => Progress::Begun(None),
            Err(NotSent { error, .. }) => Progress::Ended(Err(error)),
        }
    }
}

/// True if a connect has failed because no process listens.
fn is_nobody(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

/// Connects. While more processes wait to be accepted than may, this waits, but not forever.
fn connect(path: &Path) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_write_timeout(Some(HELLO_TIMEOUT))?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(OwnedFd::from(socket).into())
}

fn failed(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::WouldBlock => format!("it has not answered for {HELLO_TIMEOUT:?}"),
        _ => error.to_string(),
    }
}

/// Says hello, and returns the welcome; an error as text.
fn greet(mut stream: &UnixStream, reader: &mut FrameReader) -> Result<Welcome, String> {
    unix_socket::check_peer(stream).map_err(|error| error.to_string())?;
    let rejected = |rejected: Rejected| match rejected {
        Rejected::Failed(error) => failed(&error),
        other => other.to_string(),
    };
    stream
        .set_read_timeout(Some(HELLO_TIMEOUT))
        .map_err(|error| failed(&error))?;
    let mut out = PREAMBLE.to_vec();
    let hello = ToNode::Hello(Hello {
        process: std::process::id(),
    });
    // a hello is never too long
    let _ = message::append(&mut out, &hello);
    // a process that refuses this one may have ended the link already; its reason can still be read
    let _ = stream.write_all(&out);
    reader.read_preamble(&mut stream).map_err(rejected)?;
    match reader
        .read(&mut stream)
        .map_err(rejected)?
        .map(message::parse)
    {
        Some(Some(FromNode::Welcome(welcome))) => Ok(welcome),
        Some(Some(FromNode::Refused(reason))) => Err(reason),
        Some(_) => Err(Rejected::NotAMessage.to_string()),
        None => Err("it has ended the link".to_owned()),
    }
}

impl Link {
    fn send(
        &self,
        call: Call<'_>,
        max_frame: usize,
        later: &mut Later<'_, Reply>,
    ) -> Result<(), NotSent> {
        let mut guard = self.sending.lock();
        let sending = &mut *guard;
        sending.last += 1;
        let number = CallNumber(sending.last);
        sending.buffer.clear();
        let appended = message::append(&mut sending.buffer, &ToNode::Call { number, call });
        let size = sending.buffer.len();
        if appended.is_err() || size > max_frame {
            sending.buffer = Vec::new();
            return Err(self.no_room(size, max_frame));
        }
        match &mut *self.waiting.lock() {
            Ok(waiting) => waiting.insert(number, later()),
            Err(reason) => {
                return Err(NotSent {
                    error: Error::Link(reason.clone()),
                    completion: None,
                });
            }
        };
        let sent = (&self.stream).write_all(&sending.buffer);
        if sending.buffer.capacity() > KEPT_BUFFER {
            sending.buffer = Vec::new();
        }
        drop(guard);
        match sent {
            Ok(()) => Ok(()),
            Err(error) => self.take_back(number, &error),
        }
    }

    /// Ends the link, because a call could not be sent in full, so the other process cannot carry the call out.
    fn take_back(&self, number: CallNumber, error: &io::Error) -> Result<(), NotSent> {
        let completion = match &mut *self.waiting.lock() {
            Ok(waiting) => waiting.remove(&number),
            Err(_) => None,
        };
        let reason = self.unreachable(&error.to_string());
        self.end(&reason);
        match completion {
            Some(completion) => Err(NotSent {
                error: Error::Link(reason),
                completion: Some(completion),
            }),
            // the link had ended already, and the call has failed with the others
            None => Ok(()),
        }
    }

    /// Ends the link, and fails the calls without an outcome.
    fn end(&self, reason: &str) {
        let _ = self.stream.shutdown(Shutdown::Both);
        let waiting = {
            let mut waiting = self.waiting.lock();
            if waiting.is_err() {
                return;
            }
            std::mem::replace(&mut *waiting, Err(reason.to_owned()))
        };
        for completion in waiting.into_iter().flat_map(HashMap::into_values) {
            let text = format!("{reason}; this call may have been carried out");
            completion.complete(Err(Error::Link(text)));
        }
    }

    fn no_room(&self, size: usize, max_frame: usize) -> NotSent {
        let most = max_frame - CALL_OVERHEAD;
        NotSent {
            error: Error::Argument(format!(
                "the call has {size} bytes; max_message_size of process {} allows {most}",
                self.process
            )),
            completion: None,
        }
    }

    fn unreachable(&self, reason: &str) -> String {
        format!(
            "process {}, which has the server, cannot be reached: {reason}",
            self.process
        )
    }

    /// Takes replies until the link ends, and fails the calls without an outcome then.
    fn take_replies(&self, mut reader: FrameReader, registered: ClosedInChild) {
        let _counted = CountedThread::new();
        let reason = match self.complete_calls(&mut reader) {
            Ok(()) => "it has ended".to_owned(),
            Err(rejected) => rejected.to_string(),
        };
        self.end(&self.unreachable(&reason));
        let _whole = ForkGuard::new();
        drop(registered);
    }

    fn complete_calls(&self, reader: &mut FrameReader) -> Result<(), Rejected> {
        let mut input = &self.stream;
        let _ = self.stream.set_read_timeout(Some(PING_INTERVAL));
        let _ = self.stream.set_write_timeout(Some(WRITE_TIMEOUT));
        let mut is_asked = false;
        loop {
            let frame = match reader.read(&mut input) {
                Err(Rejected::Failed(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    if std::mem::replace(&mut is_asked, true) {
                        return Err(Rejected::Silent);
                    }
                    self.ping();
                    continue;
                }
                frame => frame?,
            };
            is_asked = false;
            let Some(frame) = frame else { return Ok(()) };
            match message::parse(frame).ok_or(Rejected::NotAMessage)? {
                FromNode::Ended { number, outcome } => self.complete(number, outcome),
                FromNode::Pong => {}
                FromNode::Goodbye => return Ok(()),
                FromNode::Welcome(_) | FromNode::Refused(_) => return Err(Rejected::NotAMessage),
            }
        }
    }

    fn complete(&self, number: CallNumber, outcome: Result<Reply, Error>) {
        let completion = match &mut *self.waiting.lock() {
            Ok(waiting) => waiting.remove(&number),
            Err(_) => None,
        };
        if let Some(completion) = completion {
            completion.complete(outcome);
        }
    }

    fn ping(&self) {
        // a thread that sends at this moment is waited for no longer than the link may be silent
        if let Some(mut sending) = self.sending.try_lock() {
            sending.buffer.clear();
            let _ = message::append(&mut sending.buffer, &ToNode::Ping);
            let _ = (&self.stream).write_all(&sending.buffer);
        }
    }
}
