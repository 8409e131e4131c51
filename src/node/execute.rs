//! What clients ask for, and what they are answered.

use super::channel::Notice;
use super::client::Client;
use super::delivery::Place;
use super::publish::NewPublication;
use super::recovery::Asked;
use super::{Node, PublishOptions, Published, encode};
use crate::command::{Command, Request};
use crate::error::{ErrorCode, Refusal};
use crate::events::Detail;
use crate::protocol::{self, Reference};
use crate::store::{Committed, StoreError};
use parking_lot::Mutex;
use std::sync::Arc;

/// What a client's frame made for others to do. Whoever is behind with it may have the client held back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// For shards.
    pub published: bool,
    /// For Python.
    pub told: bool,
}

/// A client's publication that is being saved: it is answered when it is, and when it is known where it is.
struct Answer {
    node: Arc<Node>,
    /// Where the client was when it asked.
    place: Option<Place>,
    reference: Option<String>,
    channel: String,
    state: Mutex<Outcome>,
}

/// What is known so far: where it was published, and what became of saving it.
type Outcome = (Option<Published>, Option<Result<(), StoreError>>);

impl Node {
    /// Carries out what a connected client sent; refused commands are answered, not returned.
    pub fn execute(self: &Arc<Self>, client: &Arc<Client>, text: &str) -> Work {
        self.counters.frames_received.add(1);
        client.spoke();
        let request = Request::parse(text, &self.config.default_channel, self.config.max_depth);
        match request {
            Ok(request) => {
                let reference = request.reference;
                self.carry_out(client, request, text)
                    .unwrap_or_else(|refusal| {
                        self.refuse_command(client, reference, &refusal);
                        Work::default()
                    })
            }
            Err(rejected) => {
                self.refuse_command(client, rejected.reference, &rejected.refusal);
                Work::default()
            }
        }
    }

    /// Tells a client what was wrong with its frame.
    pub fn refuse(&self, client: &Arc<Client>, refusal: &Refusal) {
        self.refuse_command(client, None, refusal);
    }

    /// A client answered the protocol's ping.
    pub fn ponged(&self, client: &Arc<Client>) -> Work {
        client.ping(protocol::now_micros());
        let told = self.client_event("pong", client, Some(protocol::SYSTEM_CHANNEL), || {
            Detail::None
        });
        Work {
            published: false,
            told,
        }
    }

