//! Counters. Every drop and every refusal is counted.

use crate::base::error::Disconnect;
use crate::base::sync::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only goes up.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, count: usize) {
        self.0.fetch_add(count as u64, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
pub struct Counters {
    /// Messages handed over, once per recipient.
    pub messages_sent: Counter,
    /// Frames of clients whose action is the application's own.
    pub messages_received: Counter,
    /// Frames of clients, of every kind but control frames.
    pub frames_received: Counter,
    pub connections_total: Counter,
    /// Broadcasts, of the application and of clients.
    pub publications: Counter,
    /// Frames encoded for them: one each, whatever the number of subscribers.
    pub encoded: Counter,
    /// Messages to clients that are not connected.
    pub undelivered: Counter,
    /// Error messages to clients.
    pub errors_sent: Counter,
    /// Frames that waited for a slow consumer when it was closed.
    pub dropped_slow_consumer: Counter,
    /// Connects refused because of `max_connections`.
    pub refused_full: Counter,
    /// Connects that `Auth` refused, or could not decide about.
    pub admissions_refused: Counter,
    /// Connects for which `Auth` gave no verdict in time.
    pub admissions_expired: Counter,
    /// Sockets closed in their handshake to make room: for newer ones, or in the budget of unfinished input.
    pub handshakes_shed: Counter,
    /// Clients that came back as who they were.
    pub resumes: Counter,
    /// Resume tokens that could not be used.
    pub resumes_refused: Counter,
    /// Clients that were away and forgotten before their time, because they were too many.
    pub away_forgotten: Counter,
    /// Publications that were not handed over: of durable channels, as they could not be saved, and durable ones of
    /// any channel, as `durable_bytes` left no room.
    pub not_saved: Counter,
    /// How often a shard read no further because another's inbox was full.
    pub inbox_pauses: Counter,
    /// How often a publisher was read no further because a subscriber was behind.
    pub publisher_pauses: Counter,
    disconnects: Mutex<BTreeMap<&'static str, u64>>,
    /// By reason and channel.
    dropped: Mutex<BTreeMap<(&'static str, Box<str>), u64>>,
}

/// Channels for which drops are counted apart; those of more are counted under `OTHER_CHANNELS`.
const MAX_COUNTED: usize = 1000;

/// Stands for channels that are not counted apart.
pub const OTHER_CHANNELS: &str = "*";

impl Counters {
    /// The counters that `Tantor.stats()` has under these names.
    pub fn named(&self) -> [(&'static str, &Counter); 19] {
        [
            ("messages_sent", &self.messages_sent),
            ("messages_received", &self.messages_received),
            ("connections_total", &self.connections_total),
            ("frames_received", &self.frames_received),
            ("publications", &self.publications),
            ("encoded", &self.encoded),
            ("undelivered", &self.undelivered),
            ("errors_sent", &self.errors_sent),
            ("refused_connections", &self.refused_full),
            ("admissions_refused", &self.admissions_refused),
            ("admissions_expired", &self.admissions_expired),
            ("handshakes_shed", &self.handshakes_shed),
            ("dropped_slow_consumer", &self.dropped_slow_consumer),
            ("inbox_pauses", &self.inbox_pauses),
            ("publisher_pauses", &self.publisher_pauses),
            ("resumes", &self.resumes),
            ("resumes_refused", &self.resumes_refused),
            ("away_forgotten", &self.away_forgotten),
            ("not_saved", &self.not_saved),
        ]
    }

    pub fn disconnected(&self, disconnect: Disconnect) {
        *self
            .disconnects
            .lock()
            .entry(disconnect.reason())
            .or_default() += 1;
    }

    /// Ended connections by reason.
    pub fn disconnects(&self) -> BTreeMap<&'static str, u64> {
        self.disconnects.lock().clone()
    }

    /// Counts messages that are lost to a client; `channel` is `OTHER_CHANNELS` for those of none.
    pub fn dropped(&self, reason: &'static str, channel: &str, count: usize) {
        let mut dropped = self.dropped.lock();
        let is_known = dropped.contains_key(&(reason, Box::from(channel)));
        let channel = if is_known || dropped.len() < MAX_COUNTED {
            channel
        } else {
            OTHER_CHANNELS
        };
        *dropped.entry((reason, channel.into())).or_default() += count as u64;
    }

    /// Dropped messages: reason, channel and how many.
    pub fn dropped_by_reason(&self) -> Vec<(&'static str, Box<str>, u64)> {
        let dropped = self.dropped.lock();
        let row = |((reason, channel), count): (&(&'static str, Box<str>), &u64)| {
            (*reason, channel.clone(), *count)
        };
        dropped.iter().map(row).collect()
    }
}
