//! The composition root: listens, starts, drains and ends.

mod adapters;
mod housekeeping;
pub mod server;
