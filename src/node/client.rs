//! A client as the node knows it: connected, away, or subscribed by the application before it connects.

use super::channel::Channel;
use super::delivery::ConnectionId;
use super::entry::{Entering, Purpose};
use crate::base::clock::{AtomicWallTime, WallTime};
use crate::base::completion::{Completion, Progress};
use crate::base::sync::{Mutex, Rank};
use crate::net::peer::Peer;
use crate::ports::broker::{CHANNEL_SIZE, Failure};
use crate::ports::claim::ClaimNumber;
use crate::ports::presence::Departed;
use crate::ports::sessions::SessionState;
use bytes::Bytes;
use smallvec::SmallVec;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// The approximate memory of a client, and of each of its channels besides the name, in bytes.
pub(super) const CLIENT_SIZE: usize = 512;
const MEMBERSHIP_SIZE: usize = 64;

pub struct Client {
    pub id: Arc<str>,
    pub joined: WallTime,
    last_ping: AtomicWallTime,
    /// The client has joined a channel with a `ref`, or has resumed: it understands `gap` messages.
    wants_gaps: AtomicBool,
    /// The number (`ConnectionId::number`) of the latest connection once it has sent a frame; before that 0.
    heard_on: AtomicU64,
    /// The client has sent a frame, on any of its connections.
    has_spoken: AtomicBool,
    /// The peer of the latest connection.
    peer: Mutex<Option<Peer>>,
    /// Bytes that wait for the socket. The shard updates the number while the connection is behind.
    queued_bytes: AtomicUsize,
    pub state: Mutex<ClientState>,
}

#[derive(Default)]
pub struct ClientState {
    /// `None` while the client is not connected.
    pub connection_id: Option<ConnectionId>,
    /// The claim of the latest connection; `None` for a client that was never connected.
    pub claim: Option<ClaimNumber>,
    pub channels: SmallVec<[Joined; 1]>,
    /// Channels that the client is entering.
    pub entering: Vec<Entering>,
    pub session: SessionStatus,
    /// `None` for a client that is not away.
    pub away: Option<Box<Away>>,
    /// Data of the application: JSON. In a box, because few clients have such data.
    pub user_data: Option<Box<Bytes>>,
    /// The client is not in `Clients` any more: a thread that still has the client looks its id up again.
    pub removed: bool,
}

/// Whether `Sessions` has a session of a client, so that the client may return.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SessionStatus {
    #[default]
    NotKept,
    Kept,
}

/// A subscription of a client.
pub struct Joined {
    pub channel: Arc<Channel>,
    /// The subscription of the client's connection; `None` while the client is not connected, and until the broker has
    /// answered with the position of the stream.
    pub live: Option<Live>,
}

/// The subscription of a connection to a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Live {
    /// The last offset before the publications that the connection gets.
    pub from: u64,
    pub shard: usize,
}

/// The absence of a client that lost its connection and may resume.
pub struct Away {
    /// Another number for each absence of any client, in the order of their beginnings.
    pub number: u64,
    /// Channels that the client joins again when it resumes: its leave was announced on them.
    pub remembered: Vec<Arc<str>>,
    /// The bytes that `AwayClients` counts for the client.
    pub bytes: usize,
}

impl Client {
    /// A client that is not connected.
    pub fn new(id: Arc<str>, joined: WallTime) -> Self {
        Self::with_state(id, joined, ClientState::default())
    }

    /// A client that is connected by its first connection.
    pub fn connected(
        id: Arc<str>,
        joined: WallTime,
        claim: ClaimNumber,
        connection_id: ConnectionId,
    ) -> Self {
        let mut state = ClientState::default();
        state.begin_claim(claim, connection_id);
        Self::with_state(id, joined, state)
    }

    fn with_state(id: Arc<str>, joined: WallTime, state: ClientState) -> Self {
        Self {
            id,
            joined,
            last_ping: AtomicWallTime::new(joined),
            wants_gaps: AtomicBool::new(false),
            heard_on: AtomicU64::new(0),
            has_spoken: AtomicBool::new(false),
            peer: Mutex::new(Rank::Leaf, None),
            queued_bytes: AtomicUsize::new(0),
            state: Mutex::new(Rank::Client, state),
        }
    }

    pub fn ping(&self, now: WallTime) {
        self.last_ping.store(now);
    }

    pub fn last_ping(&self) -> WallTime {
        self.last_ping.load()
    }

    /// Bytes that wait for the socket.
    pub fn queued_bytes(&self) -> usize {
        self.queued_bytes.load(Ordering::Relaxed)
    }

