//! Many WebSocket clients on one thread: they connect, count what comes in, and answer pings.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::frame::{CLOSE, Frame, FrameCounter, FrameReader, PING, PONG, client_frame};
use crate::sys::{Epoll, Interest};
use crate::target::{Role, Target};

/// Handshakes under way at once: below the shortest accept queue of the servers measured.
const HANDSHAKES_AT_ONCE: usize = 64;
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(60);
/// Sources to connect from, so that the ports of one address never run out: those that were used in the last minute
/// are not free yet, and the search among few free ones would cost more than all that is measured.
const SOURCE_ADDRESSES: usize = 64;
/// How many `Clients` there have been.
static NETWORKS: AtomicU8 = AtomicU8::new(0);
const READ_BYTES: usize = 256 * 1024;

pub struct Clients {
    epoll: Epoll,
    connections: Vec<Connection>,
    opened: usize,
    /// Why the latest handshake that failed did.
    refused: Option<io::Error>,
    ready: Vec<u64>,
    buffer: Box<[u8]>,
    reads_payloads: bool,
    /// Connections that are lost while they are open are noted.
    notes_losses: bool,
    /// A part of the source addresses that is these clients' own: a server that was killed holds on to its end of the
    /// connections for a minute, and would not take a new one from the address and port of one of them.
    network: u8,
}

/// What a client connects with.
pub struct Opening {
    pub path: String,
    /// Frames that it sends as soon as it is connected.
    pub greeting: Option<Vec<u8>>,
}

struct Connection {
    stream: TcpStream,
    state: State,
    frames: Frames,
    /// What the socket did not take yet.
    unsent: Vec<u8>,
}

enum Frames {
    Counted(FrameCounter),
    Read(FrameReader),
}

enum State {
    Connecting {
        request: Vec<u8>,
        greeting: Option<Vec<u8>>,
    },
    Upgrading {
        response: Vec<u8>,
        greeting: Option<Vec<u8>>,
    },
    Open,
    Closed,
}

impl Clients {
    /// Clients that count frames.
    pub fn new() -> io::Result<Self> {
        Self::with_payloads(false)
    }

    /// Clients that read what frames say.
    pub fn reading() -> io::Result<Self> {
        Self::with_payloads(true)
    }

    fn with_payloads(reads_payloads: bool) -> io::Result<Self> {
        Ok(Self {
            epoll: Epoll::new()?,
            connections: Vec::new(),
            opened: 0,
            refused: None,
            ready: Vec::new(),
            buffer: vec![0; READ_BYTES].into_boxed_slice(),
            reads_payloads,
            notes_losses: true,
            network: NETWORKS.fetch_add(1, Ordering::Relaxed),
        })
    }

    /// The same clients; connections that are lost are only counted.
    pub fn expecting_losses(self) -> Self {
        Self {
            notes_losses: false,
            ..self
        }
    }

    /// Connect `count` clients, some handshakes at a time; returns their numbers.
    pub fn open(
        &mut self,
        target: &Target,
        role: Role,
        count: usize,
        on_frame: &mut impl FnMut(usize, Frame),
    ) -> io::Result<Range<usize>> {
        let opening = |_| Opening {
            path: target.protocol.path(role).to_owned(),
            greeting: target.protocol.greeting(role),
        };
        self.open_each(target, count, HANDSHAKES_AT_ONCE, opening, on_frame)
    }

    /// Connect `count` clients, each with an opening of its own, up to `at_once` handshakes at a time; returns their
    /// numbers.
    pub fn open_each(
        &mut self,
        target: &Target,
        count: usize,
        at_once: usize,
        opening: impl Fn(usize) -> Opening,
        on_frame: &mut impl FnMut(usize, Frame),
    ) -> io::Result<Range<usize>> {
        let first = self.connections.len();
        let already_open = self.opened;
        let deadline = Instant::now() + HANDSHAKE_LIMIT;
        while self.opened - already_open < count {
            let done = self.opened - already_open;
            let begun = self.connections.len() - first;
            for client in begun..count.min(done + at_once) {
                self.begin(target, opening(client))?;
            }
            self.turn(Some(Duration::from_millis(100)), on_frame)?;
            let reason = match self.refused.take() {
                Some(error) => error.to_string(),
                None if Instant::now() > deadline => {
                    format!("{} s have passed", HANDSHAKE_LIMIT.as_secs())
                }
                None => continue,
            };
            let name = &target.name;
            return Err(io::Error::other(format!(
                "{name}: {done} of {count} clients connected, then: {reason}"
            )));
        }
        Ok(first..self.connections.len())
    }

