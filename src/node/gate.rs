//! Keeps what is published on a channel for connections that are about to enter it, until each has got its reply.
//!
//! A connection enters a channel in three steps: it opens the gate, reads the position of the stream, and is subscribed
//! behind its reply. What the broker delivers between the last two steps waits in the gate. With the memory
//! broker, few publications come in this time.
//!
//! A gate keeps at most half of `max_pending_bytes`, however late the broker answers; a connection for which the gate
//! could not keep everything gets a gap. The broker ends every call (a dropped completion is an error), so no
//! connection enters for ever.

use crate::base::priority::Priority;
use crate::base::sync::{Mutex, MutexGuard, Rank};
use crate::core::history::StreamPosition;
use crate::wire::frame::EncodedFrame;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The connections that enter a channel, and what is published meanwhile.
pub struct Gate {
    /// Connections that are entering. Counted outside the lock, so that publishing on a channel which nobody enters
    /// takes no lock.
    entering: AtomicUsize,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    publications: VecDeque<GatedPublication>,
    bytes: usize,
    /// The number of the first of `publications`; numbers count what has come to the gate.
    first: u64,
    /// The position of the newest publication that has come.
    newest: Option<StreamPosition>,
    /// The position of the newest publication that the gate could not keep.
    newest_dropped: Option<StreamPosition>,
    /// One more than the number of the newest gap that the gate could not keep.
    gaps_dropped: u64,
}

/// A publication, a notice or a gap that came while connections were entering.
#[derive(Clone, Debug)]
pub struct GatedPublication {
    pub place: Place,
    pub frame: EncodedFrame,
    pub priority: Priority,
}

/// Where a gated message stands in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A publication at this position.
    At(StreamPosition),
    /// A notice behind the publication at this position.
    Behind(StreamPosition),
    /// Publications are lost: only clients that understand `gap` messages get the frame.
    Gap,
}

impl Place {
    /// True for a message that comes behind a position. Of a notice at the position itself it is not known.
    fn is_behind(self, position: StreamPosition) -> bool {
        match self {
            Place::At(own) => own.epoch != position.epoch || own.offset > position.offset,
            Place::Behind(own) => own.epoch != position.epoch || own.offset >= position.offset,
            Place::Gap => true,
        }
    }
}

/// The gate while it is locked: nothing is published on the channel meanwhile.
pub struct OpenGate<'a> {
    kept: MutexGuard<'a, Kept>,
    from: u64,
}

impl Gate {
    pub fn new() -> Self {
        Self {
            entering: AtomicUsize::new(0),
            kept: Mutex::new(Rank::Gate, Kept::default()),
        }
    }

    /// Counts a connection as entering, until `end`. Returns the number of the first publication that concerns the
    /// connection. To be called before the connection reads the position of the stream.
    pub fn begin(&self) -> u64 {
        self.entering.fetch_add(1, Ordering::SeqCst);
        let kept = self.kept.lock();
        kept.first + kept.publications.len() as u64
    }

    /// Ends the entering of a connection.
    pub fn end(&self) {
        let mut kept = self.kept.lock();
        if self.entering.fetch_sub(1, Ordering::SeqCst) == 1 {
            kept.clear();
        }
    }

    /// Locks the gate, so that a connection can be subscribed between two publications. `from` is the number
    /// of the first publication that concerns the connection, from `begin`.
    pub fn lock(&self, from: u64) -> OpenGate<'_> {
        OpenGate {
            kept: self.kept.lock(),
            from,
        }
    }

    /// Runs `push`, which puts a publication into the inboxes of shards, and keeps the publication for connections that
    /// are entering; at most `limit` bytes are kept.
    pub fn pass<T>(
        &self,
        publication: impl FnOnce() -> GatedPublication,
        limit: usize,
        push: impl FnOnce() -> T,
    ) -> T {
        // The read of an entering connection is a barrier behind every delivery that began before the connection was
        // counted, so a delivery that sees no connection concerns none.
        if self.entering.load(Ordering::SeqCst) == 0 {
            return push();
        }
        let mut kept = self.kept.lock();
        kept.keep(publication(), limit);
        push()
    }
}

