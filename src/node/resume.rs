//! The return of a client: its mail and its subscriptions come to the new connection, and the older connection ends.

use super::client::{Client, ClientState, SessionStatus};
use super::connecting::{ConnectRequest, Connected, Connecting, NotConnected};
use super::delivery::ConnectionId;
use super::wiring::Node;
use crate::base::clock::WallTime;
use crate::base::sync::{MutexGuard, RwLockReadGuard};
use crate::core::outbound::Unwritten;
use crate::ports::claim::ClaimNumber;
use crate::ports::mail::Backlog;
use crate::ports::sessions::{Change, Claimed, Origin};
use crate::wire::messages::ResumeOutcome;
use std::sync::Arc;

/// A connection that has claimed a client which is not new.
pub(super) struct Return<'a> {
    pub connection_id: ConnectionId,
    pub request: &'a ConnectRequest<'a>,
    pub claimed: Claimed,
    /// The state of the client was not locked from the claim on: it may have changed meanwhile.
    pub is_late: bool,
}

impl Node {
    /// As `resume`, for a client that this process may not know.
    pub(super) fn resume_by_id(
        self: &Arc<Self>,
        id: &str,
        emergencies: RwLockReadGuard<'_, u64>,
        returning: Return<'_>,
    ) -> Connecting {
        loop {
            let client = self.known(id, &returning.claimed);
            let state = client.state.lock();
            if !state.removed {
                return self.resume(&client, state, emergencies, returning);
            }
        }
    }

    /// Gives a client to the connection that has claimed it. The mail and the publications of the client follow the
    /// welcome through the inbox. All of this is decided with the client locked, so that a thread that unsubscribes the
    /// client does so before or after.
    pub(super) fn resume(
        self: &Arc<Self>,
        client: &Arc<Client>,
        mut guard: MutexGuard<'_, ClientState>,
        emergencies: RwLockReadGuard<'_, u64>,
        returning: Return<'_>,
    ) -> Connecting {
        let Return {
            connection_id,
            request,
            claimed,
            is_late,
        } = returning;
        let state = &mut *guard;
        if state.claim >= Some(claimed.claim) {
            let problem = "a newer connection has the client".to_owned();
            return Connecting::NotConnected(NotConnected::NotClaimed(problem));
        }
        let has_changed = self.take_over(client, state, &claimed) || is_late;
        if state.connection_id.is_none() && !self.clients.reserve(self.shards.limits().connections)
        {
            self.give_back(client, state, claimed.claim);
            drop((guard, emergencies));
            self.forget_surplus();
            return Connecting::NotConnected(NotConnected::Full);
        }
        client.begin_connection(true, request.peer);
        client.ping(WallTime::now());
        let displaced = state.begin_claim(claimed.claim, connection_id);
        let mut names = state.channel_names();
        let mut remembered = self.away.remove(state);
        // what the displaced connection has asked for, the client asks for again if it still wants to
        let mut required = state.stop_all_entering(&client.id);
        // the application may subscribe a client that is away to a channel which the client joins again anyway
        required.retain(|name| !names.contains(name));
        names.extend(required.iter().cloned());
        remembered.extend(required);
        if has_changed {
            self.save_state(client, state, &names);
        }
        let Backlog { waiting, dropped } = self.open_mail(client, state, request);
        let outcome = ResumeOutcome::Resumed { waiting, dropped };
        let welcome = self.welcome(client, claimed.secret.as_ref(), &names, Some(outcome));
        for at in 0..state.channels.len() {
            let channel = Arc::clone(&state.channels[at].channel);
            self.go_live(client, state, &channel);
        }
        let joined: Vec<_> = remembered
            .iter()
            .map(|name| self.add_subscription(client, state, name, None))
            .collect();
        if let Some(old) = displaced {
            self.displace(client, old);
        }
        for joined in joined {
            self.tell_joined(client, joined);
        }
        drop(guard);
        let known = *emergencies;
        drop(emergencies);
        self.counters.resumes.add(1);
        Connecting::Connected(Connected {
            client: Arc::clone(client),
            welcome,
            is_resumed: true,
            emergencies: known,
        })
    }

    /// Keeps a client that was claimed for a connection which does not come.
    pub(super) fn keep_unused(self: &Arc<Self>, id: &str, claimed: &Claimed) {
        loop {
            let emergencies = self.emergencies.hold_back();
            let client = self.known(id, claimed);
            let mut state = client.state.lock();
            if state.removed {
                continue;
            }
            if state.claim < Some(claimed.claim) {
                self.take_over(&client, &mut state, claimed);
                self.give_back(&client, &mut state, claimed.claim);
            }
            drop((state, emergencies));
            self.forget_surplus();
            return;
        }
    }

    /// Has a client that is neither connected nor away expected from now on. Returns the channels that the client joins
    /// with its first connection.
    pub(super) fn expect(
        &self,
        client: &Arc<Client>,
        state: &mut ClientState,
        mut remembered: Vec<Arc<str>>,
    ) {
        state.session = SessionStatus::Kept;
        if state.connection_id.is_none() && state.away.is_none() {
            remembered.retain(|name| state.position(name).is_none());
            self.away.add(client, state, remembered);
            self.mail.expect(&client.id);
        }
    }

    /// The channel that every client begins on.
    pub(super) fn first_channels(&self) -> Vec<Arc<str>> {
        vec![Arc::from(self.config.default_channel.as_str())]
    }

    /// Saves the whole state of a client.
    pub(super) fn save_state(&self, client: &Client, state: &ClientState, channels: &[Arc<str>]) {
        let make = &|| client.session_state(state, channels.to_vec());
        self.sessions
            .save(&client.id, state.claim, Change::State { make });
    }

    /// Tells the ports that the connection of a client has ended, and that the client may return. `unwritten` are the
    /// emergencies that the socket had not taken.
    pub(super) fn release(&self, client: &Client, state: &ClientState, unwritten: Vec<Unwritten>) {
        if let Some(claim) = state.claim {
            let make = &|| client.session_state(state, state.channel_names());
            self.sessions.release(&client.id, claim, make);
            self.mail.close(&client.id, claim, unwritten);
        }
    }

    /// Brings a client to the state in which it was claimed: away, or connected by an older connection of this process.
    /// True if this process did not have that state.
    fn take_over(
        self: &Arc<Self>,
        client: &Arc<Client>,
        state: &mut ClientState,
        claimed: &Claimed,
    ) -> bool {
        if state.has_session() && claimed.origin == Origin::Here {
            return false;
        }
        if state.has_session() {
            self.let_go(client, state);
        }
        let mut channels = Vec::new();
        if claimed.origin == Origin::New {
            channels = self.first_channels();
        } else if let Some(saved) = claimed.state.as_deref() {
            channels.clone_from(&saved.channels);
            if saved.user_data.is_some() {
                state.user_data = saved.user_data.clone().map(Box::new);
            }
        }
        self.expect(client, state, channels);
        true
    }

    /// Goes back on a claim: the older connection keeps the client, or the client is away.
    fn give_back(&self, client: &Client, state: &mut ClientState, claim: ClaimNumber) {
        state.claim = Some(claim);
        if state.connection_id.is_some() {
            self.save_state(client, state, &state.channel_names());
        } else {
            self.release(client, state, Vec::new());
        }
    }

    fn known(&self, id: &str, claimed: &Claimed) -> Arc<Client> {
        let saved = claimed.state.as_deref();
        let joined = || saved.map_or_else(WallTime::now, |saved| saved.joined);
        self.clients.get_or_add_of(id, joined)
    }
}
