//! The end of a link at the process that has the node: takes the calls of other processes, and answers them.

use super::frame::{FrameReader, PREAMBLE, Rejected};
use super::message::{self, CALL_OVERHEAD, CallNumber, FromNode, Hello, ToNode, Welcome};
use super::rendezvous::Tenure;
use crate::base::completion::{Completion, Progress};
use crate::base::error::Error;
use crate::base::fork::{ClosedInChild, CountedThread, ForkGuard};
use crate::base::sync::{Condvar, Mutex, Rank};
use crate::core::events::{EventQueue, LogLevel};
use crate::net::unix_socket;
use crate::ports::calls::{Call, Calls, Reply};
use slab::Slab;
use socket2::SockRef;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// The bounds of a server of links.
#[derive(Clone, Copy, Debug)]
pub struct LinkLimits {
    /// The most processes that are attached at once.
    pub processes: usize,
    /// The most calls of one process that wait for their outcome, such as durable calls.
    pub waiting_calls: usize,
    /// The longest message of a call, in bytes.
    pub message_size: usize,
}

/// Serves the calls of other processes. Each attached process has two threads: one takes its calls, and one sends the
/// replies to calls that end later.
pub struct LinkServer {
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

struct Shared {
    calls: Arc<dyn Calls>,
    events: Arc<EventQueue>,
    limits: LinkLimits,
    tenure: Tenure,
    is_stopping: AtomicBool,
    attached: Mutex<Slab<Attached>>,
    /// A process was detached.
    detached: Condvar,
}

/// A process that is attached.
struct Attached {
    stream: Arc<UnixStream>,
    /// `None` until the process has said hello.
    process: Option<u32>,
    serving: Option<JoinHandle<()>>,
}

/// Writes to one process. One thread at a time has the lock.
struct Writer(Mutex<Arc<UnixStream>>);

/// The calls of one process that have begun and wait for their outcome.
struct Waiting {
    count: AtomicUsize,
    ended: flume::Sender<(CallNumber, Result<Reply, Error>)>,
}

/// A process that takes nothing for so long is detached.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// When no process has taken its goodbye for so long, those that are left are cut off.
const GOODBYE_TIMEOUT: Duration = Duration::from_millis(500);

/// The time until the next attempt to accept, after the system has refused one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

impl LinkServer {
    /// Begins to accept processes.
    ///
    /// Errors: a thread cannot be started.
    pub fn start(
        tenure: Tenure,
        calls: Arc<dyn Calls>,
        events: Arc<EventQueue>,
        limits: LinkLimits,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            calls,
            events,
            limits,
            tenure,
            is_stopping: AtomicBool::new(false),
            attached: Mutex::default(),
            detached: Condvar::new(),
        });
        let own = Arc::clone(&shared);
        let accepting = thread::Builder::new()
            .name("tantor-link".to_owned())
            .spawn(move || own.accept())?;
        Ok(Self {
            shared,
            accepting: Some(accepting),
        })
    }

    /// The ids of the attached processes.
    pub fn processes(&self) -> Vec<u32> {
        let attached = self.shared.attached.lock();
        attached.iter().filter_map(|(_, one)| one.process).collect()
    }
}

