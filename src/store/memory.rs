//! Streams in the memory of this process. It keeps each stream's position; publications are not kept.

use super::Store;
use crate::broker::StreamPosition;
use crate::frame::EncodedFrame;
use parking_lot::Mutex;
use std::collections::HashMap;

#[derive(Debug, Default)]
pub struct MemoryStore {
    tops: Mutex<HashMap<Box<str>, StreamPosition>>,
}

impl Store for MemoryStore {
    fn top(&self, channel: &str) -> Option<StreamPosition> {
        self.tops.lock().get(channel).copied()
    }

    fn append(&self, channel: &str, position: StreamPosition, _frame: &EncodedFrame) {
        let mut tops = self.tops.lock();
        if let Some(top) = tops.get_mut(channel) {
            *top = position;
        } else {
            tops.insert(channel.into(), position);
        }
    }

    fn forget(&self, channel: &str) {
        self.tops.lock().remove(channel);
    }
}
