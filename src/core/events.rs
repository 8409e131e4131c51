//! The events for Python: a bounded queue from any thread to the thread that calls the handlers.

use crate::base::clock::{SteadyTime, WallTime};
use crate::base::sync::Mutex;
use crate::core::log_throttle::LogThrottle;
use arc_swap::ArcSwap;
use std::collections::HashSet;
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// Something that happened, with the name under which handlers are registered.
#[derive(Clone, Debug)]
pub struct Event {
    pub name: Arc<str>,
    /// When it happened.
    pub at: WallTime,
    pub client_id: Option<Arc<str>>,
    pub channel: Option<Arc<str>>,
    pub detail: Detail,
}

/// The fields that only some kinds of events have.
#[derive(Clone, Debug)]
pub enum Detail {
    None,
    Message(String),
    TotalUsers(usize),
    Emergency {
        /// The id of the message.
        id: String,
        message: String,
        recipients: usize,
    },
    Disconnect {
        reason: &'static str,
        code: u16,
    },
    /// The data of a client's publication: JSON.
    Data(Box<[u8]>),
    /// A frame whose action is the application's own: a JSON object.
    Frame(Box<[u8]>),
}

/// A line for Python's `logging`.
#[derive(Clone, Debug)]
pub struct LogRecord {
    pub level: LogLevel,
    /// The logger's name below `tantor`, as in "server".
    pub logger: &'static str,
    pub message: String,
}

/// The level of a log line, with the number of Python's `logging`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum LogLevel {
    Debug = 10,
    Info = 20,
    Warning = 30,
    Error = 40,
}

#[derive(Clone, Debug)]
pub enum Told {
    Event(Event),
    Log(LogRecord),
    /// The server has ended; nothing follows.
    End,
}

/// The queue of events. It refuses events until it is opened.
///
/// Ordering: the events of one thread are taken in the order in which the thread queued them. While the queue is full,
/// shards do not read clients whose frames become events. Other events are queued up to four times the bound; beyond it
/// they are dropped and counted.
#[derive(Debug)]
pub struct EventQueue {
    sender: flume::Sender<Told>,
    receiver: flume::Receiver<Told>,
    /// Bytes of the events that wait, and of the batch that was taken last.
    bytes: AtomicUsize,
    /// Bytes of the batch that was taken last.
    taken_bytes: AtomicUsize,
    max_bytes: usize,
    wanted: ArcSwap<HashSet<Arc<str>>>,
    log_level: AtomicU8,
    throttle: LogThrottle,
    /// The places in the code that called `log_once`.
    logged_once: Mutex<HashSet<&'static Location<'static>>>,
    open: AtomicBool,
    has_paused: AtomicBool,
    dropped: AtomicU64,
    pauses: AtomicU64,
}

/// The approximate memory of an event besides its payload.
const EVENT_OVERHEAD: usize = 160;

/// A batch is full at so many bytes. The bound is small, because an event takes many times the bytes of its JSON once it
/// is a Python object.
const BATCH_BYTES: usize = 1 << 20;

/// The factor by which the queue may exceed its bound for events that no backpressure can delay.
const OVERFLOW_FACTOR: usize = 4;

impl EventQueue {
    pub fn new(max_bytes: usize) -> Self {
        let (sender, receiver) = flume::unbounded();
        Self {
            sender,
            receiver,
            bytes: AtomicUsize::new(0),
            taken_bytes: AtomicUsize::new(0),
            max_bytes,
            wanted: ArcSwap::default(),
            log_level: AtomicU8::new(LogLevel::Info as u8),
            throttle: LogThrottle::default(),
            logged_once: Mutex::default(),
            open: AtomicBool::new(false),
            has_paused: AtomicBool::new(false),
            dropped: AtomicU64::new(0),
            pauses: AtomicU64::new(0),
        }
    }

    /// Sets whether events of this name are queued from now on.
    pub fn want(&self, name: &str, wanted: bool) {
        self.wanted.rcu(|names| {
            let mut names = HashSet::clone(names);
            if wanted {
                names.insert(Arc::from(name));
            } else {
                names.remove(name);
            }
            names
        });
    }

    /// Returns the shared name of an event that has a handler; `None` for an event without a handler, which nobody needs.
    pub fn wanted(&self, name: &str) -> Option<Arc<str>> {
        if !self.open.load(Ordering::Relaxed) {
            return None;
        }
        self.wanted.load().get(name).cloned()
    }

    /// Sets the level below which log lines are not made.
    pub fn set_log_level(&self, level: u8) {
        self.log_level.store(level, Ordering::Relaxed);
    }

