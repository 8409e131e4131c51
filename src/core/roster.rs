//! The subscribers of a channel, in the order in which they came.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

#[derive(Debug, Default)]
pub struct Roster {
    by_id: HashMap<Arc<str>, u64>,
    by_arrival: BTreeMap<u64, Arc<str>>,
    arrivals: u64,
}

impl Roster {
    /// False when the client is on it already.
    pub fn add(&mut self, id: &Arc<str>) -> bool {
        if self.by_id.contains_key(id) {
            return false;
        }
        self.arrivals += 1;
        self.by_id.insert(Arc::clone(id), self.arrivals);
        self.by_arrival.insert(self.arrivals, Arc::clone(id));
        true
    }

    /// False when the client is not on it.
    pub fn remove(&mut self, id: &str) -> bool {
        let Some(arrival) = self.by_id.remove(id) else {
            return false;
        };
        self.by_arrival.remove(&arrival);
        true
    }

    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    pub fn ids(&self) -> impl Iterator<Item = &Arc<str>> {
        self.by_arrival.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_order_of_arrival() {
        let mut roster = Roster::default();
        for id in ["b", "a", "c"] {
            assert!(roster.add(&Arc::from(id)));
        }
        assert!(!roster.add(&Arc::from("a")));
        assert!(roster.remove("b") && !roster.remove("b"));
        roster.add(&Arc::from("b"));
        assert_eq!(
            roster.ids().map(|id| &**id).collect::<Vec<_>>(),
            ["a", "c", "b"]
        );
        assert_eq!(roster.len(), 3);
    }
}
