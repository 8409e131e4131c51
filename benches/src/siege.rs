//! Floods of connections that break off, stall, or never read: each of them a socket and a few writes.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::attack_state::{FLOODING, Outcome, READY, Shared, wait_for};
use crate::clients::upgrade_request;
use crate::frame::{TEXT, client_frame};
use crate::message::{broadcast, join};
use crate::target::Target;

/// A flood of connections.
pub struct Siege {
    pub name: &'static str,
    /// Returns at the end of the flood, with its connections closed.
    pub lay: fn(&Target, &Shared) -> io::Result<Outcome>,
}

/// Rows of the table in `benches/README.md`, besides those of `attack::FLOODS`.
pub const SIEGES: &[Siege] = &[
    Siege {
        name: "heads",
        lay: |target, shared| {
            let head = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(16_000));
            hold(target, shared, 10_000, head.as_bytes())
        },
    },
    Siege {
        name: "half-open",
        lay: |target, shared| hold(target, shared, 10_000, b""),
    },
    Siege {
        name: "stalled",
        lay: stall,
    },
    Siege {
        name: "resets",
        lay: |target, shared| come_and_go(target, shared, &[]),
    },
    Siege {
        name: "long-names",
        lay: |target, shared| {
            let joins: Vec<u8> = (0..127)
                .flat_map(|number| join(&format!("{number:0>250}")))
                .collect();
            come_and_go(target, shared, &joins)
        },
    },
];

/// Addresses that the connections come from.
const SOURCES: usize = 4;
/// Peers that never read.
const STALLED: usize = 500;
/// How long one read or write of a flood may take, so that its end is noticed.
const PATIENCE: Duration = Duration::from_millis(200);

/// Keeps sockets open that send these bytes and no more; those that the server closes are not replaced.
fn hold(target: &Target, shared: &Shared, most: usize, bytes: &[u8]) -> io::Result<Outcome> {
    let mut outcome = Outcome::default();
    let mut held = Vec::with_capacity(most);
    wait_for_flood(shared);
    while !shared.is_ending() {
        if held.len() == most {
            std::thread::sleep(Duration::from_millis(10));
            continue;
        }
        let mut stream = connect(target, held.len())?;
        match stream.write(bytes) {
            Ok(written) => outcome.sent_bytes += written,
            // the server may have closed it already
            Err(error) if is_end(&error) => {}
            Err(error) => return Err(error),
        }
        stream.set_nonblocking(true)?;
        held.push(stream);
    }
    outcome.clients = held.len();
    outcome.closed = held
        .iter_mut()
        .map(is_closed)
        .filter(|closed| *closed)
        .count();
    held.into_iter().try_for_each(reset)?;
    Ok(outcome)
}

/// Publishes to peers that never read.
fn stall(target: &Target, shared: &Shared) -> io::Result<Outcome> {
    let mut peers = Vec::with_capacity(STALLED);
    for number in 0..STALLED {
        let mut stream = connect(target, number)?;
        open(target, &mut stream, &AtomicBool::new(false))?;
        stream.write_all(&join("flood"))?;
        peers.push(stream);
    }
    let mut publisher = connect(target, 0)?;
    open(target, &mut publisher, &AtomicBool::new(false))?;
    wait_for_flood(shared);
    let frame = broadcast(20_000);
    let mut outcome = Outcome {
        clients: STALLED,
        ..Outcome::default()
    };
    let mut unsent = 0;
    while !shared.is_ending() {
        match publisher.write(&frame[unsent..]) {
            Ok(written) => {
                outcome.sent_bytes += written;
                unsent = (unsent + written) % frame.len();
            }
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error),
        }
    }
    for mut peer in peers {
        peer.set_nonblocking(true)?;
        outcome.closed += usize::from(is_closed(&mut peer));
        reset(peer)?;
    }
    Ok(outcome)
}

/// Connects, sends these frames, waits until they are dealt with, and resets the connection, again and again.
fn come_and_go(target: &Target, shared: &Shared, frames: &[u8]) -> io::Result<Outcome> {
    let mut outcome = Outcome::default();
    let ping = client_frame(TEXT, br#"{"action":"ping"}"#);
    wait_for_flood(shared);
    while !shared.is_ending() {
        let mut stream = connect(target, outcome.clients)?;
        outcome.clients += 1;
        let mut visit = || {
            open(target, &mut stream, &shared.is_over)?;
            if !frames.is_empty() {
                stream.write_all(frames)?;
                stream.write_all(&ping)?;
                read_until(&mut stream, br#""pong":true"#, &shared.is_over)?;
            }
            Ok(())
        };
        match visit() {
            Ok(()) => outcome.sent_bytes += frames.len(),
            Err(error) if is_end(&error) || is_timeout(&error) => outcome.closed += 1,
            Err(error) => return Err(error),
        }
        reset(stream)?;
    }
    Ok(outcome)
}

fn wait_for_flood(shared: &Shared) {
    shared.enter(READY);
    wait_for(shared, FLOODING);
}

fn connect(target: &Target, number: usize) -> io::Result<TcpStream> {
    let source = Ipv4Addr::new(127, 0, 200, 1 + (number % SOURCES) as u8);
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddrV4::new(source, 0).into())?;
    socket.connect(&SocketAddrV4::new(Ipv4Addr::LOCALHOST, target.port).into())?;
    socket.set_tcp_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket.into())
}

/// Upgrades a connection.
fn open(target: &Target, stream: &mut TcpStream, is_over: &AtomicBool) -> io::Result<()> {
    stream.write_all(&upgrade_request(target.port, "/"))?;
    read_until(stream, b"\r\n\r\n", is_over)
}

/// Reads until these bytes have come.
fn read_until(stream: &mut TcpStream, wanted: &[u8], is_over: &AtomicBool) -> io::Result<()> {
    let mut seen = Vec::new();
    let mut buffer = [0; 16 << 10];
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => seen.extend_from_slice(&buffer[..count]),
            Err(error) if !is_timeout(&error) => return Err(error),
            Err(error) if is_over.load(Ordering::Acquire) || Instant::now() > deadline => {
                return Err(error);
            }
            Err(_) => {}
        }
        if seen.windows(wanted.len()).any(|window| window == wanted) {
            return Ok(());
        }
    }
}

/// True for a connection of which the server has said something, and be it its end.
fn is_closed(stream: &mut TcpStream) -> bool {
    let mut buffer = vec![0; 1 << 20];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return !is_timeout(&error),
        }
    }
}

/// Closes without waiting for what was sent, so that the port is free again at once.
fn reset(stream: TcpStream) -> io::Result<()> {
    Socket::from(stream).set_linger(Some(Duration::ZERO))
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
    )
}
