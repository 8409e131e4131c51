//! Backpressure: connections that are read no further while the work that they caused is unfinished.
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

/// Why a connection is read no further for now.
#[derive(Debug)]
pub(super) enum Hold {
    /// Python has too many events to handle.
    Events,
    /// The inbox of a shard is full.
    Inbox,
    /// The frames that the connection published are still being written to many subscribers, or `max_queued_bytes` has no
    /// room for as many bytes again. Ends at the deadline, for other channels may always have something to write.
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
    /// The channels that fill its queue. Empty once the publishers have waited long enough.
    channels: Vec<BehindWith>,
    /// When publishers go on; `None` before the socket was tried.
    until: Option<Instant>,
    /// Bytes that the socket took since publishers wait.
    taken: usize,
}

/// What the shard knows of subscribers that are behind.
#[derive(Default)]
pub(super) struct Stalls {
    /// Whom publishers wait for, by the end of the wait: the soonest first.
    due: std::collections::VecDeque<(Instant, Slot, u32)>,
    /// One timer for the soonest; `None` before it was needed.
    timer: Option<Pin<Box<Sleep>>>,
    /// A connection is behind no longer: publishers on any shard may go on.
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

    /// To be called when the socket of a connection that is behind was tried: the connection has caught up, or the time
    /// for which publishers wait for it begins.
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

    /// Lets publishers go on whose subscribers were behind for long enough.
    ///
    /// A subscriber that took as much as the mark meanwhile is reading, and is waited for again.
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
                // it has caught up, or is gone
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

    /// Reads a connection no further until the hold ends.
    pub(super) fn hold_back(&mut self, slot: Slot, hold: Hold) {
        let Some(connection) = self.connections.get_mut(slot as usize) else {
            return;
        };
        connection.is_held_back = true;
        match hold {
            Hold::Inbox => self.node.counters.inbox_pauses.add(1),
            Hold::Subscribers(_) => self.node.counters.publisher_pauses.add(1),
            Hold::Events | Hold::FanOut { .. } => {}
        }
        self.held.push((slot, hold));
    }

    /// Resumes reading held connections whose reason has ended.
    pub(super) fn release_held_back(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let events = self.node.events.must_hold_back();
        let inbox = self.node.shards.is_congested();
        let backlog = self.has_backlog() || self.node.shards.has_backlog();
        let waits_for_room = !self.config.publisher_hold.is_zero();
        let mut held = std::mem::take(&mut self.held);
        held.retain_mut(|(slot, hold)| {
            if let Hold::FanOut {
                channel,
                bytes,
                deadline,
            } = hold
            {
                let must_wait = backlog || (waits_for_room && self.would_overfill(*bytes));
                if !must_wait || Instant::now() >= *deadline {
                    // the queues tell which subscribers are behind once the backlog is written
                    *hold = Hold::Subscribers(Arc::clone(channel));
                }
            }
            let is_held = match hold {
                Hold::Events => events,
                Hold::Inbox => inbox,
                Hold::FanOut { .. } => true,
                Hold::Subscribers(channel) => self.node.is_full(channel),
            };
            if !is_held
                && let Some(connection) = self.connections.get_mut(*slot as usize)
                && connection.is_held_back
            {
                connection.is_held_back = false;
                connection.readiness.set();
            }
            is_held
        });
        self.held = held;
    }
}
