//! The kept publications of one channel, each at its offset.

use crate::base::clock::SteadyTime;
use crate::wire::frame::EncodedFrame;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// A position in the stream of a channel. Offsets count the publications of one epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamPosition {
    /// The incarnation of the stream. In another epoch offsets began anew, or publications were lost.
    pub epoch: u64,
    /// 1 for the first publication.
    pub offset: u64,
}

/// A publication that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    pub offset: u64,
    /// When it was published.
    pub at: SteadyTime,
    /// The caller was told that the publication is saved, or will be told. Only the size and age limits of the channel
    /// remove the publication.
    pub is_durable: bool,
    pub message: Message,
}

/// The message of a kept publication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    InMemory(EncodedFrame),
    /// Only the log of streams has the frame, which has this length.
    InLog(usize),
}

impl Message {
    fn frame_len(&self) -> usize {
        match self {
            Message::InMemory(frame) => frame.len(),
            Message::InLog(len) => *len,
        }
    }

    fn is_in_log(&self) -> bool {
        matches!(self, Message::InLog(_))
    }
}

/// How many of the newest messages a channel whose publications are all saved has in memory, and their bytes. The
/// newest message is always in memory.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub messages: usize,
    pub bytes: usize,
}

/// Enough for clients that reconnect after a short loss of the network; older messages are read from the log.
pub const WINDOW: Window = Window {
    messages: 1000,
    bytes: 1 << 20,
};

impl Window {
    /// True if a message of `len` bytes is in the window behind `newer` newer messages of `bytes`.
    pub fn has_room(self, newer: usize, bytes: usize, len: usize) -> bool {
        newer == 0 || (newer < self.messages && bytes + len <= self.bytes)
    }
}

/// A channel's kept publications, oldest first, and its position.
#[derive(Clone, Debug)]
pub struct History {
    /// The incarnation of the stream.
    pub epoch: u64,
    /// The offset of the last publication that was handed over; 0 before the first.
    pub top: u64,
    kept: VecDeque<Kept>,
    /// The number of the oldest publications whose messages only the log has.
    in_log: usize,
    /// Bytes of the messages in memory.
    in_memory_bytes: usize,
    /// The bytes that are charged for the kept publications, wherever their messages are.
    bytes: Bytes,
    /// Some publications up to this offset are not kept any more, or never were.
    gone: u64,
}

/// The approximate bytes of kept publications, in memory or in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bytes {
    /// Bytes of publications that may be evicted to make room.
    pub evictable: usize,
    /// Bytes of durable publications.
    pub durable: usize,
}

impl Bytes {
    fn of(&mut self, kept: &Kept) -> &mut usize {
        if kept.is_durable {
            &mut self.durable
        } else {
            &mut self.evictable
        }
    }
}

/// Why a client cannot recover the publications that it missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unrecovered {
    /// The position of the client is of another incarnation of the stream.
    Epoch,
    /// The position of the client is ahead of the stream.
    OffsetAhead,
    /// Some of the missed publications are not kept any more.
    Expired,
    /// The missed publications are too large for one reply.
    TooLarge,
}

impl Unrecovered {
    /// The reason as it is written on the wire.
    pub fn reason(self) -> &'static str {
        match self {
            Unrecovered::Epoch => "epoch",
            Unrecovered::OffsetAhead => "offset_ahead",
            Unrecovered::Expired => "expired",
            Unrecovered::TooLarge => "too_large",
        }
    }
}

/// A page of the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// The most publications of the page.
    pub limit: usize,
    /// Only publications behind this offset, the oldest first.
    pub after: Option<u64>,
    /// Only publications before this offset.
    pub before: Option<u64>,
}

/// The bytes of a kept publication besides its frame.
const KEPT_OVERHEAD: usize = size_of::<Kept>() + 32;

/// The approximate bytes of a kept publication with a frame of this length.
pub fn weight(frame_len: usize) -> usize {
    frame_len + KEPT_OVERHEAD
}

impl History {
    /// Creates a history that keeps nothing. The publications up to `top` are gone.
    pub fn new(epoch: u64, top: u64) -> Self {
        Self {
            epoch,
            top,
            kept: VecDeque::new(),
            in_log: 0,
            in_memory_bytes: 0,
            bytes: Bytes::default(),
            gone: top,
        }
    }

    /// Restores a history. `kept` are the publications, oldest first, none above `top`; those that only the log has come
    /// before those in memory. Some publications up to `broken_through` are missing.
    pub fn restored(
        epoch: u64,
        top: u64,
        broken_through: u64,
        kept: impl IntoIterator<Item = Kept>,
    ) -> Self {
        let kept: VecDeque<_> = kept.into_iter().collect();
        let gone = kept.front().map_or(top, |first| first.offset - 1);
        let gone = gone.max(broken_through);
        let mut bytes = Bytes::default();
        for kept in &kept {
            *bytes.of(kept) += weight(kept.message.frame_len());
        }
        let in_log = kept.partition_point(|kept| kept.message.is_in_log());
        let in_memory_bytes = kept
            .range(in_log..)
            .map(|kept| kept.message.frame_len())
            .sum();
        Self {
            epoch,
            top,
            kept,
            in_log,
            in_memory_bytes,
            bytes,
            gone,
        }
    }

    /// Adds the next publication, whose offset is above the top.
    pub fn push(&mut self, kept: Kept) {
        self.top = kept.offset;
        *self.bytes.of(&kept) += weight(kept.message.frame_len());
        self.in_memory_bytes += kept.message.frame_len();
        self.kept.push_back(kept);
    }

