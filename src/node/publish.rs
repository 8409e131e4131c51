//! Publishing: a place in the channel's stream, one encoding, one push for each shard that has a subscriber.

use super::channel::{Channel, InFlight, Members};
use super::client::Client;
use super::delivery::{Delivery, DeliveryOptions};
use super::encode::encode;
use super::idempotency::{Idempotency, Known, Scope};
use super::wiring::Node;
use crate::base::clock::{SteadyTime, WallTime};
use crate::base::error::{Error, argument};
use crate::base::names;
use crate::base::priority::Priority;
use crate::core::events::Detail;
use crate::core::history::StreamPosition;
use crate::ports::broker::{OnSaved, Refused};
use crate::ports::calls::{Emergency, PublishOptions, Published};
use crate::ports::store::{Change, Committed, KeyResult, LostFlag, StoreError, UsedKey};
use crate::wire::frame::EncodedFrame;
use crate::wire::messages::{self, Publication};
use std::sync::Arc;

impl Node {
    /// Publishes on a channel, which it makes if there is none.
    ///
    /// `data` is JSON. On a durable channel it is handed over when it is saved. `commit` is called, before this
    /// returns, when the publication is durable by `options` or by its channel; what it gives hears once what became
    /// of saving it, perhaps before this returns, perhaps on the store's thread.
    ///
    /// Errors: a channel or event name that cannot be one; a message over the limit; `durable` without a database;
    /// the storage cannot be opened.
    pub fn broadcast(
        self: &Arc<Self>,
        channel: &str,
        event: &str,
        data: &[u8],
        options: &PublishOptions<'_>,
        commit: &mut dyn FnMut() -> Committed,
    ) -> Result<Published, Error> {
        names::check_channel_name(channel).map_err(argument)?;
        names::check_event_name(event).map_err(argument)?;
        self.check_size(data.len())?;
        self.check_options(options, || {
            let settings = self.config.of_channel(channel);
            settings.keeps(self.config.history_bytes)
        })?;
        self.restore()?;
        if options.priority < Priority::Emergency {
            self.shards.wait_for_room();
        }
        let new = NewPublication {
            channel,
            event,
            data,
            from: None,
            options,
        };
        Ok(self.publish(&new, commit).0)
    }

    /// To every connected client once, before all that waits for it. It is kept for clients that are away, and sent
    /// again to those that acknowledge until they do. It waits for no shard that is behind, and for no disk: `commit` is
    /// called when its channel is durable, and hears when all that is kept of it is saved.
    ///
    /// Errors: a message over the limit; the storage cannot be opened.
    pub fn emergency(
        &self,
        message: &str,
        commit: &mut dyn FnMut() -> Committed,
    ) -> Result<Emergency, Error> {
        self.check_size(message.len())?;
        self.restore()?;
        let mut data = b"{\"message\":".to_vec();
        messages::write_text(&mut data, message);
        data.extend_from_slice(
            b",\"severity\":\"critical\",\"source\":\"tantor_emergency_system\"}",
        );
        let mut recipients = 0;
        let stamp = self.stamps.next();
        {
            let number = self.emergencies.begin();
            let mut encoded = None;
            let encode_at = |position: Option<StreamPosition>| {
                let publication = Publication {
                    channel: names::EMERGENCY_CHANNEL,
                    event: "emergency_alert",
                    data: &data,
                    from: None,
                    offset: position.map(|position| position.offset),
                    wants_ack: true,
                };
                self.counters.encoded.add(1);
                encode(|out| messages::write_publication(out, stamp, &publication))
            };
            self.publish_on(names::EMERGENCY_CHANNEL, encode_at, |frame| {
                let shards = self.shards.load();
                if !shards.is_empty() {
                    recipients = self.clients.connected();
                }
                let receipt = self.mailroom.open_receipt(stamp.id, recipients);
                for handle in shards.iter() {
                    handle.inbox.push(Delivery::Urgent {
                        number: *number,
                        frame: frame.clone(),
                        receipt: Some(Arc::clone(&receipt)),
                    });
                }
                encoded = Some(frame.clone());
            });
            if let Some(frame) = encoded {
                self.keep_emergency(stamp.id, &frame);
            }
        }
        if self.waits_for_saving(&self.channel(names::EMERGENCY_CHANNEL)) {
            self.store.save(Change::Barrier, Some(commit()));
        }
        self.counters.publications.add(1);
        self.counters.messages_sent.add(recipients);
        self.events.emit(
            "emergency_alert",
            None,
            Some(names::EMERGENCY_CHANNEL),
            || Detail::Emergency {
                id: stamp.id_text(),
                message: message.to_owned(),
                recipients,
            },
        );
        Ok(Emergency { stamp, recipients })
    }

