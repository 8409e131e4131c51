//! The order in which connections are written. A large fan-out is written in slices, and other data between the slices.
//!
//! Work is counted in bytes. A send counts as the number of bytes that take the same time.

use super::Shard;
use super::socket::Phase;
use crate::base::error::Disconnect;
use crate::core::hub::Slot;
use crate::core::outbound::Chunk;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The work of a send besides its bytes.
const SEND_WORK: usize = 4 << 10;

/// The share of a turn for large fan-outs. A fan-out of more work than this is a large one.
pub(super) const SLICE_WORK: usize = 256 << 10;

/// The share of a turn for all other data. Most turns have far less to write.
const TURN_WORK: usize = 4 * SLICE_WORK;

/// The line that a connection waits in to be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum InLine {
    #[default]
    No,
    /// In this turn.
    Next,
    /// In one of the slices of large fan-outs.
    Sliced,
}

/// Connections with new data to write, in the order in which the data came.
#[derive(Debug, Default)]
pub(super) struct Lines {
    next: VecDeque<Slot>,
    sliced: VecDeque<Slot>,
}

impl Lines {
    fn of(&mut self, line: InLine) -> &mut VecDeque<Slot> {
        match line {
            InLine::Sliced => &mut self.sliced,
            InLine::No | InLine::Next => &mut self.next,
        }
    }
}

/// Bytes that the other shards had queued when this turn began.
#[derive(Debug, Default)]
pub(super) struct Others {
    /// Of all other shards.
    queued: usize,
    /// Of the shard that had most.
    most: usize,
}

/// The work of writing `bytes` to each of so many connections.
pub(super) fn fan_out_work(recipients: usize, bytes: usize) -> usize {
    recipients.saturating_mul(SEND_WORK + bytes)
}

/// The line for a chunk of so many bytes that goes to so many connections.
pub(super) fn line_for(recipients: usize, bytes: usize) -> InLine {
    if fan_out_work(recipients, bytes) > SLICE_WORK {
        InLine::Sliced
    } else {
        InLine::Next
    }
}

impl Shard {
    /// Puts a connection in line to be written. A connection may move up from the line of slices.
    pub(super) fn touch(lines: &mut Lines, slot: Slot, in_line: &mut InLine, line: InLine) {
        // the place in the other line stays behind, and is skipped
        if *in_line == InLine::No || (*in_line == InLine::Sliced && line == InLine::Next) {
            *in_line = line;
            lines.of(line).push_back(slot);
        }
    }

    /// Writes each connection in line once, within the work of one turn.
    pub(super) fn flush_touched(&mut self) {
        self.flush_line(InLine::Next, TURN_WORK);
        self.flush_line(InLine::Sliced, SLICE_WORK);
        let has_backlog = self.has_backlog();
        if self.handle.has_backlog.swap(has_backlog, Ordering::Relaxed) && !has_backlog {
            // publishers on other shards may continue
            self.node.shards.wake();
        }
    }

    /// True while a large fan-out, or a delivery behind it in the inbox, is unfinished.
    pub(super) fn has_backlog(&self) -> bool {
        !self.lines.sliced.is_empty() || !self.deliveries.is_empty()
    }

    /// True when the turn has left connections in line for the next turn.
    pub(super) fn has_lines(&self) -> bool {
        !self.lines.sliced.is_empty() || !self.lines.next.is_empty()
    }

    fn flush_line(&mut self, line: InLine, mut work: usize) {
        while work > 0
            && let Some(slot) = self.lines.of(line).pop_front()
        {
            let Some(connection) = self.connections.get_mut(slot as usize) else {
                continue;
            };
            if connection.in_line != line {
                continue;
            }
            connection.in_line = InLine::No;
            let before = connection.outbound.bytes();
            self.flush(slot);
            let after = match self.connections.get(slot as usize) {
                Some(connection) => connection.outbound.bytes(),
                None => 0,
            };
            work = work.saturating_sub(SEND_WORK + before.saturating_sub(after));
        }
    }

    /// Queues a chunk for one connection, which is written at the end of the turn.
    pub(super) fn queue(&mut self, slot: Slot, chunk: Chunk) {
        let Some(connection) = self.connections.get_mut(slot as usize) else {
            return;
        };
        let line = line_for(1, chunk.bytes.len());
        self.queued_bytes += chunk.bytes.len();
        let added = connection.outbound.push(chunk);
        self.queued_frames = self.queued_frames.wrapping_add_signed(added);
        Self::touch(&mut self.lines, slot, &mut connection.in_line, line);
    }

    /// True when `bytes` more would exceed `max_queued_bytes`.
    pub(super) fn would_overfill(&self, bytes: usize) -> bool {
        self.queued_bytes + self.others.queued + bytes > self.config.max_queued_bytes
    }

    /// True when the process is over `max_queued_bytes` and another shard has more to drop.
    pub(super) fn must_wait_for_others(&self) -> bool {
        self.would_overfill(0) && self.queued_bytes < self.others.most
    }

    /// Reads how much the other shards have queued.
    pub(super) fn look_at_others(&mut self) {
        self.others = Others::default();
        for handle in self.node.shards.all().iter() {
            if !Arc::ptr_eq(handle, &self.handle) {
                let queued = handle.queued_bytes.load(Ordering::Relaxed);
                self.others.queued += queued;
                self.others.most = self.others.most.max(queued);
            }
        }
    }

    /// Drops queues, the largest first, until the process is within `max_queued_bytes`. Only the shard that has queued most
    /// does so.
    pub(super) fn make_room(&mut self) {
        if self.must_wait_for_others() {
            self.node.shards.wake();
            return;
        }
        while self.would_overfill(0) {
            let worst = self
                .connections
                .iter()
                .filter(|(_, connection)| connection.outbound.bytes() > 0)
                .max_by_key(|(_, connection)| connection.outbound.bytes());
            let Some((slot, connection)) = worst else {
                return;
            };
            let slot = slot as Slot;
            if !matches!(connection.phase, Phase::Open { .. }) {
                // the peer does not take the last chunk either
                self.drop_connection(slot, Disconnect::SlowConsumer);
                continue;
            }
            let before = self.queued_bytes;
            self.drop_oldest(slot, 0);
            if self.queued_bytes == before {
                self.end(slot, Disconnect::SlowConsumer);
            }
        }
    }
}
