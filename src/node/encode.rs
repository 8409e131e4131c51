//! Messages of the server as frames.

use crate::wire::frame::{EncodedFrame, Unsealed};
use crate::wire::messages::{self, Publication, Stamp};
use std::cell::RefCell;

thread_local! {
    static BODY: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
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

/// Encodes a publication, once, but for its offset, and gives the body to `act`. `act` may encode other messages.
pub fn with_encoded<T>(
    stamp: Stamp,
    publication: &Publication<'_>,
    act: impl FnOnce(Unsealed<'_>) -> T,
) -> T {
    // publishing may complete other calls, which encode their replies: the buffer is taken, not borrowed
    let mut body = BODY.take();
    body.clear();
    messages::write_publication(&mut body, stamp, publication);
    let result = act(Unsealed::new(&body));
    if body.capacity() <= MAX_KEPT_SCRATCH {
        BODY.set(body);
    }
    result
}
