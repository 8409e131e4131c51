//! Messages to one client, kept until it has them: while it is away, and until it acknowledges them if it does that.

use super::client::{Client, ClientState};
use super::delivery::{ConnectionId, Delivery};
use super::encode::encode;
use super::idempotency::{Known, Scope};
use super::mailroom::Letter;
use super::wiring::Node;
use crate::base::clock::SteadyTime;
use crate::base::error::{Error, ErrorCode, Refusal, argument};
use crate::base::names;
use crate::base::priority::Priority;
use crate::core::mailbox::{Mail, Mailbox};
use crate::ports::calls::{DeliveryReport, PublishOptions, Sent};
use crate::ports::store::{Committed, KeyResult, LostFlag};
use crate::wire::frame::EncodedFrame;
use crate::wire::messages::{self, Body, Stamp};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

impl Node {
    /// Sends to one client; returns the message's stamp. For a client that is not connected it is kept, and handed
    /// over when it returns. `commit` is called when it is kept, and durable by `options` or because everything is.
    ///
    /// Errors: a client id or channel name that cannot be one; a message over the limit; `durable` where nothing can be
    /// saved; the storage cannot be opened.
    pub fn send(
        self: &Arc<Self>,
        client_id: &str,
        channel: &str,
        body: Body<'_>,
        options: &PublishOptions<'_>,
        commit: &mut dyn FnMut() -> Committed,
    ) -> Result<Sent, Error> {
        names::check_client_id(client_id).map_err(argument)?;
        names::check_channel_name(channel).map_err(argument)?;
        let (Body::Message(bytes) | Body::Fields(bytes, _)) = body;
        self.check_size(bytes.len())?;
        self.check_options(options, || !self.ttl_of(options).is_zero())?;
        let options = &PublishOptions {
            durable: options.durable || self.config.durable && self.store.is_durable(),
            ..*options
        };
        self.restore()?;
        if options.priority < Priority::Emergency {
            self.shards.wait_for_room();
        }
        let Some(key) = options.idempotency_key else {
            let stamp = self.send_now(client_id, channel, body, options, None, commit);
            return Ok(Sent {
                stamp,
                is_duplicate: false,
            });
        };
        let scope = sent_scope(client_id);
        let known = self.begin_once(&self.sent_once, scope, key, &mut || {
            options.durable.then(&mut *commit)
        });
        match known {
            Known::Nothing(number, lost_flag) => {
                let mut is_saving = false;
                let stamp = self.send_now(
                    client_id,
                    channel,
                    body,
                    options,
                    Some(&lost_flag),
                    &mut || {
                        is_saving = true;
                        self.settle_sent(commit(), client_id, key, number)
                    },
                );
                self.sent_once
                    .published(scope, key, number, stamp, is_saving);
                Ok(Sent {
                    stamp,
                    is_duplicate: false,
                })
            }
            Known::Repeat(stamp) => Ok(Sent {
                stamp,
                is_duplicate: true,
            }),
        }
    }

    /// The progress of a message of `send` or `emergency`; `None` for a message that is unknown or too long ago.
    pub fn delivery(&self, message_id: &str) -> Option<DeliveryReport> {
        let receipt = self
            .mailroom
            .receipt(messages::parse_message_id(message_id)?)?;
        Some(DeliveryReport {
            handed_over: receipt.handed_over.load(Ordering::Relaxed) as usize,
            written: receipt.written.load(Ordering::Relaxed) as usize,
            acknowledged: receipt.acknowledged.load(Ordering::Relaxed) as usize,
            waiting: receipt.waiting.load(Ordering::Relaxed) as usize,
        })
    }

    /// A client has taken messages; returns how many of them were waiting for that. `malformed` is a text among their
    /// ids that is none.
    ///
    /// Errors: an id that nothing waits for; the others count all the same.
    pub(super) fn acknowledge(
        &self,
        client: &Client,
        ids: &[u64],
        malformed: Option<String>,
    ) -> Result<usize, Refusal> {
        let _emergencies = self.emergencies.hold_back();
        let mut state = client.state.lock();
        state.acknowledges = true;
        let taken = self.mailroom.take(&client.id, &mut state, ids);
        let mut waited: HashSet<u64> = taken.iter().map(|mail| mail.message).collect();
        let mut unknown = malformed;
        let mut count = 0;
        for id in ids {
            let was_kept = waited.remove(id);
            if !was_kept && !self.emergencies.acknowledge(&mut state, *id) {
                unknown = Some(messages::message_id_text(*id));
                continue;
            }
            count += 1;
            if let Some(receipt) = self.mailroom.receipt(*id) {
                receipt.acknowledged.fetch_add(1, Ordering::Relaxed);
            }
        }
        drop(state);
        unknown.map_or(Ok(count), |id| {
            Err(Refusal::new(
                ErrorCode::UnknownMessage,
                format!(
                    "nothing waits for {id:?} to be acknowledged; {count} of the ids were known"
                ),
            ))
        })
    }

