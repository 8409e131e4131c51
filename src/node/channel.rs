//! A channel as the node knows it: how many of its members are of this process, where they are, and which notices wait.

use super::gate::Gate;
use crate::base::clock::{SteadyTime, WallTime};
use crate::base::sync::{Mutex, Rank};
use crate::core::hub::ChannelKey;
use crate::core::interest::Interest;
use crate::ports::broker::Stream;
use crate::ports::presence::{ChannelPresence, Presence, Total};
use crate::settings::channel_kind::ChannelKind;
use crate::settings::channel_settings::ChannelSettings;
use std::fmt;
use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

pub struct Channel {
    pub key: ChannelKey,
    pub name: Arc<str>,
    pub kind: ChannelKind,
    pub created: WallTime,
    pub settings: ChannelSettings,
    /// Attached at its first use (`Node::stream`), when what was saved is known.
    pub(super) stream: OnceLock<Arc<dyn Stream>>,
    /// The members of all processes.
    pub(super) presence: Arc<dyn ChannelPresence>,
    pub members: Mutex<Members>,
    pub(super) gate: Gate,
    /// Held while a notice goes out, so that notices keep their order.
    pub(super) notices: Mutex<()>,
    /// Connections that are behind with this channel, on any shard: the channel's publishers are read no further
    /// meanwhile.
    behind: AtomicUsize,
    /// Bytes that were published and are in no queue of a connection yet, once for each shard.
    in_flight: AtomicUsize,
}

/// Counts a connection as behind with a channel until it is dropped.
#[derive(Debug)]
pub struct BehindWith(Arc<Channel>);

impl BehindWith {
    pub fn new(channel: &Arc<Channel>) -> Self {
        channel.behind.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(channel))
    }

    pub fn is(&self, channel: &Channel) -> bool {
        self.0.key == channel.key
    }
}

/// A channel with a publication that is on its way to the queues of connections: counted there until it is dropped.
#[derive(Debug)]
pub struct InFlight {
    channel: Arc<Channel>,
    bytes: usize,
}

impl InFlight {
    pub fn new(channel: &Arc<Channel>, bytes: usize) -> Self {
        channel.in_flight.fetch_add(bytes, Ordering::Relaxed);
        let channel = Arc::clone(channel);
        Self { channel, bytes }
    }

    /// The channel, with the publication there.
    pub fn into_channel(self) -> Arc<Channel> {
        Arc::clone(&self.channel)
    }

    /// Takes another publication of the same channel along.
    pub fn join(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
    }
}

impl Deref for InFlight {
    type Target = Arc<Channel>;

