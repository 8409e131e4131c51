//! A shard: one thread, one current-thread runtime, and the connections that it owns.
//!
//! One future runs everything in turns: take the inbox, read the readable sockets, take the inbox again, and write each
//! connection with new data once. The way out has no task, lock or wake-up for each connection.
//!
//! A turn is short: reading, pushing and writing each stop after their share of work, and continue in the next turn. The
//! runtime polls the sockets between two turns.

mod acceptor;
mod admission;
mod adopt;
mod deliver;
mod handshake_limit;
mod pause;
mod receive;
mod socket;
mod transport;
mod unfinished;
mod wake;
mod write;

pub use acceptor::Acceptor;

use crate::base::error::Disconnect;
use crate::base::memory;
use crate::core::events::LogLevel;
use crate::core::hub::{ChannelKey, Hub, Slot};
use crate::core::wheel::Wheel;
use crate::node::{Channel, Delivery, Node, ShardHandle};
use crate::ports::auth::Auth;
use crate::settings::config::Config;
use crate::wire::http::pages::Refused;
use pause::{Pause, Stalls};
use slab::Slab;
use socket::{Connection, Phase, Watch};
use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::time::{Interval, MissedTickBehavior};
use wake::ReadyList;
use write::{Lines, Others};

/// Bytes that one read takes at most. Bytes of an incomplete frame are copied to the connection.
const READ_BUFFER: usize = 64 << 10;

/// The number of ticks that a busy machine may be late. Beyond it, the process counts as having been stopped.
const MAX_LATE_TICKS: u64 = 4;

/// Turns of a busy shard between two polls of the sockets. One client that sends without pause must not hide others.
const TURNS_PER_POLL: u32 = 1;

/// The approximate bytes of deliveries that the reading of one turn may cause. Further input waits for the next turn, so
/// that the shard writes and polls in between.
const TURN_BYTES: usize = 256 << 10;

/// The approximate work that the reading of one turn may cause, in nanoseconds.
const TURN_READ_WORK: usize = 400_000;

/// Ticks that the wheel reaches ahead.
const WHEEL_REACH: usize = 64;

/// The time that a peer has to close its side after the close frame was written.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

pub struct Shard {
    index: usize,
    config: Arc<Config>,
    node: Arc<Node>,
    auth: Arc<dyn Auth>,
    handle: Arc<ShardHandle>,
    connections: Slab<Connection>,
    next_generation: u32,
    hub: Hub,
    ready: Arc<ReadyList>,
    /// Connections that had more to read than one turn takes.
    busy: VecDeque<Slot>,
    /// Connections whose reading is paused, with the reason.
    paused: Vec<(Slot, Pause)>,
    stalls: Stalls,
    lines: Lines,
    wheel: Wheel<Watch>,
    started: Instant,
    tick: Duration,
    draining: Option<Instant>,
    /// Told once when all clients have gone. The shard then answers requests until `Delivery::Finish` comes.
    tell_drained: Option<flume::Sender<()>>,
    is_finished: bool,
    /// Bytes of buffers that were freed since memory was returned to the system.
    freed: usize,
    buffer: Box<[u8]>,
    queued_frames: usize,
    queued_bytes: usize,
    /// Connections of clients; the others are in their handshake or in their close.
    open_count: usize,
    /// The limit of connections in their handshake or in their close.
    max_transient: usize,
    /// The number of handshakes from which on handshakes are closed to make room; half of `max_transient`.
    handshake_share: usize,
    /// Connections in their close.
    closing_count: usize,
    /// Connections by the start of their handshake, the oldest first. May name connections that have ended the handshake.
    handshakes: VecDeque<(Slot, u32)>,
    /// Connections by the start of their close, the oldest first. May name connections that are gone.
    closing: VecDeque<(Slot, u32)>,
    /// Bytes of memory that incomplete messages and request heads take.
    unfinished_bytes: usize,
    /// Connections with an incomplete message. May name connections whose message is complete by now.
    unfinished_slots: Vec<Slot>,
    others: Others,
    /// The work that this turn's reading has caused so far.
    read_work: usize,
    /// The size of the inbox, in bytes, at which this turn stops reading.
    most_inbox: usize,
    /// The work that the connection which is being read may still cause in this turn.
    read_share: usize,
    /// Chunks that this turn has put into queues so far.
    pushes: usize,
    /// A cache of channels of which messages were dropped.
    channels_with_drops: HashMap<ChannelKey, Arc<Channel>>,
    // buffers that are kept from turn to turn
    deliveries: VecDeque<Delivery>,
    ready_slots: Vec<Slot>,
    due: Vec<Watch>,
}