    fn carry_out(
        self: &Arc<Self>,
        client: &Arc<Client>,
        request: Request<'_>,
        text: &str,
    ) -> Result<Work, Refusal> {
        let reference = request.reference;
        let is_told = |event: &str| self.events.wanted(event).is_some();
        Ok(match request.command {
            Command::Join { channel, recover } => {
                let asked = Asked { reference, recover };
                let is_asking = reference.is_some() || asked.recover.is_some();
                if is_asking {
                    client.set_wants_gaps(true);
                }
                self.join(client, &channel, is_asking.then_some(&asked))?;
                Work {
                    published: true,
                    told: is_told(Notice::Joined.event()),
                }
            }
            Command::Leave { channel } => {
                self.leave(client, &channel);
                self.answer_reference(client, reference, &channel, |_| {});
                Work {
                    published: true,
                    told: is_told(Notice::Left.event()),
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
                self.publish_for(client, &new, reference);
                Work {
                    published: true,
                    told: is_told(&event),
                }
            }
            Command::Ping => {
                client.ping(protocol::now_micros());
                if reference.is_some() {
                    self.answer(client, reference, protocol::SYSTEM_CHANNEL, |out| {
                        protocol::write_json(out, "pong", true);
                    });
                } else {
                    let stamp = self.stamp();
                    self.reply(client, encode(|out| protocol::write_pong(out, stamp)));
                }
                let system = Some(protocol::SYSTEM_CHANNEL);
                Work {
                    published: false,
                    told: self.client_event("ping", client, system, || Detail::None),
                }
            }
            Command::Presence { channel } => {
                self.answer_presence(client, &channel, reference);
                Work::default()
            }
            Command::History {
                channel,
                limit,
                after,
                before,
            } => {
                self.answer_history(client, &channel, (limit, after, before), reference)?;
                Work::default()
            }
            Command::Ack { ids, malformed } => {
                let acknowledged = self.acknowledge(client, &ids, malformed)?;
                self.answer_reference(client, reference, protocol::SYSTEM_CHANNEL, |out| {
                    protocol::write_json(out, "acknowledged", acknowledged);
                });
                Work::default()
            }
            Command::Other => {
                self.counters.messages_received.add(1);
                let detail = || Detail::Frame(text.as_bytes().into());
                let told = self.client_event("message", client, None, detail);
                self.answer_reference(client, reference, protocol::SYSTEM_CHANNEL, |_| {});
                Work {
                    published: false,
                    told,
                }
            }
        })
    }

    /// Publishes what a client wants published; answers if it asked to be, on a durable channel when it is saved.
    fn publish_for(
        self: &Arc<Self>,
        client: &Arc<Client>,
        new: &NewPublication<'_>,
        reference: Option<Reference<'_>>,
    ) {
        let mut answer: Option<Arc<Answer>> = None;
        let published = self.publish(new, &mut || {
            let begun = Arc::new(Answer {
                node: Arc::clone(self),
                place: client.state.lock().place,
                reference: reference.map(|reference| reference.0.to_owned()),
                channel: new.channel.to_owned(),
                state: Mutex::default(),
            });
            answer = Some(Arc::clone(&begun));
            Box::new(move |outcome| begun.settle(|state| state.1 = Some(outcome))) as Committed
        });
        match answer {
            Some(answer) => answer.settle(|state| state.0 = Some(published)),
            None => self.answer_reference(client, reference, new.channel, |out| {
                write_published(out, &published);
            }),
        }
    }

    fn answer_reference(
        &self,
        client: &Arc<Client>,
        reference: Option<Reference<'_>>,
        channel: &str,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        if reference.is_some() {
            self.answer(client, reference, channel, write);
        }
    }

    fn refuse_command(
        &self,
        client: &Arc<Client>,
        reference: Option<Reference<'_>>,
        refusal: &Refusal,
    ) {
        self.counters.errors_sent.add(1);
        let stamp = self.stamp();
        self.reply(
            client,
            encode(|out| protocol::write_error(out, stamp, reference, refusal)),
        );
    }
}

impl Answer {
    fn settle(&self, set: impl FnOnce(&mut (Option<Published>, Option<Result<(), StoreError>>))) {
        let mut state = self.state.lock();
        set(&mut state);
        let (Some(published), Some(outcome)) = &*state else {
            return;
        };
        let Some(place) = self.place else { return };
        let reference = self.reference.as_deref().map(Reference);
        let stamp = self.node.stamp();
        let frame = match outcome {
            Ok(()) if reference.is_none() => return,
            Ok(()) => encode(|out| {
                protocol::write_reply(out, stamp, reference, &self.channel, |out| {
                    write_published(out, published);
                });
            }),
            Err(error) => {
                self.node.counters.errors_sent.add(1);
                let refusal = Refusal::new(
                    ErrorCode::NotSaved,
                    format!("the message could not be saved and was not published: {error}"),
                );
                encode(|out| protocol::write_error(out, stamp, reference, &refusal))
            }
        };
        self.node.push_direct(place, frame);
    }
}

fn write_published(out: &mut Vec<u8>, published: &Published) {
    protocol::write_json(out, "recipients", published.recipients);
    if let Some(position) = published.position {
        protocol::write_json(out, "epoch", protocol::epoch_text(position.epoch));
        protocol::write_json(out, "offset", position.offset);
    }
    if published.is_duplicate {
        protocol::write_json(out, "duplicate", true);
    }
}
