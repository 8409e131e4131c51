//! Tantor, the real-time messenger: a messaging server in Rust, inside the Python process that uses it.
//!
//! The folders are the layers, lowest first; a test holds their order. `docs/architecture.md` has the map.

pub mod adapters;
pub mod base;
pub mod core;
pub mod host;
pub mod link;
pub mod net;
pub mod node;
pub mod ports;
pub mod settings;
pub mod shard;
pub mod wire;

#[cfg(feature = "python")]
mod py;
