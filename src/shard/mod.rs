//! A shard: one thread, one current-thread runtime, and the connections that it owns.
//!
//! One future runs everything in turns: take the inbox, read what is readable, take the inbox again, write each
//! connection that has something new once. There is no task, lock or wake-up per connection on the way out.
//!
//! A turn is short, whatever was asked of the shard: reading, pushing and writing each stop after their share of work,
//! and go on in the next turn, with a look at the sockets in between.

mod acceptor;
mod admission;
mod adopt;
mod deliver;
mod handshake_limit;
mod hold;
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
use hold::{Hold, Stalls};
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

/// Bytes that are read at once; what they leave over is copied to the connection.
const READ_BUFFER: usize = 64 << 10;

/// Ticks that may come late, on a busy machine, before it counts as having been stopped.
const MAX_LATE_TICKS: u64 = 4;

/// Turns of a busy shard between two looks at which sockets are ready, so that one that sends without pause does
/// not hide the others.
const TURNS_PER_POLL: u32 = 1;

/// Bytes of deliveries that one turn's reading may make, about: what is read beyond it waits for the next turn, so
/// that others are written to, and looked at, in between.
const TURN_BYTES: usize = 256 << 10;

/// The work that one turn's reading may cause, in nanoseconds, about.
const TURN_READ_WORK: usize = 400_000;

/// Ticks that the wheel reaches ahead.
const WHEEL_REACH: usize = 64;

/// A connection whose close frame was written is given this long to close its side.
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
    /// Connections that are read no further for now.
    held: Vec<(Slot, Hold)>,
    stalls: Stalls,
    lines: Lines,
    wheel: Wheel<Watch>,
    started: Instant,
    tick: Duration,
    draining: Option<Instant>,
    /// Told once everyone has gone; until it is told to end, it still answers requests.
    tell_drained: Option<flume::Sender<()>>,
    is_finished: bool,
    /// Bytes of buffers that were let go since memory was given back to the system.
    freed: usize,
    buffer: Box<[u8]>,
    queued_frames: usize,
    queued_bytes: usize,
    /// Connections of clients; the others are in their handshake or in their close.
    open_count: usize,
    /// How many may be in their handshake or in their close.
    max_transient: usize,
    /// How many of these may be in their handshake before handshakes are closed to make room.
    handshake_share: usize,
    /// Connections in their close.
    closing_count: usize,
    /// Connections by the start of their handshake, the oldest first. May name connections that have ended the handshake.
    handshakes: VecDeque<(Slot, u32)>,
    /// Connections by the start of their close, the oldest first. May name connections that are gone.
    closing: VecDeque<(Slot, u32)>,
    /// Bytes that connections hold of messages and request heads that have not arrived in full.
    unfinished_bytes: usize,
    /// Connections with a message that has not arrived in full, with some that have completed it.
    unfinished_slots: Vec<Slot>,
    others: Others,
    /// The work that this turn's reading has caused so far.
    read_work: usize,
    /// Bytes in the inbox at which this turn reads no further.
    most_inbox: usize,
    /// What is left of the share of the connection that is read.
    read_share: usize,
    /// Chunks that this turn has put into queues so far.
    pushes: usize,
    /// Some of the channels of which something was dropped.
    channels_with_drops: HashMap<ChannelKey, Arc<Channel>>,
    // buffers that are kept from turn to turn
    deliveries: VecDeque<Delivery>,
    ready_slots: Vec<Slot>,
    due: Vec<Watch>,
}

impl Shard {
    /// `drained` hears once that everyone has gone, after the inbox was told to drain.
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
            held: Vec::new(),
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

    /// The runtime that `run` takes, made beforehand so that a start can fail by it.
    pub fn runtime() -> io::Result<Runtime> {
        tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .event_interval(TURNS_PER_POLL)
            .build()
    }

    /// Runs until it is told to end. Blocks; to be called on a thread of its own.
    pub fn run(self, runtime: &Runtime) -> io::Result<()> {
        let handle = Arc::clone(&self.handle);
        // as a task, because waking a task of this thread costs no system call
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
                // what failed was taken out of its queue before, so the next turn does not meet it again
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
        // while it runs nobody needs to wake it
        self.handle.inbox.disarm();
        self.ready.disarm();
        (self.read_work, self.pushes) = (0, 0);
        self.look_at_others();
        self.deliver();
        self.release_held_back();
        self.read_ready();
        self.deliver();
        if interval.poll_tick(context).is_ready() {
            self.on_tick();
            // to have the timer wake it for the next one
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
        // room may have come since this turn began, before there was anybody to wake
        self.release_held_back();
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

    /// Reports what waits for this shard's sockets: to other shards, for `max_queued_bytes`, and to `stats()`.
    fn report_queued(&self) {
        self.handle
            .queued_frames
            .store(self.queued_frames, Ordering::Relaxed);
        self.handle
            .queued_bytes
            .store(self.queued_bytes, Ordering::Relaxed);
    }

    /// Reads connections that have something to read: first those that had little before, then the busy ones in turns,
    /// as far as this turn's work goes.
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
        // one at least, so that many that send little do not stop it
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

    /// Reads from a connection; a panic meanwhile closes this connection alone.
    fn contain(&mut self, slot: Slot, read: impl FnOnce(&mut Self)) {
        if catch_unwind(AssertUnwindSafe(|| read(self))).is_err() {
            self.node.events.log(LogLevel::Error, "server", || {
                "a panic was contained and its connection closed; please report it".to_owned()
            });
            if self.buffer.is_empty() {
                // it was in use
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

    /// True when what was read in this turn caused so much work that the rest can wait for the next.
    fn has_read_enough(&self) -> bool {
        self.read_work >= TURN_READ_WORK || self.handle.inbox.bytes() > self.most_inbox
    }

    fn on_tick(&mut self) {
        let now = self.current_tick();
        // a process that was stopped for a while heard nobody in that time; that is nobody's silence
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
        // a look at what is held back, should nobody have woken this shard for it
        self.release_held_back();
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

    /// Ticks until something that is to come after `wait`, rounded up.
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

/// Returns the time between two ticks: fine enough for the shortest of the times that the settings have watched.
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
