//! The members of a channel, in the order in which they came.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;

/// Members, each with the claim under which it has joined. Of two claims the greater is the newer one.
#[derive(Debug)]
pub struct Roster<C> {
    by_id: HashMap<Arc<str>, Membership<C>>,
    by_arrival: BTreeMap<u64, Arc<str>>,
    arrivals: u64,
    version: u64,
}

#[derive(Debug)]
struct Membership<C> {
    arrival: u64,
    claim: C,
}

/// The result of a removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    Removed,
    /// The client is a member under a newer claim, and stays.
    Moved,
    /// The client is no member.
    Absent,
}

impl<C> Default for Roster<C> {
    fn default() -> Self {
        Self {
            by_id: HashMap::new(),
            by_arrival: BTreeMap::new(),
            arrivals: 0,
            version: 0,
        }
    }
}

impl<C: Copy + Ord> Roster<C> {
    /// Adds a client, or moves a member to a newer claim. True for a client that was no member.
    pub fn add(&mut self, id: &Arc<str>, claim: C) -> bool {
        if let Some(membership) = self.by_id.get_mut(id) {
            membership.claim = membership.claim.max(claim);
            return false;
        }
        self.arrivals += 1;
        self.version += 1;
        let arrival = self.arrivals;
        self.by_id
            .insert(Arc::clone(id), Membership { arrival, claim });
        self.by_arrival.insert(arrival, Arc::clone(id));
        true
    }

    /// Removes a member, unless it has moved to a newer claim.
    pub fn remove(&mut self, id: &str, claim: C) -> Removal {
        match self.by_id.get(id) {
            None => return Removal::Absent,
            Some(membership) if membership.claim > claim => return Removal::Moved,
            Some(_) => {}
        }
        if let Some(membership) = self.by_id.remove(id) {
            self.by_arrival.remove(&membership.arrival);
            self.version += 1;
        }
        Removal::Removed
    }

    /// Removes all members.
    pub fn clear(&mut self) {
        self.by_id = HashMap::new();
        self.by_arrival = BTreeMap::new();
        self.version += 1;
    }
}

impl<C> Roster<C> {
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Increases with each change of the members.
    pub fn version(&self) -> u64 {
        self.version
    }

    pub fn ids(&self) -> impl Iterator<Item = &Arc<str>> {
        self.by_arrival.values()
    }

    /// At most `limit` members behind the arrival `after`; and the arrival behind which the next page begins, if there is
    /// one.
    pub fn page(&self, after: Option<u64>, limit: usize) -> (Vec<Arc<str>>, Option<u64>) {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut behind = self.by_arrival.range((start, Bound::Unbounded));
        let mut last = None;
        let mut members = Vec::with_capacity(limit.min(self.len()));
        for (arrival, id) in behind.by_ref().take(limit) {
            last = Some(*arrival);
            members.push(Arc::clone(id));
        }
        let has_more = behind.next().is_some();
        (members, last.filter(|_| has_more))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> Arc<str> {
        Arc::from(name)
    }

    #[test]
    fn keeps_the_order_of_arrival() {
        let mut roster = Roster::default();
        for name in ["b", "a", "c"] {
            assert!(roster.add(&id(name), 1));
        }
        assert!(!roster.add(&id("a"), 1));
        assert_eq!(roster.remove("b", 1), Removal::Removed);
        assert_eq!(roster.remove("b", 1), Removal::Absent);
        roster.add(&id("b"), 1);
        assert_eq!(
            roster.ids().map(|id| &**id).collect::<Vec<_>>(),
            ["a", "c", "b"]
        );
        assert_eq!((roster.len(), roster.version()), (3, 5));
    }

    #[test]
    fn a_member_that_has_moved_stays() {
        let mut roster = Roster::default();
        roster.add(&id("a"), 1);
        assert!(!roster.add(&id("a"), 2), "a move");
        assert!(!roster.add(&id("a"), 1), "an old claim moves nobody back");
        assert_eq!(roster.remove("a", 1), Removal::Moved);
        assert_eq!(roster.len(), 1);
        assert_eq!(roster.remove("a", 3), Removal::Removed);
        assert!(roster.is_empty());
    }

    #[test]
    fn pages_go_on_where_the_last_one_ended() {
        let mut roster = Roster::default();
        for name in ["a", "b", "c", "d"] {
            roster.add(&id(name), ());
        }
        let (first, next) = roster.page(None, 2);
        assert_eq!(first, [id("a"), id("b")]);
        roster.remove("b", ());
        roster.remove("c", ());
        roster.add(&id("e"), ());
        assert_eq!(roster.page(next, 2), (vec![id("d"), id("e")], None));
        assert_eq!(roster.page(next, 1).0, [id("d")]);
        assert!(roster.page(next, 1).1.is_some());
    }
}
