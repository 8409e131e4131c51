//! The stream of one connection: TCP, or a Unix socket.

use crate::net::listener::{Accepted, ListeningSocket};
use crate::net::peer::Peer;
use crate::settings::config::Config;
use socket2::SockRef;
use std::io::{self, IoSlice, Read};
use std::net::Shutdown;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
#[cfg(unix)]
use tokio::net::UnixStream;

/// The socket of a connection. Every method is a match and a call.
pub(super) enum Transport {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(UnixStream),
}

/// Evaluates an expression with the stream of a `Transport`.
macro_rules! with_stream {
    ($transport:expr, $stream:ident => $result:expr) => {
        match $transport {
            Transport::Tcp($stream) => $result,
            #[cfg(unix)]
            Transport::Unix($stream) => $result,
        }
    };
}

impl Transport {
    /// Registers a socket with the runtime of the calling shard, and sets its options unless it `is_tuned`.
    pub(super) fn new(socket: Accepted, is_tuned: bool, config: &Config) -> io::Result<Self> {
        match socket {
            Accepted::Tcp(stream) => {
                stream.set_nonblocking(true)?;
                if !is_tuned {
                    tune_tcp(&SockRef::from(&stream), config)?;
                }
                Ok(Self::Tcp(TcpStream::from_std(stream)?))
            }
            #[cfg(unix)]
            Accepted::Unix(stream) => {
                stream.set_nonblocking(true)?;
                if !is_tuned {
                    bound_buffers(&SockRef::from(&stream), config)?;
                }
                Ok(Self::Unix(UnixStream::from_std(stream)?))
            }
        }
    }

    /// The address of the peer; `None` when the connection has ended already.
    pub(super) fn peer(&self) -> Option<Peer> {
        match self {
            Self::Tcp(stream) => Some(Peer::Ip(stream.peer_addr().ok()?.ip())),
            #[cfg(unix)]
            Self::Unix(_) => Some(Peer::Unix),
        }
    }

    pub(super) fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        with_stream!(self, stream => Pin::new(stream).poll_read(context, buffer))
    }

    pub(super) fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        with_stream!(self, stream => Pin::new(stream).poll_write(context, bytes))
    }

    pub(super) fn poll_write_vectored(
        &mut self,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        with_stream!(self, stream => Pin::new(stream).poll_write_vectored(context, slices))
    }

    pub(super) fn poll_write_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        with_stream!(self, stream => stream.poll_write_ready(context))
    }

    /// Reads once without asking the runtime whether the socket is readable.
    pub(super) fn read_now(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self.socket()).read(buffer)
    }

    /// Shuts one side or both. A fork of this process may hold the descriptor, and closing it would then end nothing.
    pub(super) fn shutdown(&self, side: Shutdown) {
        // the peer may be gone already
        let _ = self.socket().shutdown(side);
    }

    fn socket(&self) -> SockRef<'_> {
        with_stream!(self, stream => SockRef::from(stream))
    }
}

/// Makes a listener ready for an acceptor. A TCP listener gets the options of its connections, which inherit them on
/// some systems (`inherits_options`). Connections of a Unix socket inherit nothing.
pub(super) fn prepare_listener(socket: &ListeningSocket, config: &Config) -> io::Result<()> {
    match socket {
        ListeningSocket::Tcp(listener) => {
            listener.set_nonblocking(true)?;
            tune_tcp(&SockRef::from(listener), config)
        }
        #[cfg(unix)]
        ListeningSocket::Unix(listener) => listener.set_nonblocking(true),
    }
}

/// Whether an accepted socket has the options of its listener.
pub(super) fn inherits_options(socket: &Accepted) -> bool {
    cfg!(any(target_os = "linux", target_os = "android")) && matches!(socket, Accepted::Tcp(_))
}

/// Small frames leave at once, a peer that acknowledges nothing for `heartbeat_timeout` is gone, and the system's
/// buffers are bounded.
fn tune_tcp(socket: &SockRef<'_>, config: &Config) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    socket.set_tcp_user_timeout(Some(config.heartbeat_timeout))?;
    bound_buffers(socket, config)
}

fn bound_buffers(socket: &SockRef<'_>, config: &Config) -> io::Result<()> {
    if config.send_buffer_bytes > 0 {
        socket.set_send_buffer_size(config.send_buffer_bytes)?;
    }
    if config.receive_buffer_bytes > 0 {
        socket.set_recv_buffer_size(config.receive_buffer_bytes)?;
    }
    Ok(())
}