impl OpenGate<'_> {
    /// The messages that came behind a position, oldest first.
    ///
    /// Errors: the gate has not kept all of it; the newest missing position, if a publication is missing.
    pub fn behind(
        &self,
        position: StreamPosition,
    ) -> Result<impl Iterator<Item = &GatedPublication>, Option<StreamPosition>> {
        let kept = &*self.kept;
        let dropped = kept
            .newest_dropped
            .filter(|dropped| Place::At(*dropped).is_behind(position));
        if dropped.is_some() || kept.gaps_dropped > self.from {
            return Err(dropped);
        }
        let skipped = self.from.saturating_sub(kept.first);
        Ok(kept
            .publications
            .iter()
            .skip(usize::try_from(skipped).unwrap_or(usize::MAX))
            .filter(move |gated| gated.place.is_behind(position)))
    }

    /// The position of the newest publication that was delivered, if it is behind this position.
    pub fn newest_behind(&self, position: StreamPosition) -> Option<StreamPosition> {
        let newest = self.kept.newest;
        newest.filter(|newest| Place::At(*newest).is_behind(position))
    }
}

impl Kept {
    /// Keeps at most `limit` bytes, but the newest publication in any case.
    fn keep(&mut self, publication: GatedPublication, limit: usize) {
        if let Place::At(position) = publication.place {
            self.newest = Some(position);
        }
        self.bytes += publication.frame.len();
        self.publications.push_back(publication);
        while self.bytes > limit
            && self.publications.len() > 1
            && let Some(dropped) = self.publications.pop_front()
        {
            self.bytes -= dropped.frame.len();
            self.first += 1;
            match dropped.place {
                Place::At(position) => self.newest_dropped = Some(position),
                Place::Gap => self.gaps_dropped = self.first,
                Place::Behind(_) => {}
            }
        }
    }

    fn clear(&mut self) {
        self.first += self.publications.len() as u64;
        self.publications = VecDeque::new();
        self.bytes = 0;
        (self.newest, self.newest_dropped) = (None, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 100;

    fn position(offset: u64) -> StreamPosition {
        StreamPosition { epoch: 1, offset }
    }

    fn publish(gate: &Gate, offset: u64) {
        let publication = || GatedPublication {
            place: Place::At(position(offset)),
            frame: EncodedFrame::text(&[b'x'; 8]),
            priority: Priority::Normal,
        };
        gate.pass(publication, LIMIT, || ());
    }

    fn behind(gate: &Gate, from: u64, offset: u64) -> Option<Vec<u64>> {
        let open = gate.lock(from);
        let behind = open.behind(position(offset)).ok()?;
        Some(
            behind
                .filter_map(|gated| match gated.place {
                    Place::At(at) => Some(at.offset),
                    _ => None,
                })
                .collect(),
        )
    }

    #[test]
    fn each_connection_gets_what_came_behind_its_position() {
        let gate = Gate::new();
        publish(&gate, 1);
        let first = gate.begin();
        publish(&gate, 2);
        let second = gate.begin();
        publish(&gate, 3);
        assert_eq!(behind(&gate, first, 1), Some(vec![2, 3]));
        assert_eq!(behind(&gate, first, 2), Some(vec![3]));
        assert_eq!(behind(&gate, second, 2), Some(vec![3]));
        gate.end();
        assert_eq!(behind(&gate, second, 2), Some(vec![3]));
        gate.end();
        assert_eq!(gate.kept.lock().bytes, 0);
        let third = gate.begin();
        assert_eq!(behind(&gate, third, 3), Some(vec![]));
    }

    #[test]
    fn a_notice_before_the_last_publication_is_not_behind_it() {
        let at = position(5);
        assert!(!Place::At(at).is_behind(at) && Place::At(position(6)).is_behind(at));
        assert!(!Place::Behind(position(4)).is_behind(at) && Place::Behind(at).is_behind(at));
        let other = StreamPosition { epoch: 2, ..at };
        assert!(Place::At(other).is_behind(at) && Place::Gap.is_behind(at));
    }

    #[test]
    fn what_the_gate_could_not_keep_is_known_to_be_missing() {
        let gate = Gate::new();
        let early = gate.begin();
        for offset in 1..=20 {
            publish(&gate, offset);
        }
        let late = gate.begin();
        publish(&gate, 21);
        let dropped = gate.lock(early).behind(position(0)).err();
        assert_eq!(dropped, Some(Some(position(11))), "the newest missing one");
        assert_eq!(behind(&gate, early, 11).map(|kept| kept.len()), Some(10));
        assert_eq!(behind(&gate, late, 20), Some(vec![21]));
        assert!(gate.kept.lock().bytes <= LIMIT);
    }
}
