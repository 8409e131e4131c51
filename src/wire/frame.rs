//! WebSocket frames as bytes (RFC 6455 section 5): encoded once here, shared by every connection.

use crate::base::error::Disconnect;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::io::Cursor;
use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, Data, OpCode};

/// A whole, unmasked frame, ready for any number of sockets. Cloning shares the bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncodedFrame(Bytes);

impl EncodedFrame {
    /// A text frame around one JSON object.
    pub fn text(payload: &[u8]) -> Self {
        Self::encode(OpCode::Data(Data::Text), payload)
    }

    /// The length of the text frame around a payload of this length.
    pub fn text_len(payload_len: usize) -> usize {
        FrameHeader::default().len(payload_len as u64) + payload_len
    }

    pub fn ping() -> Self {
        Self(Bytes::from_static(&[0x89, 0]))
    }

    /// The answer to a ping, with its payload (at most 125 bytes, RFC 6455 section 5.5.3).
    pub fn pong(payload: &[u8]) -> Self {
        if payload.is_empty() {
            return Self(Bytes::from_static(&[0x8A, 0]));
        }
        Self::encode(OpCode::Control(Control::Pong), payload)
    }

    /// A close frame; `None` for one without a code (RFC 6455 section 5.5.1).
    pub fn close(code: Option<u16>, reason: &str) -> Self {
        let mut payload = Vec::with_capacity(2 + reason.len());
        if let Some(code) = code {
            payload.extend_from_slice(&code.to_be_bytes());
            payload.extend_from_slice(reason.as_bytes());
        }
        Self::encode(OpCode::Control(Control::Close), &payload)
    }

    pub fn of_disconnect(disconnect: Disconnect) -> Self {
        Self::close(Some(disconnect.code()), disconnect.reason())
    }

    /// A text frame around one JSON object, given in parts.
    fn text_of(parts: &[&[u8]]) -> Self {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let mut bytes = Self::header(OpCode::Data(Data::Text), length);
        for part in parts {
            bytes.extend_from_slice(part);
        }
        Self(Bytes::from(bytes))
    }

    /// A frame again that was taken apart into its bytes.
    pub fn from_encoded(bytes: Bytes) -> Self {
        Self(bytes)
    }

    pub fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// The payload behind the header.
    pub fn payload(&self) -> &[u8] {
        // a server's frame has no mask (RFC 6455 section 5.2)
        let header = match self.0.get(1) {
            Some(126) => 4,
            Some(127) => 10,
            _ => 2,
        };
        self.0.get(header..).unwrap_or_default()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn encode(opcode: OpCode, payload: &[u8]) -> Self {
        let mut bytes = Self::header(opcode, payload.len());
        bytes.extend_from_slice(payload);
        Self(Bytes::from(bytes))
    }

    /// The header of a frame, with room for the payload behind it.
    fn header(opcode: OpCode, payload_len: usize) -> Vec<u8> {
        let header = FrameHeader {
            is_final: true,
            opcode,
            ..FrameHeader::default()
        };
        let length = payload_len as u64;
        let mut bytes = Vec::with_capacity(header.len(length) + payload_len);
        // writing to a Vec does not fail
        let _ = header.format(length, &mut bytes);
        bytes
    }
}

/// A message that is encoded but for its offset, which the broker splices in at the end: a JSON object without its
/// closing brace.
#[derive(Clone, Copy, Debug)]
pub struct Unsealed<'a>(&'a [u8]);

impl<'a> Unsealed<'a> {
    /// `body` is a JSON object with at least one field, without its closing brace and without the field `offset`.
    pub fn new(body: &'a [u8]) -> Self {
        Self(body)
    }

    pub fn bytes(self) -> &'a [u8] {
        self.0
    }

    /// The whole frame; `None` for a message that has no offset.
    pub fn seal(self, offset: Option<u64>) -> EncodedFrame {
        let Some(offset) = offset else {
            return EncodedFrame::text_of(&[self.0, b"}"]);
        };
        let mut digits = itoa::Buffer::new();
        EncodedFrame::text_of(&[
            self.0,
            b",\"offset\":",
            digits.format(offset).as_bytes(),
            b"}",
        ])
    }
}

/// The field of a message that clients are to acknowledge, behind another field.
pub(super) const ACK_FIELD: &[u8] = b",\"ack\":true";

/// A message to one client, encoded but for the field `ack`. The adapter of mail decides whether the client has to
/// acknowledge the message, and seals it.
#[derive(Clone, Copy, Debug)]
pub struct UnsealedMail<'a> {
    message: &'a [u8],
    ack_at: Option<usize>,
}

impl<'a> UnsealedMail<'a> {
    /// `message` is a JSON object. The field `ack` may go in at `ack_at`, behind another field; `None` for a message that
    /// has a field of this name itself.
    pub const fn new(message: &'a [u8], ack_at: Option<usize>) -> Self {
        Self { message, ack_at }
    }

