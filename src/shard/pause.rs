//! Backpressure: the shard pauses the reading of connections while the work that they caused is unfinished.
//!
//! A publisher waits for the subscribers of its channel as long as one of them is *behind*: more than half of
//! `max_pending_bytes` waits for that subscriber although its socket was tried. Publishers wait at most `publisher_hold`.
//! The wait is repeated if the subscriber took half of `max_pending_bytes` meanwhile. Afterwards the subscriber counts
//! again only once its queue was below the mark.

use super::Shard;
use super::socket::Connection;
use crate::core::hub::Slot;
use crate::node::{BehindWith, Channel};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::time::Instant;
use tokio::time::Sleep;

/// Why the reading of a connection is paused.
#[derive(Debug)]
pub(super) enum Pause {
    /// Python has too many events to handle.
    Events,
    /// The inbox of a shard is full.
    Inbox,
    /// The publications of the connection are still being written to many subscribers, or `max_queued_bytes` has no room
    /// for as many bytes again. Ends at the deadline, because other channels may always have something to write.
    FanOut {
        channel: Arc<Channel>,
        bytes: usize,
        deadline: Instant,
    },
    /// A subscriber of this channel is behind.
    Subscribers(Arc<Channel>),
}

/// A connection for which more than half of `max_pending_bytes` waits.
#[derive(Debug, Default)]
pub(super) struct Stall {
    /// The channels that fill the queue. Empty when their publishers have waited long enough.
    channels: Vec<BehindWith>,
    /// When publishers continue; `None` before the socket was tried.
    until: Option<Instant>,
    /// Bytes that the socket has taken since publishers began to wait.
    taken: usize,
}

/// The subscribers that are behind.
#[derive(Default)]
pub(super) struct Stalls {
    /// The connections that publishers wait for, by the end of the wait, the soonest first.
    due: std::collections::VecDeque<(Instant, Slot, u32)>,
    /// The timer for the soonest end; `None` before the first use.
    timer: Option<Pin<Box<Sleep>>>,
    /// A connection is no longer behind: publishers on any shard may continue.
    pub(super) has_ended: bool,
}

impl Shard {
    /// Bytes that may wait for a connection before its publishers wait.
    pub(super) fn mark(&self) -> usize {
        if self.config.publisher_hold.is_zero() {
            usize::MAX
        } else {
            self.config.max_pending_bytes / 2
        }
    }

    /// Counts a connection as behind with a channel that has filled its queue over the mark.
    pub(super) fn fall_behind(connection: &mut Connection, channel: &Arc<Channel>) {
        let stall = connection.stall.get_or_insert_default();
        let has_expired = stall.until.is_some() && stall.channels.is_empty();
        if !has_expired && !stall.channels.iter().any(|behind| behind.is(channel)) {
            stall.channels.push(BehindWith::new(channel));
        }
    }

    /// To be called after an attempt to write a connection that is behind. Either the connection has caught up, or the time
    /// begins for which publishers wait.
    pub(super) fn look_at_stall(&mut self, slot: Slot, written: usize) {
        let mark = self.mark();
        let Some(connection) = self.connections.get_mut(slot as usize) else {
            return;
        };
        let Some(stall) = &mut connection.stall else {
            return;
        };
        stall.taken += written;
        if connection.outbound.weight() <= mark {
            connection.stall = None;
            self.stalls.has_ended = true;
        } else if stall.until.is_none() {
            let until = Instant::now() + self.config.publisher_hold;
            stall.until = Some(until);
            stall.taken = 0;
            self.stalls
                .due
                .push_back((until, slot, connection.generation));
        }
    }

    /// Ends the wait for subscribers that were behind for `publisher_hold`.
    ///
    /// A subscriber that has taken as many bytes as the mark is reading, so publishers wait for it again.
    pub(super) fn end_stalls(&mut self, context: &mut Context<'_>) {
        let mark = self.mark();
        while let Some(&(until, slot, generation)) = self.stalls.due.front() {
            let is_over = Instant::now() >= until;
            let connection = self.connections.get_mut(slot as usize);
            let stall = connection
                .filter(|connection| connection.generation == generation)
                .and_then(|connection| connection.stall.as_mut())
                .filter(|stall| stall.until == Some(until));
            match stall {
                Some(stall) if is_over && stall.taken >= mark => {
                    let again = Instant::now() + self.config.publisher_hold;
                    (stall.until, stall.taken) = (Some(again), 0);
                    self.stalls.due.push_back((again, slot, generation));
                }
                Some(stall) if is_over => {
                    stall.channels.clear();
                    self.stalls.has_ended = true;
                }
                Some(_) => break,
                // the connection has caught up, or is gone
                None => {}
            }
            self.stalls.due.pop_front();
        }
        if let Some(&(until, ..)) = self.stalls.due.front() {
            let until = tokio::time::Instant::from_std(until);
            let timer = self
                .stalls
                .timer
                .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
            if timer.deadline() != until {
                timer.as_mut().reset(until);
            }
            if timer.as_mut().poll(context).is_ready() {
                context.waker().wake_by_ref();
            }
        }
        if std::mem::take(&mut self.stalls.has_ended) {
            self.node.shards.wake();
        }
    }

    /// Stops reading a connection until the reason has ended.
    pub(super) fn pause_reading(&mut self, slot: Slot, pause: Pause) {
        let Some(connection) = self.connections.get_mut(slot as usize) else {
            return;
        };
        connection.is_paused = true;
        match pause {
            Pause::Inbox => self.node.counters.inbox_pauses.add(1),
            Pause::Subscribers(_) => self.node.counters.publisher_pauses.add(1),
            Pause::Events | Pause::FanOut { .. } => {}
        }
        self.paused.push((slot, pause));
    }

    /// Resumes reading the paused connections whose reason has ended.
    pub(super) fn resume_reading(&mut self) {
        if self.paused.is_empty() {
            return;
        }
        let events = self.node.events.must_pause();
        let inbox = self.node.shards.is_congested();
        let backlog = self.has_backlog() || self.node.shards.has_backlog();
        let waits_for_room = !self.config.publisher_hold.is_zero();
        let mut paused = std::mem::take(&mut self.paused);
        paused.retain_mut(|(slot, pause)| {
            if let Pause::FanOut {
                channel,
                bytes,
                deadline,
            } = pause
            {
                let must_wait = backlog || (waits_for_room && self.would_overfill(*bytes));
                if !must_wait || Instant::now() >= *deadline {
                    // the queues tell which subscribers are behind once the backlog is written
                    *pause = Pause::Subscribers(Arc::clone(channel));
                }
            }
            let is_waiting = match pause {
                Pause::Events => events,
                Pause::Inbox => inbox,
                Pause::FanOut { .. } => true,
                Pause::Subscribers(channel) => self.node.is_full(channel),
            };
            if !is_waiting
                && let Some(connection) = self.connections.get_mut(*slot as usize)
                && connection.is_paused
            {
                connection.is_paused = false;
                connection.readiness.set();
            }
            is_waiting
        });
        self.paused = paused;
    }
}
