//! Incomplete input: request heads and messages of which a part has arrived. A budget limits the memory of all
//! connections, and a deadline the time of each.

use super::Shard;
use super::socket::{Connection, Phase};
use crate::base::error::Disconnect;
use crate::core::hub::Slot;
use crate::node::ShardHandle;
use crate::wire::http::pages::Refused;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The incomplete message or request head of a connection.
#[derive(Debug, Default)]
pub(super) struct Unfinished {
    /// Bytes of memory that the shard has counted for this connection.
    counted: usize,
    /// The tick since which the message is incomplete; `None` between messages.
    since: Option<u64>,
    /// Bytes of the message that have arrived.
    arrived: u64,
    /// The connection is in the shard's list of connections with incomplete messages.
    is_listed: bool,
}

impl Unfinished {
    /// A message is complete.
    pub fn complete(&mut self) {
        self.since = None;
        self.arrived = 0;
    }
}

impl Shard {
    /// Updates the count of a connection after `arrived` bytes came, and makes room if all connections hold too much.
    pub(super) fn note_input(&mut self, slot: Slot, arrived: usize) {
        let now = self.wheel.now();
        let Some(connection) = self.connections.get_mut(slot as usize) else {
            return;
        };
        let held = connection.held_input();
        let grown = held > connection.unfinished.counted;
        self.unfinished_bytes = self.unfinished_bytes + held - connection.unfinished.counted;
        connection.unfinished.counted = held;
        if matches!(connection.phase, Phase::Open { .. }) && connection.reader.is_midway() {
            let unfinished = &mut connection.unfinished;
            unfinished.arrived += arrived as u64;
            unfinished.since.get_or_insert(now);
            if !std::mem::replace(&mut unfinished.is_listed, true) {
                self.unfinished_slots.push(slot);
            }
        } else {
            connection.unfinished.complete();
        }
        if grown {
            self.check_unfinished();
        }
    }

    /// Subtracts the count of a connection that ends.
    pub(super) fn forget_input(&mut self, unfinished: &mut Unfinished) {
        self.unfinished_bytes -= unfinished.counted;
        *unfinished = Unfinished::default();
    }

    /// Makes room if the connections of the process hold more than `max_unfinished_bytes`. The shard that holds most ends
    /// its connections that hold most; any other shard only wakes that one.
    pub(super) fn check_unfinished(&mut self) {
        let limit = self.config.max_unfinished_bytes;
        self.handle
            .unfinished_bytes
            .store(self.unfinished_bytes, Ordering::Relaxed);
        let shards = self.node.shards.all();
        let held = |handle: &Arc<ShardHandle>| handle.unfinished_bytes.load(Ordering::Relaxed);
        let total: usize = shards.iter().map(held).sum();
        if total <= limit {
            return;
        }
        let largest = shards.iter().max_by_key(|handle| held(handle));
        if let Some(largest) = largest
            && held(largest) > self.unfinished_bytes
        {
            largest.inbox.wake();
            return;
        }
        // other shards may hold as much: this shard keeps its even share, and so its smallest messages
        let even_share = limit / shards.len().max(1);
        let wanted = self
            .unfinished_bytes
            .saturating_sub(total - limit)
            .max(even_share);
        let mut holders: Vec<(usize, Slot)> = self
            .connections
            .iter()
            .map(|(slot, connection)| (connection.unfinished.counted, slot as Slot))
            .filter(|(held, _)| *held > 0)
            .collect();
        holders.sort_unstable();
        while self.unfinished_bytes > wanted
            && let Some((_, slot)) = holders.pop()
        {
            self.end_unfinished(slot, Disconnect::InputOverload);
        }
    }

    /// Ends connections whose message arrives too slowly. Called every tick.
    pub(super) fn check_progress(&mut self) {
        let now = self.wheel.now();
        for slot in std::mem::take(&mut self.unfinished_slots) {
            let Some(connection) = self.connections.get_mut(slot as usize) else {
                continue;
            };
            let is_paused = connection.is_paused;
            let unfinished = &mut connection.unfinished;
            unfinished.is_listed = unfinished.since.is_some();
            let Some(since) = unfinished.since else {
                continue;
            };
            self.unfinished_slots.push(slot);
            if is_paused {
                // the server has paused the reading, so the client is not slow
                unfinished.since = Some(now);
                continue;
            }
            let earned = unfinished.arrived / self.config.min_message_rate as u64;
            let allowed = self.config.message_timeout + Duration::from_secs(earned);
            if now.saturating_sub(since) > self.ticks(allowed) {
                self.end_unfinished(slot, Disconnect::InputTimeout);
            }
        }
    }

    fn end_unfinished(&mut self, slot: Slot, disconnect: Disconnect) {
        let Some(connection) = self.connections.get(slot as usize) else {
            return;
        };
        match connection.phase {
            Phase::Handshake { .. } | Phase::Admitting { .. } => {
                self.node.counters.handshakes_shed.add(1);
                self.refuse(slot, &Refused::Full);
            }
            Phase::Open { .. } => self.end(slot, disconnect),
            Phase::Closing { .. } => {}
        }
    }
}

impl Connection {
    /// Bytes of memory that the incomplete input takes.
    fn held_input(&self) -> usize {
        match &self.phase {
            Phase::Handshake { reader, .. } => reader.as_ref().map_or(0, |reader| reader.memory()),
            Phase::Admitting { head, .. } => head.memory() + self.reader.held(),
            Phase::Open { .. } => self.reader.held(),
            Phase::Closing { .. } => 0,
        }
    }
}
