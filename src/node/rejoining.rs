//! Joins members anew, because presence may have lost them. Nobody is told.

use super::channel::Channel;
use super::client::Client;
use super::wiring::Node;
use crate::base::completion::{Completion, Progress};
use crate::ports::broker::Failure;
use crate::ports::presence::Arrived;
use std::sync::Arc;

impl Node {
    /// Joins members anew: all after a loss, else those for which presence has failed.
    pub(super) fn join_anew(self: &Arc<Self>) {
        let failed = self.lease.take_failed();
        for (client, channel) in failed {
            self.join_member_anew(&client, &channel);
        }
        if !self.lease.take_lost() {
            return;
        }
        for channel in self.channels.all() {
            for id in channel.presence.own() {
                if let Some(client) = self.clients.get(&id) {
                    self.join_member_anew(&client, &channel);
                }
            }
        }
    }

    fn join_member_anew(self: &Arc<Self>, client: &Arc<Client>, channel: &Arc<Channel>) {
        let state = client.state.lock();
        if !state.is_member(&channel.name) {
            return;
        }
        let joining = channel.presence.join(&client.id, state.claim, &mut || {
            let (node, client) = (Arc::clone(self), Arc::clone(client));
            let channel = Arc::clone(channel);
            Completion::new(move |outcome| node.joined_anew(&client, &channel, &outcome))
        });
        drop(state);
        if let Progress::Ended(outcome) = joining {
            self.joined_anew(client, channel, &outcome);
        }
    }

    fn joined_anew(
        &self,
        client: &Arc<Client>,
        channel: &Arc<Channel>,
        outcome: &Result<Arrived, Failure>,
    ) {
        match outcome {
            Ok(arrived) => channel.members.lock().note(arrived.total),
            Err(_) => self.lease.add_failed(client, channel),
        }
    }
}