    /// Keeps an emergency for clients that are away, and, until they acknowledge the emergency, for those that
    /// acknowledge. To be called between `Emergencies::begin` and its end.
    pub(super) fn keep_emergency(&self, message: u64, frame: &EncodedFrame) {
        self.emergencies.add(message);
        if self.config.emergency_ttl.is_zero() {
            return;
        }
        for client in self.clients.all() {
            let mut state = client.state.lock();
            let is_connected = state.connection_id.is_some();
            if state.removed || !(is_connected && state.acknowledges || state.away.is_some()) {
                continue;
            }
            let letter = Letter {
                message,
                frame,
                ttl: self.config.emergency_ttl,
                is_emergency: true,
                is_handed_over: is_connected,
                used_key: None,
            };
            self.mailroom.keep(&client, &mut state, letter, None);
        }
        self.make_room_for_mail();
    }

    /// Hands all kept messages over to a connection of the client.
    pub(super) fn hand_over_mail(
        &self,
        client: &Client,
        state: &mut ClientState,
        connection_id: ConnectionId,
    ) {
        let now = SteadyTime::now();
        self.mailroom.hand_over(&client.id, state, |mail| {
            mail.handed_over = Some(now);
            self.push_mail(connection_id, mail);
        });
    }

    fn send_now(
        &self,
        client_id: &str,
        channel: &str,
        body: Body<'_>,
        options: &PublishOptions<'_>,
        lost_flag: Option<&LostFlag>,
        commit: &mut dyn FnMut() -> Committed,
    ) -> Stamp {
        let stamp = self.stamps.next();
        let ttl = self.ttl_of(options);
        loop {
            let client = self.clients.get_or_add(client_id);
            let mut state = client.state.lock();
            if state.removed {
                continue;
            }
            let connection_id = state.connection_id;
            let mut is_kept = !ttl.is_zero()
                && (connection_id.is_none() || state.acknowledges && body.can_want_ack());
            let wants_ack = is_kept && body.can_want_ack();
            let encoded = |wants_ack| {
                encode(|out| messages::write_direct(out, stamp, channel, body, wants_ack))
            };
            let mut frame = encoded(wants_ack);
            if is_kept
                && connection_id.is_some()
                && !Mailbox::has_room(frame.len(), self.config.mailbox_bytes)
            {
                is_kept = false;
                frame = encoded(false);
            }
            let receipt = self
                .mailroom
                .open_receipt(stamp.id, usize::from(connection_id.is_some()));
            if is_kept {
                let letter = Letter {
                    message: stamp.id,
                    frame: &frame,
                    ttl,
                    is_emergency: options.priority == Priority::Emergency,
                    is_handed_over: connection_id.is_some(),
                    used_key: self.used_key(
                        sent_scope(client_id),
                        options,
                        lost_flag,
                        KeyResult::Sent(stamp),
                    ),
                };
                let committed = options.durable.then(&mut *commit);
                self.mailroom.keep(&client, &mut state, letter, committed);
            }
            if let Some(connection_id) = connection_id {
                self.counters.messages_sent.add(1);
                self.shards.push(
                    connection_id.shard,
                    Delivery::Direct {
                        connection_id,
                        frame,
                        priority: options.priority,
                        receipt: Some(receipt),
                    },
                );
            } else {
                self.counters.undelivered.add(1);
                if !is_kept {
                    self.counters.dropped("not_connected", channel, 1);
                }
            }
            self.drop_empty_mailbox(&client, state);
            self.make_room_for_mail();
            return stamp;
        }
    }

    /// The time for which a message is kept.
    fn ttl_of(&self, options: &PublishOptions<'_>) -> Duration {
        if options.priority == Priority::Emergency {
            self.config.emergency_ttl
        } else {
            self.config.message_ttl
        }
    }

    /// Has an idempotency key wait for the message to be saved.
    fn settle_sent(
        self: &Arc<Self>,
        committed: Committed,
        client_id: &str,
        key: &str,
        number: u64,
    ) -> Committed {
        let node = Arc::clone(self);
        let (client_id, key) = (client_id.to_owned(), key.to_owned());
        Box::new(move |outcome| {
            node.sent_once
                .saved(sent_scope(&client_id), &key, number, &outcome);
            committed(outcome);
        })
    }

    pub(super) fn push_mail(&self, connection_id: ConnectionId, mail: &Mail) {
        let receipt = self.mailroom.receipt(mail.message);
        if let Some(receipt) = &receipt {
            receipt.handed_over.fetch_add(1, Ordering::Relaxed);
        }
        self.counters.messages_sent.add(1);
        let priority = if mail.is_emergency {
            Priority::Emergency
        } else {
            Priority::Normal
        };
        self.shards.push(
            connection_id.shard,
            Delivery::Direct {
                connection_id,
                frame: mail.frame.clone(),
                priority,
                receipt,
            },
        );
    }
}

/// Where the idempotency key of a message to a client counts.
fn sent_scope(client_id: &str) -> Scope<'_> {
    Scope {
        client: None,
        target: client_id,
    }
}
