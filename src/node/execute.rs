//! The way in for clients: a frame becomes a call, and the reply to the call becomes a frame.

use super::asker::Asker;
use super::backpressure::Backpressure;
use super::channel::Notice;
use super::client::Client;
use super::client_calls::ClientCalls;
use super::delivery::ConnectionId;
use super::encode::encode;
use super::wiring::Node;
use crate::base::clock::WallTime;
use crate::base::completion::{Completion, Progress};
use crate::base::error::{Error, ErrorCode, Refusal};
use crate::base::names;
use crate::core::events::Detail;
use crate::ports::calls::{Call, Calls, HistoryPage, PublishOptions, Published, Reply};
use crate::wire::command::{Command, Request};
use crate::wire::json_limits::JsonLimits;
use crate::wire::messages::{self, Reference};
use std::sync::Arc;

impl Node {
    /// Executes the command in a frame of a client. A refused command is answered with an error. A frame of a displaced
    /// connection is ignored.
    pub fn execute(
        self: &Arc<Self>,
        client: &Arc<Client>,
        connection_id: ConnectionId,
        text: &str,
    ) -> Backpressure {
        self.counters.frames_received.add(1);
        let is_newest = client.accept_frame(connection_id, |state| {
            if let Some(claim) = state.claim {
                self.mail.confirm(&client.id, claim);
                if state.has_session() {
                    self.sessions.confirm(&client.id, claim);
                }
            }
        });
        if !is_newest {
            return Backpressure::default();
        }
        let limits = JsonLimits {
            max_depth: self.config.max_depth,
            max_digits: self.config.max_digits,
        };
        match Request::parse(text, &self.config.default_channel, limits) {
            Ok(request) => {
                let asker = Asker {
                    client,
                    connection_id,
                    reference: request.reference,
                };
                self.make_call(asker, &request.command, text)
            }
            Err(rejected) => {
                self.refuse_command(connection_id, rejected.reference, &rejected.refusal);
                Backpressure::default()
            }
        }
    }

    /// Sends a client the error of a frame that is no command.
    pub fn refuse(&self, connection_id: ConnectionId, refusal: &Refusal) -> Backpressure {
        self.refuse_command(connection_id, None, refusal);
        Backpressure::default()
    }

    /// Handles the pong frame of a client.
    pub fn ponged(&self, client: &Arc<Client>) -> Backpressure {
        client.ping(WallTime::now());
        let told = self.events.emit(
            "pong",
            Some(&client.id),
            Some(names::SYSTEM_CHANNEL),
            || Detail::None,
        );
        Backpressure {
            told,
            ..Backpressure::default()
        }
    }

    /// Makes the call that a command stands for, and sends the reply.
    fn make_call(
        self: &Arc<Self>,
        asker: Asker<'_>,
        command: &Command<'_>,
        text: &str,
    ) -> Backpressure {
        let calls = ClientCalls::new(self, asker);
        let channel = command.channel().unwrap_or(names::SYSTEM_CHANNEL);
        let connection_id = asker.connection_id;
        let mut later = || {
            let (node, channel) = (Arc::clone(self), channel.to_owned());
            let reference = asker.reference.map(|reference| reference.0.to_owned());
            Completion::new(move |outcome| {
                let reference = reference.as_deref().map(Reference);
                node.send_reply(connection_id, reference, &channel, outcome);
            })
        };
        let mut backpressure = Backpressure {
            published: matches!(
                command,
                Command::Join { .. } | Command::Leave { .. } | Command::Broadcast { .. }
            ),
            told: event_of(command).is_some_and(|event| self.events.wanted(event).is_some()),
            fan_out: None,
        };
        if let Progress::Ended(outcome) = calls.call(call_of(command, text), &mut later) {
            if outcome.is_err() {
                backpressure = Backpressure::default();
            }
            self.send_reply(connection_id, asker.reference, channel, outcome);
        }
        backpressure.fan_out = calls.take_fan_out();
        backpressure
    }

