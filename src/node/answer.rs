//! The node of this process as an implementation of the calls.

use super::wiring::Node;
use crate::base::completion::{Completion, Later, Progress};
use crate::base::error::Error;
use crate::ports::calls::{Call, Calls, Reply};
use crate::ports::stats::{EventStats, Stats};
use std::sync::Arc;

/// Connections that `Stats::worst_connections` names.
const WORST: usize = 10;

/// The calls on a node. Each runs on the thread that calls.
pub struct NodeCalls(Arc<Node>);

impl NodeCalls {
    pub fn new(node: Arc<Node>) -> Self {
        Self(node)
    }
}

impl Calls for NodeCalls {
    fn call(&self, call: Call<'_>, later: &mut Later<'_, Reply>) -> Progress<Reply> {
        let node = &self.0;
        match call {
            Call::Broadcast {
                channel,
                event,
                data,
                options,
            } => replied(Reply::Published, later, |later| {
                node.broadcast(channel, event, data, &options, later)
            }),
            call => self.answer(call, later),
        }
    }
}

impl NodeCalls {
    /// Every call but `Broadcast`. Apart, so that the stack frame of a broadcast stays small.
    #[inline(never)]
    fn answer(&self, call: Call<'_>, later: &mut Later<'_, Reply>) -> Progress<Reply> {
        let node = &self.0;
        match call {
            Call::Send {
                client,
                channel,
                body,
                options,
            } => replied(Reply::Sent, later, |later| {
                let channel = channel.unwrap_or(&node.config.default_channel);
                node.send(client, channel, body, &options, later)
            }),
            Call::Emergency { message } => replied(Reply::Alarmed, later, |later| {
                node.emergency(message, later)
            }),
            Call::History { channel, page } => replied(Reply::History, later, |later| {
                node.history(channel, page, usize::MAX, later)
            }),
            Call::Subscribe { client, channel } => done(node.subscribe(client, channel)),
            Call::Unsubscribe { client, channel } => done(node.unsubscribe(client, channel)),
            Call::CreateChannel { name, kind } => {
                Progress::Ended(node.create_channel(name, kind).map(Reply::Changed))
            }
            Call::DeleteChannel { name } => {
                Progress::Ended(node.delete_channel(name).map(Reply::Changed))
            }
            Call::ResumeToken { client } => replied(Reply::Token, later, |later| {
                node.resume_token(client, later)
            }),
            Call::SetUserData { client, json } => {
                node.set_user_data(client, json.to_vec());
                done(Ok(()))
            }
            Call::Presence { channel } => {
                replied(Reply::Ids, later, |later| node.presence(channel, later))
            }
            Call::Census => replied(Reply::Census, later, |later| node.census(later)),
            Call::ChannelNames => known(Reply::Ids(node.channel_names())),
            Call::ChannelCount => known(Reply::Count(node.channels.count())),
            Call::HasChannel { name } => known(Reply::Known(node.channels.contains(name))),
            Call::Channel { name } => replied(Reply::Channel, later, |later| {
                node.channel_info(name, later)
            }),
            Call::ConnectionIds => known(Reply::Ids(node.connection_ids())),
            Call::ConnectionCount => known(Reply::Count(node.connection_count())),
            Call::HasConnection { client } => known(Reply::Known(node.has_connection(client))),
            Call::Connection { client } => known(Reply::Connection(node.connection_info(client))),
            Call::UserData { client } => known(Reply::UserData(node.user_data(client))),
            Call::Delivery { message_id } => known(Reply::Delivery(node.delivery(message_id))),
            Call::Broadcast { .. } => self.call(call, later),
            Call::Join { .. }
            | Call::Leave { .. }
            | Call::Present { .. }
            | Call::Page { .. }
            | Call::Acknowledge { .. }
            | Call::Ping
            | Call::Message { .. } => Progress::Ended(Err(Error::Argument(
                "only a client can make this call".to_owned(),
            ))),
            Call::Stats => known(Reply::Stats(Box::new(node.stats()))),
        }
    }
}

fn known(reply: Reply) -> Progress<Reply> {
    Progress::Ended(Ok(reply))
}

fn done(outcome: Result<(), Error>) -> Progress<Reply> {
    Progress::Ended(outcome.map(|()| Reply::Done))
}

/// Makes a call that may end later, and turns its result into a reply. Apart, so that the stack frame of every other call
/// stays small.
#[inline(never)]
fn replied<T: 'static>(
    reply: fn(T) -> Reply,
    later: &mut Later<'_, Reply>,
    call: impl FnOnce(&mut Later<'_, T>) -> Progress<T>,
) -> Progress<Reply> {
    let mut result_later = || {
        let completion = later();
        Completion::new(move |outcome: Result<T, Error>| completion.complete(outcome.map(reply)))
    };
    match call(&mut result_later) {
        Progress::Ended(outcome) => Progress::Ended(outcome.map(reply)),
        Progress::Begun(known) => Progress::Begun(known.map(reply)),
    }
}

impl Node {
    /// A snapshot of all gauges and counters. Apart, because inlined it would enlarge the stack frame of every call.
    #[inline(never)]
    pub fn stats(&self) -> Stats {
        let incoming = self.shards.incoming();
        let counters = &self.counters;
        let mail = self.mail.size();
        Stats {
            is_listening: !self.shards.is_empty(),
            uptime: self.upkeep.uptime(),
            connections: self.connection_count(),
            connection_limit: self.shards.limits().connections,
            census: self.known_census(),
            queued: self.shards.queued(),
            handshakes: incoming.handshakes,
            unfinished_bytes: incoming.unfinished_bytes,
            socket_buffer_bytes: self.socket_buffer_bytes(),
            counters: counters
                .named()
                .map(|(name, counter)| (name.into(), counter.get()))
                .into(),
            inbox_bytes: self.shards.inbox_bytes(),
            events: EventStats {
                queued: self.events.len(),
                bytes: self.events.bytes(),
                dropped: self.events.dropped(),
                pauses: self.events.pauses(),
            },
            disconnects: counters
                .disconnects()
                .into_iter()
                .map(|(reason, count)| (reason.into(), count))
                .collect(),
            shards: self.config.shards,
            history: self.history_size(),
            mail: (mail.messages, mail.bytes),
            away: self.away.count(),
            away_bytes: self.away.bytes(),
            idempotency_keys: self.idempotency_size(),
            dropped: self
                .dropped()
                .into_iter()
                .map(|(reason, channel, count)| (reason.into(), channel, count))
                .collect(),
            worst_connections: self.worst_connections(WORST),
            storage: self.store.health(),
        }
    }
}
