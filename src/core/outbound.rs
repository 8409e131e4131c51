//! The queue of one connection: encoded frames in lanes. Its owner bounds the bytes.
//!
//! All bytes of a connection leave through its queue. Chunks of one lane leave in the order in which they were queued. A
//! chunk of a higher lane leaves before those of lower lanes, from the next frame boundary on.

use crate::base::priority::{Priority, SlowConsumer};
use crate::core::hub::ChannelKey;
use crate::core::receipt::Receipt;
use crate::wire::frame::{self, EncodedFrame};
use bytes::Bytes;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::num::NonZeroU64;
use std::sync::Arc;

/// The lane of a chunk. The highest lane leaves first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Lane {
    LastWords,
    Waiting(Priority),
    FirstWords,
}

/// Whole frames that are queued, counted and dropped together.
#[derive(Clone, Debug)]
pub struct Chunk {
    pub bytes: Bytes,
    pub frames: u32,
    lane: Lane,
    /// The policy when more than `max_pending_bytes` wait for the connection.
    policy: SlowConsumer,
    /// The channel that the frames were published on.
    channel: Option<ChannelKey>,
    /// The offset of the last frame that the history keeps, if it keeps any.
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

    /// Creates a chunk of one frame to one connection.
    pub fn direct(frame: &EncodedFrame, priority: Priority, receipt: Option<Arc<Receipt>>) -> Self {
        Self {
            receipt,
            ..Self::new(frame.bytes().clone(), Lane::Waiting(priority))
        }
    }

    /// Creates a chunk that leaves before everything else, urgent frames included. The bytes need not be a frame.
    pub fn first_words(bytes: Bytes) -> Self {
        Self::new(bytes, Lane::FirstWords)
    }

    /// Creates a chunk that leaves after everything else. The bytes need not be a frame.
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

/// An emergency that a socket had not taken in full.
#[derive(Debug)]
pub struct Unwritten {
    /// The id of the message.
    pub message: u64,
    pub frame: EncodedFrame,
}

#[derive(Debug, Default)]
pub struct Outbound {
    /// By lane, the highest first; a first chunk that is half written stays first, whatever its lane.
    chunks: VecDeque<Chunk>,
    /// The bytes of the first chunk that are written already.
    written: usize,
    bytes: usize,
    frames: usize,
}

impl Outbound {
    /// Queues a chunk behind the chunks of its lane and of higher lanes, and behind a frame that is half written. Returns
    /// the change of `frames`: a run that is half written may be counted anew, without the frames that have left.
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

    /// Drops all chunks but emergencies and the frame that is half written. Returns the dropped frames by channel.
    pub fn clear_waiting(&mut self) -> Vec<Dropped> {
        self.split_first();
        self.drop_waiting(|_| true)
    }

    /// Drops publications of channels with the policy `DropOldest`, the oldest of the lowest lane first, until the chunks
    /// behind the first weigh `limit` or less. Of a channel with `Latest` only the newest is queued (see `conflate`).
    pub fn drop_oldest(&mut self, limit: usize) -> Vec<Dropped> {
        self.split_first();
        let mut dropped = Vec::new();
        for priority in [Priority::Low, Priority::Normal, Priority::High] {
            let lane = Lane::Waiting(priority);
            let mut at = self.first_below(|other| other > lane);
            // a chunk to drop is near the front, or only lower lanes are behind it: its removal moves few chunks
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

    /// Drops the publications of a channel that wait, because a newer publication replaces them.
    pub fn conflate(&mut self, channel: ChannelKey) -> Vec<Dropped> {
        self.split_first();
        self.drop_waiting(|chunk| {
            chunk.channel == Some(channel) && chunk.policy == SlowConsumer::Latest
        })
    }

    /// True if `conflate` would drop a publication.
    pub fn has_older(&self, channel: ChannelKey) -> bool {
        let begun = usize::from(self.written > 0);
        self.chunks
            .iter()
            .skip(begun)
            .any(|chunk| chunk.channel == Some(channel) && chunk.policy == SlowConsumer::Latest)
    }

    /// The emergencies that were not written in full.
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

    /// Drops the chunks for which `is_dropped` returns true, in their order. Emergencies, the first and last words, and the
    /// frame that is half written stay.
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

    /// Drops all chunks but emergencies, because the socket takes no more bytes. Emergencies stay for a client that returns.
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

    /// Fills `slices` with the bytes to write next; returns the number of slices.
    pub fn fill<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut filled = 0;
        for (slice, chunk) in slices.iter_mut().zip(&self.chunks) {
            let from = if filled == 0 { self.written } else { 0 };
            *slice = IoSlice::new(&chunk.bytes[from..]);
            filled += 1;
        }
        filled
    }

    /// Removes the bytes that the socket has taken.
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

    /// The bytes that wait to be written.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The approximate memory of the queue in bytes. A small frame takes more memory than its length.
    pub fn weight(&self) -> usize {
        self.bytes + self.chunks.len() * CHUNK_OVERHEAD
    }

    /// The weight of the chunks behind the first. The first chunk does not count, because one message may exceed any bound.
    pub fn weight_behind(&self) -> usize {
        match self.chunks.front() {
            Some(first) => self.weight() - (first.bytes.len() - self.written + CHUNK_OVERHEAD),
            None => 0,
        }
    }

    /// The number of frames that wait, a half-written frame included.
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

    /// The index of the first chunk that is not half written and for whose lane `is_above` returns false.
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

    /// Cuts a half-written first chunk at the end of the frame that was begun, so that other frames can go between.
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
        // the frames of the run that have left do not wait any more
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

/// The memory of a chunk besides its bytes: its entry in the queue and the header of the shared bytes.
const CHUNK_OVERHEAD: usize = size_of::<Chunk>() + 32;

/// The capacity that an empty queue keeps, so that a single frame costs no allocation.
const KEPT_CAPACITY: usize = 4;

/// Adds the frames of a dropped chunk to `dropped`.
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
mod tests;