impl Shard {
    /// `drained` gets one message, when all clients have gone after a `Delivery::Drain`.
    pub fn new(
        index: usize,
        node: Arc<Node>,
        auth: Arc<dyn Auth>,
        handle: Arc<ShardHandle>,
        drained: flume::Sender<()>,
    ) -> Self {
        let config = Arc::clone(&node.config);
        let max_transient = (node.shards.limits().handshakes / config.shards).max(1);
        Self {
            index,
            tick: tick_of(&config),
            config,
            node,
            auth,
            handle,
            connections: Slab::new(),
            next_generation: 0,
            hub: Hub::default(),
            ready: Arc::default(),
            busy: VecDeque::new(),
            paused: Vec::new(),
            stalls: Stalls::default(),
            lines: Lines::default(),
            wheel: Wheel::new(WHEEL_REACH),
            started: Instant::now(),
            draining: None,
            tell_drained: Some(drained),
            is_finished: false,
            freed: 0,
            buffer: vec![0; READ_BUFFER].into(),
            queued_frames: 0,
            queued_bytes: 0,
            open_count: 0,
            max_transient,
            handshake_share: max_transient.div_ceil(2),
            closing_count: 0,
            handshakes: VecDeque::new(),
            closing: VecDeque::new(),
            unfinished_bytes: 0,
            unfinished_slots: Vec::new(),
            others: Others::default(),
            read_work: 0,
            most_inbox: 0,
            read_share: 0,
            pushes: 0,
            channels_with_drops: HashMap::new(),
            deliveries: VecDeque::new(),
            ready_slots: Vec::new(),
            due: Vec::new(),
        }
    }

    /// Makes the runtime for `run`. Separate from `run`, so that a start can report the error.
    pub fn runtime() -> io::Result<Runtime> {
        tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .event_interval(TURNS_PER_POLL)
            .build()
    }

    /// Runs until `Delivery::Finish` comes. Blocks: needs a thread of its own.
    pub fn run(self, runtime: &Runtime) -> io::Result<()> {
        let handle = Arc::clone(&self.handle);
        // a task, because waking a task of the same thread costs no system call
        let shard = runtime.spawn(tokio::task::unconstrained(self.turns()));
        let result = runtime.block_on(shard);
        handle.inbox.close();
        result.map_err(io::Error::other)
    }

    async fn turns(mut self) {
        let mut interval = tokio::time::interval(self.tick);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        poll_fn(move |context| {
            let turn = catch_unwind(AssertUnwindSafe(|| self.turn(&mut interval, context)));
            turn.unwrap_or_else(|_| {
                // the delivery that failed is out of its queue, so the next turn does not repeat the panic
                self.node.events.log(LogLevel::Error, "server", || {
                    format!(
                        "shard {}: a panic was contained; please report it",
                        self.index
                    )
                });
                context.waker().wake_by_ref();
                Poll::Pending
            })
        })
        .await;
    }

