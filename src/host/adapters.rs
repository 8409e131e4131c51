//! The implementations of the ports, chosen by the settings.

use crate::adapters::memory_broker::{BrokerLimits, MemoryBroker};
use crate::adapters::memory_mail::{MailLimits, MemoryMail};
use crate::adapters::memory_presence::MemoryPresence;
use crate::adapters::memory_sessions::MemorySessions;
use crate::adapters::memory_store::MemoryStore;
use crate::adapters::sqlite::{Limits, SqliteStore};
use crate::node::Ports;
use crate::ports::store::Store;
use crate::settings::config::Config;
use crate::settings::database::Database;
use std::sync::Arc;

/// The ports of a node on top of a store.
pub fn ports_over(config: &Config, store: Arc<dyn Store>) -> Ports {
    let limits = BrokerLimits::of_settings(config);
    let mail_limits = MailLimits::of_settings(config);
    Ports {
        broker: Arc::new(MemoryBroker::new(store.clone(), limits)),
        mail: Arc::new(MemoryMail::new(store.clone(), mail_limits)),
        presence: Arc::new(MemoryPresence::default()),
        sessions: Arc::new(MemorySessions::new(store.clone(), config.resume_ttl)),
        store,
    }
}

/// The store that the setting `database` names.
pub fn store_of(config: &Config) -> Arc<dyn Store> {
    match &config.database {
        Database::Sqlite { path, .. } => {
            let limits = Limits {
                file_bytes: config.database_bytes,
                queue_bytes: config.database_queue_bytes,
                key_ttl: config.idempotency_ttl,
                keys: config
                    .max_idempotency_keys
                    .min(keys_in(config.database_bytes)),
            };
            Arc::new(SqliteStore::new(path, limits))
        }
        Database::Memory => Arc::new(MemoryStore),
    }
}

/// The number of idempotency keys of one kind that a file of this size saves, besides its messages.
fn keys_in(bytes: u64) -> usize {
    usize::try_from(bytes / BYTES_PER_KEY).unwrap_or(usize::MAX)
}

/// Many times the size of a key, because keys may take only a small part of the file.
const BYTES_PER_KEY: u64 = 8192;
