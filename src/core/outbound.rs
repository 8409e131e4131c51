//! What waits for one client: encoded frames in lanes, bounded in bytes by its owner.
//!
//! Whatever leaves a connection leaves through here. Inside a lane the order queued is the order on the wire; what is
//! in a higher lane goes first, from the next frame boundary on.

use crate::base::priority::{Priority, SlowConsumer};
use crate::core::hub::ChannelKey;
use crate::core::receipt::Receipt;
use crate::wire::frame::{self, EncodedFrame};
use bytes::Bytes;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::num::NonZeroU64;
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
    /// The channel it was published on.
    channel: Option<ChannelKey>,
    /// Its offset there, if it is kept: of a run, the last.
    offset: Option<NonZeroU64>,
    receipt: Option<Arc<Receipt>>,
}

impl Chunk {
    fn new(bytes: Bytes, lane: Lane) -> Self {
        Self {
            bytes,
            frames: 1,
            lane,
            policy: SlowConsumer::Disconnect,
            channel: None,
            offset: None,
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
            channel: Some(channel),
            offset: offset.and_then(NonZeroU64::new),
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

/// Frames of one channel, or of none, that were dropped from a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// `None` for frames that were published on no channel.
    pub channel: Option<ChannelKey>,
    pub frames: usize,
    /// The last offset that was dropped; `None` where none of the publications is kept.
    pub offset: Option<NonZeroU64>,
    pub policy: SlowConsumer,
}

/// An emergency that a connection had not taken whole.
#[derive(Debug)]
pub struct Unwritten {
    /// The message's id.
    pub message: u64,
    pub frame: EncodedFrame,
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
    /// Queues behind what waits in its lane and in higher ones, and behind a frame that is half written. Returns by
    /// how much that has changed `frames`: a run that is half written may be counted anew, without what has left.
    pub fn push(&mut self, chunk: Chunk) -> isize {
        let frames = self.frames;
        self.bytes += chunk.bytes.len();
        self.frames += chunk.frames as usize;
        if self
            .chunks
            .back()
            .is_none_or(|last| last.lane >= chunk.lane)
        {
            self.chunks.push_back(chunk);
        } else {
            self.split_first();
            let at = self.first_below(|lane| lane >= chunk.lane);
            self.chunks.insert(at, chunk);
        }
        self.frames.wrapping_sub(frames).cast_signed()
    }

    /// Drops all that waits but emergencies and the frame that is half written; returns what was dropped, by channel.
    pub fn clear_waiting(&mut self) -> Vec<Dropped> {
        self.split_first();
        self.drop_waiting(|_| true)
    }

    /// Drops publications of channels with `DropOldest`, until what waits behind the first weighs `limit` or less: the
    /// oldest of the lowest lane first. Of those with `Latest` there is no more than the newest (see `conflate`).
    pub fn drop_oldest(&mut self, limit: usize) -> Vec<Dropped> {
        self.split_first();
        let mut dropped = Vec::new();
        for priority in [Priority::Low, Priority::Normal, Priority::High] {
            let lane = Lane::Waiting(priority);
            let mut at = self.first_below(|other| other > lane);
            // each is near the front or has only a lower lane behind it, so that taking it out moves little
            while self.weight_behind() > limit
                && let Some(chunk) = self.chunks.get(at).filter(|chunk| chunk.lane == lane)
            {
                if chunk.policy != SlowConsumer::DropOldest {
                    at += 1;
                    continue;
                }
                note(&mut dropped, chunk);
                self.bytes -= chunk.bytes.len();
                self.frames -= chunk.frames as usize;
                self.chunks.remove(at);
            }
        }
        dropped
    }

    /// Drops what waits of a channel, for something newer.
    pub fn conflate(&mut self, channel: ChannelKey) -> Vec<Dropped> {
        self.split_first();
        self.drop_waiting(|chunk| {
            chunk.channel == Some(channel) && chunk.policy == SlowConsumer::Latest
        })
    }

    /// True when something waits that `conflate` would drop.
    pub fn has_older(&self, channel: ChannelKey) -> bool {
        let begun = usize::from(self.written > 0);
        self.chunks
            .iter()
            .skip(begun)
            .any(|chunk| chunk.channel == Some(channel) && chunk.policy == SlowConsumer::Latest)
    }

    /// Emergencies that were not written whole.
    pub fn unwritten_emergencies(&self) -> Vec<Unwritten> {
        let is_emergency = |chunk: &&Chunk| chunk.lane == Lane::Waiting(Priority::Emergency);
        let to_one = |chunk: &Chunk| {
            let receipt = chunk.receipt.as_ref()?;
            Some(Unwritten {
                message: receipt.message,
                frame: EncodedFrame::from_encoded(chunk.bytes.clone()),
            })
        };
        self.chunks
            .iter()
            .filter(is_emergency)
            .filter_map(to_one)
            .collect()
    }

    /// Drops the chunks that `is_dropped` says, in their order; never emergencies, nor the first or the last words, nor
    /// the frame that is half written.
    fn drop_waiting(&mut self, mut is_dropped: impl FnMut(&Chunk) -> bool) -> Vec<Dropped> {
        let mut dropped: Vec<Dropped> = Vec::new();
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
            note(&mut dropped, chunk);
            false
        });
        self.bytes -= bytes;
        self.frames -= frames;
        dropped
    }

