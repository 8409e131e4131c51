//! The link: calls of other processes on the messenger of this one, over a Unix socket.
//!
//! `frame.rs` cuts the bytes of a socket into frames, `message.rs` says what the frames mean. `calling.rs` is the end of
//! the process that calls, `serving.rs` the end of the process that has the node.

pub mod calling;
pub mod frame;
pub mod message;
pub mod rendezvous;
pub mod serving;
