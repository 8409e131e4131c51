//! Implementations of the ports.

pub mod memory_broker;
pub mod memory_store;
pub mod sqlite;
