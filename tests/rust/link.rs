//! The link between processes: bad peers, ends and floods. `calls.rs` makes every call over it.

use crate::calls::ask;
use crate::peer::PATIENCE;
use _tantor::base::completion::{Completion, Later, Progress};
use _tantor::base::error::Error;
use _tantor::core::events::EventQueue;
use _tantor::link::calling::LinkedCalls;
use _tantor::link::frame::{FrameReader, PREAMBLE};
use _tantor::link::message::{self, CallNumber, FromNode, Hello, ToNode};
use _tantor::link::rendezvous::Rendezvous;
use _tantor::link::serving::{LinkLimits, LinkServer};
use _tantor::ports::calls::{Call, Calls, PublishOptions, Reply};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const LIMITS: LinkLimits = LinkLimits {
    processes: 3,
    waiting_calls: 10,
    message_size: 1 << 20,
};

/// A server of links on a socket of its own.
struct Served {
    server: Option<LinkServer>,
    socket: PathBuf,
    _folder: TempDir,
}

/// Calls over a link to a server in the same process.
pub struct Linked {
    calls: LinkedCalls,
    _served: Served,
}

impl Served {
    fn new(calls: Arc<dyn Calls>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("link.sock");
        let tenure = Rendezvous::at(&socket).claim().unwrap().unwrap();
        let events = Arc::new(EventQueue::new(1 << 20));
        let server = LinkServer::start(tenure, calls, events, LIMITS).unwrap();
        Self {
            server: Some(server),
            socket,
            _folder: folder,
        }
    }

    fn attach(&self) -> LinkedCalls {
        LinkedCalls::attach(&self.socket).unwrap().unwrap()
    }

    /// A stream on which this process may send anything.
    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// A stream whose hello was answered.
    fn greeted(&self) -> UnixStream {
        let mut stream = self.connect();
        let mut out = PREAMBLE.to_vec();
        message::append(&mut out, &ToNode::Hello(Hello { process: 1 })).unwrap();
        stream.write_all(&out).unwrap();
        let mut answer = [0; PREAMBLE.len() + 4];
        stream.read_exact(&mut answer).unwrap();
        let length = u32::from_le_bytes(*answer.last_chunk::<4>().unwrap());
        stream.read_exact(&mut vec![0; length as usize]).unwrap();
        stream
    }

    fn processes(&self) -> usize {
        self.server.as_ref().unwrap().processes().len()
    }

    /// Waits until so many processes are attached.
    fn wait_for_processes(&self, count: usize) {
        let begun = Instant::now();
        while self.processes() != count {
            assert!(
                begun.elapsed() < PATIENCE,
                "{} are attached",
                self.processes()
            );
            std::thread::yield_now();
        }
    }
}

impl Linked {
    pub fn to(calls: Arc<dyn Calls>) -> Self {
        let served = Served::new(calls);
        Self {
            calls: served.attach(),
            _served: served,
        }
    }
}

impl Calls for Linked {
    fn call(&self, call: Call<'_>, later: &mut Later<'_, Reply>) -> Progress<Reply> {
        self.calls.call(call, later)
    }
}

/// Answers `ChannelCount` at once, and every other call when the test says so.
#[derive(Default)]
struct Slow {
    begun: Mutex<Vec<Completion<Reply>>>,
}

impl Slow {
    fn wait_for_begun(&self, count: usize) {
        let begun = Instant::now();
        while self.begun.lock().unwrap().len() < count {
            assert!(begun.elapsed() < PATIENCE);
            std::thread::yield_now();
        }
    }
}

impl Calls for Slow {
    fn call(&self, call: Call<'_>, later: &mut Later<'_, Reply>) -> Progress<Reply> {
        if matches!(call, Call::ChannelCount) {
            return Progress::Ended(Ok(Reply::Count(7)));
        }
        self.begun.lock().unwrap().push(later());
        Progress::Begun(None)
    }
}

/// Begins a call; the receiver gets its outcome.
fn begin(calls: &dyn Calls, call: Call<'_>) -> mpsc::Receiver<Result<Reply, Error>> {
    let (tell, told) = mpsc::channel();
    let mut later = || {
        let tell = tell.clone();
        Completion::new(move |outcome| drop(tell.send(outcome)))
    };
    if let Progress::Ended(outcome) = calls.call(call, &mut later) {
        tell.send(outcome).unwrap();
    }
    told
}

fn link_error(outcome: Result<Reply, Error>) -> String {
    match outcome {
        Err(Error::Link(text)) => text,
        other => panic!("{other:?}"),
    }
}

