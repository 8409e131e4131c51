//! The limit to measure against: accept, upgrade, and one `send()` of a ready frame per socket and publish.
//!
//! No JSON, no channels, no queues, no heartbeat, nothing kept per connection but its descriptor. Each publish
//! is sent on its own: what coalescing gains over this loop shows as a ratio below one.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};

use sha1::{Digest, Sha1};
use socket2::{Domain, Socket, Type};

use crate::frame::{FrameCounter, TEXT, server_frame};
use crate::sys::{Epoll, Interest, wait_writable};

const LISTENER: u64 = u64::MAX;
const BACKLOG: i32 = 4096;

/// Serve on this port of the loopback address until killed.
pub fn run(port: u16) -> io::Result<()> {
    let listener = listen(port)?;
    let mut server = Bare {
        epoll: Epoll::new()?,
        connections: Vec::new(),
        subscribers: Vec::new(),
        publishers: Vec::new(),
        published: Vec::new(),
        ready_frame: Vec::new(),
        ready_payload_bytes: 0,
    };
    server.epoll.add(&listener, LISTENER, Interest::Read)?;
    let mut ready = Vec::new();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        server.epoll.wait(None, &mut ready)?;
        for &token in &ready {
            if token == LISTENER {
                server.accept(&listener)?;
            } else {
                server.read(token as usize, &mut buffer)?;
            }
        }
    }
}

struct Bare {
    epoll: Epoll,
    connections: Vec<Option<TcpStream>>,
    /// Numbers of the connections that are sent to: all but the publishers.
    subscribers: Vec<u32>,
    publishers: Vec<(u32, FrameCounter)>,
    /// Lengths of the publishes that the latest read has completed.
    published: Vec<usize>,
    /// The frame that goes out, made when the first publish says how long it is.
    ready_frame: Vec<u8>,
    ready_payload_bytes: usize,
}

impl Bare {
    fn accept(&mut self, listener: &TcpListener) -> io::Result<()> {
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(true)?;
                    stream.set_nodelay(true)?;
                    self.epoll
                        .add(&stream, self.connections.len() as u64, Interest::Read)?;
                    self.connections.push(Some(stream));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    fn read(&mut self, index: usize, buffer: &mut [u8]) -> io::Result<()> {
        let Some(mut stream) = self.connections[index].as_ref() else {
            return Ok(());
        };
        let count = match stream.read(buffer) {
            Ok(0) => 0,
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(_) => 0,
        };
        if count == 0 {
            self.connections[index] = None;
            self.subscribers
                .retain(|&subscriber| subscriber as usize != index);
            self.publishers
                .retain(|&(publisher, _)| publisher as usize != index);
            return Ok(());
        }
        let bytes = &buffer[..count];
        // A client sends its request alone and at once; a masked frame never begins with a letter.
        if bytes.starts_with(b"GET ") {
            return self.upgrade(index, bytes);
        }
        if let Some((_, frames)) = self
            .publishers
            .iter_mut()
            .find(|(publisher, _)| *publisher as usize == index)
        {
            frames.feed(bytes, |frame| {
                if frame.opcode == TEXT {
                    self.published.push(frame.payload_bytes as usize);
                }
            });
            self.fan_out()?;
        }
        Ok(())
    }

    fn upgrade(&mut self, index: usize, request: &[u8]) -> io::Result<()> {
        let key = header(request, b"Sec-WebSocket-Key: ")
            .ok_or_else(|| io::Error::other("an upgrade request without Sec-WebSocket-Key"))?;
        let mut digest = Sha1::new();
        digest.update(key);
        digest.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
        let accept = data_encoding::BASE64.encode(&digest.finalize());
        let response = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\n\r\n"
        );
        if let Some(mut stream) = self.connections[index].as_ref() {
            stream.write_all(response.as_bytes())?;
        }
        if request.starts_with(b"GET /publish ") {
            self.publishers
                .push((index as u32, FrameCounter::default()));
        } else {
            self.subscribers.push(index as u32);
        }
        Ok(())
    }

    /// For each publish one `send()` to each subscriber.
    fn fan_out(&mut self) -> io::Result<()> {
        for payload_bytes in std::mem::take(&mut self.published) {
            if self.ready_payload_bytes != payload_bytes {
                self.ready_frame = server_frame(TEXT, &vec![b'x'; payload_bytes]);
                self.ready_payload_bytes = payload_bytes;
            }
            for &subscriber in &self.subscribers {
                if let Some(stream) = &self.connections[subscriber as usize] {
                    send_whole(stream, &self.ready_frame)?;
                }
            }
        }
        Ok(())
    }
}

/// A lost connection is not an error: its end is read later. The standard library's `write` is `send()`.
fn send_whole(mut stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => wait_writable(stream)?,
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
                ) =>
            {
                break;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn listen(port: u16) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddrV4::new(Ipv4Addr::LOCALHOST, port).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn header<'a>(request: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let start = request
        .windows(name.len())
        .position(|window| window == name)?
        + name.len();
    let length = request[start..]
        .windows(2)
        .position(|window| window == b"\r\n")?;
    Some(&request[start..start + length])
}
