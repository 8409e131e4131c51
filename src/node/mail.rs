//! Messages to one client, kept until it has them: while it is away, and until it acknowledges them if it does that.

use super::client::{Client, ClientState};
use super::delivery::{ConnectionId, Delivery};
use super::encode::encode;
use super::mailroom::Letter;
use super::wiring::Node;
use crate::base::clock::{SteadyTime, WallTime};
use crate::base::completion::{Completion, Later, Progress};
use crate::base::error::{Error, ErrorCode, Refusal, argument};
use crate::base::names;
use crate::base::priority::Priority;
use crate::core::idempotency::{Lookup, Scope, Ticket};
use crate::core::mailbox::{Mail, Mailbox};
use crate::ports::broker::Failure;
use crate::ports::calls::{DeliveryReport, PublishOptions, Sent};
use crate::ports::durability::{Committed, KeyResult, StoreError, UsedKey, complete_when_saved};
use crate::wire::frame::EncodedFrame;
use crate::wire::messages::{self, Body, Stamp};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A message to be sent.
struct Message<'a> {
    stamp: Stamp,
    client_id: &'a str,
    channel: &'a str,
    body: Body<'a>,
    options: &'a PublishOptions<'a>,
}

impl Node {
    /// Sends to one client. A message to a client that is not connected is kept, and handed over when the client returns.
    /// A durable message that is kept ends when it is saved.
    ///
    /// Errors: a client id or channel name that cannot be one; a message over the limit; `durable` where nothing can be
    /// saved; the storage cannot be opened.
    pub fn send(
        self: &Arc<Self>,
        client_id: &str,
        channel: &str,
        body: Body<'_>,
        options: &PublishOptions<'_>,
        later: &mut Later<'_, Sent>,
    ) -> Progress<Sent> {
        let checked = || -> Result<(), Error> {
            names::check_client_id(client_id).map_err(argument)?;
            names::check_channel_name(channel).map_err(argument)?;
            let (Body::Message(bytes) | Body::Fields(bytes, _)) = body;
            self.check_size(bytes.len())?;
            self.check_options(options, || !self.ttl_of(options).is_zero())?;
            self.restore()
        };
        if let Err(error) = checked() {
            return Progress::Ended(Err(error));
        }
        let options = &PublishOptions {
            durable: options.durable || self.config.durable && self.store.is_durable(),
            ..*options
        };
        if options.priority < Priority::Emergency {
            self.shards.wait_for_room();
        }
        let message = Message {
            stamp: self.stamps.next(),
            client_id,
            channel,
            body,
            options,
        };
        let Some(key) = options.idempotency_key else {
            return self.send_now(&message, None, later);
        };
        let mut repeat_later = || {
            let completion = later();
            Completion::new(move |outcome: Result<Stamp, Failure>| {
                completion.complete(outcome.map(repeated).map_err(Error::from));
            })
        };
        let known = self.sent_once.begin(
            sent_scope(client_id),
            key,
            SteadyTime::now(),
            Some(message.stamp),
            options.durable,
            &mut repeat_later,
        );
        match known {
            Lookup::Free(ticket) => self.send_now(&message, Some(&Arc::new(ticket)), later),
            Lookup::Known(stamp) if options.durable => {
                repeat_later().complete(Ok(stamp));
                Progress::Begun(Some(repeated(stamp)))
            }
            Lookup::Known(stamp) => Progress::Ended(Ok(repeated(stamp))),
            Lookup::Unsaved(stamp, lost_flag) => {
                complete_when_saved(self.store.port(), (stamp, lost_flag), repeat_later());
                Progress::Begun(Some(repeated(stamp)))
            }
            Lookup::Queued(stamp) => Progress::Begun(stamp.map(repeated)),
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
            // a full store counts what it refuses
            let _ = self.mailroom.keep(&client, &mut state, letter, None);
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
        self: &Arc<Self>,
        message: &Message<'_>,
        used: Option<&Arc<Ticket>>,
        later: &mut Later<'_, Sent>,
    ) -> Progress<Sent> {
        let Message {
            stamp,
            client_id,
            channel,
            body,
            options,
        } = *message;
        let sent = Sent {
            stamp,
            is_duplicate: false,
        };
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
            let is_saving = is_kept && options.durable;
            let mut kept = Ok(());
            if is_kept {
                let letter = Letter {
                    message: stamp.id,
                    frame: &frame,
                    ttl,
                    is_emergency: options.priority == Priority::Emergency,
                    is_handed_over: connection_id.is_some(),
                    used_key: used.and_then(|used| self.key_to_save(used, stamp)),
                };
                let committed = is_saving.then(|| self.when_sent(sent, used.cloned(), later()));
                kept = self.mailroom.keep(&client, &mut state, letter, committed);
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
            if let Err(not_kept) = kept {
                not_kept.complete();
            }
            self.make_room_for_mail();
            if is_saving {
                return Progress::Begun(Some(sent));
            }
            if let Some(used) = used {
                self.complete_repeats(used, stamp);
            }
            return Progress::Ended(Ok(sent));
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

    /// Receives the outcome of saving a message.
    fn when_sent(
        self: &Arc<Self>,
        sent: Sent,
        used: Option<Arc<Ticket>>,
        completion: Completion<Sent>,
    ) -> Committed {
        let node = Arc::clone(self);
        Committed::new(move |outcome: Result<(), StoreError>| {
            let outcome = outcome.map_err(Failure::from);
            if let Some(used) = used {
                let stamp = outcome.as_ref().ok().map(|()| sent.stamp);
                for waiting in node.sent_once.ended(&used, stamp) {
                    let outcome = outcome.clone().map(|()| sent.stamp);
                    waiting.completion.complete(outcome);
                }
            }
            completion.complete(outcome.map(|()| sent).map_err(Error::from));
        })
    }

    /// Completes the repeats of a message that no caller waits to be saved.
    fn complete_repeats(&self, used: &Ticket, stamp: Stamp) {
        for waiting in self.sent_once.done(used, stamp) {
            let lost_flag = used.lost_flag.clone();
            complete_when_saved(self.store.port(), (stamp, lost_flag), waiting.completion);
        }
    }

    /// The key, to be saved with its message; `None` where nothing is saved.
    fn key_to_save(&self, used: &Ticket, stamp: Stamp) -> Option<Box<UsedKey>> {
        let ttl = self.config.idempotency_ttl;
        let is_known = !ttl.is_zero() && self.config.max_idempotency_keys > 0;
        (is_known && self.store.is_durable())
            .then(|| UsedKey::of(used, WallTime::now() + ttl, KeyResult::Sent(stamp)))
    }

    /// Takes in keys of messages that were saved.
    pub(super) fn restore_sent_keys(&self, used_keys: &[UsedKey]) {
        let (now, steady_now) = (WallTime::now(), SteadyTime::now());
        for used in used_keys {
            if let KeyResult::Sent(stamp) = used.result {
                let (scope, left) = (sent_scope(&used.target), used.expires.since(now));
                self.sent_once
                    .restore(scope, &used.key, steady_now, left, stamp);
            }
        }
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

fn repeated(stamp: Stamp) -> Sent {
    Sent {
        stamp,
        is_duplicate: true,
    }
}