    pub fn set_queued_bytes(&self, bytes: usize) {
        self.queued_bytes.store(bytes, Ordering::Relaxed);
    }

    pub fn wants_gaps(&self) -> bool {
        self.wants_gaps.load(Ordering::Relaxed)
    }

    pub fn set_wants_gaps(&self, wants: bool) {
        self.wants_gaps.store(wants, Ordering::Relaxed);
    }

    /// Begins a connection, on which no frame has arrived. A client that resumes understands `gap` messages.
    pub fn begin_connection(&self, is_resuming: bool, peer: Option<Peer>) {
        *self.peer.lock() = peer;
        self.heard_on.store(0, Ordering::Relaxed);
        self.set_wants_gaps(is_resuming);
    }

    /// The peer of the latest connection; `None` for a client that never connected.
    pub fn peer(&self) -> Option<Peer> {
        *self.peer.lock()
    }

    /// True if the client has ever sent a frame, or if the application asked for a token of the client.
    pub fn has_spoken(&self) -> bool {
        self.has_spoken.load(Ordering::Relaxed)
    }

    /// The state of the client as other processes and the store need it.
    pub fn session_state(&self, state: &ClientState, channels: Vec<Arc<str>>) -> SessionState {
        SessionState {
            joined: self.joined,
            last_ping: self.last_ping(),
            user_data: state.user_data.as_deref().cloned(),
            channels,
        }
    }

    pub fn set_spoken(&self) {
        self.has_spoken.store(true, Ordering::Relaxed);
    }

    /// Accepts a frame of a connection; false if a newer connection has displaced this one. The first frame of a
    /// connection shows that the welcome has arrived, and `arrived` is called.
    pub fn accept_frame(
        &self,
        connection_id: ConnectionId,
        arrived: impl FnOnce(&ClientState),
    ) -> bool {
        if self.heard_on.load(Ordering::Relaxed) == connection_id.number() {
            return true;
        }
        let state = self.state.lock();
        if state.connection_id != Some(connection_id) {
            return false;
        }
        self.heard_on
            .store(connection_id.number(), Ordering::Relaxed);
        self.set_spoken();
        arrived(&state);
        true
    }
}

impl ClientState {
    /// Begins the connection of a claim; returns the connection that it displaces.
    pub fn begin_claim(
        &mut self,
        claim: ClaimNumber,
        connection_id: ConnectionId,
    ) -> Option<ConnectionId> {
        self.claim = Some(claim);
        self.connection_id.replace(connection_id)
    }

    /// True for a client that may return.
    pub fn has_session(&self) -> bool {
        self.session == SessionStatus::Kept
    }

    /// Stops entering a channel; returns the entering, if there was one. `client` is the client of this state.
    pub fn stop_entering(&mut self, client: &Arc<str>, channel: &str) -> Option<Entering> {
        let mut entering = self.entering.iter();
        let at = entering.position(|entering| entering.is_of(channel))?;
        let stopped = self.entering.swap_remove(at);
        self.take_back(client, &stopped);
        Some(stopped)
    }

    /// Stops entering every channel. Returns the channels that the application or the server has subscribed the client
    /// to: the client joins them when it has its next connection. `client` is the client of this state.
    pub fn stop_all_entering(&mut self, client: &Arc<str>) -> Vec<Arc<str>> {
        let stopped = std::mem::take(&mut self.entering);
        for entering in &stopped {
            self.take_back(client, entering);
        }
        let required = stopped
            .into_iter()
            .filter(|entering| entering.purpose == Purpose::Required);
        required.map(|entering| entering.channel).collect()
    }

    /// Ends the membership that an entering has begun; not that of a client that was on the channel before. Nobody is
    /// told, because the join was not told.
    fn take_back(&self, client: &Arc<str>, entering: &Entering) {
        if let Some(channel) = entering.joined()
            && self.position(&channel.name).is_none()
        {
            self.leave_silently(client, channel);
        }
    }

    /// Ends the membership of this client in the presence of a channel, without a notice.
    pub fn leave_silently(&self, client: &Arc<str>, channel: &Arc<Channel>) {
        let leaving = channel.presence.leave(client, self.claim, &mut || {
            let channel = Arc::clone(channel);
            Completion::new(move |outcome| note_departed(&channel, &outcome))
        });
        if let Progress::Ended(outcome) = leaving {
            note_departed(channel, &outcome);
        }
    }

    /// True if this process has asked presence to have the client on a channel.
    pub fn is_member(&self, channel: &str) -> bool {
        let mut entering = self.entering.iter();
        self.position(channel).is_some()
            || entering.any(|entering| entering.is_of(channel) && entering.joined().is_some())
    }

