//! Where a process saves what has to outlive it.

mod memory;
mod sqlite;

pub use memory::MemoryStore;
pub use sqlite::{Limits, SqliteStore};

use crate::broker::StreamPosition;
use crate::frame::EncodedFrame;
use crate::history::Kept;
use bytes::Bytes;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub trait Store: Send + Sync {
    fn open(&self) -> Result<Saved, StoreError>;
    fn save(&self, change: Change, committed: Option<Committed>);
    fn health(&self) -> Health;
    fn is_durable(&self) -> bool;
    fn close(&self, within: Duration);
}

/// Hears once what became of a change, on the store's own thread.
pub type Committed = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

#[derive(Clone, Debug)]
pub struct StoreError(pub String);

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Debug, Default)]
pub struct Saved {
    pub streams: Vec<SavedStream>,
    pub clients: Vec<SavedClient>,
    pub mail: Vec<SavedMail>,
}

#[derive(Clone, Debug)]
pub struct SavedStream {
    pub channel: Arc<str>,
    pub epoch: u64,
    pub top: u64,
    pub kind: Box<str>,
    pub durable: bool,
    pub publications: Vec<Kept>,
}

#[derive(Clone, Debug)]
pub struct SavedClient {
    pub id: Arc<str>,
    pub secret: [u8; 16],
    pub expires: u64,
    pub joined: u64,
    pub last_ping: u64,
    pub is_connected: bool,
    pub channels: Vec<Arc<str>>,
    pub user_data: Option<Bytes>,
}

#[derive(Clone, Debug)]
pub struct SavedMail {
    pub client: Arc<str>,
    pub number: u64,
    pub message: u64,
    pub expires: u64,
    pub is_emergency: bool,
    pub frame: EncodedFrame,
}

#[derive(Debug)]
pub enum Change {
    Published {
        channel: Arc<str>,
        position: StreamPosition,
        at: u64,
        expires: u64,
        frame: EncodedFrame,
        durable: bool,
    },
    StreamOpened {
        channel: Arc<str>,
        epoch: u64,
        kind: Box<str>,
        durable: bool,
    },
    Trimmed {
        channel: Arc<str>,
        through: u64,
    },
    StreamForgotten {
        channel: Arc<str>,
    },
    Mailed {
        client: Arc<str>,
        number: u64,
        message: u64,
        expires: u64,
        is_emergency: bool,
        frame: EncodedFrame,
        durable: bool,
    },
    Unmailed {
        client: Arc<str>,
        numbers: Vec<u64>,
    },
    ClientSaved {
        client: Box<SavedClient>,
    },
    ClientForgotten {
        id: Arc<str>,
    },
}

#[derive(Clone, Debug, Default)]
pub struct Health {
    pub kind: &'static str,
    pub path: Option<String>,
    pub is_degraded: bool,
    pub error: Option<String>,
    pub queued_changes: usize,
    pub queued_bytes: usize,
    pub commits: u64,
    pub changes_saved: u64,
    pub changes_lost: u64,
    pub file_bytes: u64,
}
