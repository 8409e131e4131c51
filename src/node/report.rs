//! Reports of the node about its channels, connections and queues, from what this process knows.

use super::client::Client;
use super::wiring::Node;
use crate::base::names::EMERGENCY_CHANNEL;
use crate::core::events::LogLevel;
use crate::ports::broker::BrokerSize;
use crate::ports::calls::ConnectionInfo;
use crate::ports::stats::HistorySize;
use crate::settings::channel_kind::ChannelKind;
use std::sync::Arc;

impl Node {
    /// Logs, once, that a client offered subprotocols of which none was selected: browsers end such a connection.
    pub fn log_unselected(&self, offered: &[String]) {
        const MOST_SHOWN: usize = 10;
        self.events.log_once(LogLevel::Info, "connections", || {
            let shown = &offered[..offered.len().min(MOST_SHOWN)];
            format!(
                "a client offered the subprotocols {shown:?}, and none was selected, which browsers take for a failure; \
                 the setting subprotocols lists those that are selected (\"*\": the first offered)"
            )
        });
    }

    /// The most that the system may hold in the buffers of all connections; `None` where the system sizes them.
    pub fn socket_buffer_bytes(&self) -> Option<usize> {
        let (send, receive) = (
            self.config.send_buffer_bytes,
            self.config.receive_buffer_bytes,
        );
        let sockets = self.connection_count() + self.shards.incoming().handshakes;
        // the system takes twice what it is asked for, for its own bookkeeping (socket(7), SO_SNDBUF)
        (send > 0 && receive > 0).then(|| sockets * 2 * (send + receive))
    }

    /// How many are on each channel, as presence has reported last, in the order in which the channels were made.
    pub(super) fn known_census(&self) -> Vec<(Arc<str>, usize)> {
        let channels = self.channels.all().into_iter();
        let counted = channels.map(|channel| {
            let members = channel.members.lock().total.members;
            (Arc::clone(&channel.name), members)
        });
        counted.collect()
    }

    /// Names in the order in which the channels were made.
    pub fn channel_names(&self) -> Vec<Arc<str>> {
        self.channels
            .all()
            .iter()
            .map(|channel| Arc::clone(&channel.name))
            .collect()
    }

    /// Ids of the connected clients, in the order in which they connected.
    pub fn connection_ids(&self) -> Vec<Arc<str>> {
        let clients = self.clients.all();
        let mut connected: Vec<_> = clients
            .iter()
            .filter(|client| client.state.lock().connection_id.is_some())
            .map(|client| (client.joined, Arc::clone(&client.id)))
            .collect();
        connected.sort_unstable();
        connected.into_iter().map(|(_, id)| id).collect()
    }

    pub fn connection_count(&self) -> usize {
        self.clients.connected()
    }

    pub fn has_connection(&self, client_id: &str) -> bool {
        let client = self.clients.get(client_id);
        client.is_some_and(|client| client.state.lock().connection_id.is_some())
    }

    /// `None` for a client that is not connected.
    pub fn connection_info(&self, client_id: &str) -> Option<ConnectionInfo> {
        let client = self.clients.get(client_id)?;
        let state = client.state.lock();
        state.connection_id?;
        Some(ConnectionInfo {
            client_id: Arc::clone(&client.id),
            joined_at: client.joined,
            last_ping: client.last_ping(),
            channels: state
                .channels
                .iter()
                .map(|joined| Arc::clone(&joined.channel.name))
                .collect(),
        })
    }

    /// The names of private channels, which without authorisation admit everyone.
    pub fn private_channels(&self) -> Vec<Arc<str>> {
        let channels = self.channels.all();
        let mut names: Vec<_> = channels
            .iter()
            .filter(|channel| {
                channel.kind == ChannelKind::Private && &*channel.name != EMERGENCY_CHANNEL
            })
            .map(|channel| Arc::clone(&channel.name))
            .collect();
        names.sort_unstable();
        names
    }

    /// The histories of all channels: their publications and bytes.
    pub fn history_size(&self) -> HistorySize {
        let BrokerSize {
            messages, bytes, ..
        } = self.broker.size();
        HistorySize { messages, bytes }
    }

    /// How many idempotency keys are known, and how many were forgotten before their time to make room.
    pub fn idempotency_size(&self) -> (usize, u64) {
        let (size, sent) = (self.broker.size(), self.mail.keys());
        (size.keys + sent.0, size.displaced_keys + sent.1)
    }

    /// Dropped messages: reason, channel and how many.
    pub fn dropped(&self) -> Vec<(&'static str, Box<str>, u64)> {
        self.count_evicted();
        self.counters.dropped_by_reason()
    }

    /// Connections with the most bytes that wait for their sockets, the worst first: client id and bytes.
    pub fn worst_connections(&self, count: usize) -> Vec<(Arc<str>, usize)> {
        let clients = self.clients.all();
        let mut waiting: Vec<_> = clients
            .iter()
            .map(|client| (client.queued_bytes(), client))
            .filter(|(bytes, _)| *bytes > 0)
            .collect();
        waiting.sort_unstable_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
        waiting.truncate(count);
        let named = |(bytes, client): (usize, &Arc<Client>)| (Arc::clone(&client.id), bytes);
        waiting.into_iter().map(named).collect()
    }
}