    /// Sends the reply to a command, or its error. A command without a reference gets only a reply that it asks for.
    fn send_reply(
        &self,
        connection_id: ConnectionId,
        reference: Option<Reference<'_>>,
        channel: &str,
        outcome: Result<Reply, Error>,
    ) {
        let reply = match outcome {
            Ok(Reply::Joining) => return,
            Ok(Reply::Pong) if reference.is_none() => {
                let stamp = self.stamps.next();
                let pong = encode(|out| messages::write_pong(out, stamp));
                return self.shards.push_direct(connection_id, pong);
            }
            Ok(reply) => reply,
            Err(Error::Refused(refusal)) => {
                return self.refuse_command(connection_id, reference, &refusal);
            }
            Err(error) => {
                let refusal = Refusal::new(ErrorCode::BadField, error.to_string());
                return self.refuse_command(connection_id, reference, &refusal);
            }
        };
        let is_asked_for = matches!(reply, Reply::History(_) | Reply::Present { .. });
        if reference.is_none() && !is_asked_for {
            return;
        }
        let stamp = self.stamps.next();
        let frame = encode(|out| {
            messages::write_reply(out, stamp, reference, channel, |out| {
                write_fields(out, &reply);
            });
        });
        self.shards.push_direct(connection_id, frame);
    }

    pub(super) fn refuse_command(
        &self,
        connection_id: ConnectionId,
        reference: Option<Reference<'_>>,
        refusal: &Refusal,
    ) {
        self.counters.errors_sent.add(1);
        let stamp = self.stamps.next();
        let error = encode(|out| messages::write_error(out, stamp, reference, refusal));
        self.shards.push_direct(connection_id, error);
    }
}

/// The call that a command stands for. `text` is the whole frame.
fn call_of<'a>(command: &'a Command<'a>, text: &'a str) -> Call<'a> {
    match command {
        Command::Join { channel, recover } => Call::Join {
            channel,
            recover: recover.as_ref(),
        },
        Command::Leave { channel } => Call::Leave { channel },
        Command::Broadcast {
            channel,
            event,
            data,
            idempotency_key,
        } => Call::Broadcast {
            channel,
            event,
            data: data.as_bytes(),
            options: PublishOptions {
                idempotency_key: idempotency_key.as_deref(),
                ..PublishOptions::default()
            },
        },
        Command::Ping => Call::Ping,
        Command::Presence { channel } => Call::Present { channel },
        Command::History {
            channel,
            limit,
            after,
            before,
        } => Call::Page {
            channel,
            limit: *limit,
            after: *after,
            before: *before,
        },
        Command::Ack { ids, malformed } => Call::Acknowledge {
            ids,
            malformed: malformed.as_deref(),
        },
        Command::Other { action } => Call::Message {
            action: action.as_deref(),
            text,
        },
    }
}

/// The event that a command causes for the application.
fn event_of<'a>(command: &'a Command<'_>) -> Option<&'a str> {
    match command {
        Command::Join { .. } => Some(Notice::Joined.event()),
        Command::Leave { .. } => Some(Notice::Left.event()),
        Command::Broadcast { event, .. } => Some(event),
        Command::Ping => Some("ping"),
        Command::Other { .. } => Some("message"),
        Command::Presence { .. } | Command::History { .. } | Command::Ack { .. } => None,
    }
}

fn write_fields(out: &mut Vec<u8>, reply: &Reply) {
    match reply {
        Reply::Published(published) => write_published(out, published),
        Reply::History(page) => write_page(out, page),
        Reply::Present { online, users } => {
            let users: Vec<&str> = users.iter().map(|id| &**id).collect();
            messages::write_json(out, "online", online);
            messages::write_json(out, "users", users);
        }
        Reply::Acknowledged(count) => messages::write_json(out, "acknowledged", count),
        Reply::Pong => messages::write_json(out, "pong", true),
        // the other replies have no fields, or are replies to calls of the application
        _ => {}
    }
}

fn write_published(out: &mut Vec<u8>, published: &Published) {
    messages::write_json(out, "recipients", published.recipients);
    if let Some(position) = published.position {
        messages::write_json(out, "epoch", messages::epoch_text(position.epoch));
        messages::write_json(out, "offset", position.offset);
    }
    if published.is_duplicate {
        messages::write_json(out, "duplicate", true);
    }
}

fn write_page(out: &mut Vec<u8>, page: &HistoryPage) {
    messages::write_json(out, "epoch", messages::epoch_text(page.epoch));
    messages::write_json(out, "offset", page.offset);
    messages::write_publications(out, &page.publications);
    if page.is_cut {
        messages::write_json(out, "more", true);
    }
}
