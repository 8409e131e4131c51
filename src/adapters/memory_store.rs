//! Nothing is saved: what the process knows ends with it.

use crate::ports::store::{Change, Committed, Health, NotTaken, Saved, Store, StoreError};
use crate::wire::frame::EncodedFrame;
use std::time::Duration;

#[derive(Debug, Default)]
pub struct MemoryStore;

impl Store for MemoryStore {
    fn open(&self) -> Result<Saved, StoreError> {
        Ok(Saved::default())
    }

    fn save(
        &self,
        _change: Change<&EncodedFrame>,
        committed: Option<Committed>,
    ) -> Result<(), NotTaken> {
        if let Some(committed) = committed {
            committed.complete(Ok(()));
        }
        Ok(())
    }

    fn note_published(&self, _: &str, _: bool) -> bool {
        true
    }

    fn is_busy(&self) -> bool {
        false
    }

    fn health(&self) -> Health {
        Health {
            kind: "memory",
            ..Health::default()
        }
    }

    fn is_durable(&self) -> bool {
        false
    }

    fn close(&self, _within: Duration) {}
}
