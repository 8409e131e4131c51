//! The composition root: listens, starts, drains and ends.

mod adapters;
mod housekeeping;
mod link;
pub mod reach;
pub mod server;
