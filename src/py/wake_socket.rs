//! A pair of sockets by which any thread wakes an event loop that watches one of them.

use std::io;

#[cfg(unix)]
use std::os::unix::net::UnixStream;

#[cfg(unix)]
pub struct WakeSocket {
    sender: UnixStream,
    receiver: UnixStream,
}

#[cfg(unix)]
impl WakeSocket {
    pub fn new() -> io::Result<Self> {
        let (sender, receiver) = UnixStream::pair()?;
        sender.set_nonblocking(true)?;
        receiver.set_nonblocking(true)?;
        Ok(Self { sender, receiver })
    }

    pub fn fileno(&self) -> i32 {
        use std::os::fd::AsRawFd;
        self.receiver.as_raw_fd()
    }

    /// Makes the socket readable.
    pub fn signal(&self) {
        // an error means that the socket is full, and so readable already
        let _ = io::Write::write(&mut &self.sender, &[1]);
    }

    /// Makes the socket unreadable until the next signal.
    pub fn clear(&self) -> io::Result<()> {
        match io::Read::read(&mut &self.receiver, &mut [0; 64]) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        }
    }
}

/// There are none on this system.
#[cfg(not(unix))]
pub enum WakeSocket {}

#[cfg(not(unix))]
impl WakeSocket {
    pub fn new() -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub fn fileno(&self) -> i32 {
        match *self {}
    }

    pub fn signal(&self) {
        match *self {}
    }

    pub fn clear(&self) -> io::Result<()> {
        match *self {}
    }
}
