//! The sockets that listen: made, given their options, and closed.

pub mod listener;
pub mod peer;
pub mod unix_socket;