    fn deref(&self) -> &Arc<Channel> {
        &self.channel
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.channel
            .in_flight
            .fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Drop for BehindWith {
    fn drop(&mut self) {
        self.0.behind.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Channel {
    pub fn new(
        key: ChannelKey,
        name: &str,
        kind: ChannelKind,
        settings: ChannelSettings,
        presence: &dyn Presence,
    ) -> Self {
        let name = name.into();
        Self {
            key,
            kind,
            created: WallTime::now(),
            settings,
            stream: OnceLock::new(),
            presence: presence.open(&name),
            name,
            members: Mutex::new(Rank::Members, Members::default()),
            gate: Gate::new(),
            notices: Mutex::new(Rank::Notices, ()),
            behind: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
        }
    }

    /// True while publishers wait: a connection is behind with the channel, or more than so many bytes are on their way
    /// to connections that may be.
    pub fn is_full(&self, max_in_flight: usize) -> bool {
        self.behind.load(Ordering::Relaxed) > 0
            || self.in_flight.load(Ordering::Relaxed) > max_in_flight
    }

    /// The incarnation of its stream; `None` before anything was published or joined.
    pub fn epoch(&self) -> Option<u64> {
        Some(self.stream.get()?.epoch())
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Channel({:?})", self.name)
    }
}

#[derive(Debug, Default)]
pub struct Members {
    /// The clients of this process that are on the channel.
    pub own: usize,
    /// The newest number of members of all processes that presence has reported.
    pub total: Total,
    pub interest: Interest,
    pub joins: Pending,
    pub leaves: Pending,
    /// When the last subscriber left, or, without one, the channel was made or its history became empty.
    pub empty_since: Option<SteadyTime>,
    /// The channel is in the queue of empty channels of `Channels`.
    pub is_marked_empty: bool,
    /// The channel is in the list of channels with notices of `Channels`.
    pub is_noticed: bool,
    /// The channel has ended: a thread that still has it looks its name up again.
    pub removed: bool,
}

impl Members {
    /// Takes in a number of members that presence has reported, unless a newer one is known.
    pub fn note(&mut self, total: Total) {
        if total.version > self.total.version {
            self.total = total;
        }
    }
}

/// Which of the two notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    Joined,
    Left,
}

impl Notice {
    pub fn event(self) -> &'static str {
        match self {
            Notice::Joined => "user_joined",
            Notice::Left => "user_left",
        }
    }
}

/// Joins or leaves of a large channel whose notice is still to come.
#[derive(Debug, Default)]
pub struct Pending {
    /// When the last notice went out.
    last: Option<SteadyTime>,
    count: usize,
    latest: Option<Arc<str>>,
}

/// The least time between two notices of a channel beyond the limit.
const NOTICE_INTERVAL: Duration = Duration::from_secs(1);

/// The time between two notices is at least this for each subscriber: the more subscribers, the longer a storm of joins
/// takes, and each notice goes to all of them. 10,000 subscribers make it 4 seconds.
const NOTICE_INTERVAL_EACH: Duration = Duration::from_micros(400);

fn notice_interval(subscribers: usize) -> Duration {
    let subscribers = u32::try_from(subscribers).unwrap_or(u32::MAX);
    NOTICE_INTERVAL.max(NOTICE_INTERVAL_EACH.saturating_mul(subscribers))
}

/// The decision about the notice of a join or leave.
#[derive(Debug, PartialEq, Eq)]
pub enum Tell {
    /// A notice now, that stands for this many clients (`None`: a notice for each, as below the limit).
    Now(Option<usize>),
    /// Nothing now.
    Later,
}

impl Pending {
    /// Decides about one more join or leave, of a channel that has `subscribers`.
    pub fn add(
        &mut self,
        id: &Arc<str>,
        subscribers: usize,
        limit: usize,
        now: SteadyTime,
    ) -> Tell {
        if subscribers <= limit {
            // the notice stands for those that still wait, too
            let waiting = self.take_all(now).map(|(_, count)| count + 1);
            return Tell::Now(waiting);
        }
        if self.count == 0 && self.is_due(subscribers, now) {
            self.last = Some(now);
            return Tell::Now(Some(1));
        }
        self.wait(id)
    }

    /// Adds one more to a later notice.
    pub fn wait(&mut self, id: &Arc<str>) -> Tell {
        self.count += 1;
        self.latest = Some(Arc::clone(id));
        Tell::Later
    }

    /// All that waits, due or not: the latest client, and how many it stands for.
    pub fn take_all(&mut self, now: SteadyTime) -> Option<(Arc<str>, usize)> {
        let latest = self.latest.take()?;
        self.last = Some(now);
        Some((latest, std::mem::take(&mut self.count)))
    }

    /// Takes the notice that is due: the latest client, and the number of clients that it stands for.
    pub fn take_due(&mut self, subscribers: usize, now: SteadyTime) -> Option<(Arc<str>, usize)> {
        if !self.is_due(subscribers, now) {
            return None;
        }
        self.take_all(now)
    }

    fn is_due(&self, subscribers: usize, now: SteadyTime) -> bool {
        self.last
            .is_none_or(|last| now.since(last) >= notice_interval(subscribers))
    }

    pub fn is_waiting(&self) -> bool {
        self.count > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::memory_presence::MemoryPresence;

    const MICROSECOND: Duration = Duration::from_micros(1);

    #[test]
    fn beyond_the_limit_one_notice_a_second_stands_for_all() {
        let id = |name: &str| Arc::from(name);
        let mut pending = Pending::default();
        let start = SteadyTime::START;
        assert_eq!(pending.add(&id("a"), 2, 2, start), Tell::Now(None));
        assert_eq!(pending.add(&id("b"), 3, 2, start), Tell::Now(Some(1)));
        assert_eq!(
            pending.add(&id("c"), 4, 2, start + MICROSECOND),
            Tell::Later
        );
        assert_eq!(
            pending.add(&id("d"), 5, 2, start + MICROSECOND * 2),
            Tell::Later
        );
        assert_eq!(pending.take_due(4, start + MICROSECOND * 3), None);
        assert_eq!(
            pending.take_due(4, start + NOTICE_INTERVAL),
            Some((id("d"), 2))
        );
        assert_eq!(pending.take_due(4, start + NOTICE_INTERVAL * 3), None);
        let start = start + NOTICE_INTERVAL;
        assert_eq!(
            pending.add(&id("e"), 3, 2, start + MICROSECOND),
            Tell::Later
        );
        assert_eq!(
            pending.add(&id("f"), 2, 2, start + MICROSECOND * 2),
            Tell::Now(Some(2))
        );
        assert_eq!(pending.take_due(4, start + NOTICE_INTERVAL * 3), None);
        assert!(!pending.is_waiting());
    }

    #[test]
    fn of_two_totals_the_newer_one_counts() {
        let total = |members, version| Total { members, version };
        let mut members = Members::default();
        members.note(total(2, 2));
        // the outcome of an earlier join comes later
        members.note(total(1, 1));
        assert_eq!(members.total, total(2, 2));
        members.note(total(1, 3));
        assert_eq!(members.total.members, 1);
    }

    #[test]
    fn publishers_wait_for_what_is_in_flight_and_for_those_behind() {
        let config = crate::settings::config::Config::default();
        let channel = Channel::new(
            ChannelKey::nth(0),
            "a",
            ChannelKind::Public,
            config.of_channel("a"),
            &MemoryPresence::default(),
        );
        let channel = Arc::new(channel);
        let mut first = InFlight::new(&channel, 60);
        assert!(!channel.is_full(60));
        first.join(InFlight::new(&channel, 1));
        assert!(channel.is_full(60));
        let behind = BehindWith::new(&first);
        drop(first);
        assert!(behind.is(&channel) && channel.is_full(60));
        drop(behind);
        assert!(!channel.is_full(0));
    }

    #[test]
    fn the_more_listen_the_rarer_are_notices() {
        let id = Arc::from("a");
        let mut pending = Pending::default();
        let start = SteadyTime::START;
        assert_eq!(pending.add(&id, 10_000, 2, start), Tell::Now(Some(1)));
        assert_eq!(
            pending.add(&id, 10_000, 2, start + NOTICE_INTERVAL * 3),
            Tell::Later
        );
        assert_eq!(pending.take_due(10_000, start + NOTICE_INTERVAL * 3), None);
        assert_eq!(
            pending.take_due(10_000, start + NOTICE_INTERVAL * 4),
            Some((id, 1))
        );
    }
}
