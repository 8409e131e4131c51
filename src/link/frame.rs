//! The bytes of a link: a preamble with the version, then frames, each with its length before it.

use std::fmt;
use std::io::{self, Read};

/// The version of the link. Both ends must have the same: the messages are not described on the wire.
pub const VERSION: u16 = 1;

/// What each end sends first: a name that no other protocol begins with, and the version.
pub const PREAMBLE: [u8; 8] = {
    let [low, high] = VERSION.to_le_bytes();
    [b'T', b'a', b'n', b't', b'o', b'r', low, high]
};

/// The bytes of the length before a frame.
const LENGTH: usize = 4;

/// Bytes that are read from the socket at once.
const CHUNK: usize = 64 << 10;

/// A buffer that is larger than this is given back when it is empty.
const KEPT_BUFFER: usize = 1 << 20;

/// Why a link ends: the other process, or the socket.
#[derive(Debug)]
pub enum Rejected {
    /// The other process does not speak the protocol of the link.
    NotALink,
    /// The other process has another version of the link.
    OtherVersion(u16),
    /// A frame is longer than the other process may send.
    TooLong { length: usize, most: usize },
    /// The stream ended within a frame.
    Cut,
    /// A frame is no message.
    NotAMessage,
    /// The other process does not answer.
    Silent,
    /// The socket has failed.
    Failed(io::Error),
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotALink => f.write_str("it does not speak the protocol of Tantor's link"),
            Self::OtherVersion(version) => write!(
                f,
                "it has version {version} of Tantor's link, and this process has version {VERSION}; \
                 both need the same version of Tantor"
            ),
            Self::TooLong { length, most } => {
                write!(f, "it sent a message of {length} bytes; it may send {most}")
            }
            Self::Cut => f.write_str("it ended in the middle of a message"),
            Self::NotAMessage => f.write_str("it sent bytes that are no message"),
            Self::Silent => f.write_str("it does not answer"),
            Self::Failed(error) => error.fmt(f),
        }
    }
}

/// Cuts a stream of bytes into frames. Memory grows with the bytes that arrive, not with the length that a frame announces.
#[derive(Debug)]
pub struct FrameReader {
    buffer: Vec<u8>,
    /// The bytes of the buffer that were taken already.
    taken: usize,
    max_length: usize,
}

impl FrameReader {
    /// Refuses frames that are longer than `max_length`.
    pub fn new(max_length: usize) -> Self {
        Self {
            buffer: Vec::new(),
            taken: 0,
            max_length,
        }
    }

    /// Reads and checks the preamble. Blocks until it has arrived.
    pub fn read_preamble(&mut self, stream: &mut impl Read) -> Result<(), Rejected> {
        while self.rest().len() < PREAMBLE.len() {
            if !self.fill(stream)? {
                return Err(Rejected::NotALink);
            }
        }
        let (name, version) = self.rest()[..PREAMBLE.len()].split_at(6);
        if name != &PREAMBLE[..6] {
            return Err(Rejected::NotALink);
        }
        let version = u16::from_le_bytes([version[0], version[1]]);
        if version != VERSION {
            return Err(Rejected::OtherVersion(version));
        }
        self.taken += PREAMBLE.len();
        Ok(())
    }

