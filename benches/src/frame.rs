//! WebSocket frames: counted by their headers on the way in, or read where it matters what they say; built once on the
//! way out.

/// A frame that has arrived whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frame<'a> {
    pub opcode: u8,
    pub payload_bytes: u64,
    /// Empty where frames are only counted.
    pub payload: &'a [u8],
}

pub const TEXT: u8 = 0x1;
pub const CLOSE: u8 = 0x8;
pub const PING: u8 = 0x9;
pub const PONG: u8 = 0xA;

const LONGEST_HEAD: usize = 14;

/// Finds frame borders in a byte stream that comes in arbitrary pieces; copies no payload.
#[derive(Default)]
pub struct FrameCounter {
    current: Frame<'static>,
    /// Payload bytes of `current` that have not been seen.
    missing: u64,
    /// The first bytes of a head that was cut by the end of a piece.
    head: [u8; LONGEST_HEAD],
    head_bytes: u8,
}

impl FrameCounter {
    /// Take the next piece; `on_frame` hears of each frame that it completes.
    #[inline]
    pub fn feed(&mut self, mut piece: &[u8], mut on_frame: impl FnMut(Frame)) {
        loop {
            if self.missing > 0 {
                let taken = self.missing.min(piece.len() as u64);
                self.missing -= taken;
                piece = &piece[taken as usize..];
                if self.missing > 0 {
                    return;
                }
                on_frame(self.current);
            }
            if piece.is_empty() {
                return;
            }
            let Some((frame, head_bytes)) = self.next_head(piece) else {
                return;
            };
            piece = &piece[head_bytes..];
            self.current = frame;
            self.missing = frame.payload_bytes;
            if self.missing == 0 {
                on_frame(frame);
            }
        }
    }

    /// The head at the start of `piece` (or begun in an earlier one) and how many bytes of `piece` it has.
    fn next_head(&mut self, piece: &[u8]) -> Option<(Frame<'static>, usize)> {
        let kept = usize::from(self.head_bytes);
        if kept == 0
            && let Some(parsed) = parse_head(piece)
        {
            return Some(parsed);
        }
        let taken = piece.len().min(LONGEST_HEAD - kept);
        self.head[kept..kept + taken].copy_from_slice(&piece[..taken]);
        if let Some((frame, head_bytes)) = parse_head(&self.head[..kept + taken]) {
            self.head_bytes = 0;
            return Some((frame, head_bytes - kept));
        }
        self.head_bytes = (kept + taken) as u8;
        None
    }
}

/// Finds the frames of a byte stream that comes in arbitrary pieces, with their payloads as a server sends them, unmasked.
#[derive(Default)]
pub struct FrameReader {
    /// The start of a frame whose end has not come yet.
    begun: Vec<u8>,
}

impl FrameReader {
    /// Take the next piece; `on_frame` gets each frame that it completes.
    pub fn feed(&mut self, piece: &[u8], mut on_frame: impl FnMut(Frame)) {
        if self.begun.is_empty() {
            let used = read_whole_frames(piece, &mut on_frame);
            self.begun.extend_from_slice(&piece[used..]);
        } else {
            self.begun.extend_from_slice(piece);
            let used = read_whole_frames(&self.begun, &mut on_frame);
            self.begun.drain(..used);
        }
    }
}

/// How many bytes the whole frames at the start of `bytes` have.
fn read_whole_frames(bytes: &[u8], on_frame: &mut impl FnMut(Frame)) -> usize {
    let mut used = 0;
    while let Some((frame, head_bytes)) = parse_head(&bytes[used..]) {
        let start = used + head_bytes;
        let Some(payload) = bytes[start..].get(..frame.payload_bytes as usize) else {
            break;
        };
        on_frame(Frame { payload, ..frame });
        used = start + payload.len();
    }
    used
}

/// Read a frame's head: the frame, and the bytes of the head, mask included. None: it is cut short.
pub fn parse_head(bytes: &[u8]) -> Option<(Frame<'static>, usize)> {
    let (&first, &second) = (bytes.first()?, bytes.get(1)?);
    let mask_bytes = if second & 0x80 == 0 { 0 } else { 4 };
    let (payload_bytes, length_end) = match second & 0x7F {
        0x7E => (
            u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?)),
            4,
        ),
        0x7F => (u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?), 10),
        short => (u64::from(short), 2),
    };
    let frame = Frame {
        opcode: first & 0x0F,
        payload_bytes,
        payload: &[],
    };
    (bytes.len() >= length_end + mask_bytes).then_some((frame, length_end + mask_bytes))
}

