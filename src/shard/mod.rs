//! A shard: one thread, one current-thread runtime, and the connections that it owns.
//!
//! One future runs everything in turns: take the inbox, read what is readable, take the inbox again, write each
//! touched connection once. There is no task, lock or wake-up per connection on the way out.

mod acceptor;
mod deliver;
mod memory;
mod receive;
mod socket;
mod unfinished;
mod wake;

pub use acceptor::Acceptor;

use crate::config::Config;
use crate::error::Disconnect;
use crate::events::LogLevel;
use crate::hub::{ChannelKey, Hub, Slot};
use crate::node::{Channel, Delivery, Door, Node};
use crate::wheel::Wheel;
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

/// Bytes that are read at once; what they leave over is copied to the connection.
const READ_BUFFER: usize = 64 << 10;

/// Ticks that may come late, on a busy machine, before it counts as having been stopped.
const MAX_LATE_TICKS: u64 = 4;

/// Turns of a busy shard between two looks at which sockets are ready, so that one that sends without pause does
/// not hide the others.
const TURNS_PER_POLL: u32 = 4;

/// Bytes of deliveries that one turn's reading may make, about: what is read beyond it waits for the next turn, so
/// that others are written to, and looked at, in between.
const TURN_BYTES: usize = 256 << 10;

/// Ticks that the wheel reaches ahead.
const WHEEL_REACH: usize = 64;

/// So many freed bytes between two ticks are worth the time that giving them back takes.
const MUCH_FREED: usize = 4 << 20;

/// A connection whose close frame was written is given this long to close its side.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

pub struct Shard {
    index: usize,
    config: Arc<Config>,
    node: Arc<Node>,
    door: Arc<Door>,
    connections: Slab<Connection>,
    next_generation: u32,
    hub: Hub,
    ready: Arc<ReadyList>,
    /// Connections that are not read while Python is behind with what they sent.
    held_for_events: Vec<Slot>,
    /// Connections that are not read while another shard is behind with what they sent.
    held_for_shards: Vec<Slot>,
    /// Connections with something new to write.
    touched: Vec<Slot>,
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
    /// Connections in the order in which they began their handshake or their close, with those that have ended it.
    transient: VecDeque<(Slot, u32)>,
    /// Bytes that connections hold of messages and request heads that have not arrived in full.
    unfinished_bytes: usize,
    /// Connections with a message that has not arrived in full, with some that have completed it.
    unfinished_slots: Vec<Slot>,
    /// Some of the channels of which something was dropped.
    shed_channels: HashMap<ChannelKey, Arc<Channel>>,
    // buffers that are kept from turn to turn
    deliveries: Vec<Delivery>,
    ready_slots: Vec<Slot>,
    due: Vec<Watch>,
}

impl Shard {
    /// `drained` hears once that everyone has gone, after the inbox was told to drain.
    pub fn new(index: usize, node: Arc<Node>, door: Arc<Door>, drained: flume::Sender<()>) -> Self {
        let config = Arc::clone(&node.config);
        let (capacity, shards) = (node.socket_limits(), config.shards);
        Self {
            index,
            tick: tick_of(&config),
            config,
            node,
            door,
            connections: Slab::new(),
            next_generation: 0,
            hub: Hub::default(),
            ready: Arc::default(),
            held_for_events: Vec::new(),
            held_for_shards: Vec::new(),
            touched: Vec::new(),
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
            max_transient: (capacity.handshakes / shards).max(1),
            transient: VecDeque::new(),
            unfinished_bytes: 0,
            unfinished_slots: Vec::new(),
            shed_channels: HashMap::new(),
            deliveries: Vec::new(),
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
        let door = Arc::clone(&self.door);
        // as a task, because waking a task of this thread costs no system call
        let shard = runtime.spawn(tokio::task::unconstrained(self.turns()));
        let result = runtime.block_on(shard);
        door.inbox.close();
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
        self.door.inbox.sleepless();
        self.ready.sleepless();
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
        self.door
            .queued_frames
            .store(self.queued_frames, Ordering::Relaxed);
        self.door
            .queued_bytes
            .store(self.queued_bytes, Ordering::Relaxed);
        self.check_unfinished();
        self.door
            .handshakes
            .store(self.connections.len() - self.open_count, Ordering::Relaxed);
        self.check_process();
        // those that this ends
        self.flush_touched();
        if self.is_finished {
            self.drop_all();
            return Poll::Ready(());
        }
        if self.has_drained()
            && let Some(drained) = self.tell_drained.take()
        {
            let _ = drained.send(());
        }
        self.door.inbox.register(context.waker());
        self.ready.register(context.waker());
        // room may have come since this turn began, before there was anybody to wake
        self.release_held_back();
        if !self.door.inbox.is_empty() || !self.ready.is_empty() {
            context.waker().wake_by_ref();
        }
        Poll::Pending
    }

    fn read_ready(&mut self) {
        let mut slots = std::mem::take(&mut self.ready_slots);
        self.ready.take(&mut slots);
        let mut slots_left = slots.drain(..);
        for slot in slots_left.by_ref() {
            let Some(connection) = self.connections.get(slot as usize) else {
                continue;
            };
            connection.readiness.clear();
            if catch_unwind(AssertUnwindSafe(|| self.on_ready(slot))).is_err() {
                self.node.events.log(LogLevel::Error, "server", || {
                    "a panic was contained and its connection closed; please report it".to_owned()
                });
                if self.buffer.is_empty() {
                    // it was in use
                    self.buffer = vec![0; READ_BUFFER].into();
                }
                self.end(slot, Disconnect::Internal);
            }
            if self.has_read_enough() {
                break;
            }
        }
        self.ready.put_back(slots_left);
        self.ready_slots = slots;
    }

    /// True when what was read in this turn made so much to deliver that the rest can wait for the next.
    fn has_read_enough(&self) -> bool {
        self.door.inbox.bytes() > TURN_BYTES
    }

    /// Connections that were held back are looked at again once there is room.
    fn release_held_back(&mut self) {
        if !self.held_for_events.is_empty() && !self.node.events.must_hold_back() {
            let slots = std::mem::take(&mut self.held_for_events);
            self.release(slots);
        }
        if !self.held_for_shards.is_empty() && !self.node.is_congested() {
            let slots = std::mem::take(&mut self.held_for_shards);
            self.release(slots);
        }
    }

    fn release(&mut self, slots: Vec<Slot>) {
        for slot in slots {
            if let Some(connection) = self.connections.get_mut(slot as usize) {
                connection.is_held_back = false;
                connection.readiness.set();
            }
        }
    }

    fn on_tick(&mut self) {
        if self.index == 0 {
            self.freed += self.node.tick();
        }
        let now = (self.started.elapsed().as_nanos() / self.tick.as_nanos()) as u64;
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
        if self.freed > MUCH_FREED && memory::may_give_back() {
            self.freed = 0;
            memory::give_back();
        }
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

/// Fine enough for the shortest of the times that the wheel watches.
fn tick_of(config: &Config) -> Duration {
    let slack = config
        .heartbeat_timeout
        .saturating_sub(config.heartbeat_interval);
    let shortest = config
        .heartbeat_interval
        .min(config.handshake_timeout)
        .min(slack);
    (shortest / 8).clamp(Duration::from_millis(10), Duration::from_millis(500))
}