    fn turn(&mut self, interval: &mut Interval, context: &mut Context<'_>) -> Poll<()> {
        // a running shard needs no wake-up
        self.handle.inbox.disarm();
        self.ready.disarm();
        (self.read_work, self.pushes) = (0, 0);
        self.look_at_others();
        self.deliver();
        self.resume_reading();
        self.read_ready();
        self.deliver();
        if interval.poll_tick(context).is_ready() {
            self.on_tick();
            // registers the waker for the next tick
            let _ = interval.poll_tick(context);
        }
        self.flush_touched();
        if self.is_finished {
            self.drop_all();
        }
        self.report_queued();
        self.check_unfinished();
        self.handle
            .handshakes
            .store(self.connections.len() - self.open_count, Ordering::Relaxed);
        if self.is_finished {
            return Poll::Ready(());
        }
        self.look_at_others();
        self.make_room();
        self.report_queued();
        if self.has_drained()
            && let Some(drained) = self.tell_drained.take()
        {
            let _ = drained.send(());
        }
        self.handle.inbox.register(context.waker());
        self.ready.register(context.waker());
        self.end_stalls(context);
        // room may have come in this turn, while no waker was registered
        self.resume_reading();
        if self.has_lines()
            || !self.deliveries.is_empty()
            || !self.busy.is_empty()
            || !self.handle.inbox.is_empty()
            || !self.ready.is_empty()
        {
            context.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// Publishes how much waits for the sockets of this shard: for `max_queued_bytes`, and for `stats()`.
    fn report_queued(&self) {
        self.handle
            .queued_frames
            .store(self.queued_frames, Ordering::Relaxed);
        self.handle
            .queued_bytes
            .store(self.queued_bytes, Ordering::Relaxed);
    }

    /// Reads the readable connections within the work of one turn: first connections that had little to read before, then
    /// the busy ones in rotation.
    fn read_ready(&mut self) {
        let mut slots = std::mem::take(&mut self.ready_slots);
        self.ready.take(&mut slots);
        let mut slots_left = slots.drain(..);
        self.most_inbox = self.handle.inbox.bytes().saturating_add(TURN_BYTES);
        let mut is_first = true;
        while (std::mem::take(&mut is_first) || !self.has_read_enough())
            && let Some(slot) = slots_left.next()
        {
            let Some(connection) = self.connections.get(slot as usize) else {
                continue;
            };
            if connection.is_busy {
                self.busy.push_back(slot);
            } else {
                self.read(slot);
            }
        }
        self.ready.put_back(slots_left);
        self.ready_slots = slots;
        // at least one, so that many quiet connections do not starve the busy ones
        let mut is_first = true;
        let mut left = self.busy.len();
        while left > 0
            && (std::mem::take(&mut is_first) || !self.has_read_enough())
            && let Some(slot) = self.busy.pop_front()
        {
            left -= 1;
            self.read(slot);
        }
    }

    fn read(&mut self, slot: Slot) {
        if let Some(connection) = self.connections.get(slot as usize) {
            connection.readiness.clear();
        }
        self.contain(slot, |shard| shard.on_ready(slot));
    }

    /// Calls `read` for a connection. A panic closes this connection alone.
    fn contain(&mut self, slot: Slot, read: impl FnOnce(&mut Self)) {
        if catch_unwind(AssertUnwindSafe(|| read(self))).is_err() {
            self.node.events.log(LogLevel::Error, "server", || {
                "a panic was contained and its connection closed; please report it".to_owned()
            });
            if self.buffer.is_empty() {
                // the panic came while the buffer was in use
                self.buffer = vec![0; READ_BUFFER].into();
            }
            let connection = self.connections.get(slot as usize);
            match connection.map(|connection| &connection.phase) {
                Some(Phase::Open { .. }) => self.end(slot, Disconnect::Internal),
                Some(Phase::Handshake { .. } | Phase::Admitting { .. }) => {
                    self.refuse(slot, &Refused::Failed);
                }
                Some(Phase::Closing { .. }) | None => {}
            }
        }
    }

    /// True when the input of this turn has caused as much work as one turn may.
    fn has_read_enough(&self) -> bool {
        self.read_work >= TURN_READ_WORK || self.handle.inbox.bytes() > self.most_inbox
    }

    fn on_tick(&mut self) {
        let now = self.current_tick();
        // a process that was stopped could not hear its clients: the stop does not count as their silence
        let missed = now.saturating_sub(self.wheel.now() + MAX_LATE_TICKS);
        if missed > 0 {
            for (_, connection) in &mut self.connections {
                connection.last_seen += missed;
            }
        }
        let mut due = std::mem::take(&mut self.due);
        self.wheel.advance(now, &mut due);
        let mut heartbeat = None;
        for watch in due.drain(..) {
            self.on_due(&watch, &mut heartbeat);
        }
        self.due = due;
        self.check_progress();
        if self
            .draining
            .is_some_and(|deadline| Instant::now() >= deadline)
        {
            self.drop_all();
        }
        memory::give_back_if_due(&mut self.freed);
        // in case no wake-up came when the reason of a pause ended
        self.resume_reading();
    }

    fn drop_all(&mut self) {
        let slots: Vec<Slot> = self
            .connections
            .iter()
            .map(|(slot, _)| slot as Slot)
            .collect();
        for slot in slots {
            self.drop_connection(slot, Disconnect::Shutdown);
        }
    }

    /// The tick of this moment. `wheel.now()` is the tick of the latest timer, which may be older.
    fn current_tick(&self) -> u64 {
        (self.started.elapsed().as_nanos() / self.tick.as_nanos()) as u64
    }

    /// The number of ticks in `wait`, rounded up.
    fn ticks(&self, wait: Duration) -> u64 {
        wait.as_nanos().div_ceil(self.tick.as_nanos()) as u64
    }

    fn has_drained(&self) -> bool {
        self.draining.is_some()
            && self
                .connections
                .iter()
                .all(|(_, connection)| matches!(connection.phase, Phase::Handshake { .. }))
    }
}

/// Returns the time between two ticks: an eighth of the shortest timeout in the settings, within limits.
pub fn tick_of(config: &Config) -> Duration {
    let slack = config
        .heartbeat_timeout
        .saturating_sub(config.heartbeat_interval);
    let shortest = config
        .heartbeat_interval
        .min(config.handshake_timeout)
        .min(slack);
    (shortest / 8).clamp(Duration::from_millis(10), Duration::from_millis(500))
}
