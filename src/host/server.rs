//! The composition root: puts node, broker and store together, binds, starts the shards, drains and ends.

use super::adapters::{ports_over, store_of};
use super::housekeeping::keep_house;
use crate::adapters::admit_all::AdmitAll;
use crate::base::completion::Completion;
use crate::base::error::Error;
use crate::base::fork::{ForkGuard, ForkSensitive, OwningProcess};
use crate::base::sync::{Condvar, Mutex, Rank};
use crate::core::events::{EventQueue, LogLevel};
use crate::link::serving::LinkServer;
use crate::net::listener::{self, Endpoint, Listeners};
use crate::node::{Delivery, Node, NodeCalls, Ports, ShardHandle};
use crate::ports::auth::Auth;
use crate::ports::calls::Calls;
use crate::ports::store::Store;
use crate::settings::config::Config;
use crate::settings::socket_limits::SocketLimits;
use crate::shard::{Acceptor, Shard, tick_of};
use arc_swap::ArcSwapOption;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// The longest time that the end of a server waits for the storage to save the waiting changes.
const MAX_STORE_WAIT: Duration = Duration::from_secs(30);

/// A node, and the threads that serve it while the server runs.
pub struct Server {
    node: Arc<Node>,
    auth: Arc<dyn Auth>,
    running: Mutex<Option<Running>>,
    /// The addresses that the server listens on; `None` while the server does not run. Read without the lock of `running`,
    /// which a start holds until it has ended.
    endpoints: ArcSwapOption<Vec<Endpoint>>,
    /// Serves the other processes of the application while the server runs.
    link: Mutex<Option<LinkServer>>,
    start_in_work: ForkSensitive,
    ended: Condvar,
    /// The process that has the threads of the server.
    started_by: OwningProcess,
}

/// How the shards of a run report that their clients have gone, and that they have ended.
struct ShardThreads {
    drained: flume::Receiver<()>,
    /// Disconnected when the last shard has ended.
    ended: flume::Receiver<()>,
    count: usize,
}

impl ShardThreads {
    async fn all_drained(&self) {
        for _ in 0..self.count {
            if self.drained.recv_async().await.is_err() {
                return;
            }
        }
    }

    async fn all_ended(&self) {
        while self.ended.recv_async().await.is_ok() {}
    }
}

struct Running {
    endpoints: Arc<Vec<Endpoint>>,
    stop: flume::Sender<()>,
    /// Completed when the server has ended.
    when_ended: Vec<Completion<()>>,
}

impl Server {
    /// Makes a server that is not started.
    ///
    /// Errors: the system has no source of random numbers.
    pub fn new(config: Config) -> Result<Arc<Self>, Error> {
        Self::with_auth(config, Arc::new(AdmitAll))
    }

    /// As `new`, with an authorisation that decides who may connect.
    pub fn with_auth(config: Config, auth: Arc<dyn Auth>) -> Result<Arc<Self>, Error> {
        crate::base::random::check_source()?;
        let store = store_of(&config);
        Ok(Self::over(config, store, auth))
    }

    fn over(config: Config, store: Arc<dyn Store>, auth: Arc<dyn Auth>) -> Arc<Self> {
        let ports = ports_over(&config, store);
        Self::with_ports(config, ports, auth)
    }

    /// A server on these ports.
    pub fn with_ports(config: Config, ports: Ports, auth: Arc<dyn Auth>) -> Arc<Self> {
        let node = Arc::new(Node::new(Arc::new(config), ports));
        Arc::new(Self {
            node,
            auth,
            running: Mutex::new(Rank::Running, None),
            endpoints: ArcSwapOption::empty(),
            link: Mutex::default(),
            start_in_work: ForkSensitive::default(),
            ended: Condvar::new(),
            started_by: OwningProcess::default(),
        })
    }

    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// The calls on this server's node.
    pub fn calls(&self) -> Arc<dyn Calls> {
        Arc::new(NodeCalls::new(Arc::clone(&self.node)))
    }

    pub fn config(&self) -> &Config {
        &self.node.config
    }

    pub fn events(&self) -> &EventQueue {
        &self.node.events
    }

    /// Wakes every shard, so that the shard checks whether paused connections may be read.
    pub fn wake_shards(&self) {
        self.node.shards.wake();
    }

    /// Saves the waiting changes for at most `timeout`, and closes the storage until its next use.
    pub fn close_storage(&self, timeout: Duration) {
        self.node.store.close(timeout);
    }

    /// True in a child of the process that started the server, or opened its storage. The child must use nothing of the
    /// server, because locks may be held by threads that the child does not have.
    pub fn is_inherited(&self) -> bool {
        self.started_by.is_ancestor()
            || self.start_in_work.was_cut()
            || self.node.store.is_inherited()
    }

