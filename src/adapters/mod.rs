//! Implementations of the ports.

pub mod admit_all;
pub mod memory_broker;
pub mod memory_mail;
pub mod memory_presence;
pub mod memory_sessions;
pub mod memory_store;
pub mod sqlite;
