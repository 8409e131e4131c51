//! The interfaces between the layers: the calls on a messenger, and the traits that a broker, a store and others implement.

pub mod auth;
pub mod broker;
pub mod calls;
pub mod claim;
pub mod durability;
pub mod mail;
pub mod presence;
pub mod saved_sessions;
pub mod sessions;
pub mod stats;
pub mod store;
pub mod stream_log;
