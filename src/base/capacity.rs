//! Room that maps and queues keep for what they no longer hold: given back once most of it is unused.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, Hash};

/// Less room than this is not worth a copy.
const SMALL: usize = 1024;

/// Gives room back after removals. A call copies what is left, but only after as many removals as pay for that.
pub fn shrink_map<K: Eq + Hash, V, S: BuildHasher>(map: &mut HashMap<K, V, S>) {
    if is_sparse(map.len(), map.capacity()) {
        map.shrink_to(map.len() * 2);
    }
}

/// As `shrink_map`.
pub fn shrink_set<T: Eq + Hash, S: BuildHasher>(set: &mut HashSet<T, S>) {
    if is_sparse(set.len(), set.capacity()) {
        set.shrink_to(set.len() * 2);
    }
}

/// As `shrink_map`.
pub fn shrink_queue<T>(queue: &mut VecDeque<T>) {
    if is_sparse(queue.len(), queue.capacity()) {
        queue.shrink_to(queue.len() * 2);
    }
}

fn is_sparse(len: usize, capacity: usize) -> bool {
    capacity > SMALL && len < capacity / 4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_follows_what_is_held() {
        let mut map: HashMap<u32, u32> = (0..100_000).map(|number| (number, number)).collect();
        let mut queue: VecDeque<u32> = (0..100_000).collect();
        for number in 0..100_000 {
            map.remove(&number);
            shrink_map(&mut map);
            queue.pop_front();
            shrink_queue(&mut queue);
            assert_eq!(map.len(), queue.len());
        }
        assert!(map.capacity() <= SMALL && queue.capacity() <= SMALL);
    }
}