    /// Wait for readiness once and read each ready socket once; `on_frame` gets client and frame.
    /// Returns how many sockets were ready.
    pub fn turn(
        &mut self,
        timeout: Option<Duration>,
        on_frame: &mut impl FnMut(usize, Frame),
    ) -> io::Result<usize> {
        self.epoll.wait(timeout, &mut self.ready)?;
        for position in 0..self.ready.len() {
            let token = self.ready[position];
            let index = token as usize;
            let connection = &mut self.connections[index];
            let outcome = match connection.state {
                State::Open => connection.receive(&self.epoll, token, &mut self.buffer, on_frame),
                State::Closed => Ok(()),
                _ => connection
                    .advance_handshake(&self.epoll, token, &mut self.buffer, on_frame)
                    .map(|open| {
                        self.opened += usize::from(open);
                    }),
            };
            if let Err(error) = outcome {
                if !matches!(connection.state, State::Open) {
                    self.refused.get_or_insert(error);
                } else if self.notes_losses {
                    crate::note(&format!("a client lost its connection: {error}"));
                }
                connection.close(&self.epoll)?;
            }
        }
        Ok(self.ready.len())
    }

    /// Queue bytes to the server, and write what the socket takes now.
    pub fn send(&mut self, index: usize, bytes: &[u8]) -> io::Result<()> {
        let connection = &mut self.connections[index];
        connection.send(&self.epoll, index as u64, bytes)
    }

    /// Whether a client still has bytes that its socket did not take.
    pub fn is_blocked(&self, index: usize) -> bool {
        !self.connections[index].unsent.is_empty()
    }

    /// How many of these clients have lost their connection.
    pub fn closed(&self, clients: Range<usize>) -> usize {
        self.connections[clients]
            .iter()
            .filter(|connection| matches!(connection.state, State::Closed))
            .count()
    }

    fn begin(&mut self, target: &Target, opening: Opening) -> io::Result<()> {
        let index = self.connections.len();
        let source = Ipv4Addr::new(127, 0, self.network, 1 + (index % SOURCE_ADDRESSES) as u8);
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        socket.bind(&SocketAddrV4::new(source, 0).into())?;
        match socket.connect(&SocketAddrV4::new(Ipv4Addr::LOCALHOST, target.port).into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
            _ => {}
        }
        // Acknowledge as clients across a network do: with the next segment or a little later.
        socket.set_tcp_quickack(false)?;
        let stream = TcpStream::from(socket);
        let (request, greeting) = (
            upgrade_request(target.port, &opening.path),
            opening.greeting,
        );
        // Over loopback a connection is there at once, unless the server's queue is full.
        let (state, interest) = match (&stream).write(&request) {
            Ok(written) if written == request.len() => {
                let response = Vec::new();
                (State::Upgrading { response, greeting }, Interest::Read)
            }
            Ok(_) => return Err(io::Error::other("a socket took half a request")),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let state = State::Connecting { request, greeting };
                (state, Interest::ReadAndWrite)
            }
            Err(error) => return Err(error),
        };
        self.epoll.add(&stream, index as u64, interest)?;
        self.connections.push(Connection {
            stream,
            state,
            frames: if self.reads_payloads {
                Frames::Read(FrameReader::default())
            } else {
                Frames::Counted(FrameCounter::default())
            },
            unsent: Vec::new(),
        });
        Ok(())
    }
}

