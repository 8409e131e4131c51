//! Channels without subscribers and history that has expired: how long they stay, and how many.
//!
//! Only a channel without history ends, after `empty_channel_ttl` or to keep within `max_empty_channels`. A channel with
//! history is bounded by what its history is charged.

use super::Node;
use super::channel::{Channel, Members};
use super::client::CLIENT_SIZE;
use crate::base::capacity::{shrink_map, shrink_queue};
use crate::base::clock::SteadyTime;
use crate::ports::broker::{CHANNEL_SIZE, Closing};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Most time between two looks at publications that have expired.
const HISTORY_TEND_INTERVAL: Duration = Duration::from_secs(10);

/// Least time between them, where `empty_channel_ttl` is short.
const MIN_HISTORY_TEND_INTERVAL: Duration = Duration::from_millis(500);

/// Channels that may end, each with the time since when it is empty, in the order of these times. Some may have
/// subscribers or history again.
pub type EmptyChannels = VecDeque<(SteadyTime, Arc<Channel>)>;

impl Node {
    /// Counts publications that were evicted since the last call.
    pub(super) fn count_evicted(&self) {
        for (channel, count) in self.broker.take_evicted() {
            self.counters.dropped("history_bytes", &channel, count);
        }
    }

    /// Forgets publications and idempotency keys that have expired, from time to time.
    pub(super) fn expire_kept(&self) {
        let now = SteadyTime::now();
        // a channel that is to end soon after its history has to have its history looked at as soon
        let interval = self
            .config
            .empty_channel_ttl
            .clamp(MIN_HISTORY_TEND_INTERVAL, HISTORY_TEND_INTERVAL);
        // a store without room needs the deletions soon
        let is_urgent = self.store.was_degraded();
        if !is_urgent && !self.history_tended.is_due(now, interval) {
            return;
        }
        self.history_tended.set(now);
        self.published_once.expire(now);
        self.clients_published_once.expire(now);
        self.sent_once.expire(now);
        self.broker.expire();
    }

    /// A channel has no subscribers, from now on or since it was made.
    pub(super) fn note_empty(&self, channel: &Arc<Channel>, members: &mut Members) {
        if self.permanent_channels().contains(&&*channel.name) {
            return;
        }
        let now = SteadyTime::now();
        members.empty_since = Some(now);
        if !std::mem::replace(&mut members.noted_empty, true) {
            let noted = (now, Arc::clone(channel));
            self.empty_channels.lock().push_back(noted);
        }
    }

    /// Records how much the node holds before a channel ends: many channels may be made and deleted within one tick, and
    /// two samples, a tick apart, would miss them.
    pub(super) fn note_held(&self) {
        self.held_peak
            .fetch_max(self.held_bytes(), Ordering::Relaxed);
    }

    /// Returns the approximate memory that channels, clients, history and mail take, in bytes.
    pub(super) fn held_bytes(&self) -> usize {
        let history = self.broker.used();
        // a channel that was deleted stays in memory for as long as it is queued here
        let queued = self.empty_channels.lock().len();
        let channels = self.channels.read().len().max(queued);
        channels * CHANNEL_SIZE
            + self.clients.len() * CLIENT_SIZE
            + history.evictable
            + history.durable
            + self.away.bytes()
            + self.mailroom.bytes()
    }

    /// Ends channels without history that were empty for `empty_channel_ttl`, or are too many to leave room for so many
    /// more.
    pub(super) fn remove_empty_channels(&self, room: usize) {
        self.note_emptied();
        let most = self.config.max_empty_channels.saturating_sub(room);
        let due = SteadyTime::now() - self.config.empty_channel_ttl;
        let mut looks = self.empty_channels.lock().len();
        while looks > 0 {
            looks -= 1;
            let mut empty = self.empty_channels.lock();
            let is_over = empty.len() > most;
            let is_due = |(noted, _): &(SteadyTime, Arc<Channel>)| is_over || *noted <= due;
            if !empty.front().is_some_and(is_due) {
                break;
            }
            let Some((_, channel)) = empty.pop_front() else {
                break;
            };
            shrink_queue(&mut empty);
            drop(empty);
            let emptied_by = if is_over { None } else { Some(due) };
            self.end_if_empty(&channel, emptied_by);
        }
    }

    /// Channels without subscribers whose history is empty since the last call may end.
    fn note_emptied(&self) {
        for name in self.broker.take_emptied() {
            let channel = self.channels.read().get(&name).cloned();
            if let Some(channel) = channel {
                let mut members = channel.members.lock();
                if members.roster.is_empty() && !members.removed {
                    self.note_empty(&channel, &mut members);
                }
            }
        }
    }

    /// Ends a channel that was taken off the queue, if it has neither subscribers nor history, and if it was empty at
    /// `emptied_by` and since then (`None`: for however short a time). A channel with history is noted again when its
    /// history is empty.
    fn end_if_empty(&self, channel: &Arc<Channel>, emptied_by: Option<SteadyTime>) {
        self.note_held();
        let mut channels = self.channels.write();
        let mut members = channel.members.lock();
        members.noted_empty = false;
        if members.removed || !members.roster.is_empty() {
            return;
        }
        // the channel may have been filled and emptied again since it was noted
        if emptied_by.is_some_and(|due| members.empty_since.is_some_and(|since| since > due)) {
            self.note_empty(channel, &mut members);
            return;
        }
        members.removed = true;
        drop(members);
        self.stream(channel);
        if !self.broker.close(&channel.name, Closing::IfEmpty) {
            channel.members.lock().removed = false;
            return;
        }
        channels.remove(&channel.name);
        shrink_map(&mut channels);
    }
}
