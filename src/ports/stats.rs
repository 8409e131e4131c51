//! Gauges and counters of a messenger, at one moment.

use super::durability::Health;
use crate::core::history::Bytes;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// A snapshot of all gauges and counters. `docs/protocol.md` says what each is in `Tantor.stats()`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Stats {
    /// The process that has the node accepts connections.
    pub is_listening: bool,
    /// The time since the node was made.
    pub uptime: Duration,
    pub connections: usize,
    /// The limit of connections that the settings and the limit of open files leave.
    pub connection_limit: usize,
    /// Subscribers by channel, the oldest channel first.
    pub census: Vec<(Arc<str>, usize)>,
    /// Frames and bytes that wait for shards or sockets.
    pub queued: (usize, usize),
    /// Sockets whose request head has not arrived in full.
    pub handshakes: usize,
    /// Bytes of messages and request heads that have not arrived in full.
    pub unfinished_bytes: usize,
    /// The most that the system may hold in the buffers of all sockets; `None` where the system sizes the buffers.
    pub socket_buffer_bytes: Option<usize>,
    /// Counters by name.
    pub counters: Vec<(Cow<'static, str>, u64)>,
    /// Bytes that wait for shards.
    pub inbox_bytes: usize,
    pub events: EventStats,
    /// Ended connections by reason.
    pub disconnects: BTreeMap<Cow<'static, str>, u64>,
    pub shards: usize,
    pub history: HistorySize,
    /// Messages and bytes that are kept for clients.
    pub mail: (usize, usize),
    pub away: usize,
    pub away_bytes: usize,
    /// Idempotency keys that are known, and those that were forgotten before their time to make room.
    pub idempotency_keys: (usize, u64),
    /// Dropped messages: reason, channel, count.
    pub dropped: Vec<(Cow<'static, str>, Box<str>, u64)>,
    /// The connections with the most bytes that wait for their sockets, the worst first: client id and bytes.
    pub worst_connections: Vec<(Arc<str>, usize)>,
    pub storage: Health,
}

/// The histories of all channels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistorySize {
    pub messages: usize,
    pub bytes: Bytes,
}

/// The queue of events for the application.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct EventStats {
    pub queued: usize,
    pub bytes: usize,
    pub dropped: u64,
    /// How often clients were read no further because the queue was full.
    pub pauses: u64,
}