    /// Publishes, or finds that the idempotency key was used; returns the channel as well.
    pub(super) fn publish(
        self: &Arc<Self>,
        new: &NewPublication<'_>,
        commit: &mut dyn FnMut() -> Committed,
    ) -> (Published, Arc<Channel>) {
        let channel = self.channel(new.channel);
        let is_durable = new.options.durable || self.waits_for_saving(&channel);
        let Some(key) = new.options.idempotency_key else {
            let committed = is_durable.then(&mut *commit);
            return (self.publish_now(new, committed, None), channel);
        };
        let (once, scope) = (self.published_once(new.from.is_some()), new.scope());
        let known = self.begin_once(once, scope, key, &mut || is_durable.then(&mut *commit));
        let published = match known {
            Known::Nothing(number, lost_flag) if is_durable => {
                let committed = self.settle_once(commit(), new, key, number);
                let published = self.publish_now(new, Some(committed), Some(&lost_flag));
                once.published(scope, key, number, published, true);
                published
            }
            Known::Nothing(number, lost_flag) => {
                let published = self.publish_now(new, None, Some(&lost_flag));
                once.published(scope, key, number, published, false);
                published
            }
            Known::Repeat(published) => Published {
                is_duplicate: true,
                ..published
            },
        };
        (published, channel)
    }

    /// Looks an idempotency key up; waits while another thread publishes the same.
    pub(super) fn begin_once<T: Copy>(
        &self,
        results: &Idempotency<T>,
        scope: Scope<'_>,
        key: &str,
        committed: &mut dyn FnMut() -> Option<Committed>,
    ) -> Known<T> {
        loop {
            let now = SteadyTime::now();
            let mark = |committed| {
                self.store.save(Change::Barrier, Some(committed));
            };
            if let Some(known) = results.begin(scope, key, now, committed, &mark) {
                return known;
            }
            std::thread::yield_now();
        }
    }

    /// Takes in keys that were saved.
    pub(super) fn restore_keys(&self, used_keys: Vec<UsedKey>) {
        let (now, steady_now) = (WallTime::now(), SteadyTime::now());
        for used in used_keys {
            let (key, left) = (&used.key, used.expires.since(now));
            let scope = Scope {
                client: used.client.as_deref(),
                target: &used.target,
            };
            match used.result {
                KeyResult::Published {
                    position,
                    recipients,
                } => {
                    let published = Published {
                        recipients,
                        position: Some(position),
                        is_duplicate: false,
                    };
                    self.published_once(used.client.is_some())
                        .restore(scope, key, steady_now, left, published);
                }
                KeyResult::Sent(stamp) => {
                    self.sent_once.restore(scope, key, steady_now, left, stamp);
                }
            }
        }
    }

    /// A key to be saved with what is published under it; `None` where nothing is saved.
    pub(super) fn used_key(
        &self,
        scope: Scope<'_>,
        options: &PublishOptions<'_>,
        lost_flag: Option<&LostFlag>,
        result: KeyResult,
    ) -> Option<Box<UsedKey>> {
        let (key, lost_flag) = (options.idempotency_key?, lost_flag?);
        let ttl = self.config.idempotency_ttl;
        let is_known = !ttl.is_zero() && self.config.max_idempotency_keys > 0;
        (is_known && self.store.is_durable()).then(|| {
            Box::new(UsedKey {
                client: scope.client.map(Into::into),
                target: scope.target.into(),
                key: key.into(),
                expires: WallTime::now() + ttl,
                result,
                lost_flag: lost_flag.clone(),
            })
        })
    }

    fn used_key_of(
        &self,
        new: &NewPublication<'_>,
        lost_flag: Option<&LostFlag>,
        published: &Published,
    ) -> Option<Box<UsedKey>> {
        let result = KeyResult::Published {
            position: published.position?,
            recipients: published.recipients,
        };
        self.used_key(new.scope(), new.options, lost_flag, result)
    }