#[test]
fn replies_find_their_calls_in_any_order() {
    let slow = Arc::new(Slow::default());
    let served = Served::new(Arc::clone(&slow) as _);
    let calls = served.attach();
    let first = begin(&calls, Call::Census);
    let second = begin(&calls, Call::ChannelNames);
    slow.wait_for_begun(2);
    assert!(matches!(
        ask(&calls, Call::ChannelCount),
        Ok(Reply::Count(7))
    ));
    let mut begun = std::mem::take(&mut *slow.begun.lock().unwrap());
    begun.pop().unwrap().complete(Ok(Reply::Count(2)));
    assert!(matches!(
        second.recv_timeout(PATIENCE).unwrap(),
        Ok(Reply::Count(2))
    ));
    begun.pop().unwrap().complete(Ok(Reply::Count(1)));
    assert!(matches!(
        first.recv_timeout(PATIENCE).unwrap(),
        Ok(Reply::Count(1))
    ));
}

#[test]
fn calls_in_flight_fail_when_the_link_ends_and_later_ones_do_nothing() {
    let slow = Arc::new(Slow::default());
    let mut served = Served::new(Arc::clone(&slow) as _);
    let calls = served.attach();
    let in_flight = begin(&calls, Call::Census);
    slow.wait_for_begun(1);
    drop(served.server.take());
    let text = link_error(in_flight.recv_timeout(PATIENCE).unwrap());
    assert!(text.contains("may have been carried out"), "{text}");
    assert!(!calls.is_attached());
    let text = link_error(ask(&calls, Call::ChannelCount));
    assert!(!text.contains("may have been"), "{text}");
    assert_eq!(slow.begun.lock().unwrap().len(), 1);
}

#[test]
fn too_many_calls_that_wait_are_refused_alone() {
    let slow = Arc::new(Slow::default());
    let served = Served::new(Arc::clone(&slow) as _);
    let calls = served.attach();
    let waiting: Vec<_> = (0..LIMITS.waiting_calls)
        .map(|_| begin(&calls, Call::Census))
        .collect();
    slow.wait_for_begun(LIMITS.waiting_calls);
    assert!(link_error(ask(&calls, Call::Census)).contains("10 calls"));
    for completion in std::mem::take(&mut *slow.begun.lock().unwrap()) {
        completion.complete(Ok(Reply::Done));
    }
    for outcome in waiting {
        assert!(outcome.recv_timeout(PATIENCE).unwrap().is_ok());
    }
    let more = begin(&calls, Call::Census);
    slow.wait_for_begun(1);
    drop(std::mem::take(&mut *slow.begun.lock().unwrap()));
    // a completion that is dropped completes its call too
    assert!(more.recv_timeout(PATIENCE).unwrap().is_err());
}

#[test]
fn a_call_that_is_too_large_or_of_a_client_is_refused_alone() {
    let calls = Linked::to(Arc::new(Slow::default()));
    let large = vec![b'1'; LIMITS.message_size * 2];
    let call = Call::SetUserData {
        client: "a",
        json: &large,
    };
    let refused = ask(&calls, call);
    assert!(
        matches!(&refused, Err(Error::Argument(text)) if text.contains("max_message_size")),
        "{refused:?}"
    );
    assert!(matches!(ask(&calls, Call::Ping), Err(Error::Argument(_))));
    assert!(matches!(
        ask(&calls, Call::ChannelCount),
        Ok(Reply::Count(7))
    ));
}

#[test]
fn a_peer_that_sends_garbage_is_cut_off_alone() {
    let served = Served::new(Arc::new(Slow::default()));
    let calls = served.attach();
    let other_version = [&PREAMBLE[..6], &[9, 9]].concat();
    let no_message = [&PREAMBLE[..], &[1, 0, 0, 0, 77]].concat();
    let too_long = [&PREAMBLE[..], &[0xff; 4]].concat();
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &other_version,
        &no_message,
        &too_long,
    ] {
        let mut stream = served.connect();
        stream.write_all(bytes).unwrap();
        let mut rest = Vec::new();
        // the end comes without an answer, or as a reset, because bytes were not read
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.len() <= PREAMBLE.len(), "{rest:?}");
    }
    let mut stream = served.greeted();
    served.wait_for_processes(2);
    let mut twice = Vec::new();
    message::append(&mut twice, &ToNode::Hello(Hello { process: 1 })).unwrap();
    stream.write_all(&twice).unwrap();
    served.wait_for_processes(1);
    // one that stops in the middle is cut off when its stream ends
    let mut stream = served.greeted();
    served.wait_for_processes(2);
    stream.write_all(&[200, 0, 0, 0, 1]).unwrap();
    drop(stream);
    served.wait_for_processes(1);
    assert!(matches!(
        ask(&calls, Call::ChannelCount),
        Ok(Reply::Count(7))
    ));
}

