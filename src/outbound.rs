//! What waits for one client: encoded frames in lanes, bounded in bytes by its owner.
//!
//! Whatever leaves a connection leaves through here. Inside a lane the order queued is the order on the wire; what is
//! in a higher lane goes first, from the next frame boundary on.

use crate::frame::{self, EncodedFrame};
use crate::hub::ChannelKey;
use crate::priority::{Priority, SlowConsumer};
use crate::receipt::Receipt;
use bytes::Bytes;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;

/// Where in the order a chunk goes; the highest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Lane {
    LastWords,
    Waiting(Priority),
    FirstWords,
}

/// Whole frames that are queued and counted together.
#[derive(Clone, Debug)]
pub struct Chunk {
    pub bytes: Bytes,
    pub frames: u32,
    lane: Lane,
    /// What becomes of it when too much waits.
    policy: SlowConsumer,
    /// The channel it was published on; 0 for none.
    channel: ChannelKey,
    /// Its offset there, if it is kept: of a run, the last.
    offset: u64,
    receipt: Option<Arc<Receipt>>,
}

impl Chunk {
    fn new(bytes: Bytes, lane: Lane) -> Self {
        Self {
            bytes,
            frames: 1,
            lane,
            policy: SlowConsumer::Disconnect,
            channel: 0,
            offset: 0,
            receipt: None,
        }
    }

    /// Frames that were published on a channel, joined into one run of bytes.
    pub fn published(
        bytes: Bytes,
        frames: u32,
        priority: Priority,
        (channel, offset, policy): (ChannelKey, Option<u64>, SlowConsumer),
    ) -> Self {
        Self {
            frames,
            policy,
            channel,
            offset: offset.unwrap_or(0),
            ..Self::new(bytes, Lane::Waiting(priority))
        }
    }

    /// A frame to one connection.
    pub fn direct(frame: &EncodedFrame, priority: Priority, receipt: Option<Arc<Receipt>>) -> Self {
        Self {
            receipt,
            ..Self::new(frame.bytes().clone(), Lane::Waiting(priority))
        }
    }

    /// What has to leave before anything else may, urgent frames included. It need not be a frame.
    pub fn first_words(bytes: Bytes) -> Self {
        Self::new(bytes, Lane::FirstWords)
    }

    /// What has to leave behind everything else. It need not be a frame.
    pub fn last_words(bytes: Bytes) -> Self {
        Self::new(bytes, Lane::LastWords)
    }
}

impl From<EncodedFrame> for Chunk {
    fn from(frame: EncodedFrame) -> Self {
        Self::direct(&frame, Priority::Normal, None)
    }
}

/// Publications of one channel that were dropped from a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shed {
    pub channel: ChannelKey,
    pub frames: usize,
    /// The last that was dropped, if they are kept.
    pub offset: u64,
    pub policy: SlowConsumer,
}

#[derive(Debug, Default)]
pub struct Outbound {
    /// The highest lane first, but for a first chunk that is half written.
    chunks: VecDeque<Chunk>,
    /// How much of the first chunk is written already.
    written: usize,
    bytes: usize,
    frames: usize,
}

impl Outbound {
    /// Queues behind what waits in its lane and in higher ones, and behind a frame that is half written.
    pub fn push(&mut self, chunk: Chunk) {
        self.bytes += chunk.bytes.len();
        self.frames += chunk.frames as usize;
        if self
            .chunks
            .back()
            .is_none_or(|last| last.lane >= chunk.lane)
        {
            self.chunks.push_back(chunk);
            return;
        }
        self.split_first();
        let begun = usize::from(self.written > 0);
        let waiting = self.chunks.iter().skip(begun);
        let ahead = waiting.take_while(|other| other.lane >= chunk.lane).count();
        self.chunks.insert(begun + ahead, chunk);
    }

    /// Drops all that waits but emergencies and the frame that is half written; returns what was dropped, by channel
    /// (0 for what was on none).
    pub fn clear_waiting(&mut self) -> Vec<Shed> {
        self.split_first();
        self.drop_waiting(|_| true)
    }

