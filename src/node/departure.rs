//! The end of a connection: the client is away for a while, or leaves at once.

use super::channel::Channel;
use super::client::{Client, ClientState, Joined, SessionStatus};
use super::delivery::{ConnectionId, Delivery};
use super::wiring::Node;
use crate::base::clock::SteadyTime;
use crate::base::error::Disconnect;
use crate::base::names;
use crate::base::sync::MutexGuard;
use crate::core::events::{Detail, LogLevel};
use crate::core::outbound::Unwritten;
use crate::ports::presence::Departed;
use crate::wire::frame::EncodedFrame;
use std::sync::Arc;

impl Node {
    /// Ends a connection of a client. The client is away if it may resume; otherwise it leaves its channels.
    /// `unwritten` are the emergencies that the socket had not taken.
    pub fn disconnect(
        self: &Arc<Self>,
        client: &Arc<Client>,
        connection_id: ConnectionId,
        disconnect: Disconnect,
        unwritten: Vec<Unwritten>,
    ) {
        {
            let _emergencies = self.emergencies.hold_back();
            let mut state = client.state.lock();
            if state.connection_id == Some(connection_id) {
                state.connection_id = None;
                self.clients.release();
                self.lose(client, state, disconnect, unwritten);
            }
        }
        self.counters.disconnected(disconnect);
        self.events.emit(
            "disconnect",
            Some(&client.id),
            Some(names::SYSTEM_CHANNEL),
            || Detail::Disconnect {
                reason: disconnect.reason(),
                code: disconnect.code(),
            },
        );
    }

    /// Announces the leave of clients that are away for longer than `leave_delay`. Forgets clients whose `resume_ttl` is
    /// over.
    pub(super) fn expire_away(self: &Arc<Self>) {
        let now = SteadyTime::now();
        while let Some((number, client)) = self.away.pop_leaving(now) {
            let state = client.state.lock();
            if state
                .away
                .as_ref()
                .is_some_and(|away| away.number == number)
            {
                self.leave_all(&client, state);
            }
        }
        while let Some((number, client)) = self.away.pop_expired(now) {
            self.forget_away(&client, number);
        }
    }

    /// Forgets clients that are away while they are too many, or take too many bytes. Must not be called with the state
    /// of a client locked.
    pub(super) fn forget_surplus(self: &Arc<Self>) {
        while let Some((number, client)) = self.away.pop_surplus() {
            if self.forget_away(&client, number) {
                self.counters.away_forgotten.add(1);
            }
        }
    }

    /// Removes a channel from those that clients which are away join again on their return. Must not be called with the
    /// state of a client locked.
    pub(super) fn forget_channel(&self, name: &str) {
        for client in self.away.clients() {
            let mut state = client.state.lock();
            if state.forget_channel(name) {
                self.save_left(&client, &state, name);
            }
        }
    }

    /// Lets go of clients that other processes have claimed.
    pub(super) fn drop_displaced(self: &Arc<Self>) {
        for (id, claim) in self.displaced.take() {
            let Some(client) = self.clients.get(&id) else {
                continue;
            };
            let _emergencies = self.emergencies.hold_back();
            let mut state = client.state.lock();
            if state.has_session() && state.claim < Some(claim) {
                self.let_go(&client, &mut state);
                self.drop_if_idle(&client, state);
            }
        }
    }

    /// Drops what this process has of a client that another process has claimed, and closes its connection. The leave is
    /// announced only where the client is no member any more: then the other process announces that it has joined.
    pub(super) fn let_go(self: &Arc<Self>, client: &Arc<Client>, state: &mut ClientState) {
        state.session = SessionStatus::NotKept;
        self.away.remove(state);
        state.stop_all_entering(&client.id);
        end_all_live(state);
        let channels = state.channels.drain(..).collect();
        let left = self.remove_members(client, state, channels);
        self.announce_left(client, left);
        if let Some(old) = state.connection_id.take() {
            self.clients.release();
            self.displace(client, old);
        }
    }

