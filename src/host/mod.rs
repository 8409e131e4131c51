//! The composition root: listens, starts, drains and ends.

mod housekeeping;
pub mod server;
