//! State in memory: history, mailboxes, queues, rosters. No I/O.

pub mod events;
pub mod history;
pub mod hub;
pub mod idempotency;
pub mod inbox;
pub mod interest;
pub mod log_throttle;
pub mod mailbox;
pub mod outbound;
pub mod receipt;
pub mod resume_secrets;
pub mod roster;
pub mod wheel;
