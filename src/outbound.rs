//! What waits for one client: an ordered queue of encoded frames, bounded in bytes by its owner.
//!
//! Whatever leaves a connection leaves through here, in the order in which it was queued; only urgent frames
//! overtake, and those at a frame boundary.

use crate::frame::{self, EncodedFrame};
use bytes::Bytes;
use std::collections::VecDeque;
use std::io::IoSlice;

/// Whole frames that are queued and counted together.
#[derive(Clone, Debug)]
pub struct Chunk {
    pub bytes: Bytes,
    pub frames: u32,
    urgent: bool,
}

impl Chunk {
    /// Frames that were joined into one run of bytes.
    pub fn run(bytes: Bytes, frames: u32) -> Self {
        Self {
            bytes,
            frames,
            urgent: false,
        }
    }
}

impl Chunk {
    /// What has to leave before anything else may, urgent frames included. It need not be a frame.
    pub fn first_words(bytes: Bytes) -> Self {
        Self {
            bytes,
            frames: 1,
            urgent: true,
        }
    }
}

impl From<EncodedFrame> for Chunk {
    fn from(frame: EncodedFrame) -> Self {
        Self::run(frame.bytes().clone(), 1)
    }
}

#[derive(Debug, Default)]
pub struct Outbound {
    chunks: VecDeque<Chunk>,
    /// How much of the first chunk is written already.
    written: usize,
    bytes: usize,
    frames: usize,
}

impl Outbound {
    pub fn push(&mut self, chunk: Chunk) {
        self.bytes += chunk.bytes.len();
        self.frames += chunk.frames as usize;
        self.chunks.push_back(chunk);
    }

    /// Queues a frame before all that waits, behind earlier urgent ones and the frame that is half written.
    pub fn push_urgent(&mut self, frame: &EncodedFrame) {
        if self.written > 0 {
            self.split_first();
        }
        let behind_first = usize::from(self.written > 0);
        let urgent = self
            .chunks
            .iter()
            .skip(behind_first)
            .take_while(|chunk| chunk.urgent)
            .count();
        self.bytes += frame.len();
        self.frames += 1;
        self.chunks.insert(
            behind_first + urgent,
            Chunk {
                bytes: frame.bytes().clone(),
                frames: 1,
                urgent: true,
            },
        );
    }

    /// Drops all that waits but the frame that is half written; returns how many frames.
    pub fn clear_waiting(&mut self) -> usize {
        let before = self.frames;
        if self.written > 0 {
            self.split_first();
        }
        self.chunks.truncate(usize::from(self.written > 0));
        self.bytes = self
            .chunks
            .front()
            .map_or(0, |chunk| chunk.bytes.len() - self.written);
        self.frames = self.chunks.front().map_or(0, |chunk| chunk.frames as usize);
        before - self.frames
    }

    /// Drops everything.
    pub fn discard(&mut self) {
        *self = Self::default();
    }

    /// Fills `slices` with what is to be written next; returns how many.
    pub fn fill<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut filled = 0;
        for (slice, chunk) in slices.iter_mut().zip(&self.chunks) {
            let from = if filled == 0 { self.written } else { 0 };
            *slice = IoSlice::new(&chunk.bytes[from..]);
            filled += 1;
        }
        filled
    }

    /// Takes off what the socket took.
    pub fn advance(&mut self, mut count: usize) {
        self.bytes -= count;
        while let Some(first) = self.chunks.front() {
            let left = first.bytes.len() - self.written;
            if count < left {
                self.written += count;
                return;
            }
            count -= left;
            self.written = 0;
            self.frames -= first.frames as usize;
            self.chunks.pop_front();
        }
        if self.chunks.capacity() > KEPT_CAPACITY {
            self.chunks = VecDeque::new();
        }
    }

    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Bytes that wait to be written.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of memory that the queue takes, roughly: small frames take more than they are long.
    pub fn weight(&self) -> usize {
        self.bytes + self.chunks.len() * CHUNK_OVERHEAD
    }

    /// Frames that wait, the half-written one included.
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// The number of chunks, for choosing how to write.
    pub fn chunks(&self) -> usize {
        self.chunks.len()
    }

    /// The unwritten part of the first chunk.
    pub fn first(&self) -> &[u8] {
        self.chunks
            .front()
            .map_or(&[], |chunk| &chunk.bytes[self.written..])
    }

    /// Cuts a half-written first chunk at the end of the frame that was begun, so that frames fit in between.
    fn split_first(&mut self) {
        let Some(first) = self.chunks.front_mut() else {
            return;
        };
        if first.urgent {
            return; // a single frame, or none at all
        }
        let end = frame::frame_end(&first.bytes, self.written);
        let begun = u32::from(end > self.written);
        let rest = first.bytes.slice(end..);
        let rest = Chunk {
            frames: count_frames(&rest),
            bytes: rest,
            urgent: false,
        };
        // frames of the run that have left whole are no longer waiting
        self.frames = self.frames + begun as usize + rest.frames as usize - first.frames as usize;
        first.bytes.truncate(end);
        first.frames = begun;
        if rest.frames > 0 {
            self.chunks.insert(1, rest);
        }
        if begun == 0 {
            self.chunks.pop_front();
            self.written = 0;
        }
    }
}