    /// Forgets the subscription to a channel that has ended.
    pub fn forget_ended(&mut self, channel: &Arc<Channel>) {
        self.channels
            .retain(|joined| !Arc::ptr_eq(&joined.channel, channel));
    }

    /// Forgets the subscription to an earlier channel of the same name, which has ended.
    pub fn forget_predecessors(&mut self, channel: &Arc<Channel>) {
        self.channels.retain(|joined| {
            joined.channel.name != channel.name || Arc::ptr_eq(&joined.channel, channel)
        });
    }

    /// The number of channels that the client is on or enters.
    pub fn channel_count(&self) -> usize {
        let is_new = |entering: &&Entering| self.position(&entering.channel).is_none();
        self.channels.len() + self.entering.iter().filter(is_new).count()
    }

    pub fn entering_mut(&mut self, channel: &str) -> Option<&mut Entering> {
        self.entering
            .iter_mut()
            .find(|entering| entering.is_of(channel))
    }

    /// Takes one entering; `None` if the client has stopped it.
    pub fn take_entering(&mut self, number: u64) -> Option<Entering> {
        let mut entering = self.entering.iter();
        let at = entering.position(|entering| entering.number == number)?;
        Some(self.entering.swap_remove(at))
    }

    /// Marks a client as removed that is not connected, not away, on no channel, and enters none. True if this call
    /// marked the client; the caller then removes the client from `Clients`.
    pub fn end_if_idle(&mut self) -> bool {
        let ends = self.connection_id.is_none()
            && self.away.is_none()
            && self.channels.is_empty()
            && self.entering.is_empty()
            && !self.removed;
        self.removed |= ends;
        ends
    }

    /// Removes a channel from those that the client joins again when it resumes; true if the channel was one of them.
    pub fn forget_channel(&mut self, channel: &str) -> bool {
        let Some(away) = &mut self.away else {
            return false;
        };
        let before = away.remembered.len();
        away.remembered.retain(|name| &**name != channel);
        away.remembered.len() < before
    }

    pub fn position(&self, channel: &str) -> Option<usize> {
        self.channels
            .iter()
            .position(|joined| &*joined.channel.name == channel)
    }

    /// The approximate memory of a client that is away, in bytes, with the channels that have no other subscriber.
    pub fn away_weight(&self) -> usize {
        let joined = self.channels.iter().map(|Joined { channel, .. }| {
            let is_alone = channel.members.lock().own == 1;
            let own = if is_alone { CHANNEL_SIZE } else { 0 };
            own + channel.name.len() + MEMBERSHIP_SIZE
        });
        let remembered = self.away.iter().flat_map(|away| &away.remembered);
        let remembered = remembered.map(|name| name.len() + MEMBERSHIP_SIZE);
        let user_data = self.user_data.as_deref().map_or(0, Bytes::len);
        CLIENT_SIZE + user_data + joined.chain(remembered).sum::<usize>()
    }

    /// The names of all channels that the client is on, or joins again when it resumes.
    pub fn channel_names(&self) -> Vec<Arc<str>> {
        let joined = self.channels.iter().map(|joined| &joined.channel.name);
        let remembered = self.away.iter().flat_map(|away| &away.remembered);
        joined.chain(remembered).cloned().collect()
    }
}

/// Takes in the number of members that are left; a leave does not fail, but its outcome may be lost.
fn note_departed(channel: &Channel, outcome: &Result<Departed, Failure>) {
    if let Ok(departed) = outcome {
        channel.members.lock().note(departed.total);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::memory_presence::MemoryPresence;
    use crate::core::hub::ChannelKey;
    use crate::ports::presence::Presence;
    use crate::settings::channel_kind::ChannelKind;
    use crate::settings::config::Config;

    #[test]
    fn a_client_that_leaves_silently_does_not_count_any_more() {
        let presence = MemoryPresence::default();
        let settings = Config::default().of_channel("den");
        let kind = ChannelKind::Public;
        let channel = Channel::new(ChannelKey::nth(0), "den", kind, settings, &presence);
        let channel = Arc::new(channel);
        let join = |id: &str| {
            let joined = presence
                .open(&channel.name)
                .join(&id.into(), None, &mut || {
                    panic!("memory answers at once");
                });
            let Progress::Ended(Ok(arrived)) = joined else {
                panic!("memory does not fail");
            };
            channel.members.lock().note(arrived.total);
        };
        join("entering");
        join("other");
        ClientState::default().leave_silently(&"entering".into(), &channel);
        assert_eq!(channel.members.lock().total.members, 1);
    }
}