    /// Binds and starts the threads; returns when connections are accepted. False if the server runs already.
    ///
    /// Errors: the storage cannot be opened; an address is taken or invalid; a thread cannot be started; `timeout` passed.
    pub fn start(self: &Arc<Self>, timeout: Option<Duration>) -> Result<bool, Error> {
        let _worker = self.start_in_work.begin();
        let mut running = self.running.lock();
        if running.is_some() {
            return Ok(false);
        }
        let was_restored = self.node.store.is_open();
        match self.start_all(timeout) {
            Ok(started) => {
                self.started_by.claim();
                self.tell_of_start(&started.endpoints);
                self.endpoints.store(Some(Arc::clone(&started.endpoints)));
                *running = Some(started);
                let link = self.serve_link();
                *self.link.lock() = link;
                Ok(true)
            }
            Err(error) => {
                if !was_restored {
                    self.node.store.close(MAX_STORE_WAIT);
                }
                Err(error)
            }
        }
    }

    /// Opens the storage, binds, and starts the threads. After an error only the storage is left open.
    fn start_all(self: &Arc<Self>, timeout: Option<Duration>) -> Result<Running, Error> {
        let config = &self.node.config;
        self.node.restore()?;
        let addresses = listener::resolve(&config.host, config.port)?;
        let _whole = ForkGuard::new();
        let listeners = Listeners::bind(&addresses, config.unix_socket_mode)?;
        let shards: Vec<_> = (0..config.shards)
            .map(|_| Arc::new(ShardHandle::new(config.inbox_bytes)))
            .collect();
        self.node.shards.set_limits(SocketLimits::claim(config));
        self.node.shards.attach(shards.clone());
        self.node.events.open();
        self.start_threads(listeners, &shards, timeout)
            .map_err(|error| {
                self.node.drain();
                self.finish_shards();
                self.node.shards.detach();
                self.node.events.abandon();
                match error.kind() {
                    io::ErrorKind::TimedOut => Error::TimedOut(error.to_string()),
                    _ => Error::Start(format!("cannot start the server's threads: {error}")),
                }
            })
    }

    /// Begins to drain. Does nothing if the server does not run.
    pub fn begin_stop(&self) {
        if let Some(running) = &*self.running.lock() {
            // the channel is full if a stop was asked for before
            let _ = running.stop.try_send(());
        }
    }

    /// Blocks until the server has ended; false when `timeout` passed before.
    pub fn wait_stopped(&self, timeout: Option<Duration>) -> bool {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut running = self.running.lock();
        while running.is_some() {
            match deadline {
                Some(deadline) => {
                    let has_timed_out;
                    (running, has_timed_out) = self.ended.wait_until(running, deadline);
                    if has_timed_out {
                        return running.is_none();
                    }
                }
                None => running = self.ended.wait(running),
            }
        }
        true
    }

    /// Completes when the server has ended: at once if the server does not run, else on the server's thread.
    pub fn when_ended(&self, completion: Completion<()>) {
        let mut running = self.running.lock();
        if let Some(running) = &mut *running {
            running.when_ended.push(completion);
            return;
        }
        drop(running);
        completion.complete(Ok(()));
    }

    /// True from the moment that connections are accepted until the server has ended.
    pub fn is_running(&self) -> bool {
        self.endpoints.load().is_some()
    }

    /// True from a start until the end. Cheaper than `is_running`, for each call looks here; a child of the process that
    /// started the server must not ask.
    pub fn is_started(&self) -> bool {
        self.started_by.is_some()
    }

    /// The TCP port that the server listens on, or the setting `port` while the server does not run; 0 if every host is a
    /// Unix socket.
    pub fn port(&self) -> u16 {
        let config = &self.node.config;
        match self.address() {
            Some(address) => address.port(),
            None if config.host.has_tcp() => config.port,
            None => 0,
        }
    }

    /// The first TCP address that the server listens on.
    pub fn address(&self) -> Option<SocketAddr> {
        let endpoints = self.endpoints.load();
        endpoints
            .as_deref()?
            .iter()
            .find_map(|endpoint| match endpoint {
                Endpoint::Tcp(address) => Some(*address),
                Endpoint::Unix(_) => None,
            })
    }

