//! The traits that a broker and a store implement.

pub mod broker;
pub mod store;
