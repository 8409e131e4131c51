//! The first request on a connection: the head, parsed once, and what the head asks for. No I/O.

pub mod head;
pub mod pages;
pub mod request;
pub mod upgrade;
