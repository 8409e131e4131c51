//! Bytes and JSON on the wire: HTTP heads, frames, commands in, messages out. No I/O.

pub mod client_module;
pub mod command;
pub mod frame;
pub mod frame_reader;
pub mod http;
pub mod json_limits;
pub mod messages;