/// A frame as a server sends it.
pub fn server_frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = head(opcode, payload.len(), 0);
    frame.extend_from_slice(payload);
    frame
}

/// A frame as a client sends it. The mask is fixed: it has to cost the server its unmasking, not be secret.
pub fn client_frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];
    let mut frame = head(opcode, payload.len(), 0x80);
    frame.extend_from_slice(&MASK);
    frame.extend(
        payload
            .iter()
            .zip(MASK.iter().cycle())
            .map(|(byte, mask)| byte ^ mask),
    );
    frame
}

fn head(opcode: u8, payload_bytes: usize, mask_bit: u8) -> Vec<u8> {
    let mut frame = vec![0x80 | opcode];
    match payload_bytes {
        0..=125 => frame.push(mask_bit | payload_bytes as u8),
        126..=0xFFFF => {
            frame.push(mask_bit | 0x7E);
            frame.extend_from_slice(&(payload_bytes as u16).to_be_bytes());
        }
        _ => {
            frame.push(mask_bit | 0x7F);
            frame.extend_from_slice(&(payload_bytes as u64).to_be_bytes());
        }
    }
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(stream: &[u8], piece_bytes: usize) -> Vec<Frame<'static>> {
        let mut counter = FrameCounter::default();
        let mut seen = Vec::new();
        for piece in stream.chunks(piece_bytes) {
            counter.feed(piece, |frame| {
                seen.push(Frame {
                    payload: &[],
                    ..frame
                });
            });
        }
        seen
    }

    #[test]
    fn every_frame_is_seen_once_however_the_stream_is_cut() {
        let lengths = [0, 1, 125, 126, 300, 65_535, 65_536, 0, 7];
        let stream: Vec<u8> = lengths
            .iter()
            .flat_map(|&length| server_frame(TEXT, &vec![b'x'; length]))
            .collect();
        let expected: Vec<Frame> = lengths
            .iter()
            .map(|&length| Frame {
                opcode: TEXT,
                payload_bytes: length as u64,
                payload: &[],
            })
            .collect();
        for piece_bytes in [1, 2, 3, 5, 13, 127, 4096, stream.len()] {
            assert_eq!(
                count(&stream, piece_bytes),
                expected,
                "in pieces of {piece_bytes}"
            );
        }
    }

    #[test]
    fn payloads_are_read_whole_however_the_stream_is_cut() {
        let texts = [0_u32, 1, 125, 126, 300, 65_536].map(|length| {
            (0..length)
                .map(|at| b'a' + (at % 23) as u8)
                .collect::<Vec<_>>()
        });
        let stream: Vec<u8> = texts
            .iter()
            .flat_map(|text| server_frame(TEXT, text))
            .collect();
        for piece_bytes in [1, 2, 13, 127, 4096, stream.len()] {
            let mut reader = FrameReader::default();
            let mut read = Vec::new();
            for piece in stream.chunks(piece_bytes) {
                reader.feed(piece, |frame| read.push(frame.payload.to_vec()));
            }
            assert_eq!(read, texts, "in pieces of {piece_bytes}");
        }
    }

    #[test]
    fn a_frame_is_not_seen_before_its_last_byte() {
        let frame = server_frame(PING, b"abc");
        assert_eq!(count(&frame[..frame.len() - 1], 64), []);
    }

    #[test]
    fn masked_frames_have_their_mask_counted_as_head() {
        let stream = [client_frame(TEXT, b"hello"), client_frame(CLOSE, b"")].concat();
        for piece_bytes in [1, 4, stream.len()] {
            let opcodes: Vec<u8> = count(&stream, piece_bytes)
                .iter()
                .map(|frame| frame.opcode)
                .collect();
            assert_eq!(opcodes, [TEXT, CLOSE], "in pieces of {piece_bytes}");
        }
    }
}