/// What a chunk takes besides its bytes: its place in the queue, and what shares the bytes.
const CHUNK_OVERHEAD: usize = size_of::<Chunk>() + 32;

/// Capacity that an emptied queue keeps, so that a lone frame costs no allocation.
const KEPT_CAPACITY: usize = 4;

fn count_frames(mut run: &[u8]) -> u32 {
    let mut frames = 0;
    while !run.is_empty() {
        run = &run[frame::frame_end(run, 1)..];
        frames += 1;
    }
    frames
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(content: &str) -> EncodedFrame {
        EncodedFrame::text(content.as_bytes())
    }

    /// Writes up to `count` bytes as a socket would.
    fn write(queue: &mut Outbound, count: usize, wire: &mut Vec<u8>) {
        let mut slices = [IoSlice::new(&[]); 8];
        let filled = queue.fill(&mut slices);
        let bytes: Vec<u8> = slices[..filled]
            .iter()
            .flat_map(|slice| slice.to_vec())
            .take(count)
            .collect();
        queue.advance(bytes.len());
        wire.extend(bytes);
    }

    fn payloads(mut wire: &[u8]) -> Vec<String> {
        let mut payloads = Vec::new();
        while !wire.is_empty() {
            let end = frame::frame_end(wire, 1);
            let header = frame::read_header(wire)
                .expect("valid")
                .expect("whole")
                .header_len;
            payloads.push(String::from_utf8_lossy(&wire[header..end]).into_owned());
            wire = &wire[end..];
        }
        payloads
    }

    #[test]
    fn an_urgent_frame_overtakes_at_the_next_frame_boundary() {
        let mut queue = Outbound::default();
        let run = [text("one"), text("two"), text("three")];
        let bytes: Vec<u8> = run
            .iter()
            .flat_map(|frame| frame.bytes().to_vec())
            .collect();
        queue.push(Chunk::run(bytes.into(), 3));
        let mut wire = Vec::new();
        write(&mut queue, 7, &mut wire);
        queue.push_urgent(&text("fire"));
        queue.push_urgent(&text("flood"));
        assert_eq!(queue.frames(), 4);
        write(&mut queue, 1000, &mut wire);
        assert_eq!(payloads(&wire), ["one", "two", "fire", "flood", "three"]);
        assert_eq!((queue.bytes(), queue.frames()), (0, 0));
    }

    #[test]
    fn an_urgent_frame_stays_behind_the_first_words() {
        for written in [0, 1, 8] {
            let mut queue = Outbound::default();
            queue.push(Chunk::first_words(Bytes::from_static(b"HTTP/1.1 101")));
            queue.push(Chunk::first_words(text("welcome").bytes().clone()));
            queue.push(text("later").into());
            let mut wire = Vec::new();
            write(&mut queue, written, &mut wire);
            queue.push_urgent(&text("fire"));
            write(&mut queue, 1000, &mut wire);
            assert_eq!(&wire[..12], b"HTTP/1.1 101");
            assert_eq!(payloads(&wire[12..]), ["welcome", "fire", "later"]);
        }
    }

    #[test]
    fn clearing_keeps_the_half_written_frame_whole() {
        let mut queue = Outbound::default();
        queue.push(text("one").into());
        queue.push(text("two").into());
        let mut wire = Vec::new();
        write(&mut queue, 2, &mut wire);
        assert_eq!(queue.clear_waiting(), 1);
        queue.push(text("end").into());
        write(&mut queue, 1000, &mut wire);
        assert_eq!(payloads(&wire), ["one", "end"]);
    }

    proptest! {
        #[test]
        fn order_queued_is_order_on_the_wire(steps in prop::collection::vec((any::<bool>(), 0_usize..40, 1_u32..4), 1..60)) {
            let mut queue = Outbound::default();
            let (mut wire, mut normal, mut urgent) = (Vec::new(), Vec::new(), Vec::new());
            for (number, (is_urgent, written, frames)) in steps.into_iter().enumerate() {
                if is_urgent {
                    let name = format!("u{number}");
                    queue.push_urgent(&text(&name));
                    urgent.push(name);
                } else {
                    let names: Vec<String> = (0..frames).map(|part| format!("n{number}.{part}")).collect();
                    let bytes: Vec<u8> = names.iter().flat_map(|name| text(name).bytes().to_vec()).collect();
                    queue.push(Chunk::run(bytes.into(), frames));
                    normal.extend(names);
                }
                write(&mut queue, written, &mut wire);
                let waiting: usize = queue.chunks.iter().map(|chunk| chunk.bytes.len()).sum::<usize>() - queue.written;
                prop_assert_eq!(queue.bytes(), waiting);
            }
            while !queue.is_empty() {
                write(&mut queue, 50, &mut wire);
            }
            let seen = payloads(&wire);
            let is_urgent = |name: &&String| name.starts_with('u');
            prop_assert_eq!(seen.iter().filter(|name| !is_urgent(name)).cloned().collect::<Vec<_>>(), normal);
            prop_assert_eq!(seen.iter().filter(is_urgent).cloned().collect::<Vec<_>>(), urgent);
            prop_assert_eq!((queue.bytes(), queue.frames()), (0, 0));
        }
    }
}