    pub fn logs(&self, level: LogLevel) -> bool {
        level as u8 >= self.log_level.load(Ordering::Relaxed) && self.open.load(Ordering::Relaxed)
    }

    /// Logs a line. Omits the line if its level is too low, or if the same place in the code has logged too many lines above
    /// DEBUG in this period.
    #[track_caller]
    pub fn log(&self, level: LogLevel, logger: &'static str, message: impl FnOnce() -> String) {
        let location = Location::caller();
        if self.logs(level)
            && (level == LogLevel::Debug || self.throttle.admits(location, SteadyTime::now()))
        {
            self.tell(Told::Log(LogRecord {
                level,
                logger,
                message: message(),
            }));
        }
    }

    /// Logs a line as `log` does, but only once for each place in the code.
    #[track_caller]
    pub fn log_once(
        &self,
        level: LogLevel,
        logger: &'static str,
        message: impl FnOnce() -> String,
    ) {
        if self.logged_once.lock().insert(Location::caller()) {
            self.log(level, logger, message);
        }
    }

    /// Logs how many lines were withheld in the last period. To be called about once a second.
    pub fn log_withheld(&self) {
        for (location, count) in self.throttle.end_periods(SteadyTime::now()) {
            self.tell(Told::Log(LogRecord {
                level: LogLevel::Warning,
                logger: "server",
                message: format!(
                    "{count} more lines like those of {}:{} were not logged",
                    location.file(),
                    location.line()
                ),
            }));
        }
    }

    pub fn event(&self, event: Event) {
        self.tell(Told::Event(event));
    }

    /// Queues an event that happens now, if a handler wants events of this name; true then. `detail` is called only in this
    /// case.
    pub fn emit(
        &self,
        name: &str,
        client_id: Option<&Arc<str>>,
        channel: Option<&str>,
        detail: impl FnOnce() -> Detail,
    ) -> bool {
        let Some(name) = self.wanted(name) else {
            return false;
        };
        self.event(Event {
            name,
            at: WallTime::now(),
            client_id: client_id.cloned(),
            channel: channel.map(Arc::from),
            detail: detail(),
        });
        true
    }

    /// True while shards must not read clients whose frames become events. A shard that gets true is paused: the thread
    /// that takes events wakes the shard once `take_resumed` returns true.
    pub fn must_pause(&self) -> bool {
        if self.bytes.load(Ordering::Relaxed) <= self.max_bytes {
            return false;
        }
        if !self.has_paused.swap(true, Ordering::AcqRel) {
            self.pauses.fetch_add(1, Ordering::Relaxed);
        }
        // the thread that takes events may have made room between the two checks; nothing would wake the shard then
        self.bytes.load(Ordering::Acquire) > self.max_bytes
    }

    /// Subtracts the bytes of the batch that was taken last, because its events were handled.
    pub fn settle(&self) {
        let handled = self.taken_bytes.swap(0, Ordering::AcqRel);
        self.bytes.fetch_sub(handled, Ordering::AcqRel);
    }

    /// True once after a shard was paused, when the queue has room again.
    pub fn take_resumed(&self) -> bool {
        self.bytes.load(Ordering::Acquire) <= self.max_bytes / 2
            && self.has_paused.swap(false, Ordering::AcqRel)
    }

    pub fn open(&self) {
        self.open.store(true, Ordering::Release);
    }

    /// Refuses further events and drops those that are queued, because no thread takes events any more.
    pub fn abandon(&self) {
        self.open.store(false, Ordering::Release);
        while let Ok(told) = self.receiver.try_recv() {
            self.bytes.fetch_sub(told.weight(), Ordering::AcqRel);
        }
    }

    /// Refuses further events. The thread that takes events gets those that are queued, and then the end.
    pub fn close(&self) {
        if self.open.swap(false, Ordering::AcqRel) {
            let _ = self.sender.send(Told::End);
        }
    }

    /// Blocks for the next event, then moves up to `most` events, of at most a mebibyte, into `batch`. Leaves `batch` empty
    /// if no event comes within `patience`. The bytes of the batch count until `settle`.
    pub fn take(&self, most: usize, patience: Duration, batch: &mut Vec<Told>) {
        let Ok(first) = self.receiver.recv_timeout(patience) else {
            return;
        };
        let mut bytes = first.weight();
        batch.push(first);
        while batch.len() < most && bytes < BATCH_BYTES && !matches!(batch.last(), Some(Told::End))
        {
            let Ok(next) = self.receiver.try_recv() else {
                break;
            };
            bytes += next.weight();
            batch.push(next);
        }
        self.taken_bytes.fetch_add(bytes, Ordering::AcqRel);
    }