    /// What `new` was given.
    pub fn parts(self) -> (&'a [u8], Option<usize>) {
        (self.message, self.ack_at)
    }

    pub fn can_want_ack(self) -> bool {
        self.ack_at.is_some()
    }

    /// The whole frame. With `wants_ack`, a client that acknowledges messages is to acknowledge this one.
    pub fn seal(self, wants_ack: bool) -> EncodedFrame {
        match self.ack_at.and_then(|at| self.message.split_at_checked(at)) {
            Some((before, behind)) if wants_ack => {
                EncodedFrame::text_of(&[before, ACK_FIELD, behind])
            }
            _ => EncodedFrame::text(self.message),
        }
    }
}

/// A frame's header as received: what it says, how long it is and how long its payload.
#[derive(Debug)]
pub struct ReceivedHeader {
    pub header: FrameHeader,
    pub header_len: usize,
    pub payload_len: u64,
}

/// Reads a header from the start of `bytes`; `Ok(None)` when more bytes are needed.
///
/// Errors: an opcode that RFC 6455 section 5.2 reserves.
pub fn read_header(bytes: &[u8]) -> Result<Option<ReceivedHeader>, Disconnect> {
    let mut cursor = Cursor::new(bytes);
    match FrameHeader::parse(&mut cursor) {
        Ok(Some((header, payload_len))) => Ok(Some(ReceivedHeader {
            header,
            header_len: cursor.position() as usize,
            payload_len,
        })),
        Ok(None) => Ok(None),
        Err(_) => Err(Disconnect::ProtocolError),
    }
}

/// The end of the frame that `written` bytes of a run of whole, unmasked frames end in.
///
/// Equal to `written` when that is where a frame ends already.
pub fn frame_end(run: &[u8], written: usize) -> usize {
    let mut end = 0;
    while end < written {
        match read_header(&run[end..]) {
            Ok(Some(read)) => end += read.header_len + read.payload_len as usize,
            // the run was made here, of whole frames
            _ => return run.len(),
        }
    }
    end.min(run.len())
}

/// Applies a mask in place (RFC 6455 section 5.3); twice is none.
pub fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let mut words = payload.chunks_exact_mut(4);
    let key = u32::from_ne_bytes(mask);
    for word in &mut words {
        let value = u32::from_ne_bytes([word[0], word[1], word[2], word[3]]) ^ key;
        word.copy_from_slice(&value.to_ne_bytes());
    }
    for (byte, key) in words.into_remainder().iter_mut().zip(mask) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_take_the_three_forms_of_the_rfc() {
        for (payload, header) in [(0, 2), (125, 2), (126, 4), (65_535, 4), (65_536, 10)] {
            let frame = EncodedFrame::text(&vec![b'x'; payload]);
            assert_eq!(frame.len(), payload + header);
            assert_eq!(frame.payload().len(), payload);
            let read = read_header(frame.bytes()).expect("valid").expect("whole");
            assert_eq!(
                (read.header_len, read.payload_len),
                (header, payload as u64)
            );
            assert!(read.header.is_final && read.header.mask.is_none());
        }
    }

    #[test]
    fn a_header_cut_anywhere_wants_more() {
        let frame = EncodedFrame::text(&vec![b'x'; 70_000]);
        for cut in 0..10 {
            assert!(
                read_header(&frame.bytes()[..cut])
                    .expect("no error")
                    .is_none(),
                "{cut}"
            );
        }
    }

    #[test]
    fn reserved_opcodes_are_refused() {
        for opcode in [3_u8, 7, 11, 15] {
            assert_eq!(
                read_header(&[0x80 | opcode, 0]).err(),
                Some(Disconnect::ProtocolError)
            );
        }
    }

    #[test]
    fn frame_end_finds_the_boundary() {
        let frames = [
            EncodedFrame::text(b"abc"),
            EncodedFrame::text(&[b'x'; 200]),
            EncodedFrame::ping(),
        ];
        let run: Vec<u8> = frames
            .iter()
            .flat_map(|frame| frame.bytes().to_vec())
            .collect();
        assert_eq!(frame_end(&run, 0), 0);
        assert_eq!(frame_end(&run, 1), 5);
        assert_eq!(frame_end(&run, 5), 5);
        assert_eq!(frame_end(&run, 6), 5 + 204);
        assert_eq!(frame_end(&run, run.len()), run.len());
    }

    #[test]
    fn unmask_is_its_own_inverse() {
        for length in 0..20 {
            let original: Vec<u8> = (0..length).collect();
            let mut bytes = original.clone();
            unmask(&mut bytes, [1, 2, 3, 4]);
            let slow: Vec<u8> = original
                .iter()
                .enumerate()
                .map(|(i, byte)| byte ^ [1, 2, 3, 4][i % 4])
                .collect();
            assert_eq!(bytes, slow);
            unmask(&mut bytes, [1, 2, 3, 4]);
            assert_eq!(bytes, original);
        }
    }
}