    /// Drops everything but emergencies, for a socket that takes nothing any more: their client may be back for them.
    pub fn discard(&mut self) {
        let is_emergency = |chunk: &Chunk| chunk.lane == Lane::Waiting(Priority::Emergency);
        if !self.chunks.front().is_some_and(is_emergency) {
            self.written = 0;
        }
        self.chunks.retain(is_emergency);
        self.bytes = self
            .chunks
            .iter()
            .map(|chunk| chunk.bytes.len())
            .sum::<usize>()
            - self.written;
        self.frames = self.chunks.iter().map(|chunk| chunk.frames as usize).sum();
        if self.chunks.is_empty() {
            self.chunks = VecDeque::new();
        }
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
                receipt.count_written();
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

    /// The weight of what waits behind the first chunk, which may be larger than any bound.
    pub fn weight_behind(&self) -> usize {
        match self.chunks.front() {
            Some(first) => self.weight() - (first.bytes.len() - self.written + CHUNK_OVERHEAD),
            None => 0,
        }
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

    /// The index of the first chunk that is not half written and whose lane `is_above` says no to.
    fn first_below(&self, is_above: impl Fn(Lane) -> bool) -> usize {
        let (mut low, mut high) = (usize::from(self.written > 0), self.chunks.len());
        while low < high {
            let middle = usize::midpoint(low, high);
            if is_above(self.chunks[middle].lane) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
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

/// Notes that a chunk is dropped.
fn note(dropped: &mut Vec<Dropped>, chunk: &Chunk) {
    match dropped
        .iter_mut()
        .find(|dropped| dropped.channel == chunk.channel)
    {
        Some(dropped) => {
            dropped.frames += chunk.frames as usize;
            dropped.offset = dropped.offset.max(chunk.offset);
        }
        None => dropped.push(Dropped {
            channel: chunk.channel,
            frames: chunk.frames as usize,
            offset: chunk.offset,
            policy: chunk.policy,
        }),
    }
}

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

    fn text(content: &str) -> EncodedFrame {
        EncodedFrame::text(content.as_bytes())
    }

    fn urgent(content: &str) -> Chunk {
        Chunk::direct(&text(content), Priority::Emergency, None)
    }

    fn run_of(bytes: Vec<u8>, frames: u32) -> Chunk {
        let source = (ChannelKey::nth(0), None, SlowConsumer::Disconnect);
        Chunk::published(bytes.into(), frames, Priority::Normal, source)
    }

    fn published(content: &str, channel: u64, offset: u64, policy: SlowConsumer) -> Chunk {
        let source = (ChannelKey::nth(channel), Some(offset), policy);
        Chunk::published(text(content).bytes().clone(), 1, Priority::Normal, source)
    }

    fn drops(channel: u64, frames: usize, offset: u64, policy: SlowConsumer) -> Dropped {
        Dropped {
            channel: Some(ChannelKey::nth(channel)),
            frames,
            offset: NonZeroU64::new(offset),
            policy,
        }
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
        let dropped: usize = queue
            .clear_waiting()
            .iter()
            .map(|dropped| dropped.frames)
            .sum();
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
    fn what_is_dropped_follows_the_channels_policies() {
        let mut queue = Outbound::default();
        queue.push(text("begun").into());
        let mut wire = Vec::new();
        write(&mut queue, 2, &mut wire);
        for offset in 1..=3 {
            queue.push(published("old", 2, offset, SlowConsumer::DropOldest));
            queue.push(published("kept", 3, offset, SlowConsumer::Disconnect));
        }
        queue.push(urgent("fire"));
        let one = CHUNK_OVERHEAD + text("old").len();
        let dropped = queue.drop_oldest(queue.weight_behind() - one - 1);
        assert_eq!(dropped, [drops(2, 2, 2, SlowConsumer::DropOldest)]);
        let dropped = queue.drop_oldest(0);
        assert_eq!(dropped, [drops(2, 1, 3, SlowConsumer::DropOldest)]);
        write(&mut queue, 1000, &mut wire);
        assert_eq!(payloads(&wire), ["begun", "fire", "kept", "kept", "kept"]);
        assert_eq!((queue.bytes(), queue.frames()), (0, 0));
    }

    #[test]
    fn the_lowest_lane_is_dropped_first_and_emergencies_never_are() {
        let mut queue = Outbound::default();
        for (content, priority) in [
            ("high", Priority::High),
            ("low", Priority::Low),
            ("fire", Priority::Emergency),
            ("normal", Priority::Normal),
        ] {
            let source = (ChannelKey::nth(1), Some(1), SlowConsumer::DropOldest);
            let bytes = text(content).bytes().clone();
            queue.push(Chunk::published(bytes, 1, priority, source));
        }
        for left in [
            &["fire", "high", "normal"][..],
            &["fire", "high"],
            &["fire"],
        ] {
            assert_eq!(queue.drop_oldest(queue.weight_behind() - 1).len(), 1);
            let waiting: Vec<u8> = queue
                .chunks
                .iter()
                .flat_map(|chunk| chunk.bytes.to_vec())
                .collect();
            assert_eq!(payloads(&waiting), left);
        }
        assert!(queue.drop_oldest(0).is_empty());
    }

    #[test]
    fn what_waits_behind_the_first_is_weighed_without_it() {
        let mut queue = Outbound::default();
        assert_eq!(queue.weight_behind(), 0);
        queue.push(text(&"x".repeat(5000)).into());
        assert_eq!(queue.weight_behind(), 0);
        write(&mut queue, 1000, &mut Vec::new());
        queue.push(text("next").into());
        assert_eq!(queue.weight_behind(), CHUNK_OVERHEAD + text("next").len());
    }

    #[test]
    fn an_emergency_that_is_half_written_is_not_written() {
        let mut queue = Outbound::default();
        let receipt = Arc::new(Receipt {
            message: 7,
            ..Receipt::default()
        });
        let frame = text("fire");
        queue.push(Chunk::direct(&frame, Priority::Emergency, Some(receipt)));
        queue.push(text("other").into());
        write(&mut queue, 3, &mut Vec::new());
        let unwritten = queue.unwritten_emergencies();
        let unwritten: Vec<_> = unwritten
            .iter()
            .map(|each| (each.message, &each.frame))
            .collect();
        assert_eq!(unwritten, [(7, &frame)]);
        queue.discard();
        assert_eq!((queue.bytes(), queue.frames()), (frame.len() - 3, 1));
        assert_eq!(queue.unwritten_emergencies().len(), 1);
        write(&mut queue, frame.len(), &mut Vec::new());
        assert!(queue.unwritten_emergencies().is_empty());
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
}
