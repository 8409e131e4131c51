//! The bounds of mailboxes and of idempotency keys.

use crate::settings::config::Config;
use std::time::Duration;

/// The bounds of mailboxes and keys.
#[derive(Clone, Copy, Debug)]
pub struct MailLimits {
    /// Messages of one mailbox.
    pub mailbox_size: usize,
    pub mailbox_bytes: usize,
    /// Bytes of all mailboxes.
    pub mailboxes_bytes: usize,
    /// For how long an emergency is kept.
    pub emergency_ttl: Duration,
    /// The time after which an emergency that was not acknowledged is handed over again.
    pub ack_timeout: Duration,
    pub key_ttl: Duration,
    /// How many idempotency keys are known.
    pub keys: usize,
}

impl MailLimits {
    pub fn of_settings(config: &Config) -> Self {
        Self {
            mailbox_size: config.mailbox_size,
            mailbox_bytes: config.mailbox_bytes,
            mailboxes_bytes: config.mailboxes_bytes,
            emergency_ttl: config.emergency_ttl,
            ack_timeout: config.ack_timeout,
            key_ttl: config.idempotency_ttl,
            keys: config.max_idempotency_keys,
        }
    }
}
