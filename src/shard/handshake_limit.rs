//! The limit of handshakes: which connection a shard closes when too many are in their handshake or in their close.

use super::Shard;
use super::receive::{BYTES_PER_WORK, PUSH_WORK, QUIET_READ, READ_SHARE};
use super::socket::Phase;
use crate::base::error::Disconnect;
use crate::core::hub::Slot;
use crate::wire::http::pages::Refused;
use std::io;

impl Shard {
    /// Makes room for one more connection in its handshake. Closes the oldest handshake while handshakes take half of the
    /// room or more, and otherwise the oldest connection in its close: a flood of one kind does not end the other kind.
    ///
    /// Many sockets may be adopted before this shard reads any of them. A handshake is therefore read once more before
    /// the shard closes it, and is not closed if its request head has arrived. A connection that waits for its verdict has
    /// no such right, because `Auth` may be slow: it is refused.
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
                self.refuse_admitting(slot);
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

    /// Reads a connection in its handshake once. The runtime learns only after this turn that a new socket is readable, so
    /// this bypasses the runtime. The work counts as pushes, which limit how long a turn delivers.
    fn read_handshake(&mut self, slot: Slot) {
        let before = self.read_work;
        self.contain(slot, |shard| shard.read_directly(slot));
        self.charge_as_pushes(before);
    }

    /// Counts the work of reading since `before` as pushes.
    pub(super) fn charge_as_pushes(&mut self, before: usize) {
        self.pushes += (self.read_work - before) / PUSH_WORK;
    }

    /// Tells a connection that waits for its verdict, and is about to be closed, that there is no room.
    fn refuse_admitting(&mut self, slot: Slot) {
        let connection = self.connections.get(slot as usize);
        if connection.is_some_and(|each| matches!(each.phase, Phase::Admitting { .. })) {
            self.refuse(slot, &Refused::Full);
            self.flush(slot);
        }
    }

    fn read_directly(&mut self, slot: Slot) {
        let Some(connection) = self.connections.get(slot as usize) else {
            return;
        };
        if !matches!(connection.phase, Phase::Handshake { .. }) {
            return;
        }
        self.read_share = READ_SHARE;
        let mut buffer = std::mem::take(&mut self.buffer);
        let result = connection.stream.read_now(&mut buffer[..QUIET_READ]);
        // there may be more to read, and the frames behind the head may wait
        connection.readiness.set();
        match result {
            Ok(0) => self.at_end(slot),
            Ok(count) => {
                self.read_work += count / BYTES_PER_WORK;
                self.received(slot, &mut buffer[..count]);
                self.note_input(slot, count);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.drop_connection(slot, Disconnect::Lost),
        }
        self.buffer = buffer;
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
                    && matches!(
                        connection.phase,
                        Phase::Handshake { .. } | Phase::Admitting { .. }
                    )
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
