//! Messages of the server itself to its clients, and the drain.

use super::channel::Channel;
use super::counters::OTHER_CHANNELS;
use super::encode::encode;
use super::wiring::Node;
use crate::base::names;
use crate::base::random::random_u64;
use crate::core::events::Detail;
use crate::core::outbound::Dropped;
use crate::wire::frame::EncodedFrame;
use crate::wire::messages;

impl Node {
    /// Tells every shard to close its connections and to end.
    pub fn drain(&self) {
        self.events
            .emit("server_shutdown", None, Some(names::SYSTEM_CHANNEL), || {
                Detail::Message(messages::GOODBYE.to_owned())
            });
        self.shards.drain();
    }

    /// The goodbye of the server to one client. Each client gets another time to reconnect, so that the clients do not
    /// reconnect all at once.
    pub fn goodbye(&self) -> EncodedFrame {
        let window = self.config.reconnect_window.as_millis() as u64;
        let after = random_u64() % (window + 1);
        let stamp = self.stamps.next();
        encode(|out| messages::write_shutdown(out, stamp, after))
    }

    /// Tells a client that messages of a channel were dropped. The client may recover them, but need not: the policy of
    /// the channel is to go on without them.
    pub fn gap(&self, channel: &Channel, dropped: &Dropped) -> EncodedFrame {
        let stamp = self.stamps.next();
        encode(|out| {
            messages::write_gap(out, stamp, &channel.name, |out| {
                if let Some(epoch) = channel.epoch() {
                    messages::write_json(out, "epoch", messages::epoch_text(epoch));
                }
                if let Some(offset) = dropped.offset {
                    messages::write_json(out, "offset", offset);
                }
                messages::write_json(out, "dropped", dropped.frames);
                messages::write_json(out, "reason", dropped.policy.name());
                messages::write_json(out, "recover", false);
            });
        })
    }

    /// Counts messages that the queue of a slow consumer dropped. `channel` is `None` for messages of no channel.
    pub fn count_dropped(&self, reason: &'static str, channel: Option<&Channel>, frames: usize) {
        let name = channel.map_or(OTHER_CHANNELS, |channel| &channel.name);
        self.counters.dropped(reason, name, frames);
    }

    /// The heartbeat as a message that pages can see; one frame for all connections that are due.
    pub fn heartbeat(&self) -> EncodedFrame {
        let stamp = self.stamps.next();
        encode(|out| messages::write_ping(out, stamp))
    }
}