    fn start_threads(
        self: &Arc<Self>,
        listeners: Listeners,
        shards: &[Arc<ShardHandle>],
        timeout: Option<Duration>,
    ) -> io::Result<Running> {
        let (stop, stopped) = flume::bounded(1);
        let (tell_drained, drained) = flume::unbounded();
        let (done, ended) = flume::bounded(1);
        let (tell_running, all_running) = flume::bounded::<()>(0);
        let threads = ShardThreads {
            drained,
            ended,
            count: shards.len(),
        };
        for (index, handle) in shards.iter().enumerate() {
            let shard = Shard::new(
                index,
                Arc::clone(&self.node),
                Arc::clone(&self.auth),
                Arc::clone(handle),
                tell_drained.clone(),
            );
            let (node, done) = (Arc::clone(&self.node), done.clone());
            let tell_running = tell_running.clone();
            let runtime = Shard::runtime()?;
            thread::Builder::new()
                .name(format!("tantor-shard-{index}"))
                .spawn(move || {
                    drop(tell_running);
                    if let Err(error) = shard.run(&runtime) {
                        node.events.log(LogLevel::Error, "server", || {
                            format!("shard {index} ended: {error}")
                        });
                    }
                    drop(done);
                })?;
        }
        drop((done, tell_running));
        // without a buffer: `send` fails if the caller of `start` has given up
        let (tell_ready, ready) = flume::bounded(0);
        let server = Arc::clone(self);
        let counted = crate::base::fork::CountedThread::new();
        thread::Builder::new()
            .name("tantor-server".to_owned())
            .spawn(move || {
                let runtime = match tokio::runtime::Builder::new_current_thread()
                    .enable_io()
                    .enable_time()
                    .build()
                {
                    Ok(runtime) => runtime,
                    Err(error) => {
                        let _ = tell_ready.send(Err(error));
                        return;
                    }
                };
                runtime.block_on(server.serve(listeners, tell_ready, stopped, threads));
                drop(runtime);
                drop(counted);
            })?;
        let endpoints = match timeout {
            None => ready.recv().map_err(io::Error::other)??,
            Some(timeout) => ready.recv_timeout(timeout).map_err(|error| match error {
                flume::RecvTimeoutError::Timeout => {
                    let seconds = timeout.as_secs_f64();
                    io::Error::new(
                        io::ErrorKind::TimedOut,
                        format!("not listening after {seconds} s"),
                    )
                }
                flume::RecvTimeoutError::Disconnected => {
                    io::Error::other("the server's thread ended at once")
                }
            })??,
        };
        // a fork must not meet a thread that the C library is still starting
        let _ = all_running.recv();
        Ok(Running {
            endpoints: Arc::new(endpoints),
            stop,
            when_ended: Vec::new(),
        })
    }

    /// Runs the server's own thread: accepts, keeps house, drains, and ends.
    async fn serve(
        &self,
        listeners: Listeners,
        ready: flume::Sender<io::Result<Vec<Endpoint>>>,
        stopped: flume::Receiver<()>,
        threads: ShardThreads,
    ) {
        let (claims, endpoints, sockets) = listeners.into_parts();
        // the caller of `start` holds a `ForkGuard` until `ready` is sent
        let acceptor = match Acceptor::new(sockets, &self.node) {
            Ok(acceptor) => acceptor,
            Err(error) => {
                drop(claims);
                let _ = ready.send(Err(error));
                return;
            }
        };
        // the caller of `start` may have given up, and then this thread must not touch the node
        let is_wanted = ready.send(Ok(endpoints)).is_ok();
        drop(ready);
        let close = |acceptor: Acceptor| {
            let _whole = ForkGuard::new();
            drop(claims);
            acceptor.close();
        };
        if !is_wanted {
            close(acceptor);
            return;
        }
        let until_ended = async {
            tokio::select! {
                () = acceptor.run() => {}
                _ = stopped.recv_async() => {}
            }
            self.node.drain();
            tokio::select! {
                // plain requests are answered until the last client has gone
                () = acceptor.run() => {}
                () = threads.all_drained() => {}
            }
            close(acceptor);
            self.finish_shards();
            threads.all_ended().await;
        };
        // `keep_house` never ends: the server waits for `until_ended`
        tokio::select! {
            () = until_ended => {}
            never = keep_house(&self.node, tick_of(&self.node.config)) => match never {},
        }
        self.node.shards.detach();
        // a call of another process would open the storage again
        let link = self.link.lock().take();
        drop(link);
        self.node.store.close(MAX_STORE_WAIT);
        self.node
            .events
            .log(LogLevel::Info, "server", || "stopped".to_owned());
        self.node.events.close();
        let ended = {
            let _worker = self.start_in_work.begin();
            let mut running = self.running.lock();
            self.endpoints.store(None);
            self.started_by.release();
            running.take()
        };
        self.ended.notify_all();
        for completion in ended.into_iter().flat_map(|ended| ended.when_ended) {
            completion.complete(Ok(()));
        }
    }

    fn finish_shards(&self) {
        for handle in self.node.shards.all().iter() {
            handle.inbox.push(Delivery::Finish);
        }
    }

    fn tell_of_start(&self, endpoints: &[Endpoint]) {
        let shards = self.node.config.shards;
        self.node.events.log(LogLevel::Info, "server", || {
            let endpoints: Vec<String> = endpoints.iter().map(Endpoint::to_string).collect();
            let limits = self.node.shards.limits();
            let room = match limits.limited_by {
                Some(limit) => format!(
                    " (the limit of open files is {limit}; max_connections is {})",
                    self.node.config.max_connections
                ),
                None => String::new(),
            };
            format!(
                "listening on {} with {shards} shard{}, room for {} connections{room}",
                endpoints.join(" and "),
                if shards == 1 { "" } else { "s" },
                limits.connections
            )
        });
        let config = &self.node.config;
        if !config.host.has_tcp() && ![0, Config::default().port].contains(&config.port) {
            self.node.events.log(LogLevel::Warning, "server", || {
                format!(
                    "port is {}, which is not used: every host is a Unix socket ({})",
                    config.port,
                    config.host.text()
                )
            });
        }
        let private = self.node.private_channels();
        if !private.is_empty() {
            self.node.events.log(LogLevel::Warning, "auth", || {
                format!(
                    "no authorisation is configured: private channels admit everyone ({})",
                    private.join(", ")
                )
            });
        }
    }
}

#[cfg(test)]
mod tests;
