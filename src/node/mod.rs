//! The state of the process, and the operations on it. `wiring.rs` puts the parts together.
//!
//! `base/lock_rank.rs` has the order of locks.

mod adoption;
mod answer;
mod asker;
mod away;
mod backpressure;
mod channel;
mod channels;
mod client;
mod client_calls;
mod clients;
mod counters;
mod delivery;
mod departure;
mod emergencies;
mod emergency;
mod empty;
mod encode;
mod entering;
mod entry;
mod execute;
mod gate;
mod mail;
mod mail_upkeep;
mod mailroom;
mod membership;
mod publish;
mod question;
mod recovery;
mod report;
mod restore;
mod server_frames;
mod session;
mod shards;
mod sink;
mod stamps;
mod storage;
mod tick;
mod token;
mod upkeep;
mod wiring;

pub use adoption::{Adoption, NotAdopted, ReadRequest};
pub use answer::NodeCalls;
pub use asker::Asker;
pub use backpressure::{Backpressure, FanOut};
pub use channel::{BehindWith, Channel, InFlight, Notice};
pub use client::Client;
pub use client_calls::ClientCalls;
pub use counters::Counters;
pub use delivery::{ConnectionId, Delivery, DeliveryOptions, ShardHandle};
pub use session::{ConnectRequest, Connected};
pub use shards::{Incoming, Shards};
pub use wiring::{Node, Ports};