#[test]
fn one_that_never_reads_delays_neither_others_nor_the_end() {
    let mut served = Served::new(Arc::new(Slow::default()));
    let calls = served.attach();
    let mut deaf = served.greeted();
    let mut flood = Vec::new();
    for number in 0..10_000 {
        let call = Call::ChannelCount;
        let number = CallNumber(number);
        message::append(&mut flood, &ToNode::Call { number, call }).unwrap();
    }
    deaf.set_write_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    // until neither direction takes anything more
    while deaf.write_all(&flood).is_ok() {}
    for _ in 0..100 {
        assert!(matches!(
            ask(&calls, Call::ChannelCount),
            Ok(Reply::Count(7))
        ));
    }
    let begun = Instant::now();
    drop(served.server.take());
    let taken = begun.elapsed();
    assert!(taken < Duration::from_secs(5), "{taken:?}");
}

#[test]
fn no_more_processes_attach_than_may() {
    let served = Served::new(Arc::new(Slow::default()));
    let mut attached: Vec<_> = (0..LIMITS.processes).map(|_| served.attach()).collect();
    served.wait_for_processes(LIMITS.processes);
    let refused = LinkedCalls::attach(&served.socket).err().unwrap();
    assert!(refused.to_string().contains("3 processes"), "{refused}");
    attached.pop();
    served.wait_for_processes(LIMITS.processes - 1);
    assert!(matches!(
        ask(&served.attach(), Call::ChannelCount),
        Ok(Reply::Count(7))
    ));
}

#[test]
fn what_listens_but_is_no_node_gives_an_error_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("other.sock");
    let attach = || LinkedCalls::attach(&socket).err().unwrap().to_string();
    assert!(LinkedCalls::attach(&socket).unwrap().is_none());
    let listener = UnixListener::bind(&socket).unwrap();
    for (answer, expected) in [
        (&b"HTTP/1.1 400 Bad Request\r\n"[..], "does not speak"),
        (b"Tantor\x09\x09", "version 2313"),
        (b"", "does not speak"),
    ] {
        let answering = std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                // what is not read would reset the stream at its end
                let mut hello = [0; PREAMBLE.len() + 4];
                stream.read_exact(&mut hello).unwrap();
                let length = u32::from_le_bytes(*hello.last_chunk::<4>().unwrap());
                stream.read_exact(&mut vec![0; length as usize]).unwrap();
                stream.write_all(answer).unwrap();
            });
            attach()
        });
        assert!(answering.contains(expected), "{answering}");
    }
}

#[test]
fn many_threads_share_a_link() {
    let served = Served::new(Arc::new(Slow::default()));
    let calls = served.attach();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..500 {
                    assert!(matches!(
                        ask(&calls, Call::ChannelCount),
                        Ok(Reply::Count(7))
                    ));
                }
            });
        }
    });
}

#[test]
fn every_message_is_read_as_it_was_written() {
    let mut bytes = Vec::new();
    let number = CallNumber(u64::MAX);
    let outcome = Err(Error::Argument("no".to_owned()));
    message::append(&mut bytes, &FromNode::Ended { number, outcome }).unwrap();
    let read: FromNode = message::parse(&bytes[4..]).unwrap();
    assert!(matches!(
        read,
        FromNode::Ended { number: CallNumber(u64::MAX), outcome: Err(Error::Argument(text)) } if text == "no"
    ));
    bytes.push(0);
    assert!(
        message::parse::<FromNode>(&bytes[4..]).is_none(),
        "more bytes"
    );
    bytes.truncate(7);
    assert!(
        message::parse::<FromNode>(&bytes[4..]).is_none(),
        "fewer bytes"
    );
}

proptest! {
    /// Neither end panics, and neither takes memory for what a message only announces, whatever a peer sends.
    #[test]
    fn any_bytes_are_a_message_or_refused(mut bytes in vec(any::<u8>(), 0..200), at in any::<Index>(), byte in any::<u8>()) {
        let _ = message::parse::<ToNode<'_>>(&bytes);
        let _ = message::parse::<FromNode>(&bytes);
        // a good message with one wrong byte gets further
        let call = Call::Broadcast {
            channel: "den",
            event: "news",
            data: &bytes,
            options: PublishOptions::default(),
        };
        let mut good = Vec::new();
        message::append(&mut good, &ToNode::Call { number: CallNumber(1), call }).unwrap();
        prop_assert!(message::parse::<ToNode<'_>>(&good[4..]).is_some());
        let at = 4 + at.index(good.len() - 4);
        good[at] = byte;
        let _ = message::parse::<ToNode<'_>>(&good[4..]);
        let mut reader = FrameReader::new(100);
        bytes.splice(0..0, PREAMBLE);
        let mut input = &bytes[..];
        reader.read_preamble(&mut input).unwrap();
        while let Ok(Some(frame)) = reader.read(&mut input) {
            prop_assert!(frame.len() <= 100);
        }
    }
}
