//! What is kept of one channel: its last publications, each at its offset.

use crate::base::clock::SteadyTime;
use crate::wire::frame::EncodedFrame;
use std::collections::VecDeque;

/// A place in a channel's stream: offsets count publications within one epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamPosition {
    /// This incarnation of the stream; another one means that offsets began anew, or that some were lost.
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
    /// The publisher was told that it is saved, or will be: only the channel's own size and age may remove it.
    pub is_durable: bool,
    pub frame: EncodedFrame,
}

/// A channel's kept publications, oldest first, and its position.
#[derive(Clone, Debug)]
pub struct History {
    /// This incarnation of the stream.
    pub epoch: u64,
    /// The offset of the last publication that was handed over; 0 before the first.
    pub top: u64,
    kept: VecDeque<Kept>,
    bytes: Bytes,
    /// Publications up to this offset are not all kept, if there were any.
    gone: u64,
}

/// Bytes of memory that kept publications take, about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes {
    /// Of publications that may be evicted to make room.
    pub evictable: usize,
    /// Of durable publications.
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

/// Why a client cannot be given what it missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unrecovered {
    /// It was on another incarnation of the stream.
    Epoch,
    /// It claims to have seen what was never published.
    OffsetAhead,
    /// Some of it is kept no longer.
    Expired,
    /// It is more than goes into one reply.
    TooLarge,
}

impl Unrecovered {
    /// The word on the wire.
    pub fn reason(self) -> &'static str {
        match self {
            Unrecovered::Epoch => "epoch",
            Unrecovered::OffsetAhead => "offset_ahead",
            Unrecovered::Expired => "expired",
            Unrecovered::TooLarge => "too_large",
        }
    }
}

/// Which publications are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// At most so many.
    pub limit: usize,
    /// Only those behind this offset; the oldest of them.
    pub after: Option<u64>,
    /// Only those before this offset.
    pub before: Option<u64>,
}

/// Bytes that a kept publication takes besides its frame.
const KEPT_OVERHEAD: usize = size_of::<Kept>() + 32;

/// Bytes of memory that a kept publication with this frame takes, about.
pub fn weight(frame: &EncodedFrame) -> usize {
    frame.len() + KEPT_OVERHEAD
}

impl History {
    /// Nothing is kept yet; publications up to `top` are gone.
    pub fn new(epoch: u64, top: u64) -> Self {
        Self {
            epoch,
            top,
            kept: VecDeque::new(),
            bytes: Bytes::default(),
            gone: top,
        }
    }

