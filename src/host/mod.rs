//! The composition root: listens, starts, drains and ends.

pub mod server;
