//! Accepts connections and hands their sockets to the shards in turn.

use super::transport::{inherits_options, prepare_listener};
use crate::core::events::LogLevel;
use crate::net::listener::{Accepted, ListeningSocket};
use crate::node::{Adoption, Delivery, Node};
use std::io;
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// The pause after an accept that failed because descriptors or memory ran out.
const PAUSE: Duration = Duration::from_millis(100);

/// The number of sockets that are accepted before they are handed over together.
const BATCH: usize = 64;

pub struct Acceptor {
    listeners: Vec<Listener>,
    node: Arc<Node>,
    /// The number of the shard that gets the next socket.
    next: AtomicUsize,
}

impl Acceptor {
    /// Must be called in the runtime that `run` will use.
    pub fn new(sockets: Vec<ListeningSocket>, node: &Arc<Node>) -> io::Result<Self> {
        let prepare = |socket: ListeningSocket| {
            prepare_listener(&socket, &node.config)?;
            Listener::new(socket)
        };
        Ok(Self {
            listeners: sockets
                .into_iter()
                .map(prepare)
                .collect::<io::Result<_>>()?,
            node: Arc::clone(node),
            next: AtomicUsize::new(0),
        })
    }

    /// Ends the listening. A shutdown is needed because a fork of this process may hold the descriptor, and the port would
    /// then stay open after the descriptor is closed here.
    pub fn close(self) {
        for listener in &self.listeners {
            let _ = socket2::SockRef::from(listener.get()).shutdown(Shutdown::Both);
        }
    }

    /// Accepts connections until the future is dropped.
    pub async fn run(&self) {
        futures_util::future::join_all(self.listeners.iter().map(|each| self.accept_from(each)))
            .await;
    }

    async fn accept_from(&self, listener: &Listener) {
        let mut accepted = Vec::new();
        let mut is_failing = false;
        loop {
            let result = listener.accept(&mut accepted).await;
            self.hand_over(&mut accepted);
            match result {
                Ok(()) => {
                    is_failing = false;
                    tokio::task::yield_now().await;
                }
                // the peer closed the connection before the accept
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
                    ) => {}
                Err(error) => {
                    // logged once, not at each attempt
                    if !std::mem::replace(&mut is_failing, true) {
                        self.node.events.log(LogLevel::Error, "server", || {
                            format!("cannot accept connections for now: {error}")
                        });
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    fn hand_over(&self, accepted: &mut Vec<Accepted>) {
        let shards = self.node.shards.all();
        if shards.is_empty() {
            accepted.clear();
            return;
        }
        let mut batches: Vec<Vec<Delivery>> = shards.iter().map(|_| Vec::new()).collect();
        for socket in accepted.drain(..) {
            let next = self.next.fetch_add(1, Ordering::Relaxed);
            let is_tuned = inherits_options(&socket);
            let adoption = Adoption::new(socket, is_tuned);
            batches[next % shards.len()].push(Delivery::Adopt(adoption));
        }
        for (handle, batch) in shards.iter().zip(batches) {
            handle.inbox.push_all(batch);
        }
    }
}

/// A listener. Its accepted sockets belong to no runtime: a shard registers them with its own runtime.
#[cfg(unix)]
struct Listener(tokio::io::unix::AsyncFd<ListeningSocket>);

#[cfg(unix)]
impl Listener {
    fn new(listener: ListeningSocket) -> io::Result<Self> {
        // SAFETY: the listener owns its descriptor, and the descriptor stays open until the registration is dropped.
        let registered = unsafe {
            tokio::io::unix::AsyncFd::register_with_interest(
                listener,
                tokio::io::Interest::READABLE,
            )
        };
        Ok(Self(registered?))
    }

    fn get(&self) -> &ListeningSocket {
        self.0.get_ref()
    }

    /// Waits for a connection, then accepts the connections that wait, at most a batch.
    async fn accept(&self, accepted: &mut Vec<Accepted>) -> io::Result<()> {
        let mut ready = self.0.readable().await?;
        while accepted.len() < BATCH {
            match ready.try_io(|listener| listener.get_ref().accept()) {
                Ok(Ok(socket)) => accepted.push(socket),
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => break,
            }
        }
        Ok(())
    }
}

#[cfg(not(unix))]
struct Listener(tokio::net::TcpListener, std::net::TcpListener);

#[cfg(not(unix))]
impl Listener {
    fn new(listener: ListeningSocket) -> io::Result<Self> {
        let ListeningSocket::Tcp(listener) = listener;
        let shown = listener.try_clone()?;
        Ok(Self(tokio::net::TcpListener::from_std(listener)?, shown))
    }

    fn get(&self) -> &std::net::TcpListener {
        &self.1
    }

    async fn accept(&self, accepted: &mut Vec<Accepted>) -> io::Result<()> {
        let (stream, _) = self.0.accept().await?;
        accepted.push(Accepted::Tcp(stream.into_std()?));
        Ok(())
    }
}
