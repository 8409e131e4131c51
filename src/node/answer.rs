//! The node of this process as an implementation of the calls.

use super::wiring::Node;
use crate::base::error::Error;
use crate::ports::calls::{Call, Calls, Progress, Reply};
use crate::ports::completion::Completion;
use crate::ports::stats::{EventStats, Stats};
use crate::ports::store::Committed;
use std::sync::Arc;

/// Connections that `Stats::worst_connections` names.
const WORST: usize = 10;

/// The calls on a node. Each runs on the thread that calls.
pub struct NodeCalls(Arc<Node>);

impl NodeCalls {
    pub fn new(node: Arc<Node>) -> Self {
        Self(node)
    }

    fn reply(&self, call: Call<'_>, commit: &mut dyn FnMut() -> Committed) -> Result<Reply, Error> {
        let node = &self.0;
        Ok(match call {
            Call::Broadcast {
                channel,
                event,
                data,
                options,
            } => Reply::Published(node.broadcast(channel, event, data, &options, commit)?),
            Call::Send {
                client,
                channel,
                body,
                options,
            } => {
                let channel = channel.unwrap_or(&node.config.default_channel);
                Reply::Sent(node.send(client, channel, body, &options, commit)?)
            }
            Call::Emergency { message } => Reply::Alarmed(node.emergency(message, commit)?),
            Call::Subscribe { client, channel } => {
                node.subscribe(client, channel)?;
                Reply::Done
            }
            Call::Unsubscribe { client, channel } => {
                node.unsubscribe(client, channel)?;
                Reply::Done
            }
            Call::CreateChannel { name, kind } => Reply::Changed(node.create_channel(name, kind)?),
            Call::DeleteChannel { name } => Reply::Changed(node.delete_channel(name)?),
            Call::History { channel, page } => {
                Reply::History(node.history(channel, page, usize::MAX)?)
            }
            Call::ResumeToken { client } => Reply::Token(node.resume_token(client)?),
            Call::SetUserData { client, json } => {
                node.set_user_data(client, json.to_vec());
                Reply::Done
            }
            Call::Presence { channel } => Reply::Ids(node.presence(channel)),
            Call::Census => Reply::Census(node.census()),
            Call::ChannelNames => Reply::Ids(node.channel_names()),
            Call::ChannelCount => Reply::Count(node.channels.count()),
            Call::HasChannel { name } => Reply::Known(node.channels.contains(name)),
            Call::Channel { name } => Reply::Channel(node.channel_info(name)),
            Call::ConnectionIds => Reply::Ids(node.connection_ids()),
            Call::ConnectionCount => Reply::Count(node.connection_count()),
            Call::HasConnection { client } => Reply::Known(node.has_connection(client)),
            Call::Connection { client } => Reply::Connection(node.connection_info(client)),
            Call::UserData { client } => Reply::UserData(node.user_data(client)),
            Call::Delivery { message_id } => Reply::Delivery(node.delivery(message_id)),
            Call::Stats => Reply::Stats(Box::new(node.stats())),
        })
    }
}

impl Calls for NodeCalls {
    fn call(&self, call: Call<'_>, when_saved: &mut dyn FnMut() -> Completion<()>) -> Progress {
        let mut is_saving = false;
        let reply = self.reply(call, &mut || {
            is_saving = true;
            let completion = when_saved();
            Box::new(move |outcome| {
                completion.complete(outcome.map_err(|error| Error::Storage(error.0)));
            })
        });
        match reply {
            Ok(reply) if is_saving => Progress::Saving(reply),
            ended => Progress::Ended(ended),
        }
    }
}

impl Node {
    /// A snapshot of all gauges and counters. Apart, because inlined it would enlarge the stack frame of every call.
    #[inline(never)]
    pub fn stats(&self) -> Stats {
        let incoming = self.shards.incoming();
        let counters = &self.counters;
        Stats {
            connections: self.connection_count(),
            connection_limit: self.shards.limits().connections,
            census: self.census(),
            queued: self.shards.queued(),
            handshakes: incoming.handshakes,
            unfinished_bytes: incoming.unfinished_bytes,
            socket_buffer_bytes: self.socket_buffer_bytes(),
            counters: counters
                .named()
                .map(|(name, counter)| (name, counter.get()))
                .into(),
            inbox_bytes: self.shards.inbox_bytes(),
            events: EventStats {
                queued: self.events.len(),
                bytes: self.events.bytes(),
                dropped: self.events.dropped(),
                pauses: self.events.pauses(),
            },
            disconnects: counters.disconnects(),
            shards: self.config.shards,
            history: self.history_size(),
            mail: self.mailroom.size(),
            away: self.away.count(),
            away_bytes: self.away.bytes(),
            idempotency_keys: self.idempotency_size(),
            dropped: self.dropped(),
            worst_connections: self.worst_connections(WORST),
            storage: self.store.health(),
        }
    }
}
