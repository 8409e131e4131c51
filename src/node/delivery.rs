//! The deliveries that the inbox of a shard takes, and the ids of connections.

use super::adoption::Adoption;
use super::attempt::LateClaim;
use super::channel::InFlight;
use crate::base::error::{Disconnect, Error};
use crate::base::priority::{Priority, SlowConsumer};
use crate::core::hub::{ChannelKey, Slot};
use crate::core::inbox::{Inbox, Weigh};
use crate::core::receipt::Receipt;
use crate::ports::auth::Verdict;
use crate::ports::mail::Address;
use crate::wire::frame::EncodedFrame;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};

/// Where a connection is: its shard, its slot there, and which of the slot's connections it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionId {
    pub shard: usize,
    pub slot: Slot,
    pub generation: u32,
}

impl ConnectionId {
    /// One for each connection of the process; never 0.
    pub fn number(self) -> u64 {
        (self.shard as u64 + 1) << 32 | u64::from(self.generation)
    }

    /// The connection in the words of the port for mail.
    pub fn address(self) -> Address {
        Address([self.shard as u32, self.slot, self.generation])
    }

    /// The connection that `address` has returned the address of.
    pub fn of_address(Address([shard, slot, generation]): Address) -> Self {
        Self {
            shard: shard as usize,
            slot,
            generation,
        }
    }
}

/// How a publication is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeliveryOptions {
    /// `None` for what is not kept.
    pub offset: Option<u64>,
    pub priority: Priority,
    /// What the shard does when the queue of a connection exceeds `max_pending_bytes`.
    pub policy: SlowConsumer,
}

#[derive(Debug)]
pub enum Delivery {
    /// A connected socket for the shard to serve.
    Adopt(Adoption),
    /// For a connection that waits to be admitted.
    Awaited {
        connection_id: ConnectionId,
        awaited: Box<Awaited>,
    },
    Subscribe {
        connection_id: ConnectionId,
        channel: ChannelKey,
    },
    Unsubscribe {
        connection_id: ConnectionId,
        channel: ChannelKey,
    },
    /// To the local subscribers of a channel.
    Publish {
        channel: InFlight,
        frame: EncodedFrame,
        delivery_options: DeliveryOptions,
    },
    /// Publications of a channel are lost: to the local subscribers that understand `gap` messages.
    Gap {
        channel: ChannelKey,
        frame: EncodedFrame,
    },
    /// To one connection.
    Direct {
        connection_id: ConnectionId,
        frame: EncodedFrame,
        priority: Priority,
        /// Told when the socket has taken the frame.
        receipt: Option<Arc<Receipt>>,
    },
    /// Ends one connection, behind what was delivered to it before.
    Close {
        connection_id: ConnectionId,
        disconnect: Disconnect,
        frame: EncodedFrame,
    },
    /// The peer has shut its side: the connection ends behind what was delivered to it before.
    Ended { connection_id: ConnectionId },
    /// An emergency, for every connection that existed when the emergency was sent. It overtakes everything that waits.
    Urgent {
        /// The number of this emergency. A connection that knows this number, or a higher one, began later and does not
        /// get it.
        number: u64,
        frame: EncodedFrame,
        receipt: Option<Arc<Receipt>>,
    },
    /// Say goodbye to every client.
    Drain,
    /// Ends the shard, and closes the connections that are left.
    Finish,
}

/// What a connection waits for before its welcome.
#[derive(Debug)]
pub enum Awaited {
    /// Whether the connection is admitted.
    Verdict(Result<Verdict, Error>),
    /// Whether the connection has claimed its client.
    Claim(LateClaim),
}

impl Weigh for Delivery {
    fn weight(&self) -> usize {
        let frame = match self {
            Delivery::Publish { frame, .. }
            | Delivery::Gap { frame, .. }
            | Delivery::Direct { frame, .. }
            | Delivery::Close { frame, .. }
            | Delivery::Urgent { frame, .. } => frame.len(),
            Delivery::Adopt(_)
            | Delivery::Awaited { .. }
            | Delivery::Subscribe { .. }
            | Delivery::Unsubscribe { .. }
            | Delivery::Ended { .. }
            | Delivery::Drain
            | Delivery::Finish => 0,
        };
        frame + size_of::<Delivery>()
    }
}

/// A shard as the rest of the process sees it: its inbox, and gauges that it keeps up to date.
#[derive(Debug)]
pub struct ShardHandle {
    pub inbox: Inbox<Delivery>,
    /// Frames that wait for sockets, after the last turn.
    pub queued_frames: AtomicUsize,
    /// Bytes that wait for sockets, after the last turn.
    pub queued_bytes: AtomicUsize,
    /// Bytes of messages and request heads that have not arrived in full.
    pub unfinished_bytes: AtomicUsize,
    /// Connections in their handshake or in their close.
    pub handshakes: AtomicUsize,
    /// The shard has not finished its large fan-outs: those who publish such are read no further.
    pub has_backlog: AtomicBool,
}

impl ShardHandle {
    pub fn new(inbox_bytes: usize) -> Self {
        Self {
            inbox: Inbox::new(inbox_bytes),
            queued_frames: AtomicUsize::new(0),
            queued_bytes: AtomicUsize::new(0),
            unfinished_bytes: AtomicUsize::new(0),
            handshakes: AtomicUsize::new(0),
            has_backlog: AtomicBool::new(false),
        }
    }
}