    /// Keeps the messages of the window in memory, and leaves older ones to the log. All kept publications must be saved.
    pub fn leave_to_log(&mut self, window: Window) {
        while let Some(oldest) = self.kept.get_mut(self.in_log) {
            let len = oldest.message.frame_len();
            let newer = self.kept.len() - self.in_log - 1;
            if window.has_room(newer, self.in_memory_bytes - len, len) {
                return;
            }
            self.kept[self.in_log].message = Message::InLog(len);
            self.in_memory_bytes -= len;
            self.in_log += 1;
        }
    }

    /// The number of publications whose messages only the log has.
    pub fn in_log(&self) -> usize {
        self.in_log
    }

    /// Counts a publication that is not kept.
    pub fn pass(&mut self, offset: u64) {
        self.top = offset;
        self.gone = offset;
    }

    /// Removes the oldest publications beyond `size`, and those that were published before `oldest`.
    pub fn trim(&mut self, size: usize, oldest: SteadyTime) {
        while self
            .kept
            .front()
            .is_some_and(|first| self.kept.len() > size || first.at < oldest)
        {
            self.drop_first();
        }
    }

    /// Removes the oldest publications that are not durable until `bytes` less are kept; returns how many it removed.
    pub fn evict(&mut self, bytes: usize) -> usize {
        let before = self.kept.len();
        let wanted = self.bytes.evictable.saturating_sub(bytes);
        let (left, gone) = (&mut self.bytes.evictable, &mut self.gone);
        let (in_log, in_memory_bytes) = (&mut self.in_log, &mut self.in_memory_bytes);
        self.kept.retain(|kept| {
            if *left <= wanted || kept.is_durable {
                return true;
            }
            let len = kept.message.frame_len();
            *left -= weight(len);
            if kept.message.is_in_log() {
                *in_log -= 1;
            } else {
                *in_memory_bytes -= len;
            }
            *gone = (*gone).max(kept.offset);
            false
        });
        self.give_back();
        before - self.kept.len()
    }

    /// Removes all publications.
    pub fn clear(&mut self) {
        while !self.kept.is_empty() {
            self.drop_first();
        }
    }

    /// The publications behind `offset` and up to `through`, if all of them are kept and have at most `max_bytes`.
    pub fn since(
        &self,
        epoch: Option<u64>,
        offset: u64,
        through: u64,
        max_bytes: usize,
    ) -> Result<impl Iterator<Item = &Kept>, Unrecovered> {
        if epoch != Some(self.epoch) {
            return Err(Unrecovered::Epoch);
        }
        if offset > self.top {
            return Err(Unrecovered::OffsetAhead);
        }
        if offset < self.gone {
            return Err(Unrecovered::Expired);
        }
        let missed = move || {
            self.kept
                .range(self.position(offset)..)
                .take_while(move |kept| kept.offset <= through)
        };
        if missed().map(|kept| kept.message.frame_len()).sum::<usize>() > max_bytes {
            return Err(Unrecovered::TooLarge);
        }
        Ok(missed())
    }

    /// Returns one page, oldest first, of at most `max_bytes` but at least one publication; true if `max_bytes` has cut the
    /// page short.
    pub fn page(&self, page: Page, max_bytes: usize) -> (Vec<&Kept>, bool) {
        let from = page.after.map_or(0, |after| self.position(after));
        let to = page.before.map_or(self.kept.len(), |before| {
            self.position(before.saturating_sub(1))
        });
        let range = self.kept.range(from..to.max(from));
        let mut left = max_bytes;
        let mut is_cut = false;
        let mut fits = |kept: &&Kept| {
            let is_first = left == max_bytes;
            let len = kept.message.frame_len();
            let fits = len <= left || is_first;
            left = left.saturating_sub(len.max(1));
            is_cut |= !fits;
            fits
        };
        let publications = if page.after.is_some() {
            range
                .take(page.limit)
                .take_while(|kept| fits(kept))
                .collect()
        } else {
            let mut newest: Vec<_> = range
                .rev()
                .take(page.limit)
                .take_while(|kept| fits(kept))
                .collect();
            newest.reverse();
            newest
        };
        (publications, is_cut)
    }

    /// The number of kept publications.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    pub fn bytes(&self) -> Bytes {
        self.bytes
    }

    /// The durable bytes that the next publication removes, where `size` publications are kept and `coming` others come
    /// before the next.
    pub fn displaced(&self, size: usize, coming: usize) -> usize {
        let index = (self.kept.len() + coming).checked_sub(size);
        let displaced = index.and_then(|index| self.kept.get(index));
        displaced
            .filter(|kept| kept.is_durable)
            .map_or(0, |kept| weight(kept.message.frame_len()))
    }

    /// The offset up to which some publications are missing.
    pub fn gone(&self) -> u64 {
        self.gone
    }

    /// The offset up to which no publication is kept. `gone` may be higher, because durable publications stay where others
    /// were evicted.
    pub fn emptied_through(&self) -> u64 {
        self.kept
            .front()
            .map_or(self.gone, |first| first.offset - 1)
    }

    /// The index of the first publication behind an offset.
    fn position(&self, offset: u64) -> usize {
        self.kept.partition_point(|kept| kept.offset <= offset)
    }

    fn drop_first(&mut self) {
        if let Some(first) = self.kept.pop_front() {
            let len = first.message.frame_len();
            *self.bytes.of(&first) -= weight(len);
            if first.message.is_in_log() {
                self.in_log -= 1;
            } else {
                self.in_memory_bytes -= len;
            }
            self.gone = self.gone.max(first.offset);
        }
        self.give_back();
    }

    /// Frees the room of publications that are no longer kept.
    fn give_back(&mut self) {
        if self.kept.is_empty() {
            self.kept = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests;
