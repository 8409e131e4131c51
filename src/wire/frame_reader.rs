//! Decodes the frames of one client to messages, without I/O (RFC 6455 sections 5.4 to 5.6 and 7).

use crate::base::error::Disconnect;
use crate::wire::frame::{self, ReceivedHeader};
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};

/// A frame or fragmented message this many times over the limit ends the connection; below, it is skipped.
const SKIP_FACTOR: u64 = 16;

/// Longest payload of a control frame (RFC 6455 section 5.5).
const MAX_CONTROL: u64 = 125;

/// A message of a client, borrowed from the read buffer.
#[derive(Debug, PartialEq, Eq)]
pub enum Received<'a> {
    Text(&'a str),
    Binary(&'a [u8]),
    /// A message over the limit, of at least so many bytes; it was skipped.
    TooLarge(u64),
    Ping(&'a [u8]),
    Pong,
    /// The code is `None` when the frame held none.
    Close(Option<u16>),
}

/// The reading half of a connection: what is left over of a frame, and of a fragmented message.
#[derive(Debug, Default)]
pub struct Reader {
    /// The start of a frame whose rest has not arrived. Empty, and without memory, between frames.
    partial: Vec<u8>,
    /// Payload bytes of `partial` that are unmasked already; a multiple of the mask's length.
    unmasked: usize,
    /// Payload bytes of `partial` that are known to be UTF-8.
    checked: usize,
    fragments: Option<Box<Fragments>>,
    /// Payload bytes still to be thrown away of a frame over the limit.
    skip: u64,
}

#[derive(Debug)]
struct Fragments {
    is_text: bool,
    size: u64,
    payload: Vec<u8>,
    /// Bytes of the payload that are known to be UTF-8, so that what is none is found at once.
    valid: usize,
}

impl Fragments {
    fn new(is_text: bool, size: u64) -> Self {
        Self {
            is_text,
            size,
            payload: Vec::new(),
            valid: 0,
        }
    }

    /// Errors: text that cannot become UTF-8, whatever follows.
    fn add(&mut self, payload: &[u8]) -> Result<(), Disconnect> {
        self.payload.extend_from_slice(payload);
        if self.is_text {
            match std::str::from_utf8(&self.payload[self.valid..]) {
                Ok(_) => self.valid = self.payload.len(),
                Err(error) if error.error_len().is_some() => return Err(Disconnect::InvalidUtf8),
                Err(error) => self.valid += error.valid_up_to(),
            }
        }
        Ok(())
    }
}

impl Reader {
    /// Decodes what arrived; `receive` gets each message in order and may stop the reading by `false`.
    ///
    /// `bytes` is scratch: it is unmasked in place. Errors: what the client broke, with its close code.
    pub fn read(
        &mut self,
        bytes: &mut [u8],
        max_message_size: usize,
        receive: &mut impl FnMut(Received<'_>) -> bool,
    ) -> Result<(), Disconnect> {
        if self.partial.is_empty() {
            let used = self.frames(bytes, max_message_size, receive)?;
            self.partial.extend_from_slice(&bytes[used..]);
        } else {
            let mut held = std::mem::take(&mut self.partial);
            make_room(&mut held, bytes.len(), max_message_size);
            held.extend_from_slice(bytes);
            let used = self.frames(&mut held, max_message_size, receive)?;
            if used < held.len() {
                held.drain(..used);
                self.partial = held;
            }
        }
        Ok(())
    }

    /// Keeps what arrived for a later `read`.
    pub fn keep(&mut self, bytes: &[u8]) {
        self.partial.extend_from_slice(bytes);
    }

    /// Bytes of memory that unfinished input takes.
    pub fn held(&self) -> usize {
        self.partial.capacity()
            + self
                .fragments
                .as_ref()
                .map_or(0, |fragments| fragments.payload.capacity())
    }

    /// True in the middle of a frame or of a fragmented message.
    pub fn is_midway(&self) -> bool {
        !self.partial.is_empty() || self.fragments.is_some() || self.skip > 0
    }

    fn frames(
        &mut self,
        bytes: &mut [u8],
        max_message_size: usize,
        receive: &mut impl FnMut(Received<'_>) -> bool,
    ) -> Result<usize, Disconnect> {
        let mut position = 0;
        loop {
            let rest = &mut bytes[position..];
            if self.skip > 0 {
                let skipped = self.skip.min(rest.len() as u64);
                self.skip -= skipped;
                position += skipped as usize;
                if self.skip > 0 {
                    return Ok(position);
                }
                continue;
            }
            let Some(read) = frame::read_header(rest)? else {
                return Ok(position);
            };
            let mask = check_header(&read)?;
            let limit = max_message_size as u64;
            if read.payload_len > limit {
                if read.payload_len > limit.saturating_mul(SKIP_FACTOR) {
                    return Err(Disconnect::TooLarge);
                }
                self.skip = read.payload_len;
                position += read.header_len;
                if !self.oversized(&read, limit, receive)? {
                    return Ok(position);
                }
                continue;
            }
            let end = read.header_len + read.payload_len as usize;
            if rest.len() < end {
                self.look_ahead(&read, &mut rest[read.header_len..], mask)?;
                return Ok(position);
            }
            let payload = &mut rest[read.header_len..end];
            frame::unmask(&mut payload[std::mem::take(&mut self.unmasked)..], mask);
            self.checked = 0;
            position += end;
            if !self.frame(&read, payload, limit, receive)? {
                return Ok(position);
            }
        }
    }

    /// Unmasks what has arrived of a frame, and checks text at once: text that is not UTF-8 fails at its first wrong byte
    /// (RFC 6455 section 8.1), not when the rest of the frame has come.
    fn look_ahead(
        &mut self,
        read: &ReceivedHeader,
        payload: &mut [u8],
        mask: [u8; 4],
    ) -> Result<(), Disconnect> {
        let from = self.unmasked;
        self.unmasked = payload.len() / mask.len() * mask.len();
        frame::unmask(&mut payload[from..self.unmasked], mask);
        let before = match (read.header.opcode, &self.fragments) {
            (OpCode::Data(Data::Text), None) => &[][..],
            (OpCode::Data(Data::Continue), Some(fragments)) if fragments.is_text => {
                // a character may begin in the fragment before
                fragments.payload.get(fragments.valid..).unwrap_or(&[])
            }
            _ => return Ok(()),
        };
        let before = if self.checked == 0 { before } else { &[] };
        let text = [before, &payload[self.checked..self.unmasked]].concat();
        let valid = match std::str::from_utf8(&text) {
            Ok(_) => text.len(),
            Err(error) if error.error_len().is_some() => return Err(Disconnect::InvalidUtf8),
            Err(error) => error.valid_up_to(),
        };
        self.checked += valid.saturating_sub(before.len());
        Ok(())
    }

    /// A data frame over the limit: alone it is one refused message, in fragments it spoils the message.
    fn oversized(
        &mut self,
        read: &ReceivedHeader,
        limit: u64,
        receive: &mut impl FnMut(Received<'_>) -> bool,
    ) -> Result<bool, Disconnect> {
        let header = &read.header;
        match (header.opcode, self.fragments.is_some()) {
            (OpCode::Data(Data::Continue), true) => {
                self.fragment(header.is_final, &[], read.payload_len, limit, receive)
            }
            (OpCode::Data(Data::Text | Data::Binary), false) if header.is_final => {
                Ok(receive(Received::TooLarge(read.payload_len)))
            }
            (OpCode::Data(Data::Text | Data::Binary), false) => {
                let is_text = header.opcode == OpCode::Data(Data::Text);
                self.fragments = Some(Box::new(Fragments::new(is_text, read.payload_len)));
                Ok(true)
            }
            _ => Err(Disconnect::ProtocolError),
        }
    }

    fn frame(
        &mut self,
        read: &ReceivedHeader,
        payload: &[u8],
        limit: u64,
        receive: &mut impl FnMut(Received<'_>) -> bool,
    ) -> Result<bool, Disconnect> {
        let is_final = read.header.is_final;
        match (read.header.opcode, self.fragments.is_some()) {
            (OpCode::Data(Data::Text), false) if is_final => {
                Ok(receive(Received::Text(utf8(payload)?)))
            }
            (OpCode::Data(Data::Binary), false) if is_final => {
                Ok(receive(Received::Binary(payload)))
            }
            (OpCode::Data(kind @ (Data::Text | Data::Binary)), false) => {
                let mut fragments = Fragments::new(kind == Data::Text, payload.len() as u64);
                fragments.add(payload)?;
                self.fragments = Some(Box::new(fragments));
                Ok(true)
            }
            (OpCode::Data(Data::Continue), true) => {
                self.fragment(is_final, payload, payload.len() as u64, limit, receive)
            }
            (OpCode::Control(Control::Ping), _) => Ok(receive(Received::Ping(payload))),
            (OpCode::Control(Control::Pong), _) => Ok(receive(Received::Pong)),
            (OpCode::Control(Control::Close), _) => {
                Ok(receive(Received::Close(close_code(payload)?)))
            }
            // a continuation of nothing, or a new message inside a fragmented one (section 5.4)
            _ => Err(Disconnect::ProtocolError),
        }
    }

    fn fragment(
        &mut self,
        is_final: bool,
        payload: &[u8],
        size: u64,
        limit: u64,
        receive: &mut impl FnMut(Received<'_>) -> bool,
    ) -> Result<bool, Disconnect> {
        let Some(mut fragments) = self.fragments.take() else {
            return Err(Disconnect::ProtocolError);
        };
        fragments.size = fragments.size.saturating_add(size);
        if fragments.size > limit.saturating_mul(SKIP_FACTOR) {
            return Err(Disconnect::TooLarge);
        }
        if fragments.size > limit {
            fragments.payload = Vec::new();
        } else {
            fragments.add(payload)?;
        }
        if !is_final {
            self.fragments = Some(fragments);
            return Ok(true);
        }
        Ok(if fragments.size > limit {
            receive(Received::TooLarge(fragments.size))
        } else if fragments.is_text {
            receive(Received::Text(utf8(&fragments.payload)?))
        } else {
            receive(Received::Binary(&fragments.payload))
        })
    }
}

/// Makes room for more bytes behind the start of a frame: twice the present room, but no more than the frame takes. So an
/// almost complete frame is not charged more than its size.
fn make_room(held: &mut Vec<u8>, more: usize, max_message_size: usize) {
    let needed = held.len() + more;
    if needed <= held.capacity() {
        return;
    }
    let end = match frame::read_header(held) {
        Ok(Some(read)) => read.header_len + max_message_size.min(read.payload_len as usize),
        _ => usize::MAX,
    };
    let room = (2 * held.capacity()).min(end).max(needed);
    held.reserve_exact(room - held.len());
}

/// The mask of a client's frame, if the header is one that a client may send.
fn check_header(read: &ReceivedHeader) -> Result<[u8; 4], Disconnect> {
    let header = &read.header;
    let is_control = matches!(header.opcode, OpCode::Control(_));
    // reserved bits mean extensions, of which none is negotiated (section 5.2)
    if header.rsv1
        || header.rsv2
        || header.rsv3
        || (is_control && (!header.is_final || read.payload_len > MAX_CONTROL))
    {
        return Err(Disconnect::ProtocolError);
    }
    // a server must close on an unmasked frame (section 5.1)
    header.mask.ok_or(Disconnect::ProtocolError)
}

fn utf8(payload: &[u8]) -> Result<&str, Disconnect> {
    std::str::from_utf8(payload).map_err(|_| Disconnect::InvalidUtf8)
}

fn close_code(payload: &[u8]) -> Result<Option<u16>, Disconnect> {
    match payload {
        [] => Ok(None),
        [high, low, reason @ ..] => {
            let code = u16::from_be_bytes([*high, *low]);
            utf8(reason)?;
            if CloseCode::from(code).is_allowed() {
                Ok(Some(code))
            } else {
                Err(Disconnect::ProtocolError)
            }
        }
        [_] => Err(Disconnect::ProtocolError),
    }
}