    /// Returns the next frame; `None` when the stream has ended. Blocks until the frame has arrived in full.
    pub fn read<'a>(&'a mut self, stream: &mut impl Read) -> Result<Option<&'a [u8]>, Rejected> {
        loop {
            if let Some(length) = self.complete()? {
                let begin = self.taken + LENGTH;
                self.taken = begin + length;
                return Ok(Some(&self.buffer[begin..self.taken]));
            }
            self.compact();
            if !self.fill(stream)? {
                return if self.rest().is_empty() {
                    Ok(None)
                } else {
                    Err(Rejected::Cut)
                };
            }
        }
    }

    /// True if the next frame is here in full, so that `read` does not block.
    pub fn has_frame(&self) -> bool {
        matches!(self.complete(), Ok(Some(_)) | Err(_))
    }

    /// The length of the next frame if it is here in full.
    fn complete(&self) -> Result<Option<usize>, Rejected> {
        let Some((length, rest)) = self.rest().split_first_chunk::<LENGTH>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*length) as usize;
        if length > self.max_length {
            let most = self.max_length;
            return Err(Rejected::TooLong { length, most });
        }
        Ok((rest.len() >= length).then_some(length))
    }

    fn rest(&self) -> &[u8] {
        &self.buffer[self.taken..]
    }

    fn compact(&mut self) {
        self.buffer.drain(..self.taken);
        self.taken = 0;
        if self.buffer.is_empty() && self.buffer.capacity() > KEPT_BUFFER {
            self.buffer = Vec::new();
        }
    }

    /// Reads once from the socket; false at its end.
    fn fill(&mut self, stream: &mut impl Read) -> Result<bool, Rejected> {
        let filled = self.buffer.len();
        self.buffer.resize(filled + CHUNK, 0);
        let read = loop {
            match stream.read(&mut self.buffer[filled..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        self.buffer
            .truncate(filled + read.as_ref().map_or(0, |count| *count));
        Ok(read.map_err(Rejected::Failed)? > 0)
    }
}

/// A message that cannot be sent: it is too long for a frame, or has no form on the link.
#[derive(Debug)]
pub struct Unsendable;

/// Appends a frame whose payload `write` appends.
///
/// Errors: `write` returns false, or appends more bytes than a length can say; `out` is then as before.
pub fn append_frame(
    out: &mut Vec<u8>,
    write: impl FnOnce(&mut Vec<u8>) -> bool,
) -> Result<(), Unsendable> {
    let begin = out.len();
    out.extend_from_slice(&[0; LENGTH]);
    let is_written = write(out);
    match u32::try_from(out.len() - begin - LENGTH) {
        Ok(length) if is_written => {
            out[begin..begin + LENGTH].copy_from_slice(&length.to_le_bytes());
            Ok(())
        }
        _ => {
            out.truncate(begin);
            Err(Unsendable)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives out its parts one by one.
    struct Parts(Vec<Vec<u8>>);

    impl Read for Parts {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                return Ok(0);
            }
            let part = self.0.remove(0);
            out[..part.len()].copy_from_slice(&part);
            Ok(part.len())
        }
    }

    fn framed(payloads: &[&[u8]]) -> Vec<u8> {
        let mut bytes = PREAMBLE.to_vec();
        for payload in payloads {
            append_frame(&mut bytes, |out| {
                out.extend_from_slice(payload);
                true
            })
            .unwrap();
        }
        bytes
    }

    #[test]
    fn frames_are_cut_out_whatever_parts_their_bytes_come_in() {
        let long = vec![7; 300];
        let bytes = framed(&[b"one", b"", &long]);
        for size in [1, 2, 3, 5, 300, 1000] {
            let mut parts = Parts(bytes.chunks(size).map(<[u8]>::to_vec).collect());
            let mut reader = FrameReader::new(300);
            reader.read_preamble(&mut parts).unwrap();
            for expected in [&b"one"[..], b"", &long] {
                assert_eq!(reader.read(&mut parts).unwrap(), Some(expected));
            }
            assert!(reader.read(&mut parts).unwrap().is_none());
        }
    }

    #[test]
    fn other_protocols_versions_and_lengths_are_told_apart() {
        let preamble =
            |bytes: &[u8]| FrameReader::new(10).read_preamble(&mut Parts(vec![bytes.to_vec()]));
        assert!(matches!(
            preamble(b"GET / HTTP/1.1"),
            Err(Rejected::NotALink)
        ));
        assert!(matches!(preamble(b"Tan"), Err(Rejected::NotALink)));
        assert!(matches!(
            preamble(b"Tantor\xff\x01"),
            Err(Rejected::OtherVersion(0x1ff))
        ));
        let read = |bytes: Vec<u8>| {
            let mut reader = FrameReader::new(10);
            let mut parts = Parts(vec![bytes]);
            reader.read_preamble(&mut parts).unwrap();
            reader
                .read(&mut parts)
                .map(|frame| frame.map(<[u8]>::to_vec))
        };
        let too_long = framed(&[&[0; 11]]);
        assert!(matches!(
            read(too_long),
            Err(Rejected::TooLong {
                length: 11,
                most: 10
            })
        ));
        let mut cut = framed(&[b"one"]);
        cut.pop();
        assert!(matches!(read(cut), Err(Rejected::Cut)));
    }
}
