//! Input that is not complete: heads and messages whose rest has not arrived. A budget bounds what all connections hold
//! of it, and a deadline bounds how long one may take.

use super::Shard;
use super::socket::{Connection, Phase};
use crate::base::error::Disconnect;
use crate::core::hub::Slot;
use crate::node::ShardHandle;
use crate::wire::http::pages::Refused;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// What a connection holds of a message, or of a request head, whose rest has not arrived.
#[derive(Debug, Default)]
pub(super) struct Unfinished {
    /// Bytes of memory that the shard has counted for this connection.
    counted: usize,
    /// Since when the present message is incomplete, in ticks.
    since: Option<u64>,
    /// Bytes that have arrived of it.
    arrived: u64,
    /// The shard's list of connections with incomplete messages has this one.
    is_listed: bool,
}

impl Unfinished {
    /// Starts anew: a message was completed.
    pub fn complete(&mut self) {
        self.since = None;
        self.arrived = 0;
    }
}

impl Shard {
    /// Counts what a connection holds after `arrived` bytes came, and makes room where all together hold too much.
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

    /// Forgets what a connection that ends was counted for.
    pub(super) fn forget_input(&mut self, unfinished: &mut Unfinished) {
        self.unfinished_bytes -= unfinished.counted;
        *unfinished = Unfinished::default();
    }

    /// Makes room where the connections of the process hold more than `max_unfinished_bytes`: the shard that holds most
    /// ends those of its connections that hold most. Another shard wakes that one.
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
        // other shards may hold as much: this one keeps its even share, and so its smallest messages
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

    /// Ends the connections whose message makes too little progress. Called every tick.
    pub(super) fn check_progress(&mut self) {
        let now = self.wheel.now();
        for slot in std::mem::take(&mut self.unfinished_slots) {
            let Some(connection) = self.connections.get_mut(slot as usize) else {
                continue;
            };
            let is_held_back = connection.is_held_back;
            let unfinished = &mut connection.unfinished;
            unfinished.is_listed = unfinished.since.is_some();
            let Some(since) = unfinished.since else {
                continue;
            };
            self.unfinished_slots.push(slot);
            if is_held_back {
                // the rest waits for this side
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
    /// Bytes of memory that unfinished input takes.
    fn held_input(&self) -> usize {
        match &self.phase {
            Phase::Handshake { reader, .. } => reader.as_ref().map_or(0, |reader| reader.memory()),
            Phase::Admitting { head, .. } => head.memory() + self.reader.held(),
            Phase::Open { .. } => self.reader.held(),
            Phase::Closing { .. } => 0,
        }
    }
}
