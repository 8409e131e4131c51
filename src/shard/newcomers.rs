//! Room for new connections: which connection a shard closes when too many are in their handshake or in their close.

use super::Shard;
use super::socket::Phase;
use crate::error::Disconnect;
use crate::hub::Slot;

impl Shard {
    /// Makes room for one more connection in its handshake. Closes the oldest handshake while handshakes take half of the
    /// room or more, and otherwise the oldest connection in its close: a flood of one kind does not end the other kind.
    ///
    /// Many sockets may be adopted before this shard reads any of them. A handshake is therefore read once more before
    /// the shard closes it, and is not closed if its request head has arrived.
    pub(super) fn make_room_for_handshake(&mut self) {
        loop {
            self.forget_ended();
            let transient = self.connections.len() - self.open_count;
            if transient < self.max_transient {
                return;
            }
            let is_handshake = transient - self.closing_count >= self.handshake_share;
            let queue = if is_handshake {
                &self.handshakes
            } else {
                &self.closing
            };
            let Some(&(slot, generation)) = queue.front() else {
                return;
            };
            if is_handshake {
                self.read_handshake(slot);
                if !self.is_in_handshake(slot, generation) {
                    continue;
                }
            } else {
                // the answer to a request may be queued and not written yet
                self.flush(slot);
                if !self.is_closing(slot, generation) {
                    continue;
                }
            }
            self.node.counters.handshakes_shed.add(1);
            self.drop_connection(slot, Disconnect::Lost);
        }
    }

    /// Counts a connection that begins its close.
    pub(super) fn begin_closing(&mut self, slot: Slot, generation: u32) {
        self.closing_count += 1;
        self.closing.push_back((slot, generation));
        self.forget_ended();
    }

    /// Removes connections that have ended their handshake, or their close, from the front of the queues.
    fn forget_ended(&mut self) {
        while let Some(&(slot, generation)) = self.handshakes.front()
            && !self.is_in_handshake(slot, generation)
        {
            self.handshakes.pop_front();
        }
        while let Some(&(slot, generation)) = self.closing.front()
            && !self.is_closing(slot, generation)
        {
            self.closing.pop_front();
        }
    }

    fn is_in_handshake(&self, slot: Slot, generation: u32) -> bool {
        self.connections
            .get(slot as usize)
            .is_some_and(|connection| {
                connection.generation == generation
                    && matches!(connection.phase, Phase::Handshake { .. })
            })
    }

    fn is_closing(&self, slot: Slot, generation: u32) -> bool {
        self.connections
            .get(slot as usize)
            .is_some_and(|connection| {
                connection.generation == generation
                    && matches!(connection.phase, Phase::Closing { .. })
            })
    }
}
