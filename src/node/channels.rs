//! The channels of the node by name; those that may end because they are empty, and those with notices that wait.

use super::channel::{Channel, Members};
use crate::base::capacity::{shrink_map, shrink_queue};
use crate::base::clock::SteadyTime;
use crate::base::names::EMERGENCY_CHANNEL;
use crate::base::sync::{Mutex, Rank, RwLock};
use crate::core::hub::{ChannelKey, ChannelKeys};
use crate::ports::presence::Presence;
use crate::settings::channel_kind::ChannelKind;
use crate::settings::config::Config;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Channels that exist from the start and never end, besides the default channel.
const PERMANENT: [&str; 3] = ["jungle", "treehouse", EMERGENCY_CHANNEL];

pub struct Channels {
    config: Arc<Config>,
    presence: Arc<dyn Presence>,
    by_name: RwLock<HashMap<Arc<str>, Arc<Channel>>>,
    keys: ChannelKeys,
    /// Channels that may end, each with the time since when the channel is empty, in the order of these times. Some may
    /// have subscribers or history again.
    empty: Mutex<VecDeque<(SteadyTime, Arc<Channel>)>>,
    /// Channels with notices that wait.
    noticed: Mutex<Vec<Arc<Channel>>>,
}

impl Channels {
    /// The permanent channels only.
    pub(super) fn new(config: Arc<Config>, presence: Arc<dyn Presence>) -> Self {
        let channels = Self {
            config,
            presence,
            by_name: RwLock::new(Rank::Channels, HashMap::new()),
            keys: ChannelKeys::default(),
            empty: Mutex::default(),
            noticed: Mutex::default(),
        };
        for name in [channels.config.default_channel.as_str()]
            .into_iter()
            .chain(PERMANENT)
        {
            channels.get_or_add(name, || kind_of(name));
        }
        channels
    }

    pub fn get(&self, name: &str) -> Option<Arc<Channel>> {
        self.by_name.read().get(name).cloned()
    }

    pub fn contains(&self, name: &str) -> bool {
        self.by_name.read().contains_key(name)
    }

    /// The channel with this key, if there still is one. Looks at all channels.
    pub fn find(&self, key: ChannelKey) -> Option<Arc<Channel>> {
        let by_name = self.by_name.read();
        by_name.values().find(|channel| channel.key == key).cloned()
    }

    /// The channel of this name; adds a channel of `kind` if there is none.
    pub(super) fn get_or_add(
        &self,
        name: &str,
        kind: impl FnOnce() -> ChannelKind,
    ) -> Arc<Channel> {
        let mut by_name = self.by_name.write();
        if let Some(channel) = by_name.get(name) {
            return Arc::clone(channel);
        }
        let settings = self.config.of_channel(name);
        let channel = Channel::new(self.keys.next(), name, kind(), settings, &*self.presence);
        let channel = Arc::new(channel);
        by_name.insert(Arc::clone(&channel.name), Arc::clone(&channel));
        drop(by_name);
        self.mark_empty(&channel, &mut channel.members.lock());
        channel
    }

    /// Calls `end`, removes the channel if `end` returns true, and returns the same. `end` runs with the map locked, so
    /// that no thread adds a successor before the stream of the channel is closed.
    pub(super) fn remove_if(&self, channel: &Channel, end: impl FnOnce() -> bool) -> bool {
        let mut by_name = self.by_name.write();
        let ends = end();
        if ends {
            by_name.remove(&channel.name);
            self.presence.close(&channel.name);
            shrink_map(&mut by_name);
        }
        ends
    }

    /// All channels, in the order in which they were added.
    pub(super) fn all(&self) -> Vec<Arc<Channel>> {
        let mut channels: Vec<_> = self.by_name.read().values().cloned().collect();
        channels.sort_unstable_by_key(|channel| channel.key);
        channels
    }

    pub fn count(&self) -> usize {
        self.by_name.read().len()
    }

    /// How many channels are in memory. A channel that was deleted stays in memory while it is queued as empty.
    pub(super) fn held(&self) -> usize {
        let queued = self.empty_count();
        self.count().max(queued)
    }

