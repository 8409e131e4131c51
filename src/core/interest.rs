//! The number of subscribers of a channel on each shard. A publication goes to the shards that have subscribers.

use smallvec::SmallVec;

#[derive(Debug, Default)]
pub struct Interest {
    by_shard: SmallVec<[u32; 4]>,
    total: usize,
}

impl Interest {
    pub fn add(&mut self, shard: usize) {
        if self.by_shard.len() <= shard {
            self.by_shard.resize(shard + 1, 0);
        }
        self.by_shard[shard] += 1;
        self.total += 1;
    }

    pub fn remove(&mut self, shard: usize) {
        if let Some(count) = self.by_shard.get_mut(shard).filter(|count| **count > 0) {
            *count -= 1;
            self.total -= 1;
        }
    }

    /// The number of connected subscribers on all shards.
    pub fn total(&self) -> usize {
        self.total
    }

    /// The indexes of the shards that have a subscriber.
    pub fn shards(&self) -> impl Iterator<Item = usize> {
        self.by_shard
            .iter()
            .enumerate()
            .filter(|(_, count)| **count > 0)
            .map(|(shard, _)| shard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_shards_with_a_subscriber_are_named() {
        let mut interest = Interest::default();
        interest.add(3);
        interest.add(3);
        interest.add(0);
        assert_eq!(
            (interest.shards().collect::<Vec<_>>(), interest.total()),
            (vec![0, 3], 3)
        );
        interest.remove(0);
        interest.remove(3);
        interest.remove(1);
        assert_eq!(
            (interest.shards().collect::<Vec<_>>(), interest.total()),
            (vec![3], 1)
        );
    }
}
