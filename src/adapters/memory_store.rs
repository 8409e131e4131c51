//! The store that saves nothing: the state of the process ends with the process.

use crate::base::completion::{Later, Progress};
use crate::ports::durability::{Committed, Durability, Health, NotTaken, StoreError};
use crate::ports::saved_sessions::{SavedSessions, SessionChange};
use crate::ports::store::{Saved, Store};
use crate::ports::stream_log::{Logged, StreamChange, StreamLog};
use crate::wire::frame::EncodedFrame;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

#[derive(Debug, Default)]
pub struct MemoryStore;

impl Durability for MemoryStore {
    fn barrier(&self, committed: Committed) -> Result<(), NotTaken> {
        committed.complete(Ok(()));
        Ok(())
    }

    fn health(&self) -> Health {
        Health {
            kind: "memory".into(),
            ..Health::default()
        }
    }

    fn is_durable(&self) -> bool {
        false
    }
}

impl StreamLog for MemoryStore {
    fn append(
        &self,
        _: StreamChange<&EncodedFrame>,
        committed: Option<Committed>,
    ) -> Result<(), NotTaken> {
        committed.map_or(Ok(()), |committed| self.barrier(committed))
    }

    fn read(
        &self,
        _: &Arc<str>,
        _: RangeInclusive<u64>,
        _: &mut Later<'_, Vec<Logged>, StoreError>,
    ) -> Progress<Vec<Logged>, StoreError> {
        Progress::Ended(Ok(Vec::new()))
    }

    fn note_published(&self, _: &str, _: bool) -> bool {
        true
    }

    fn is_busy(&self) -> bool {
        false
    }
}

impl SavedSessions for MemoryStore {
    fn save(
        &self,
        _: SessionChange<&EncodedFrame>,
        committed: Option<Committed>,
    ) -> Result<(), NotTaken> {
        committed.map_or(Ok(()), |committed| self.barrier(committed))
    }
}

impl Store for MemoryStore {
    fn open(&self) -> Result<Saved, StoreError> {
        Ok(Saved::default())
    }

    fn close(&self, _within: Duration) {}
}
