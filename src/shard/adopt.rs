//! Sockets that are handed to this shard.

use super::Shard;
use super::receive::READ_SHARE;
use super::transport::Transport;
use crate::base::completion::Completion;
use crate::core::events::LogLevel;
use crate::core::hub::Slot;
use crate::node::{Adoption, NotAdopted, ReadRequest};
use crate::wire::http::upgrade::is_upgrade;

impl Shard {
    /// Takes a connected socket, and answers whether this shard takes the socket. A request that was read before is
    /// answered at once.
    pub(super) fn adopt(&mut self, adoption: Adoption) {
        let Adoption {
            socket,
            is_tuned,
            request,
            answer,
        } = adoption;
        if let Some(reason) = self.reason_not_to_adopt(request.as_deref()) {
            drop(socket);
            reply(answer, Err(reason));
            return;
        }
        self.make_room_for_handshake();
        let stream = match Transport::new(socket, is_tuned, &self.config) {
            Ok(stream) => stream,
            Err(error) => {
                self.node.events.log(LogLevel::Debug, "server", || {
                    format!("a connection ended at once: {error}")
                });
                reply(answer, Err(NotAdopted::Socket(error.kind())));
                return;
            }
        };
        let slot = self.add_connection(stream);
        let before = self.read_work;
        self.contain(slot, |shard| {
            reply(answer, Ok(()));
            if let Some(request) = request {
                shard.begin(slot, *request);
            }
        });
        self.charge_as_pushes(before);
    }

    /// Only a socket that comes with a request is refused: the giver can answer the request.
    fn reason_not_to_adopt(&self, request: Option<&ReadRequest>) -> Option<NotAdopted> {
        if self.is_finished {
            return Some(NotAdopted::ShardEnded);
        }
        let request = request.filter(|request| is_upgrade(&request.head))?;
        if self.draining.is_some() {
            return Some(NotAdopted::Draining);
        }
        let may_displace = request.head.parameter("resume").is_some()
            || request
                .identity
                .as_ref()
                .is_some_and(|identity| self.node.has_connection(identity.client_id()));
        if may_displace || self.node.has_room() {
            return None;
        }
        self.node.counters.refused_full.add(1);
        Some(NotAdopted::Full)
    }

    /// Answers the request of a socket that was handed over, and reads the bytes behind the request.
    fn begin(&mut self, slot: Slot, request: ReadRequest) {
        let ReadRequest {
            head,
            mut rest,
            identity,
        } = request;
        self.read_share = READ_SHARE;
        self.answer(slot, head, identity.as_ref());
        self.read_behind_head(slot, &mut rest);
        self.note_input(slot, rest.len());
    }
}

fn reply(answer: Option<Completion<Result<(), NotAdopted>>>, outcome: Result<(), NotAdopted>) {
    if let Some(answer) = answer {
        answer.complete(Ok(outcome));
    }
}