    /// Closes the connection of a client that has a newer one.
    pub(super) fn displace(&self, client: &Client, old: ConnectionId) {
        self.events.log(LogLevel::Info, "connections", || {
            format!(
                "{} was resumed by another connection; the older one is closed",
                client.id
            )
        });
        self.shards.push(
            old.shard,
            Delivery::Close {
                connection_id: old,
                disconnect: Disconnect::Displaced,
                frame: EncodedFrame::of_disconnect(Disconnect::Displaced),
            },
        );
    }

    /// Removes a client of which nothing is known any more.
    pub(super) fn drop_if_idle(&self, client: &Client, mut state: MutexGuard<'_, ClientState>) {
        let is_idle = state.end_if_idle();
        drop(state);
        if is_idle {
            self.clients.remove(&client.id);
        }
    }

    fn lose(
        self: &Arc<Self>,
        client: &Arc<Client>,
        mut state: MutexGuard<'_, ClientState>,
        disconnect: Disconnect,
        unwritten: Vec<Unwritten>,
    ) {
        let required = state.stop_all_entering(&client.id);
        end_all_live(&mut state);
        if !state.has_session() || !disconnect.is_abrupt() {
            self.leave_for_good(client, state);
            return;
        }
        self.away.add(client, &mut state, required);
        self.release(client, &state, unwritten);
        if self.config.leave_delay.is_zero() || self.shards.is_draining() {
            self.leave_all(client, state);
        } else {
            self.away.delay_leave(client, &state);
            drop(state);
        }
        self.forget_surplus();
    }

    /// Ends the absence `number` of a client; false if the client has returned meanwhile.
    fn forget_away(self: &Arc<Self>, client: &Arc<Client>, number: u64) -> bool {
        let mut state = client.state.lock();
        if !self.away.forget(&mut state, number) {
            return false;
        }
        self.leave_for_good(client, state);
        true
    }

    /// Announces that a client has left its channels. The client joins them again on its return.
    fn leave_all(self: &Arc<Self>, client: &Arc<Client>, mut state: MutexGuard<'_, ClientState>) {
        let channels: Vec<_> = state.channels.drain(..).collect();
        if let Some(away) = &mut state.away {
            let names = channels
                .iter()
                .map(|joined| Arc::clone(&joined.channel.name));
            away.remembered.extend(names);
        }
        self.away.weigh(&mut state);
        let left = self.remove_members(client, &state, channels);
        // with the client locked, so that no notice of its return goes out before the notices of its leave
        self.announce_left(client, left);
        drop(state);
    }

    /// Removes a client from all its channels, and from the map.
    fn leave_for_good(
        self: &Arc<Self>,
        client: &Arc<Client>,
        mut state: MutexGuard<'_, ClientState>,
    ) {
        state.stop_all_entering(&client.id);
        let channels: Vec<_> = state.channels.drain(..).collect();
        let left = self.remove_members(client, &state, channels);
        state.session = SessionStatus::NotKept;
        let is_gone = state.end_if_idle();
        self.sessions.end(&client.id, state.claim);
        self.mail.forget(&client.id, state.claim);
        // with the client locked, as in `leave_all`
        self.announce_left(client, left);
        drop(state);
        if is_gone {
            self.clients.remove(&client.id);
        }
        // only the client itself could repeat its publications, and the client does not return
        self.broker.forget_keys(&client.id);
    }

    /// Returns the channels whose presence has answered, each with the outcome.
    fn remove_members(
        self: &Arc<Self>,
        client: &Arc<Client>,
        state: &ClientState,
        channels: Vec<Joined>,
    ) -> Vec<(Arc<Channel>, Departed)> {
        let remove = |Joined { channel, .. }| {
            let departed = self.remove_member(client, state, &channel)?;
            Some((channel, departed))
        };
        channels.into_iter().filter_map(remove).collect()
    }

    fn announce_left(&self, client: &Arc<Client>, left: Vec<(Arc<Channel>, Departed)>) {
        for (channel, departed) in left {
            self.tell_left(&channel, &client.id, departed);
        }
    }
}

/// Ends the subscriptions of a client's connection.
fn end_all_live(state: &mut ClientState) {
    for joined in &mut state.channels {
        if let Some(live) = joined.live.take() {
            joined.channel.members.lock().interest.remove(live.shard);
        }
    }
}
