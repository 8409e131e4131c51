//! The sockets that listen: made, given their options, and closed.

pub mod listener;
pub mod unix_socket;