    /// As it was saved: `kept` oldest first, none above `top`, and not all up to `broken_through`.
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
            *bytes.of(kept) += weight(&kept.frame);
        }
        Self {
            epoch,
            top,
            kept,
            bytes,
            gone,
        }
    }

    /// Adds the next publication, above the top.
    pub fn push(&mut self, kept: Kept) {
        self.top = kept.offset;
        *self.bytes.of(&kept) += weight(&kept.frame);
        self.kept.push_back(kept);
    }

    /// A publication that is not kept.
    pub fn pass(&mut self, offset: u64) {
        self.top = offset;
        self.gone = offset;
    }

    /// Lets go of the oldest beyond `size`, and of what was published before `oldest`.
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
        self.kept.retain(|kept| {
            if *left <= wanted || kept.is_durable {
                return true;
            }
            *left -= weight(&kept.frame);
            *gone = (*gone).max(kept.offset);
            false
        });
        self.give_back();
        before - self.kept.len()
    }

    /// Removes everything that is kept.
    pub fn clear(&mut self) {
        while !self.kept.is_empty() {
            self.drop_first();
        }
    }

    /// What was published behind `offset` and up to `through`, if all of that is kept and has at most `max_bytes`.
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
        if missed().map(|kept| kept.frame.len()).sum::<usize>() > max_bytes {
            return Err(Unrecovered::TooLarge);
        }
        Ok(missed())
    }

    /// One page, oldest first, of at most `max_bytes` but at least one publication; true when bytes cut it short.
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
            let fits = kept.frame.len() <= left || is_first;
            left = left.saturating_sub(kept.frame.len().max(1));
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

    /// Publications kept.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    pub fn bytes(&self) -> Bytes {
        self.bytes
    }

    /// Durable bytes that leave with the next publication, where `size` are kept and `coming` others come before.
    pub fn displaced(&self, size: usize, coming: usize) -> usize {
        let index = (self.kept.len() + coming).checked_sub(size);
        let displaced = index.and_then(|index| self.kept.get(index));
        displaced
            .filter(|kept| kept.is_durable)
            .map_or(0, |kept| weight(&kept.frame))
    }

    /// Publications up to this offset are not all kept.
    pub fn gone(&self) -> u64 {
        self.gone
    }

    /// Nothing is kept up to this offset. `gone` may be higher: durable publications stay where others were evicted.
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
            *self.bytes.of(&first) -= weight(&first.frame);
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
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    /// No publication is older.
    const OLDEST: SteadyTime = SteadyTime::START;

    fn time(micros: u64) -> SteadyTime {
        SteadyTime::START + Duration::from_micros(micros)
    }

    fn kept(offset: u64, at: u64, size: usize) -> Kept {
        Kept {
            offset,
            at: time(at),
            is_durable: false,
            frame: EncodedFrame::text(&vec![b'x'; size]),
        }
    }

    fn offsets<'a>(kept: impl IntoIterator<Item = &'a Kept>) -> Vec<u64> {
        kept.into_iter().map(|kept| kept.offset).collect()
    }

    fn filled(from: u64, to: u64) -> History {
        let mut history = History::new(7, from - 1);
        for offset in from..=to {
            history.push(kept(offset, offset, 10));
        }
        history
    }

    #[test]
    fn all_that_was_missed_or_nothing() {
        let mut history = filled(1, 10);
        history.trim(5, OLDEST);
        let since = |epoch, offset, through, bytes| {
            history.since(epoch, offset, through, bytes).map(offsets)
        };
        assert_eq!(since(Some(7), 7, 10, 1000), Ok(vec![8, 9, 10]));
        assert_eq!(since(Some(7), 5, 10, 1000), Ok(vec![6, 7, 8, 9, 10]));
        assert_eq!(since(Some(7), 7, 8, 1000), Ok(vec![8]));
        assert_eq!(since(Some(7), 10, 10, 0), Ok(vec![]));
        assert_eq!(since(Some(7), 4, 10, 1000), Err(Unrecovered::Expired));
        assert_eq!(since(Some(7), 11, 10, 1000), Err(Unrecovered::OffsetAhead));
        assert_eq!(since(Some(8), 10, 10, 1000), Err(Unrecovered::Epoch));
        assert_eq!(since(Some(7), 7, 10, 25), Err(Unrecovered::TooLarge));
    }

    #[test]
    fn pages_are_oldest_first_from_either_end() {
        let history = filled(3, 12);
        let page = |limit, after, before| {
            offsets(
                history
                    .page(
                        Page {
                            limit,
                            after,
                            before,
                        },
                        10_000,
                    )
                    .0,
            )
        };
        assert_eq!(page(3, None, None), [10, 11, 12]);
        assert_eq!(page(3, Some(4), None), [5, 6, 7]);
        assert_eq!(page(3, None, Some(6)), [3, 4, 5]);
        assert_eq!(page(100, Some(4), Some(7)), [5, 6]);
        assert_eq!(page(3, Some(12), None), [0_u64; 0]);
        assert_eq!(page(3, Some(9), Some(5)), [0_u64; 0]);
        assert_eq!(page(3, None, Some(0)), [0_u64; 0]);
        let (cut, is_cut) = history.page(
            Page {
                limit: 10,
                after: Some(0),
                before: None,
            },
            25,
        );
        assert_eq!((offsets(cut), is_cut), (vec![3, 4], true));
        let (one, is_cut) = history.page(
            Page {
                limit: 10,
                after: None,
                before: None,
            },
            1,
        );
        assert_eq!((offsets(one), is_cut), (vec![12], true));
    }

    #[test]
    fn what_is_not_kept_cannot_be_recovered() {
        let mut history = History::new(7, 0);
        history.pass(1);
        assert!(matches!(
            history.since(Some(7), 0, 1, 100).map(offsets),
            Err(Unrecovered::Expired)
        ));
        assert_eq!(history.since(Some(7), 1, 1, 100).map(offsets), Ok(vec![]));
    }

    #[test]
    fn nothing_is_recovered_across_a_hole_but_pages_have_what_is_kept() {
        let saved = [1, 2, 4, 5].map(|offset| kept(offset, offset, 10));
        let mut history = History::restored(7, 5, 3, saved);
        let since =
            |history: &History, offset| history.since(Some(7), offset, 5, 1000).map(offsets);
        assert_eq!(since(&history, 2), Err(Unrecovered::Expired));
        assert_eq!(since(&history, 3), Ok(vec![4, 5]));
        let page = Page {
            limit: 10,
            after: None,
            before: None,
        };
        assert_eq!(offsets(history.page(page, 1000).0), [1, 2, 4, 5]);
        history.trim(3, OLDEST);
        assert_eq!(since(&history, 2), Err(Unrecovered::Expired));
        history.trim(1, OLDEST);
        assert_eq!(since(&history, 3), Err(Unrecovered::Expired));
        assert_eq!(since(&history, 4), Ok(vec![5]));
    }

    #[test]
    fn an_eviction_leaves_durable_publications_and_their_offsets() {
        let mut history = History::new(7, 0);
        for offset in 1..=6 {
            history.push(Kept {
                is_durable: offset == 2 || offset == 5,
                ..kept(offset, offset, 10)
            });
        }
        let all = Page {
            limit: 10,
            after: None,
            before: None,
        };
        assert_eq!(history.evict(1), 1);
        assert_eq!((history.gone(), history.emptied_through()), (1, 1));
        assert_eq!(history.evict(usize::MAX), 3);
        assert_eq!(offsets(history.page(all, 1000).0), [2, 5]);
        assert_eq!((history.gone(), history.emptied_through()), (6, 1));
        assert_eq!(history.bytes().evictable, 0);
        assert_eq!(history.evict(usize::MAX), 0);
        assert_eq!(
            history.since(Some(7), 4, 6, 1000).map(offsets),
            Err(Unrecovered::Expired)
        );
        history.trim(1, OLDEST);
        assert_eq!(history.emptied_through(), 4);
        assert_eq!(history.displaced(1, 0), history.bytes().durable);
        assert_eq!((history.displaced(2, 0), history.displaced(1, 1)), (0, 0));
        history.clear();
        assert_eq!((history.len(), history.bytes()), (0, Bytes::default()));
    }

    proptest! {
        #[test]
        fn agrees_with_a_plain_list(steps in prop::collection::vec((0_u8..5, 0_u64..20), 1..60)) {
            let mut history = History::new(1, 0);
            let mut model: Vec<(u64, u64)> = Vec::new();
            let (mut top, mut gone) = (0_u64, 0_u64);
            for (step, (action, number)) in steps.into_iter().enumerate() {
                let at = step as u64;
                match action {
                    // offsets may skip: a publication that could not be saved was never handed over
                    0..=2 => {
                        top += 1 + number % 2;
                        history.push(kept(top, at, 10));
                        model.push((top, at));
                    }
                    3 => {
                        let oldest = at.saturating_sub(number);
                        history.trim(8, time(oldest));
                        while model.len() > 8 || model.first().is_some_and(|first| first.1 < oldest) {
                            gone = model.remove(0).0;
                        }
                    }
                    _ => {
                        history.evict(number as usize * 10);
                        let target: usize = (model.len() * (12 + KEPT_OVERHEAD)).saturating_sub(number as usize * 10);
                        while model.len() * (12 + KEPT_OVERHEAD) > target {
                            gone = model.remove(0).0;
                        }
                    }
                }
                prop_assert_eq!((history.top, history.len(), history.gone()), (top, model.len(), gone));
                prop_assert_eq!(history.bytes().evictable, model.len() * (12 + KEPT_OVERHEAD));
                let wanted: Vec<u64> = model.iter().map(|kept| kept.0).filter(|offset| *offset > number).collect();
                let seen = history.since(Some(1), number, u64::MAX, usize::MAX).map(offsets);
                if number > top {
                    prop_assert_eq!(seen, Err(Unrecovered::OffsetAhead));
                } else if number < gone {
                    prop_assert_eq!(seen, Err(Unrecovered::Expired));
                } else {
                    prop_assert_eq!(seen, Ok(wanted));
                }
            }
        }
    }
}