    /// Drops what the channels' policies allow to, until what is left weighs `limit` or less: of those with `Latest`
    /// all but the newest, then of those with `DropOldest` the oldest.
    pub fn shed(&mut self, limit: usize) -> Vec<Shed> {
        self.split_first();
        let mut newest: Vec<ChannelKey> = Vec::new();
        let mut keep = Vec::with_capacity(self.chunks.len());
        for chunk in self.chunks.iter().rev() {
            let is_newest =
                chunk.policy != SlowConsumer::Latest || !newest.contains(&chunk.channel);
            if is_newest && chunk.policy == SlowConsumer::Latest {
                newest.push(chunk.channel);
            }
            keep.push(is_newest);
        }
        let mut dropped = self.drop_waiting(|_| keep.pop() == Some(false));
        let mut excess = self.weight().saturating_sub(limit);
        let oldest = self.drop_waiting(|chunk| {
            let drops = excess > 0 && chunk.policy == SlowConsumer::DropOldest;
            if drops {
                excess = excess.saturating_sub(chunk.bytes.len() + CHUNK_OVERHEAD);
            }
            drops
        });
        dropped.extend(oldest);
        dropped
    }

    /// Drops what waits of a channel, for something newer.
    pub fn conflate(&mut self, channel: ChannelKey) -> Vec<Shed> {
        self.split_first();
        self.drop_waiting(|chunk| chunk.channel == channel && chunk.policy == SlowConsumer::Latest)
    }

    /// True when something of a channel waits, the half-written frame not counted.
    pub fn has_waiting(&self, channel: ChannelKey) -> bool {
        let begun = usize::from(self.written > 0);
        self.chunks
            .iter()
            .skip(begun)
            .any(|chunk| chunk.channel == channel)
    }

