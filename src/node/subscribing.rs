//! The last step of entering a channel: the reply, what the gate has kept, and the subscription go into the inbox of the
//! shard, between two publications.

use super::channel::Channel;
use super::client::{ClientState, Joined, Live};
use super::delivery::{ConnectionId, Delivery};
use super::encode::encode;
use super::entering::{Entered, EntryAttempt};
use super::entry::Entry;
use super::gate::{GatedPublication, Place};
use super::recovery::JoinReply;
use super::sink::LOST;
use super::wiring::Node;
use crate::core::history::StreamPosition;
use crate::ports::broker::View;
use crate::ports::presence::Arrived;
use crate::wire::messages;
use std::sync::Arc;

impl Node {
    /// Subscribes a client behind the position that was read; `None` if the channel has ended.
    pub(super) fn subscribe_behind(
        &self,
        state: &mut ClientState,
        attempt: &EntryAttempt<'_>,
        (entry, arrived): (&Entry, Arrived),
        view: &View,
    ) -> Option<Entered> {
        let EntryAttempt {
            client, channel, ..
        } = *attempt;
        let gate = entry.lock();
        let mut members = channel.members.lock();
        if members.removed {
            return None;
        }
        members.note(arrived.total);
        state.forget_predecessors(channel);
        let known = state.position(&channel.name);
        if known.is_none() {
            members.own += 1;
        }
        let question = attempt.question;
        if let Some(question) = question.filter(|question| question.wants_reply()) {
            let reply = JoinReply {
                view,
                through: view.position.offset,
                subscribers: members.total.members,
            };
            let frame = self.join_reply(question, &channel.name, &reply);
            self.shards.push_direct(question.connection_id, frame);
        }
        let live = state.connection_id.map(|connection_id| {
            members.interest.add(connection_id.shard);
            let target = (connection_id, client.wants_gaps());
            let gated = gate.behind(view.position);
            self.push_entered(target, channel, gated);
            Live {
                from: view.position.offset,
                shard: connection_id.shard,
            }
        });
        let Some(at) = known else {
            drop(members);
            state.forget_channel(&channel.name);
            state.channels.push(Joined {
                channel: Arc::clone(channel),
                live,
            });
            return Some(Entered::Joined(arrived));
        };
        state.channels[at].live = live;
        Some(Entered::Live)
    }

    /// Subscribes a connection, and hands it what the gate has kept; in place of what the gate could not keep, a gap, if
    /// the client understands gaps.
    fn push_entered<'a>(
        &self,
        (connection_id, wants_gaps): (ConnectionId, bool),
        channel: &Channel,
        gated: Result<impl Iterator<Item = &'a GatedPublication>, Option<StreamPosition>>,
    ) {
        let shard = connection_id.shard;
        let missing = gated.as_ref().err().copied();
        if let Ok(gated) = gated {
            for publication in gated.filter(|gated| wants_gaps || gated.place != Place::Gap) {
                let delivery = Delivery::Direct {
                    connection_id,
                    frame: publication.frame.clone(),
                    priority: publication.priority,
                    receipt: None,
                };
                self.shards.push(shard, delivery);
            }
        } else {
            self.counters.dropped(LOST, &channel.name, 1);
        }
        if let Some(top) = missing.filter(|_| wants_gaps) {
            let stamp = self.stamps.next();
            let top = top.map(|top| (top.epoch, top.offset));
            let write = |out: &mut Vec<u8>| messages::write_lost(out, stamp, &channel.name, top);
            self.shards.push_direct(connection_id, encode(write));
        }
        let delivery = Delivery::Subscribe {
            connection_id,
            channel: channel.key,
        };
        self.shards.push(shard, delivery);
    }
}
