//! The subscriptions of a shard: the connections of each channel, and the channels of each connection.

use crate::base::capacity::shrink_map;
use smallvec::SmallVec;
use std::collections::HashMap;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};

/// The number of a channel in this process. A number is never used again. `Option<ChannelKey>` has the same size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelKey(NonZeroU64);

impl ChannelKey {
    /// The key of the channel that was made after `index` others.
    pub const fn nth(index: u64) -> Self {
        Self(NonZeroU64::MIN.saturating_add(index))
    }
}

/// Allots the channel keys of a process, in order.
#[derive(Debug, Default)]
pub struct ChannelKeys(AtomicU64);

impl ChannelKeys {
    pub fn next(&self) -> ChannelKey {
        ChannelKey::nth(self.0.fetch_add(1, Ordering::Relaxed))
    }
}

/// The index of a connection in its shard.
pub type Slot = u32;

/// The local subscribers of every channel that has subscribers on this shard.
#[derive(Debug, Default)]
pub struct Hub {
    channels: HashMap<ChannelKey, Vec<Slot>>,
    /// By slot: the channels of the connection, each with the index of the connection in the channel's list.
    places: Vec<SmallVec<[(ChannelKey, u32); 2]>>,
}

impl Hub {
    /// The connections on a channel, in no particular order.
    pub fn subscribers(&self, channel: ChannelKey) -> &[Slot] {
        self.channels.get(&channel).map_or(&[], Vec::as_slice)
    }

    /// Subscribes a connection to a channel. Does nothing for a connection that is subscribed.
    pub fn subscribe(&mut self, slot: Slot, channel: ChannelKey) {
        let index = slot as usize;
        if self.places.len() <= index {
            self.places.resize_with(index + 1, SmallVec::new);
        }
        let places = &mut self.places[index];
        if places.iter().any(|(key, _)| *key == channel) {
            return;
        }
        let subscribers = self.channels.entry(channel).or_default();
        places.push((channel, subscribers.len() as u32));
        subscribers.push(slot);
    }

    /// Unsubscribes a connection from a channel. Does nothing for a connection without the subscription.
    pub fn unsubscribe(&mut self, slot: Slot, channel: ChannelKey) {
        let Some(places) = self.places.get_mut(slot as usize) else {
            return;
        };
        if let Some(at) = places.iter().position(|(key, _)| *key == channel) {
            let (_, index) = places.swap_remove(at);
            self.take_out(channel, index);
        }
    }

    /// Unsubscribes a connection from every channel.
    pub fn remove(&mut self, slot: Slot) {
        let Some(places) = self.places.get_mut(slot as usize) else {
            return;
        };
        for (channel, index) in std::mem::take(places) {
            self.take_out(channel, index);
        }
    }

    fn take_out(&mut self, channel: ChannelKey, index: u32) {
        let Some(subscribers) = self.channels.get_mut(&channel) else {
            return;
        };
        subscribers.swap_remove(index as usize);
        if let Some(moved) = subscribers.get(index as usize) {
            let places = &mut self.places[*moved as usize];
            if let Some(entry) = places.iter_mut().find(|(key, _)| *key == channel) {
                entry.1 = index;
            }
        }
        if subscribers.is_empty() {
            self.channels.remove(&channel);
            shrink_map(&mut self.channels);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    proptest! {
        #[test]
        fn agrees_with_a_plain_model(steps in prop::collection::vec((0_u8..5, 0_u32..8, 0_u64..5), 0..200)) {
            let mut hub = Hub::default();
            let mut model: BTreeMap<ChannelKey, BTreeSet<u32>> = BTreeMap::new();
            for (action, slot, index) in steps {
                let channel = ChannelKey::nth(index);
                match action {
                    0..=2 => {
                        hub.subscribe(slot, channel);
                        model.entry(channel).or_default().insert(slot);
                    }
                    3 => {
                        hub.unsubscribe(slot, channel);
                        model.entry(channel).or_default().remove(&slot);
                    }
                    _ => {
                        hub.remove(slot);
                        for slots in model.values_mut() { slots.remove(&slot); }
                    }
                }
                for channel in (0..5).map(ChannelKey::nth) {
                    let mut seen = hub.subscribers(channel).to_vec();
                    seen.sort_unstable();
                    let wanted: Vec<u32> = model.get(&channel).into_iter().flatten().copied().collect();
                    prop_assert_eq!(seen, wanted);
                }
            }
            hub.channels.values().for_each(|slots| assert!(!slots.is_empty(), "an empty channel is kept"));
        }
    }
}
