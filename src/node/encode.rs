//! Messages of the server as frames.

use crate::wire::frame::EncodedFrame;
use std::cell::RefCell;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A scratch buffer larger than this is freed after its use.
const MAX_KEPT_SCRATCH: usize = 64 << 10;

/// Encodes a text frame in a scratch buffer of the thread, so that the frame is allocated once.
pub fn encode(write: impl FnOnce(&mut Vec<u8>)) -> EncodedFrame {
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.clear();
        write(scratch);
        let frame = EncodedFrame::text(scratch);
        if scratch.capacity() > MAX_KEPT_SCRATCH {
            *scratch = Vec::new();
        }
        frame
    })
}
