//! The table of settings and the validated values.

pub mod application;
pub mod channel_kind;
pub mod channel_settings;
pub mod config;
pub mod database;
pub mod hosts;
pub mod setting;
pub mod socket_limits;
pub mod subprotocols;
