//! A client as the node knows it: connected, away, or subscribed by the application before it connects.

use super::channel::Channel;
use super::delivery::ConnectionId;
use super::token::Session;
use crate::base::clock::{AtomicWallTime, WallTime};
use crate::base::sync::{Mutex, Rank};
use crate::core::mailbox::Mailbox;
use crate::net::peer::Peer;
use crate::ports::broker::CHANNEL_SIZE;
use bytes::Bytes;
use smallvec::SmallVec;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// What a client takes, about, and what each of its channels takes besides the name.
pub(super) const CLIENT_SIZE: usize = 512;
const MEMBERSHIP_SIZE: usize = 64;

pub struct Client {
    pub id: Arc<str>,
    pub joined: WallTime,
    last_ping: AtomicWallTime,
    /// It has joined a channel with a `ref`, and so understands what plain pages do not.
    wants_gaps: AtomicBool,
    /// The number of its latest connection (`ConnectionId::number`) once a frame has come on it; before that 0.
    heard_on: AtomicU64,
    /// It has sent a frame, on any of its connections.
    has_spoken: AtomicBool,
    /// Where its latest connection came from.
    peer: Mutex<Option<Peer>>,
    /// Bytes that wait for its socket; its shard keeps this up to date while it is behind.
    queued_bytes: AtomicUsize,
    pub state: Mutex<ClientState>,
}

#[derive(Default)]
pub struct ClientState {
    /// `None` while it is not connected.
    pub connection_id: Option<ConnectionId>,
    pub channels: SmallVec<[Joined; 1]>,
    /// With what it may come back.
    pub session: Option<Session>,
    /// Since it was lost.
    pub away: Option<Box<Away>>,
    pub mailbox: Option<Box<Mailbox>>,
    /// It is in the node's list of clients with mail.
    pub is_mailed: bool,
    /// Emergencies that it acknowledged though they were not kept for it, of those that are known.
    pub acknowledged: Vec<u64>,
    /// It acknowledges what is sent to it, so that is kept until it does.
    pub acknowledges: bool,
    /// What the application attached to it: JSON.
    pub user_data: Option<Bytes>,
    /// It is out of the node's map; whoever still holds it must look it up again.
    pub removed: bool,
}

/// A channel that a client is on.
pub struct Joined {
    pub channel: Arc<Channel>,
    /// The stream's top when the client's latest connection went live on it.
    pub live_from: u64,
}

/// A client that was lost and may be back.
pub struct Away {
    /// Which of all the times that clients went away.
    pub number: u64,
    /// Channels that it was on until others were told that it has left.
    pub remembered: Vec<Arc<str>>,
    /// The bytes that `AwayClients` counts for the client.
    pub bytes: usize,
}

impl Client {
    pub fn new(id: Arc<str>, now: WallTime, connection_id: Option<ConnectionId>) -> Self {
        let state = ClientState {
            connection_id,
            ..ClientState::default()
        };
        Self {
            id,
            joined: now,
            last_ping: AtomicWallTime::new(now),
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

    /// Bytes that wait for its socket.
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

    /// A connection begins: nothing has come on it. One that resumes understands what plain pages do not.
    pub fn begin_connection(&self, is_resuming: bool, peer: Option<Peer>) {
        *self.peer.lock() = peer;
        self.heard_on.store(0, Ordering::Relaxed);
        self.set_wants_gaps(is_resuming);
    }

    /// Where its latest connection came from; `None` for a client that never connected.
    pub fn peer(&self) -> Option<Peer> {
        *self.peer.lock()
    }

    /// True if the client has ever sent a frame, or the application vouches for it.
    pub fn has_spoken(&self) -> bool {
        self.has_spoken.load(Ordering::Relaxed)
    }

    pub fn note_spoken(&self) {
        self.has_spoken.store(true, Ordering::Relaxed);
    }

    /// A frame has come on a connection; false when another one has taken its place, so that it is not to be carried
    /// out. The first one shows that the welcome has arrived: earlier tokens are of no use to the client any more, and
    /// `changed` is called if there were any.
    pub fn hear(&self, connection_id: ConnectionId, changed: impl FnOnce(&ClientState)) -> bool {
        if self.heard_on.load(Ordering::Relaxed) == connection_id.number() {
            return true;
        }
        let mut state = self.state.lock();
        if state.connection_id != Some(connection_id) {
            return false;
        }
        self.heard_on
            .store(connection_id.number(), Ordering::Relaxed);
        self.note_spoken();
        if let Some(mailbox) = &mut state.mailbox {
            mailbox.confirm();
        }
        if state.session.as_mut().is_some_and(Session::confirm) {
            changed(&state);
        }
        true
    }
}

impl ClientState {
    /// A client that is not connected, will not be back, is on no channel and has no mail is nobody; true when that
    /// has just become so.
    pub fn end_if_idle(&mut self) -> bool {
        let ends = self.connection_id.is_none()
            && self.away.is_none()
            && self.channels.is_empty()
            && self.mailbox.is_none()
            && !self.removed;
        self.removed |= ends;
        ends
    }

    /// It is not to be on a channel when it is back; true when it would have been.
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

    /// Bytes that a client that is away takes, about, with the channels that only it keeps.
    pub fn away_weight(&self) -> usize {
        let joined = self.channels.iter().map(|Joined { channel, .. }| {
            let is_alone = channel.members.lock().roster.len() == 1;
            let own = if is_alone { CHANNEL_SIZE } else { 0 };
            own + channel.name.len() + MEMBERSHIP_SIZE
        });
        let remembered = self.away.iter().flat_map(|away| &away.remembered);
        let remembered = remembered.map(|name| name.len() + MEMBERSHIP_SIZE);
        let user_data = self.user_data.as_ref().map_or(0, Bytes::len);
        CLIENT_SIZE + user_data + joined.chain(remembered).sum::<usize>()
    }

    /// The names of all channels that it is on, or will be again when it is back.
    pub fn channel_names(&self) -> Vec<Arc<str>> {
        let joined = self.channels.iter().map(|joined| &joined.channel.name);
        let remembered = self.away.iter().flat_map(|away| &away.remembered);
        joined.chain(remembered).cloned().collect()
    }
}