    /// Queues a channel that has no subscribers, from now on or since it was added. A permanent channel is not queued.
    pub(super) fn mark_empty(&self, channel: &Arc<Channel>, members: &mut Members) {
        let is_default = *channel.name == *self.config.default_channel;
        if is_default || PERMANENT.contains(&&*channel.name) {
            return;
        }
        let now = SteadyTime::now();
        members.empty_since = Some(now);
        if !std::mem::replace(&mut members.is_marked_empty, true) {
            self.empty.lock().push_back((now, Arc::clone(channel)));
        }
    }

    /// How many channels are queued as empty.
    pub(super) fn empty_count(&self) -> usize {
        self.empty.lock().len()
    }

    /// Takes the first queued channel if it was queued by `due`, or if more than `most` are queued. Returns the channel,
    /// and true in the latter case.
    pub(super) fn pop_empty(&self, most: usize, due: SteadyTime) -> Option<(Arc<Channel>, bool)> {
        let mut empty = self.empty.lock();
        let is_over = empty.len() > most;
        let (queued, _) = empty.front()?;
        if !is_over && *queued > due {
            return None;
        }
        let (_, channel) = empty.pop_front()?;
        shrink_queue(&mut empty);
        Some((channel, is_over))
    }

    /// Adds channels with notices that wait.
    pub(super) fn add_noticed(&self, channels: impl IntoIterator<Item = Arc<Channel>>) {
        self.noticed.lock().extend(channels);
    }

    /// Takes the channels with notices that wait.
    pub(super) fn take_noticed(&self) -> Vec<Arc<Channel>> {
        std::mem::take(&mut *self.noticed.lock())
    }
}

/// The kind of a channel that is added without one.
pub fn kind_of(name: &str) -> ChannelKind {
    match name {
        "treehouse" => ChannelKind::Private,
        EMERGENCY_CHANNEL => ChannelKind::Emergency,
        _ => ChannelKind::Public,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::memory_presence::MemoryPresence;
    use std::time::Duration;

    fn channels() -> Channels {
        let presence = Arc::new(MemoryPresence::default());
        Channels::new(Arc::new(Config::default()), presence)
    }

    #[test]
    fn only_channels_that_may_end_are_queued_as_empty() {
        let channels = channels();
        assert!(channels.contains("jungle") && channels.contains(EMERGENCY_CHANNEL));
        assert_eq!(channels.empty_count(), 0);
        let river = channels.get_or_add("river", || ChannelKind::Private);
        let again = channels.get_or_add("river", || ChannelKind::Public);
        assert!(Arc::ptr_eq(&river, &again));
        channels.mark_empty(&river, &mut river.members.lock());
        assert_eq!(channels.empty_count(), 1, "queued once");
    }

    #[test]
    fn an_empty_channel_is_taken_when_due_or_when_too_many_are_queued() {
        let channels = channels();
        let before = SteadyTime::now() - Duration::from_secs(1);
        channels.get_or_add("river", || ChannelKind::Public);
        let later = SteadyTime::now();
        assert!(channels.pop_empty(1, before).is_none());
        let (channel, is_over) = channels.pop_empty(1, later).unwrap();
        assert!(&*channel.name == "river" && !is_over);
        channels.get_or_add("hill", || ChannelKind::Public);
        let (channel, is_over) = channels.pop_empty(0, before).unwrap();
        assert!(&*channel.name == "hill" && is_over);
    }

    #[test]
    fn a_channel_stays_unless_its_end_succeeds_and_is_held_while_queued() {
        let channels = channels();
        let permanent = channels.count();
        let rivers: Vec<_> = (0..=permanent)
            .map(|number| channels.get_or_add(&format!("river {number}"), || ChannelKind::Public))
            .collect();
        assert!(!channels.remove_if(&rivers[0], || false));
        assert!(channels.find(rivers[0].key).is_some());
        for river in &rivers {
            assert!(channels.remove_if(river, || true));
            assert!(!channels.contains(&river.name));
        }
        assert_eq!(
            (channels.count(), channels.held()),
            (permanent, permanent + 1)
        );
    }
}
