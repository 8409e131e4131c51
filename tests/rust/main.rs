//! The core without Python: layers, order, the wire byte by byte, and the contracts of the traits.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod admission;
mod adoption;
mod adversarial_mail;
mod adversarial_presence;
mod adversarial_sessions;
mod adversarial_store;
mod adversary;
mod backups;
mod calls;
mod contract;
mod contract_failures;
mod counted;
mod full;
mod kept;
mod lanes;
mod late_claims;
mod layers;
mod link;
mod logged;
mod mail_contract;
mod mail_tested;
mod memory_broker;
mod messages;
mod notices;
mod opening;
mod oracle;
mod order;
mod peer;
mod presence_contract;
mod present;
mod recovery;
mod saved_keys;
mod sessions;
mod sessions_contract;
mod shards;
mod sqlite;
mod stores;
mod two_nodes;
mod whole_node;
mod whole_node_client;
mod wire;
