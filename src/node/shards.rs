//! The shards as the rest of the process reaches them: deliveries to their inboxes, and their gauges.

use super::delivery::{ConnectionId, Delivery, ShardHandle};
use crate::base::priority::Priority;
use crate::settings::socket_limits::SocketLimits;
use crate::wire::frame::EncodedFrame;
use arc_swap::{ArcSwap, Guard};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// The longest time that a publisher of the application waits for a full inbox. Then the publisher goes on.
const MAX_HOLD: Duration = Duration::from_secs(5);

/// The shards of a server; none while no server runs.
pub struct Shards {
    handles: ArcSwap<Vec<Arc<ShardHandle>>>,
    is_draining: AtomicBool,
    limits: ArcSwap<SocketLimits>,
}

/// Input from sockets that is not complete yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// Sockets whose request head has not arrived in full.
    pub handshakes: usize,
    /// Bytes of messages and request heads that have not arrived in full.
    pub unfinished_bytes: usize,
}

impl Shards {
    pub fn new(limits: SocketLimits) -> Self {
        Self {
            handles: ArcSwap::default(),
            is_draining: AtomicBool::new(false),
            limits: ArcSwap::from_pointee(limits),
        }
    }

    /// Sets the shards whose inboxes get all deliveries from now on.
    pub fn attach(&self, handles: Vec<Arc<ShardHandle>>) {
        self.is_draining.store(false, Ordering::Release);
        self.handles.store(Arc::new(handles));
    }

    pub fn detach(&self) {
        self.handles.store(Arc::default());
    }

    pub fn all(&self) -> Arc<Vec<Arc<ShardHandle>>> {
        self.handles.load_full()
    }

    /// As `all`, for a short use: counts no reference.
    pub(super) fn load(&self) -> Guard<Arc<Vec<Arc<ShardHandle>>>> {
        self.handles.load()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.handles.load().is_empty()
    }

    /// Tells every shard to close its connections and to end.
    pub(super) fn drain(&self) {
        self.is_draining.store(true, Ordering::Release);
        for handle in self.handles.load().iter() {
            handle.inbox.push(Delivery::Drain);
        }
    }

    pub fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Acquire)
    }

    /// Sets how many connections the process has room for.
    pub fn set_limits(&self, limits: SocketLimits) {
        self.limits.store(Arc::new(limits));
    }

    pub fn limits(&self) -> SocketLimits {
        **self.limits.load()
    }

    /// Puts a delivery in the inbox of a shard. Without such a shard, drops the delivery.
    pub(super) fn push(&self, shard: usize, delivery: Delivery) {
        if let Some(handle) = self.handles.load().get(shard) {
            handle.inbox.push(delivery);
        }
    }

    /// Sends a frame to one connection, behind everything that was published before.
    pub(super) fn push_direct(&self, connection_id: ConnectionId, frame: EncodedFrame) {
        self.push(
            connection_id.shard,
            Delivery::Direct {
                connection_id,
                frame,
                priority: Priority::Normal,
                receipt: None,
            },
        );
    }

    /// True while the inbox of a shard is full: clients that publish are read no further.
    pub fn is_congested(&self) -> bool {
        let handles = self.handles.load();
        handles.iter().any(|handle| handle.inbox.is_full())
    }

    /// True while a shard has not written its large fan-outs.
    pub fn has_backlog(&self) -> bool {
        let handles = self.handles.load();
        handles
            .iter()
            .any(|handle| handle.has_backlog.load(Ordering::Relaxed))
    }

    /// Wakes every shard, so that the shard checks again the connections that it does not read.
    pub fn wake(&self) {
        for handle in self.handles.load().iter() {
            handle.inbox.wake();
        }
    }

    /// Blocks until every inbox has room, but at most `MAX_HOLD` for each.
    pub(super) fn wait_for_room(&self) {
        for handle in self.handles.load().iter() {
            handle.inbox.wait_for_room(MAX_HOLD);
        }
    }

    /// Bytes in the inboxes.
    pub fn inbox_bytes(&self) -> usize {
        let handles = self.handles.load();
        handles.iter().map(|handle| handle.inbox.bytes()).sum()
    }

    /// Frames and bytes that wait for sockets, those in the inboxes included.
    pub fn queued(&self) -> (usize, usize) {
        self.handles
            .load()
            .iter()
            .fold((0, 0), |(frames, bytes), handle| {
                (
                    frames + handle.inbox.len() + handle.queued_frames.load(Ordering::Relaxed),
                    bytes + handle.inbox.bytes() + handle.queued_bytes.load(Ordering::Relaxed),
                )
            })
    }

    /// Input from sockets that is not complete yet.
    pub fn incoming(&self) -> Incoming {
        let handles = self.handles.load();
        let sum = |gauge: fn(&ShardHandle) -> &AtomicUsize| {
            let values = handles
                .iter()
                .map(|handle| gauge(handle).load(Ordering::Relaxed));
            values.sum()
        };
        Incoming {
            handshakes: sum(|handle| &handle.handshakes),
            unfinished_bytes: sum(|handle| &handle.unfinished_bytes),
        }
    }
}
