//! Messages of the server as frames.

use crate::wire::frame::{EncodedFrame, Unsealed, UnsealedMail};
use crate::wire::messages::{self, Body, Publication, Stamp};
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
    with_body(|body| {
        messages::write_publication(body, stamp, publication);
        act(Unsealed::new(body))
    })
}

/// Encodes a message to one client, once, but for the field `ack`, and gives it to `act`. `act` may encode other messages.
pub fn with_direct<T>(
    stamp: Stamp,
    channel: &str,
    body: Body<'_>,
    act: impl FnOnce(UnsealedMail<'_>) -> T,
) -> T {
    with_body(|out| {
        let ack_at = messages::write_direct(out, stamp, channel, body);
        act(UnsealedMail::new(out, ack_at))
    })
}

/// Lends the thread's buffer for bodies.
fn with_body<T>(act: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    // sending may complete other calls, which encode their replies: the buffer is taken, not borrowed
    let mut body = BODY.take();
    body.clear();
    let result = act(&mut body);
    if body.capacity() <= MAX_KEPT_SCRATCH {
        BODY.set(body);
    }
    result
}
