//! Presence in memory, for one process or, in tests, for several. Each call ends at once, and every total is exact.

use crate::base::capacity::shrink_map;
use crate::base::completion::{Later, Progress};
use crate::base::sync::Mutex;
use crate::core::roster::{Removal, Roster};
use crate::ports::broker::Failure;
use crate::ports::claim::ClaimNumber;
use crate::ports::presence::{
    Arrived, ChannelPresence, Cursor, Departed, MAX_PAGE, Presence, PresencePage, PresenceSink,
    Total,
};
use std::collections::HashMap;
use std::sync::{Arc, Weak};

#[derive(Default)]
pub struct MemoryPresence {
    channels: Mutex<Channels>,
}

/// The channels that have handles, and some that had.
#[derive(Default)]
struct Channels {
    by_name: HashMap<Arc<str>, Weak<MemoryChannel>>,
    /// When the map has more channels, those without handles are removed.
    swept_above: usize,
}

/// The map of channels is swept only when it has more of them.
const LEAST_SWEPT: usize = 64;

#[derive(Default)]
struct MemoryChannel(Mutex<Roster<Option<ClaimNumber>>>);

impl Presence for MemoryPresence {
    /// Memory loses no member.
    fn attach(&self, _: &Arc<dyn PresenceSink>) {}

    fn open(&self, channel: &Arc<str>) -> Arc<dyn ChannelPresence> {
        let mut channels = self.channels.lock();
        if let Some(open) = channels.by_name.get(channel).and_then(Weak::upgrade) {
            return open;
        }
        let opened = Arc::new(MemoryChannel::default());
        let name = Arc::clone(channel);
        channels.by_name.insert(name, Arc::downgrade(&opened));
        channels.sweep_if_due();
        opened
    }

    fn close(&self, channel: &str) {
        let mut channels = self.channels.lock();
        let handles = channels.by_name.get(channel).map(Weak::strong_count);
        // with more handles the channel stays in the map until these are dropped: another process may have them
        if handles.is_some_and(|handles| handles <= 1) {
            channels.by_name.remove(channel);
            shrink_map(&mut channels.by_name);
            channels.swept_above = channels.swept_above.min(2 * channels.by_name.len());
        }
    }

    fn remove(&self, channel: &str) {
        let open = {
            let channels = self.channels.lock();
            channels.by_name.get(channel).and_then(Weak::upgrade)
        };
        if let Some(open) = open {
            open.0.lock().clear();
        }
    }
}

impl Channels {
    /// Removes channels without handles that were not closed, once they may be half of the map: so a removal costs little
    /// in the mean.
    fn sweep_if_due(&mut self) {
        if self.by_name.len() > self.swept_above.max(LEAST_SWEPT) {
            self.by_name.retain(|_, channel| channel.strong_count() > 0);
            shrink_map(&mut self.by_name);
            self.swept_above = 2 * self.by_name.len();
        }
    }
}

impl ChannelPresence for MemoryChannel {
    fn join(
        &self,
        client: &Arc<str>,
        claim: Option<ClaimNumber>,
        _: &mut Later<'_, Arrived, Failure>,
    ) -> Progress<Arrived, Failure> {
        let mut roster = self.0.lock();
        let is_new = roster.add(client, claim);
        Progress::Ended(Ok(Arrived {
            total: total(&roster),
            is_new,
        }))
    }

    fn leave(
        &self,
        client: &Arc<str>,
        claim: Option<ClaimNumber>,
        _: &mut Later<'_, Departed, Failure>,
    ) -> Progress<Departed, Failure> {
        let mut roster = self.0.lock();
        let removal = roster.remove(client, claim);
        Progress::Ended(Ok(Departed {
            total: total(&roster),
            has_moved: removal == Removal::Moved,
        }))
    }

    fn count(&self, _: &mut Later<'_, Total, Failure>) -> Progress<Total, Failure> {
        Progress::Ended(Ok(total(&self.0.lock())))
    }

    fn page(
        &self,
        after: Option<Cursor>,
        limit: usize,
        _: &mut Later<'_, PresencePage, Failure>,
    ) -> Progress<PresencePage, Failure> {
        let roster = self.0.lock();
        let (members, next) = roster.page(after.map(|after| after.0), limit.min(MAX_PAGE));
        Progress::Ended(Ok(PresencePage {
            members,
            total: total(&roster),
            next: next.map(Cursor),
        }))
    }

    fn own(&self) -> Vec<Arc<str>> {
        self.0.lock().ids().cloned().collect()
    }
}

fn total(roster: &Roster<Option<ClaimNumber>>) -> Total {
    Total {
        members: roster.len(),
        version: roster.version(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_without_handles_are_removed_from_the_map() {
        let presence = MemoryPresence::default();
        let kept = presence.open(&Arc::from("kept"));
        for number in 0..10 * LEAST_SWEPT {
            presence.open(&Arc::from(format!("channel {number}")));
        }
        assert!(presence.channels.lock().by_name.len() <= LEAST_SWEPT + 1);
        let closed = Arc::from("closed");
        let handle = presence.open(&closed);
        presence.close(&closed);
        assert!(!presence.channels.lock().by_name.contains_key(&closed));
        drop(handle);
        let other = presence.open(&Arc::from("kept"));
        presence.close("kept");
        drop(other);
        let client = Arc::from("dumbo");
        let joined = kept.join(&client, None, &mut || panic!("it ends at once"));
        assert!(matches!(joined, Progress::Ended(Ok(arrived)) if arrived.is_new));
        assert_eq!(presence.open(&Arc::from("kept")).own(), [client]);
    }
}
