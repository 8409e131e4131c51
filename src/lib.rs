//! Tantor, the real-time messenger: a messaging server in Rust, inside the Python process that uses it.
//!
//! `docs/architecture.md` has the layers; a test holds them.

pub mod broker;
pub mod capacity;
pub mod channel_kind;
pub mod channel_settings;
pub mod client_module;
pub mod command;
pub mod config;
pub mod connection;
pub mod database;
pub mod error;
pub mod events;
pub mod fork;
pub mod frame;
pub mod handshake;
pub mod history;
pub mod hosts;
pub mod hub;
pub mod idempotency;
pub mod inbox;
pub mod interest;
pub mod json_limits;
pub mod listener;
pub mod lock_rank;
pub mod log_throttle;
pub mod mailbox;
pub mod misspelling;
pub mod node;
pub mod outbound;
pub mod presence;
pub mod priority;
pub mod protocol;
pub mod random;
pub mod receipt;
pub mod server;
pub mod shard;
pub mod socket_limits;
pub mod store;
pub mod subprotocols;
pub mod sync;
#[cfg(unix)]
pub mod unix_socket;
pub mod wheel;

#[cfg(feature = "python")]
mod py;