    fn published_once(&self, is_client: bool) -> &Idempotency<Published> {
        if is_client {
            &self.clients_published_once
        } else {
            &self.published_once
        }
    }

    /// How many idempotency keys are known, and how many were forgotten before their time to make room.
    pub fn idempotency_size(&self) -> (usize, u64) {
        let sizes = [
            self.published_once.size(),
            self.clients_published_once.size(),
            self.sent_once.size(),
        ];
        sizes
            .into_iter()
            .fold((0, 0), |sum, size| (sum.0 + size.0, sum.1 + size.1))
    }

    /// Publishes on the channel of this name, which is made if there is none. What `durable_bytes` has no room for goes
    /// out all the same, and may be evicted.
    fn publish_on(
        &self,
        name: &str,
        mut encode: impl FnMut(Option<StreamPosition>) -> EncodedFrame,
        mut hand_over: impl FnMut(&EncodedFrame),
    ) {
        let mut hand_over = |_: Option<StreamPosition>, frame: &EncodedFrame| {
            hand_over(frame);
            None
        };
        let mut has_room = true;
        loop {
            let channel = self.channel(name);
            // no budget may remove what is to be durable; the caller waits for a mark behind it
            let is_durable = has_room && self.waits_for_saving(&channel);
            let mut committed = is_durable.then(|| Box::new(|_| ()) as Committed);
            let stream = self.stream(&channel);
            match stream.publish(&mut encode, &mut hand_over, &mut committed) {
                Ok(()) => return,
                // a channel that ended in between is looked up again
                Err(Refused::Closed) => {}
                Err(Refused::NoRoom(_)) => has_room = false,
            }
        }
    }

    /// One inbox push for each shard that has a subscriber; returns how many subscribers.
    pub(super) fn hand_over(
        &self,
        channel: &Arc<Channel>,
        members: &Members,
        frame: &EncodedFrame,
        delivery_options: DeliveryOptions,
    ) -> usize {
        if members.interest.total() > 0 {
            let shards = self.shards.load();
            for handle in members
                .interest
                .shards()
                .filter_map(|shard| shards.get(shard))
            {
                handle.inbox.push(Delivery::Publish {
                    channel: InFlight::new(channel, frame.len()),
                    frame: frame.clone(),
                    delivery_options,
                });
            }
        }
        members.interest.total()
    }

    pub(super) fn encode_publication(&self, publication: &Publication<'_>) -> EncodedFrame {
        self.counters.encoded.add(1);
        let stamp = self.stamps.next();
        encode(|out| messages::write_publication(out, stamp, publication))
    }

    /// Errors: options that the settings leave no room for, or that cannot be. `is_kept` says whether anything of the
    /// kind is kept, and so can be saved.
    pub(super) fn check_options(
        &self,
        options: &PublishOptions<'_>,
        is_kept: impl FnOnce() -> bool,
    ) -> Result<(), Error> {
        if options.durable && !self.store.is_durable() {
            return Err(Error::Argument(
                "durable=True takes a database: Tantor(database=\"sqlite:///tantor.db\")"
                    .to_owned(),
            ));
        }
        if options.durable && !is_kept() {
            return Err(Error::Argument(
                "durable=True takes something that is kept: here history_size, history_bytes, message_ttl or \
                 emergency_ttl is 0"
                    .to_owned(),
            ));
        }
        if let Some(key) = options.idempotency_key {
            names::check_idempotency_key(key).map_err(argument)?;
        }
        Ok(())
    }

