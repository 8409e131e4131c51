//! Presence keeps which clients are on each channel: the members of all processes, in the order in which they came.
//!
//! Notices of joins and leaves are not presence's work: the process that made a change publishes its notice through the
//! broker, because a process merges the notices of large channels.

use super::broker::Failure;
use super::claim::ClaimNumber;
use crate::base::completion::{Later, Progress};
use std::sync::Arc;

/// The most members in one page.
pub const MAX_PAGE: usize = 1000;

/// The members of all channels, as one process reaches them.
pub trait Presence: Send + Sync {
    /// Sets the sink of this process.
    ///
    /// Ordering: once, before the first `open`. Errors: none. Blocking: no.
    fn attach(&self, sink: &Arc<dyn PresenceSink>);

    /// The presence of one channel. Two handles with one name reach the same members, until `close`. A process keeps a
    /// handle for as long as the process has members there.
    ///
    /// Ordering: any. Errors: none. Blocking: no.
    fn open(&self, channel: &Arc<str>) -> Arc<dyn ChannelPresence>;

    /// Ends the use of a channel on which this process has no members, or of which all members were removed. Joins of this
    /// process that are under way may still take effect, and the caller lets leaves follow.
    ///
    /// Ordering: before every `open` that follows. Errors: none. Blocking: no.
    fn close(&self, channel: &str);

    /// Removes all members of a channel, those of other processes included.
    ///
    /// Ordering: before every join that is called after `remove` has returned. A join that was called earlier may take
    /// effect later: the caller of `remove` lets a leave follow such a join. Errors: none; the adapter tries again.
    /// Blocking: no.
    fn remove(&self, channel: &str);
}

/// The members of one channel.
///
/// Calls for one client on one channel take effect in the order of the calls, through whichever handle, and end in this
/// order: the completion of one call has returned before that of the next call runs. Calls for different clients take
/// effect and end in any order. An outcome never comes inside the call on the caller's own thread: an outcome that is known
/// at once is `Progress::Ended`. So a caller may hold a lock that the receiver takes.
///
/// No call under an older claim than the member's changes anything.
pub trait ChannelPresence: Send + Sync {
    /// Makes a client a member, or moves a member to a newer claim. `claim` is that of the client's latest connection;
    /// `None` for a client that was never connected, older than every claim. A member may join again.
    ///
    /// Ordering: in the order of the calls for this client. Errors: `Failure`, but for `Closed`; after `Unknown` the client
    /// may be a member, until a `leave`. Blocking: no.
    fn join(
        &self,
        client: &Arc<str>,
        claim: Option<ClaimNumber>,
        later: &mut Later<'_, Arrived, Failure>,
    ) -> Progress<Arrived, Failure>;

    /// Ends the membership of a client. Does nothing for a client that has moved to a newer claim, or is no member.
    ///
    /// Ordering: in the order of the calls for this client. Errors: none, the adapter tries again; a completion that is
    /// dropped reports `Unknown`. Blocking: no.
    fn leave(
        &self,
        client: &Arc<str>,
        claim: Option<ClaimNumber>,
        later: &mut Later<'_, Departed, Failure>,
    ) -> Progress<Departed, Failure>;

    /// The number of members.
    ///
    /// Ordering: behind all calls that have ended. Errors: `Failure`, but for `Closed` and `Unknown`. Blocking: no.
    fn count(&self, later: &mut Later<'_, Total, Failure>) -> Progress<Total, Failure>;

    /// A page of at most `limit` members (and at most `MAX_PAGE`), in the order in which they came: the first page, or
    /// the page behind a cursor. A member that stays while the pages are read is in one of them.
    ///
    /// Ordering: behind all calls that have ended. Errors: as `count`. Blocking: no.
    fn page(
        &self,
        after: Option<Cursor>,
        limit: usize,
        later: &mut Later<'_, PresencePage, Failure>,
    ) -> Progress<PresencePage, Failure>;

    /// At least the clients that this process has called `join` for, and not `leave` since. May have others, so the
    /// caller checks each. Answered from the memory of this process.
    ///
    /// Ordering: behind all calls. Errors: none. Blocking: no.
    fn own(&self) -> Vec<Arc<str>>;
}

/// What presence tells a process.
pub trait PresenceSink: Send + Sync {
    /// The members of this process may be lost: the process was out of reach for too long. The process then joins them
    /// anew, without notices.
    ///
    /// Ordering: behind the loss. Errors: none. Blocking: no; takes no lock but a leaf, so an adapter may hold its own.
    fn lease_lost(&self);
}

/// The number of members at one moment. Exact while nobody joins or leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Total {
    pub members: usize,
    /// Increases with each change of the members: of two totals, that with the higher version is newer.
    pub version: u64,
}

/// The outcome of a join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrived {
    pub total: Total,
    /// The client was no member before.
    pub is_new: bool,
}

/// The outcome of a leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Departed {
    pub total: Total,
    /// The client is a member under a newer claim, and stays.
    pub has_moved: bool,
}

/// A place between two members of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor(pub u64);

/// Members of a channel, in the order in which they came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PresencePage {
    pub members: Vec<Arc<str>>,
    /// The number of all members.
    pub total: Total,
    /// Where the next page begins; `None` for the last page.
    pub next: Option<Cursor>,
}