impl Connection {
    fn receive(
        &mut self,
        epoll: &Epoll,
        token: u64,
        buffer: &mut [u8],
        on_frame: &mut impl FnMut(usize, Frame),
    ) -> io::Result<()> {
        if !self.unsent.is_empty() {
            self.flush(epoll, token)?;
        }
        let count = match (&self.stream).read(buffer) {
            Ok(0) => {
                return Err(io::Error::new(
                    ErrorKind::UnexpectedEof,
                    "the server ended the connection",
                ));
            }
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        self.take(epoll, token, &buffer[..count], on_frame)
    }

    fn take(
        &mut self,
        epoll: &Epoll,
        token: u64,
        bytes: &[u8],
        on_frame: &mut impl FnMut(usize, Frame),
    ) -> io::Result<()> {
        let mut pings = 0;
        let mut ended = false;
        let take = |frame: Frame| match frame.opcode {
            PING => pings += 1,
            CLOSE => ended = true,
            _ => on_frame(token as usize, frame),
        };
        match &mut self.frames {
            Frames::Counted(counter) => counter.feed(bytes, take),
            Frames::Read(reader) => reader.feed(bytes, take),
        }
        if ended {
            return Err(io::Error::new(
                ErrorKind::UnexpectedEof,
                "the server sent a close frame",
            ));
        }
        for _ in 0..pings {
            self.send(epoll, token, &client_frame(PONG, b""))?;
        }
        Ok(())
    }

    /// True when this step has opened the connection.
    fn advance_handshake(
        &mut self,
        epoll: &Epoll,
        token: u64,
        buffer: &mut [u8],
        on_frame: &mut impl FnMut(usize, Frame),
    ) -> io::Result<bool> {
        match &mut self.state {
            State::Connecting { request, greeting } => {
                if let Some(error) = self.stream.take_error()? {
                    return Err(error);
                }
                let (request, greeting) = (std::mem::take(request), greeting.take());
                epoll.modify(&self.stream, token, Interest::Read)?;
                self.state = State::Upgrading {
                    response: Vec::new(),
                    greeting,
                };
                self.send(epoll, token, &request)?;
                Ok(false)
            }
            State::Upgrading { response, greeting } => {
                let count = (&self.stream).read(buffer)?;
                if count == 0 {
                    return Err(io::Error::new(
                        ErrorKind::UnexpectedEof,
                        "no answer to the upgrade",
                    ));
                }
                response.extend_from_slice(&buffer[..count]);
                let Some(end) = response.windows(4).position(|window| window == b"\r\n\r\n") else {
                    return Ok(false);
                };
                let (response, greeting) = (std::mem::take(response), greeting.take());
                check_upgrade(&response[..end])?;
                self.state = State::Open;
                if let Some(greeting) = greeting {
                    self.send(epoll, token, &greeting)?;
                }
                self.take(epoll, token, &response[end + 4..], on_frame)?;
                Ok(true)
            }
            State::Open | State::Closed => Ok(false),
        }
    }

    fn send(&mut self, epoll: &Epoll, token: u64, bytes: &[u8]) -> io::Result<()> {
        if !self.unsent.is_empty() {
            self.unsent.extend_from_slice(bytes);
            return Ok(());
        }
        let written = match (&self.stream).write(bytes) {
            Ok(written) => written,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error),
        };
        if written < bytes.len() {
            self.unsent.extend_from_slice(&bytes[written..]);
            epoll.modify(&self.stream, token, Interest::ReadAndWrite)?;
        }
        Ok(())
    }

    fn flush(&mut self, epoll: &Epoll, token: u64) -> io::Result<()> {
        match (&self.stream).write(&self.unsent) {
            Ok(written) => {
                self.unsent.drain(..written);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        if self.unsent.is_empty() {
            epoll.modify(&self.stream, token, Interest::Read)?;
        }
        Ok(())
    }

    fn close(&mut self, epoll: &Epoll) -> io::Result<()> {
        self.state = State::Closed;
        epoll.remove(&self.stream)
    }
}

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// The answer to `KEY`, from RFC 6455.
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// The request that upgrades a connection.
pub fn upgrade_request(port: u16, path: &str) -> Vec<u8> {
    format!(
        "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
    )
    .into_bytes()
}

fn check_upgrade(head: &[u8]) -> io::Result<()> {
    let head = String::from_utf8_lossy(head);
    if head.starts_with("HTTP/1.1 101 ") && head.contains(ACCEPT) {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "the upgrade was answered with {:?}",
        head.lines().next().unwrap_or("")
    )))
}