impl Drop for LinkServer {
    /// Says goodbye to every process, and ends the threads. Calls that were not answered fail at their callers.
    fn drop(&mut self) {
        self.shared.is_stopping.store(true, Ordering::Release);
        // wakes the thread that accepts
        let _ = SockRef::from(self.shared.tenure.listener()).shutdown(Shutdown::Both);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        let serving: Vec<_> = {
            let mut attached = self.shared.attached.lock();
            let stop = |(_, one): (usize, &mut Attached)| {
                let _ = one.stream.shutdown(Shutdown::Read);
                one.serving.take()
            };
            attached.iter_mut().filter_map(stop).collect()
        };
        self.shared.cut_those_that_do_not_read();
        for thread in serving {
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Gives the processes a moment to take their goodbye, and cuts the links of those that take nothing.
    fn cut_those_that_do_not_read(&self) {
        let mut attached = self.attached.lock();
        let mut has_timed_out = false;
        while !attached.is_empty() && !has_timed_out {
            (attached, has_timed_out) = self.detached.wait_for(attached, GOODBYE_TIMEOUT);
        }
        for (_, one) in attached.iter() {
            let _ = one.stream.shutdown(Shutdown::Both);
        }
    }

    fn accept(self: &Arc<Self>) {
        let _counted = CountedThread::new();
        while !self.is_stopping.load(Ordering::Acquire) {
            match self.tenure.listener().accept() {
                Ok((stream, _)) => self.attach(stream),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) if self.is_stopping.load(Ordering::Acquire) => return,
                Err(error) => {
                    self.log(|| format!("no process can attach at present: {error}"));
                    // such as too many open files: the system would return the error at once again
                    thread::sleep(ACCEPT_PAUSE);
                }
            }
        }
    }

    fn attach(self: &Arc<Self>, stream: UnixStream) {
        let stream = Arc::new(stream);
        let mut attached = self.attached.lock();
        if attached.len() >= self.limits.processes {
            drop(attached);
            let most = self.limits.processes;
            refuse(
                &stream,
                format!("{most} processes are attached, which is the limit"),
            );
            return;
        }
        let key = attached.insert(Attached {
            stream: Arc::clone(&stream),
            process: None,
            serving: None,
        });
        drop(attached);
        let own = Arc::clone(self);
        let serving = thread::Builder::new()
            .name("tantor-link-in".to_owned())
            .spawn(move || own.serve(key, &stream));
        let mut attached = self.attached.lock();
        match serving {
            Ok(serving) => {
                if let Some(one) = attached.get_mut(key) {
                    one.serving = Some(serving);
                }
            }
            Err(error) => {
                attached.try_remove(key);
                drop(attached);
                self.log(|| format!("a process cannot attach: no thread can be started: {error}"));
            }
        }
    }

    /// Serves one process until its link ends.
    fn serve(self: &Arc<Self>, key: usize, stream: &Arc<UnixStream>) {
        let _counted = CountedThread::new();
        let registered = {
            let _whole = ForkGuard::new();
            ClosedInChild::register(&**stream)
        };
        let outcome = self.serve_calls(key, stream);
        let process = {
            let mut attached = self.attached.lock();
            attached.try_remove(key).and_then(|one| one.process)
        };
        self.detached.notify_all();
        if let Err(rejected) = outcome
            && !self.is_stopping.load(Ordering::Acquire)
        {
            let who = process.map_or_else(|| "a process".to_owned(), |id| format!("process {id}"));
            self.log(|| format!("{who} is detached: {rejected}"));
        }
        let _whole = ForkGuard::new();
        let _ = stream.shutdown(Shutdown::Both);
        drop(registered);
    }

    fn serve_calls(&self, key: usize, stream: &Arc<UnixStream>) -> Result<(), Rejected> {
        unix_socket::check_peer(stream).map_err(Rejected::Failed)?;
        let max_frame = self.limits.message_size + CALL_OVERHEAD;
        let mut reader = FrameReader::new(max_frame);
        let mut input = &**stream;
        (&**stream).write_all(&PREAMBLE).map_err(Rejected::Failed)?;
        reader.read_preamble(&mut input)?;
        let hello = reader.read(&mut input)?;
        let Some(ToNode::Hello(Hello { process })) = hello.and_then(message::parse) else {
            return Err(Rejected::NotAMessage);
        };
        if let Some(one) = self.attached.lock().get_mut(key) {
            one.process = Some(process);
        }
        let _ = stream.set_write_timeout(Some(WRITE_TIMEOUT));
        let writer = Arc::new(Writer(Mutex::new(Rank::Leaf, Arc::clone(stream))));
        let (ended, to_send) = flume::unbounded();
        let waiting = Arc::new(Waiting {
            count: AtomicUsize::new(0),
            ended,
        });
        let late = Arc::clone(&writer);
        thread::Builder::new()
            .name("tantor-link-out".to_owned())
            .spawn(move || late.send_ended(&to_send))
            .map_err(Rejected::Failed)?;
        let mut out = Vec::new();
        let welcome = Welcome {
            process: std::process::id(),
            max_frame,
        };
        // a welcome is never too long
        let _ = message::append(&mut out, &FromNode::Welcome(welcome));
        writer.send(&mut out).map_err(Rejected::Failed)?;
        while let Some(frame) = reader.read(&mut input)? {
            match message::parse(frame).ok_or(Rejected::NotAMessage)? {
                ToNode::Hello(_) => return Err(Rejected::NotAMessage),
                ToNode::Ping => {
                    let _ = message::append(&mut out, &FromNode::Pong);
                }
                ToNode::Call { number, call } => self.answer(&waiting, number, call, &mut out),
            }
            if !reader.has_frame() {
                writer.send(&mut out).map_err(Rejected::Failed)?;
            }
        }
        let _ = message::append(&mut out, &FromNode::Goodbye);
        // the process may have gone
        let _ = writer.send(&mut out);
        Ok(())
    }

    /// Makes a call, and appends its reply, if there is one already.
    fn answer(
        &self,
        waiting: &Arc<Waiting>,
        number: CallNumber,
        call: Call<'_>,
        out: &mut Vec<u8>,
    ) {
        let most = self.limits.waiting_calls;
        let outcome = if waiting.count.load(Ordering::Acquire) >= most {
            Progress::Ended(Err(Error::Link(format!(
                "{most} calls of this process wait for their outcome, which is the limit"
            ))))
        } else {
            let mut later = || waiting.begin(number);
            self.calls.call(call, &mut later)
        };
        // a call that has begun is answered by its completion
        if let Progress::Ended(outcome) = outcome {
            append_ended(out, number, outcome);
        }
    }

    fn log(&self, text: impl FnOnce() -> String) {
        self.events.log(LogLevel::Warning, "link", text);
    }
}

impl Waiting {
    /// Creates the completion of a call that ends later.
    fn begin(self: &Arc<Self>, number: CallNumber) -> Completion<Reply> {
        self.count.fetch_add(1, Ordering::AcqRel);
        let waiting = Arc::clone(self);
        Completion::new(move |outcome| {
            waiting.count.fetch_sub(1, Ordering::AcqRel);
            // the link may have ended
            let _ = waiting.ended.send((number, outcome));
        })
    }
}

impl Writer {
    /// Sends the outcomes of calls that end later, until the link has ended and no call waits.
    fn send_ended(&self, ended: &flume::Receiver<(CallNumber, Result<Reply, Error>)>) {
        let _counted = CountedThread::new();
        let mut out = Vec::new();
        while let Ok(first) = ended.recv() {
            for (number, outcome) in std::iter::once(first).chain(ended.try_iter()) {
                append_ended(&mut out, number, outcome);
            }
            if self.send(&mut out).is_err() {
                return;
            }
        }
    }

    /// Sends bytes, and empties `out`.
    fn send(&self, out: &mut Vec<u8>) -> io::Result<()> {
        if !out.is_empty() {
            (&**self.0.lock()).write_all(out)?;
            out.clear();
        }
        Ok(())
    }
}

fn append_ended(out: &mut Vec<u8>, number: CallNumber, outcome: Result<Reply, Error>) {
    if message::append(out, &FromNode::Ended { number, outcome }).is_err() {
        let problem = "the reply is too long for the link between processes".to_owned();
        let outcome = Err(Error::Link(problem));
        let _ = message::append(out, &FromNode::Ended { number, outcome });
    }
}

fn refuse(mut stream: &UnixStream, reason: String) {
    let mut out = PREAMBLE.to_vec();
    let _ = message::append(&mut out, &FromNode::Refused(reason));
    // the process may have gone
    let _ = stream.write_all(&out);
}