    /// Drops the chunks that `is_dropped` says, in their order; never emergencies, nor the first or the last words, nor
    /// the frame that is half written.
    fn drop_waiting(&mut self, mut is_dropped: impl FnMut(&Chunk) -> bool) -> Vec<Shed> {
        let mut dropped: Vec<Shed> = Vec::new();
        let begun = usize::from(self.written > 0);
        let (mut bytes, mut frames, mut at) = (0, 0, 0);
        self.chunks.retain(|chunk| {
            at += 1;
            let is_asked = is_dropped(chunk);
            let may_go = at > begun
                && matches!(chunk.lane, Lane::Waiting(priority) if priority < Priority::Emergency);
            if !(is_asked && may_go) {
                return true;
            }
            bytes += chunk.bytes.len();
            frames += chunk.frames as usize;
            match dropped
                .iter_mut()
                .find(|shed| shed.channel == chunk.channel)
            {
                Some(shed) => {
                    shed.frames += chunk.frames as usize;
                    shed.offset = shed.offset.max(chunk.offset);
                }
                None => dropped.push(Shed {
                    channel: chunk.channel,
                    frames: chunk.frames as usize,
                    offset: chunk.offset,
                    policy: chunk.policy,
                }),
            }
            false
        });
        self.bytes -= bytes;
        self.frames -= frames;
        dropped
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
            if let Some(receipt) = &first.receipt {
                receipt.note_written();
            }
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
        if self.written == 0 {
            return;
        }
        let Some(first) = self.chunks.front_mut().filter(|first| first.frames > 1) else {
            return;
        };
        let end = frame::frame_end(&first.bytes, self.written);
        let begun = u32::from(end > self.written);
        let rest = first.bytes.slice(end..);
        let rest = Chunk {
            frames: count_frames(&rest),
            bytes: rest,
            ..first.clone()
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

    fn urgent(content: &str) -> Chunk {
        Chunk::direct(&text(content), Priority::Emergency, None)
    }

    fn run_of(bytes: Vec<u8>, frames: u32) -> Chunk {
        let source = (0, None, SlowConsumer::Disconnect);
        Chunk::published(bytes.into(), frames, Priority::Normal, source)
    }

    fn published(content: &str, channel: ChannelKey, offset: u64, policy: SlowConsumer) -> Chunk {
        let source = (channel, Some(offset), policy);
        Chunk::published(text(content).bytes().clone(), 1, Priority::Normal, source)
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
        queue.push(run_of(bytes, 3));
        let mut wire = Vec::new();
        write(&mut queue, 7, &mut wire);
        queue.push(urgent("fire"));
        queue.push(urgent("flood"));
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
            queue.push(urgent("fire"));
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
        let dropped: usize = queue.clear_waiting().iter().map(|shed| shed.frames).sum();
        assert_eq!(dropped, 1);
        queue.push(text("end").into());
        write(&mut queue, 1000, &mut wire);
        assert_eq!(payloads(&wire), ["one", "end"]);
    }

    #[test]
    fn higher_lanes_go_first_and_last_words_last() {
        let mut queue = Outbound::default();
        let mut wire = Vec::new();
        queue.push(text("begun").into());
        write(&mut queue, 2, &mut wire);
        queue.push(Chunk::last_words(text("bye").bytes().clone()));
        for (name, priority) in [
            ("low", Priority::Low),
            ("normal", Priority::Normal),
            ("high", Priority::High),
            ("emergency", Priority::Emergency),
            ("low 2", Priority::Low),
            ("high 2", Priority::High),
        ] {
            queue.push(Chunk::direct(&text(name), priority, None));
        }
        write(&mut queue, 1000, &mut wire);
        let wanted = [
            "begun",
            "emergency",
            "high",
            "high 2",
            "normal",
            "low",
            "low 2",
            "bye",
        ];
        assert_eq!(payloads(&wire), wanted);
    }

    #[test]
    fn what_is_shed_follows_the_channels_policies() {
        let mut queue = Outbound::default();
        queue.push(text("begun").into());
        let mut wire = Vec::new();
        write(&mut queue, 2, &mut wire);
        for offset in 1..=3 {
            queue.push(published(
                &format!("latest {offset}"),
                1,
                offset,
                SlowConsumer::Latest,
            ));
            queue.push(published(
                &format!("oldest {offset}"),
                2,
                offset,
                SlowConsumer::DropOldest,
            ));
            queue.push(published(
                &format!("kept {offset}"),
                3,
                offset,
                SlowConsumer::Disconnect,
            ));
        }
        queue.push(urgent("fire"));
        let limit = queue.weight() - 2 * (CHUNK_OVERHEAD + 10) - CHUNK_OVERHEAD;
        let shed = |channel, frames, offset, policy| Shed {
            channel,
            frames,
            offset,
            policy,
        };
        let wanted = [
            shed(1, 2, 2, SlowConsumer::Latest),
            shed(2, 1, 1, SlowConsumer::DropOldest),
        ];
        assert_eq!(queue.shed(limit), wanted);
        assert!(queue.weight() <= limit && queue.has_waiting(1) && !queue.has_waiting(4));
        queue.push(published("latest 4", 1, 4, SlowConsumer::Latest));
        assert_eq!(queue.conflate(1), [shed(1, 2, 4, SlowConsumer::Latest)]);
        write(&mut queue, 1000, &mut wire);
        let wanted = [
            "begun", "fire", "kept 1", "oldest 2", "kept 2", "oldest 3", "kept 3",
        ];
        assert_eq!(payloads(&wire), wanted);
        assert_eq!((queue.bytes(), queue.frames()), (0, 0));
    }

    #[test]
    fn a_receipt_is_signed_when_the_last_byte_has_left() {
        let receipt = Arc::new(Receipt::default());
        let mut queue = Outbound::default();
        let frame = text("one");
        queue.push(Chunk::direct(
            &frame,
            Priority::Normal,
            Some(Arc::clone(&receipt)),
        ));
        let written = || receipt.written.load(std::sync::atomic::Ordering::Relaxed);
        write(&mut queue, frame.len() - 1, &mut Vec::new());
        assert_eq!(written(), 0);
        write(&mut queue, 1, &mut Vec::new());
        assert_eq!(written(), 1);
    }

    proptest! {
        #[test]
        fn order_queued_is_order_on_the_wire(steps in prop::collection::vec((any::<bool>(), 0_usize..40, 1_u32..4), 1..60)) {
            let mut queue = Outbound::default();
            let (mut wire, mut normal, mut overtaking) = (Vec::new(), Vec::new(), Vec::new());
            for (number, (is_urgent, written, frames)) in steps.into_iter().enumerate() {
                if is_urgent {
                    let name = format!("u{number}");
                    queue.push(urgent(&name));
                    overtaking.push(name);
                } else {
                    let names: Vec<String> = (0..frames).map(|part| format!("n{number}.{part}")).collect();
                    let bytes: Vec<u8> = names.iter().flat_map(|name| text(name).bytes().to_vec()).collect();
                    queue.push(run_of(bytes, frames));
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
            prop_assert_eq!(seen.iter().filter(is_urgent).cloned().collect::<Vec<_>>(), overtaking);
            prop_assert_eq!((queue.bytes(), queue.frames()), (0, 0));
        }
    }
}
