//! The broker of a single process: a lock and a counter per channel.

use super::{Broker, HandOver, Stream, StreamPosition};
use crate::store::Store;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

pub struct MemoryBroker {
    streams: Mutex<HashMap<Box<str>, Arc<MemoryStream>>>,
    store: Arc<dyn Store>,
    /// The epoch of streams that the store knows nothing of.
    epoch: u64,
}

impl MemoryBroker {
    /// `epoch` must differ from that of every earlier run.
    pub fn new(store: Arc<dyn Store>, epoch: u64) -> Self {
        Self {
            streams: Mutex::new(HashMap::new()),
            store,
            epoch,
        }
    }
}

impl Broker for MemoryBroker {
    fn open(&self, channel: &str) -> Arc<dyn Stream> {
        let mut streams = self.streams.lock();
        if let Some(stream) = streams.get(channel) {
            return Arc::clone(stream) as Arc<dyn Stream>;
        }
        let top = self.store.top(channel);
        let state = StreamState {
            top: top.unwrap_or(StreamPosition {
                epoch: self.epoch,
                offset: 0,
            }),
            is_closed: false,
        };
        let stream = Arc::new(MemoryStream {
            channel: channel.into(),
            state: Mutex::new(state),
            store: Arc::clone(&self.store),
        });
        streams.insert(channel.into(), Arc::clone(&stream));
        stream
    }

    fn close(&self, channel: &str) {
        let stream = self.streams.lock().remove(channel);
        if let Some(stream) = stream {
            stream.state.lock().is_closed = true;
        }
        self.store.forget(channel);
    }
}

struct MemoryStream {
    channel: Box<str>,
    state: Mutex<StreamState>,
    store: Arc<dyn Store>,
}

struct StreamState {
    top: StreamPosition,
    is_closed: bool,
}

impl Stream for MemoryStream {
    fn publish(&self, hand_over: &mut HandOver<'_>) -> Option<StreamPosition> {
        let mut state = self.state.lock();
        if state.is_closed {
            return None;
        }
        state.top.offset += 1;
        let frame = hand_over(Some(state.top));
        self.store.append(&self.channel, state.top, &frame);
        Some(state.top)
    }

    fn notify(&self, hand_over: &mut HandOver<'_>) {
        let _order = self.state.lock();
        hand_over(None);
    }

    fn top(&self) -> StreamPosition {
        self.state.lock().top
    }
}
