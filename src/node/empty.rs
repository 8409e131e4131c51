//! The end of channels that have no subscribers and no history.
//!
//! Such a channel ends after `empty_channel_ttl`, or to keep within `max_empty_channels`. The memory budget of history
//! bounds the channels with history.

use super::channel::Channel;
use super::wiring::Node;
use crate::base::clock::SteadyTime;
use std::sync::Arc;

impl Node {
    /// Ends channels that are empty for `empty_channel_ttl`. Ends the longest empty channels where all empty channels and
    /// `room` more would exceed `max_empty_channels`.
    pub(super) fn remove_empty_channels(&self, room: usize) {
        self.mark_emptied();
        let most = self.config.max_empty_channels.saturating_sub(room);
        let due = SteadyTime::now() - self.config.empty_channel_ttl;
        // channels that are queued again meanwhile are not looked at twice
        for _ in 0..self.channels.empty_count() {
            let Some((channel, is_over)) = self.channels.pop_empty(most, due) else {
                break;
            };
            let emptied_by = if is_over { None } else { Some(due) };
            self.end_if_empty(&channel, emptied_by);
        }
    }

    /// Marks channels without subscribers as empty whose history became empty since the last call.
    fn mark_emptied(&self) {
        for name in self.broker.take_emptied() {
            if let Some(channel) = self.channels.get(&name) {
                let mut members = channel.members.lock();
                if members.own == 0 && !members.removed {
                    self.channels.mark_empty(&channel, &mut members);
                }
            }
        }
    }

    /// Ends a channel that was taken off the queue if the channel has neither subscribers nor history, and if it was
    /// empty at `emptied_by` and since then (`None`: for however short a time). A channel with history is marked again
    /// when its history is empty.
    fn end_if_empty(&self, channel: &Arc<Channel>, emptied_by: Option<SteadyTime>) {
        self.record_held();
        self.channels.remove_if(channel, || {
            let mut members = channel.members.lock();
            members.is_marked_empty = false;
            if members.removed || members.own > 0 {
                return false;
            }
            // the channel may have been filled and emptied again since it was marked
            if emptied_by.is_some_and(|due| members.empty_since.is_some_and(|since| since > due)) {
                self.channels.mark_empty(channel, &mut members);
                return false;
            }
            members.removed = true;
            drop(members);
            self.stream(channel);
            let is_closed = self.broker.detach(&channel.name);
            if !is_closed {
                channel.members.lock().removed = false;
            }
            is_closed
        });
    }
}
