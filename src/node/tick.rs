//! Regular work: everything in the node that ends, expires or is repeated after some time.

use super::client::CLIENT_SIZE;
use super::wiring::Node;
use crate::base::clock::SteadyTime;
use crate::ports::broker::CHANNEL_SIZE;
use std::sync::Arc;
use std::time::Duration;

/// The longest time between two expiries of publications.
const MAX_EXPIRY_INTERVAL: Duration = Duration::from_secs(10);

/// The shortest time between them, where `empty_channel_ttl` is short.
const MIN_EXPIRY_INTERVAL: Duration = Duration::from_millis(500);

impl Node {
    /// Does the regular work that is due: lets go of clients that other processes have claimed, enters channels again
    /// after a failure, joins lost members anew, publishes notices that waited, expires clients that are away, mail,
    /// empty channels and publications. Returns approximately how many bytes less the node holds now than at its peak
    /// since the last tick.
    pub fn tick(self: &Arc<Self>) -> usize {
        self.drop_displaced();
        self.enter_again();
        self.join_anew();
        if self.distributor.has_emergencies() {
            self.send_arrived_emergencies();
        }
        self.publish_due_notices();
        self.expire_away();
        self.mail.tick();
        self.store.watch(&self.events);
        self.events.log_withheld();
        self.count_evicted();
        self.expire_history();
        self.remove_empty_channels(0);
        self.upkeep.take_freed(self.held_bytes())
    }

    /// Counts publications that were evicted since the last call.
    pub(super) fn count_evicted(&self) {
        for (channel, count) in self.broker.take_evicted() {
            self.counters.dropped("history_bytes", &channel, count);
        }
    }

    /// Records how much memory the node holds, before a channel ends.
    pub(super) fn record_held(&self) {
        self.upkeep.record_held(self.held_bytes());
    }

    /// Forgets publications and idempotency keys that have expired, from time to time.
    fn expire_history(&self) {
        let now = SteadyTime::now();
        // a channel without subscribers ends only after its history has expired
        let interval = self
            .config
            .empty_channel_ttl
            .clamp(MIN_EXPIRY_INTERVAL, MAX_EXPIRY_INTERVAL);
        // a store without room needs the deletions soon
        let is_urgent = self.store.was_degraded();
        if self.upkeep.begin_expiry(now, interval, is_urgent) {
            self.broker.expire();
        }
    }

    /// Returns the approximate memory that channels, clients, history and mail take, in bytes.
    fn held_bytes(&self) -> usize {
        let history = self.broker.used();
        self.channels.held() * CHANNEL_SIZE
            + self.clients.len() * CLIENT_SIZE
            + history.evictable
            + history.durable
            + self.away.bytes()
            + self.mail.size().bytes
    }
}