    /// The number of events that wait.
    pub fn len(&self) -> usize {
        self.receiver.len()
    }

    pub fn is_empty(&self) -> bool {
        self.receiver.is_empty()
    }

    /// Bytes of the events that wait, and of those that handlers have now.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Counts an event as dropped.
    pub fn count_dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// The number of dropped events: the queue was far over its bound, or Python could not read the event.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// How often the queue became full and shards were paused.
    pub fn pauses(&self) -> u64 {
        self.pauses.load(Ordering::Relaxed)
    }

    fn tell(&self, told: Told) {
        if !self.open.load(Ordering::Relaxed) {
            return;
        }
        let weight = told.weight();
        if self.bytes.load(Ordering::Relaxed) > self.max_bytes.saturating_mul(OVERFLOW_FACTOR) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.bytes.fetch_add(weight, Ordering::AcqRel);
        let _ = self.sender.send(told);
    }
}

impl Told {
    /// Bytes that the event takes of the queue's bound.
    pub fn weight(&self) -> usize {
        match self {
            Told::Event(event) => {
                EVENT_OVERHEAD
                    + match &event.detail {
                        Detail::Data(bytes) | Detail::Frame(bytes) => bytes.len(),
                        Detail::Message(text) | Detail::Emergency { message: text, .. } => {
                            text.len()
                        }
                        Detail::None | Detail::TotalUsers(_) | Detail::Disconnect { .. } => 0,
                    }
            }
            Told::Log(record) => EVENT_OVERHEAD + record.message.len(),
            Told::End => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(size: usize) -> Event {
        let detail = Detail::Data(vec![0; size].into());
        Event {
            name: Arc::from("e"),
            at: WallTime::now(),
            client_id: None,
            channel: None,
            detail,
        }
    }

    #[test]
    fn only_wanted_events_of_an_open_queue_have_a_name() {
        let queue = EventQueue::new(1000);
        queue.want("joined", true);
        assert!(queue.wanted("joined").is_none());
        queue.open();
        assert!(queue.wanted("joined").is_some() && queue.wanted("left").is_none());
        queue.want("joined", false);
        assert!(queue.wanted("joined").is_none());
    }

    #[test]
    fn a_full_queue_holds_back_then_drops_and_counts() {
        let queue = EventQueue::new(1000);
        queue.open();
        assert!(!queue.must_pause());
        queue.event(event(1000));
        assert!(queue.must_pause() && !queue.take_resumed());
        for _ in 0..10 {
            queue.event(event(1000));
        }
        assert!(queue.dropped() > 0);
        let taken = queue.len();
        assert_eq!(taken as u64 + queue.dropped(), 11);
        let mut batch = Vec::new();
        queue.take(100, Duration::ZERO, &mut batch);
        assert_eq!(batch.len(), taken);
        // what is being handled counts
        assert!(!queue.take_resumed() && queue.bytes() > 1000);
        queue.settle();
        assert!(queue.take_resumed() && !queue.take_resumed());
        assert_eq!((queue.pauses(), queue.bytes()), (1, 0));
    }

    #[test]
    fn a_batch_is_bounded_by_bytes_too() {
        let queue = EventQueue::new(64 << 20);
        queue.open();
        for _ in 0..5 {
            queue.event(event(BATCH_BYTES / 2));
        }
        let mut batch = Vec::new();
        queue.take(1000, Duration::ZERO, &mut batch);
        assert_eq!((batch.len(), queue.len()), (2, 3));
    }

    #[test]
    fn an_abandoned_queue_has_nothing_for_the_next_taker() {
        let queue = EventQueue::new(1000);
        queue.open();
        queue.event(event(1));
        queue.close();
        queue.abandon();
        queue.open();
        queue.event(event(2));
        let mut batch = Vec::new();
        queue.take(100, Duration::ZERO, &mut batch);
        assert!(matches!(batch[..], [Told::Event(_)]));
        queue.settle();
        assert_eq!(queue.bytes(), 0);
    }

    #[test]
    fn a_line_that_is_logged_without_pause_is_withheld() {
        let queue = EventQueue::new(1 << 20);
        queue.open();
        for _ in 0..1000 {
            queue.log(LogLevel::Warning, "server", String::new);
        }
        assert!((1..100).contains(&queue.len()), "{}", queue.len());
    }

    #[test]
    fn the_end_comes_last() {
        let queue = EventQueue::new(1000);
        queue.open();
        queue.event(event(1));
        queue.close();
        queue.event(event(1));
        let mut batch = Vec::new();
        queue.take(100, Duration::ZERO, &mut batch);
        assert!(matches!(batch[..], [Told::Event(_), Told::End]));
    }
}
