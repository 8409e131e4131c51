//! The commands of clients, and their replies.

use super::asker::Asker;
use super::backpressure::{Backpressure, FanOut};
use super::channel::Notice;
use super::client::Client;
use super::delivery::ConnectionId;
use super::encode::encode;
use super::publish::NewPublication;
use super::question::Question;
use super::wiring::Node;
use crate::base::clock::WallTime;
use crate::base::completion::{Completion, Progress};
use crate::base::error::{Error, ErrorCode, Refusal};
use crate::base::misspelling::nearest;
use crate::base::names;
use crate::base::priority::SlowConsumer;
use crate::core::events::{Detail, LogLevel};
use crate::ports::calls::{PublishOptions, Published};
use crate::wire::command::{ACTIONS, Command, Request};
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
        if !client.accept_frame(connection_id, |state| self.store.save_client(client, state)) {
            return Backpressure::default();
        }
        let limits = JsonLimits {
            max_depth: self.config.max_depth,
            max_digits: self.config.max_digits,
        };
        let request = Request::parse(text, &self.config.default_channel, limits);
        match request {
            Ok(request) => {
                let asker = Asker {
                    client,
                    connection_id,
                    reference: request.reference,
                };
                self.carry_out(asker, request.command, text)
                    .unwrap_or_else(|refusal| {
                        self.refuse_command(connection_id, asker.reference, &refusal);
                        Backpressure::default()
                    })
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

    fn carry_out(
        self: &Arc<Self>,
        asker: Asker<'_>,
        command: Command<'_>,
        text: &str,
    ) -> Result<Backpressure, Refusal> {
        let client = asker.client;
        let is_told = |event: &str| self.events.wanted(event).is_some();
        Ok(match command {
            Command::Join { channel, recover } => {
                let question =
                    Question::new(asker.connection_id, asker.reference, recover.as_ref());
                Backpressure {
                    published: true,
                    told: is_told(Notice::Joined.event()),
                    fan_out: self.join(client, &channel, &question)?,
                }
            }
            Command::Leave { channel } => {
                let fan_out = self.leave(client, &channel);
                self.answer_reference(asker, &channel, |_| {});
                Backpressure {
                    published: true,
                    told: is_told(Notice::Left.event()),
                    fan_out,
                }
            }
            Command::Broadcast {
                channel,
                event,
                data,
                idempotency_key,
            } => {
                let options = PublishOptions {
                    idempotency_key: idempotency_key.as_deref(),
                    ..PublishOptions::default()
                };
                let new = NewPublication {
                    channel: &channel,
                    event: &event,
                    data: data.as_bytes(),
                    from: Some(client),
                    options: &options,
                };
                let fan_out = Some(self.publish_for(asker, &new));
                Backpressure {
                    published: true,
                    told: is_told(&event),
                    fan_out,
                }
            }
            Command::Ping => {
                client.ping(WallTime::now());
                if asker.reference.is_some() {
                    self.answer(asker, names::SYSTEM_CHANNEL, |out| {
                        messages::write_json(out, "pong", true);
                    });
                } else {
                    let stamp = self.stamps.next();
                    let pong = encode(|out| messages::write_pong(out, stamp));
                    self.shards.push_direct(asker.connection_id, pong);
                }
                let system = Some(names::SYSTEM_CHANNEL);
                Backpressure {
                    told: self
                        .events
                        .emit("ping", Some(&client.id), system, || Detail::None),
                    ..Backpressure::default()
                }
            }
            Command::Presence { channel } => {
                self.answer_presence(asker, &channel);
                Backpressure::default()
            }
            Command::History {
                channel,
                limit,
                after,
                before,
            } => {
                self.answer_history(asker, &channel, (limit, after, before))?;
                Backpressure::default()
            }
            Command::Ack { ids, malformed } => {
                let acknowledged = self.acknowledge(client, &ids, malformed)?;
                self.answer_reference(asker, names::SYSTEM_CHANNEL, |out| {
                    messages::write_json(out, "acknowledged", acknowledged);
                });
                Backpressure::default()
            }
            Command::Other { action } => {
                self.check_spelling(asker, action.as_deref())?;
                self.counters.messages_received.add(1);
                let detail = || Detail::Frame(text.as_bytes().into());
                let told = self.events.emit("message", Some(&client.id), None, detail);
                self.answer_reference(asker, names::SYSTEM_CHANNEL, |_| {});
                Backpressure {
                    told,
                    ..Backpressure::default()
                }
            }
        })
    }

    /// Refuses an action that looks like a misspelled known one, where the application has no handler for actions of
    /// its own. A command without a reference gets no error; the log has a line instead.
    fn check_spelling(&self, asker: Asker<'_>, action: Option<&str>) -> Result<(), Refusal> {
        if self.events.wanted("message").is_some() {
            return Ok(());
        }
        let Some((action, known)) =
            action.and_then(|action| Some((action, nearest(action, ACTIONS)?)))
        else {
            return Ok(());
        };
        if asker.reference.is_some() {
            return Err(Refusal::new(
                ErrorCode::BadField,
                format!("action is {action:?}, which nothing handles; the nearest is {known:?}"),
            ));
        }
        self.events.log(LogLevel::Warning, "connections", || {
            let id = &asker.client.id;
            format!(
                "{id} sent the action {action:?}, which nothing handles; the nearest is {known:?}"
            )
        });
        Ok(())
    }

    /// Publishes for a client. Replies if the command has a reference. The reply of a durable channel waits until the
    /// publication is saved.
    fn publish_for(self: &Arc<Self>, asker: Asker<'_>, new: &NewPublication<'_>) -> FanOut {
        let (progress, channel) = self.publish(new, &mut || {
            let node = Arc::clone(self);
            let connection_id = asker.connection_id;
            let reference = asker.reference.map(|reference| reference.0.to_owned());
            let channel = new.channel.to_owned();
            Completion::new(move |outcome| {
                let reference = reference.as_deref().map(Reference);
                node.answer_published(connection_id, reference, &channel, outcome);
            })
        });
        let published = match progress {
            Progress::Ended(outcome) => {
                let published = outcome.as_ref().ok().copied();
                self.answer_published(asker.connection_id, asker.reference, new.channel, outcome);
                published
            }
            Progress::Begun(published) => published,
        };
        FanOut {
            recipients: published
                .filter(|published| !published.is_duplicate)
                .map_or(0, |published| published.recipients),
            can_be_joined: channel.settings.slow_consumer == SlowConsumer::Disconnect,
            channel,
        }
    }

    fn answer_reference(&self, asker: Asker<'_>, channel: &str, write: impl FnOnce(&mut Vec<u8>)) {
        if asker.reference.is_some() {
            self.answer(asker, channel, write);
        }
    }

    /// Answers a client's publication: always if it has failed, otherwise if the client has asked for an answer.
    fn answer_published(
        &self,
        connection_id: ConnectionId,
        reference: Option<Reference<'_>>,
        channel: &str,
        outcome: Result<Published, Error>,
    ) {
        match outcome {
            Ok(published) if reference.is_some() => {
                self.reply(connection_id, reference, channel, |out| {
                    write_published(out, &published);
                });
            }
            Ok(_) => {}
            Err(error) => {
                let refusal = Refusal::new(
                    ErrorCode::NotSaved,
                    format!("the message could not be saved and was not published: {error}"),
                );
                self.refuse_command(connection_id, reference, &refusal);
            }
        }
    }

    /// An answer to a client's command; `write` adds fields.
    pub(super) fn answer(&self, asker: Asker<'_>, channel: &str, write: impl FnOnce(&mut Vec<u8>)) {
        self.reply(asker.connection_id, asker.reference, channel, write);
    }

    /// A reply to a command that came on a connection; `write` adds fields.
    pub(super) fn reply(
        &self,
        connection_id: ConnectionId,
        reference: Option<Reference<'_>>,
        channel: &str,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        let stamp = self.stamps.next();
        let reply = encode(|out| messages::write_reply(out, stamp, reference, channel, write));
        self.shards.push_direct(connection_id, reply);
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