    fn publish_now(
        self: &Arc<Self>,
        new: &NewPublication<'_>,
        mut committed: Option<Committed>,
        lost_flag: Option<&LostFlag>,
    ) -> Published {
        let mut published = Published {
            recipients: 0,
            position: None,
            is_duplicate: false,
        };
        loop {
            let channel = self.channel(new.channel);
            let stream = self.stream(&channel);
            let mut encode =
                |position: Option<StreamPosition>| self.encode_publication(&new.at(position));
            let done = if stream.is_durable() {
                let mut on_saved = Some(self.hand_over_saved(
                    &channel,
                    (new.options.priority, new.data.len()),
                    committed.take(),
                ));
                let stream = Arc::clone(stream);
                let done = stream.publish_saved(
                    &mut encode,
                    &mut |position| {
                        published.position = Some(position);
                        published.recipients = channel.members.lock().interest.total();
                        self.used_key_of(new, lost_flag, &published)
                    },
                    &mut on_saved,
                );
                if !done {
                    // the channel has ended: its successor may be another
                    self.counters.publications.add(1);
                    if let Some(on_saved) = on_saved {
                        on_saved(Err(StoreError("the channel was deleted".to_owned())));
                    }
                    return published;
                }
                done
            } else {
                let taken = stream.publish(
                    &mut encode,
                    &mut |position, frame| {
                        published.position = position;
                        published.recipients = self.hand_over(
                            &channel,
                            &channel.members.lock(),
                            frame,
                            DeliveryOptions {
                                offset: position.map(|position| position.offset),
                                priority: new.options.priority,
                                policy: channel.settings.slow_consumer,
                            },
                        );
                        self.used_key_of(new, lost_flag, &published)
                    },
                    &mut committed,
                );
                if published.recipients > 0 {
                    self.counters.messages_sent.add(published.recipients);
                }
                match taken {
                    Ok(()) => true,
                    Err(Refused::Closed) => false,
                    Err(Refused::NoRoom(error)) => {
                        self.counters.not_saved.add(1);
                        if let Some(committed) = committed.take() {
                            committed(Err(error));
                        }
                        true
                    }
                }
            };
            // a channel that ended in between is looked up again
            if done {
                break;
            }
        }
        self.counters.publications.add(1);
        if let Some(client) = new.from {
            self.events
                .emit(new.event, Some(&client.id), Some(new.channel), || {
                    Detail::Data(new.data.into())
                });
        }
        published
    }

    /// Completes a publication on a durable channel once the publication is saved or has failed.
    fn hand_over_saved(
        self: &Arc<Self>,
        channel: &Arc<Channel>,
        (priority, bytes): (Priority, usize),
        committed: Option<Committed>,
    ) -> OnSaved {
        let node = Arc::clone(self);
        let channel = InFlight::new(channel, bytes);
        Box::new(move |result| {
            let outcome = match result {
                Ok((position, frame)) => {
                    let delivery_options = DeliveryOptions {
                        offset: Some(position.offset),
                        priority,
                        policy: channel.settings.slow_consumer,
                    };
                    let members = channel.members.lock();
                    let recipients = node.hand_over(&channel, &members, frame, delivery_options);
                    drop(members);
                    node.counters.messages_sent.add(recipients);
                    Ok(())
                }
                Err(error) => {
                    node.counters.not_saved.add(1);
                    Err(error)
                }
            };
            if let Some(committed) = committed {
                committed(outcome);
            }
            let was_full = node.is_full(&channel);
            let channel = channel.into_channel();
            if was_full && !node.is_full(&channel) {
                node.shards.wake();
            }
        })
    }

    /// Has an idempotency key wait for the publication to be saved.
    fn settle_once(
        self: &Arc<Self>,
        committed: Committed,
        new: &NewPublication<'_>,
        key: &str,
        number: u64,
    ) -> Committed {
        let node = Arc::clone(self);
        let client = new.from.map(|client| Arc::clone(&client.id));
        let (channel, key) = (new.channel.to_owned(), key.to_owned());
        Box::new(move |outcome| {
            let once = node.published_once(client.is_some());
            let scope = Scope {
                client: client.as_deref(),
                target: &channel,
            };
            once.saved(scope, &key, number, &outcome);
            committed(outcome);
        })
    }
}

/// A publication to be made.
pub(super) struct NewPublication<'a> {
    pub channel: &'a str,
    pub event: &'a str,
    /// JSON.
    pub data: &'a [u8],
    /// The client that publishes it, if one does.
    pub from: Option<&'a Arc<Client>>,
    pub options: &'a PublishOptions<'a>,
}

impl<'a> NewPublication<'a> {
    /// Where its idempotency key counts.
    fn scope(&self) -> Scope<'a> {
        Scope {
            client: self.from.map(|client| &*client.id),
            target: self.channel,
        }
    }

    fn at(&self, position: Option<StreamPosition>) -> Publication<'a> {
        Publication {
            channel: self.channel,
            event: self.event,
            data: self.data,
            from: self.from.map(|client| &*client.id),
            offset: position.map(|position| position.offset),
            wants_ack: false,
        }
    }
}
