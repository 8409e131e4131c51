//! Publishing: one encoding, a position in the channel's stream, one push for each shard that has a subscriber.

use super::channel::{Channel, InFlight};
use super::client::Client;
use super::encode::with_encoded;
use super::wiring::Node;
use crate::base::completion::{Completion, Later, Progress};
use crate::base::error::{Error, argument};
use crate::base::names;
use crate::base::priority::Priority;
use crate::core::events::Detail;
use crate::ports::broker::{
    Failure, IdempotencyKey, Outgoing, PublicationKind, Publishing, Receipt,
};
use crate::ports::calls::{PublishOptions, Published};
use crate::wire::frame::Unsealed;
use crate::wire::messages::Publication;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A publication to be made.
pub(super) struct NewPublication<'a> {
    pub channel: &'a str,
    pub event: &'a str,
    /// JSON.
    pub data: &'a [u8],
    /// The client that publishes, if one does.
    pub from: Option<&'a Arc<Client>>,
    pub options: &'a PublishOptions<'a>,
}

impl Node {
    /// Publishes on a channel, which it makes if there is none. `data` is JSON. On a durable channel, subscribers get the
    /// publication when it is saved. A durable publication ends when it is saved.
    ///
    /// Errors: a channel or event name that cannot be one; a message over the limit; `durable` without a database;
    /// the storage cannot be opened; the broker fails.
    pub fn broadcast(
        self: &Arc<Self>,
        channel: &str,
        event: &str,
        data: &[u8],
        options: &PublishOptions<'_>,
        later: &mut Later<'_, Published>,
    ) -> Progress<Published> {
        let checked = || -> Result<(), Error> {
            names::check_channel_name(channel).map_err(argument)?;
            names::check_event_name(event).map_err(argument)?;
            self.check_size(data.len())?;
            self.check_options(options, || {
                let settings = self.config.of_channel(channel);
                settings.keeps(self.config.history_bytes)
            })?;
            self.restore()
        };
        if let Err(error) = checked() {
            return Progress::Ended(Err(error));
        }
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
        self.publish(&new, later).0
    }

    /// Publishes, unless the idempotency key was used; returns the channel as well.
    pub(super) fn publish(
        self: &Arc<Self>,
        new: &NewPublication<'_>,
        later: &mut Later<'_, Published>,
    ) -> (Progress<Published>, Arc<Channel>) {
        let publication = Publication {
            channel: new.channel,
            event: new.event,
            data: new.data,
            from: new.from.map(|client| &*client.id),
            wants_ack: false,
        };
        // shared with the completion, so that the publication is announced once
        let mut is_announced = None;
        let (progress, channel) = with_encoded(self.stamps.next(), &publication, |body| {
            loop {
                let channel = self.channel(new.channel);
                match self.publish_on(&channel, body, new, &mut is_announced, later) {
                    // a channel that ended in this moment has a successor
                    Progress::Ended(Err(Failure::Closed)) => {}
                    progress => return (progress, channel),
                }
            }
        });
        let is_new = match &progress {
            Progress::Ended(Ok(receipt)) | Progress::Begun(Some(receipt)) => !receipt.is_duplicate,
            Progress::Ended(Err(_)) => true,
            // only the outcome tells
            Progress::Begun(None) => false,
        };
        if is_new && is_announced.is_none_or(|done| !done.swap(true, Ordering::AcqRel)) {
            self.announce(
                new.channel,
                new.event,
                new.from.map(|client| &client.id),
                || Detail::Data(new.data.into()),
            );
        }
        let progress = match progress {
            Progress::Ended(outcome) => {
                Progress::Ended(outcome.map(published).map_err(Error::from))
            }
            Progress::Begun(receipt) => Progress::Begun(receipt.map(published)),
        };
        (progress, channel)
    }

    fn publish_on(
        self: &Arc<Self>,
        channel: &Arc<Channel>,
        body: Unsealed<'_>,
        new: &NewPublication<'_>,
        is_announced: &mut Option<Arc<AtomicBool>>,
        later: &mut Later<'_, Published>,
    ) -> Progress<Receipt, Failure> {
        let is_durable = new.options.durable || self.waits_for_saving(channel);
        let key = new.options.idempotency_key.map(|key| IdempotencyKey {
            client: new.from.map(|client| &*client.id),
            channel: new.channel,
            key,
        });
        let outgoing = Outgoing {
            body,
            priority: new.options.priority,
            kind: PublicationKind::Message,
            is_durable,
            key,
        };
        let stream = self.stream(channel);
        let saves_first = stream.saves_first();
        let mut completion = || {
            // publishers wait while too much of the channel is on its way to subscribers, or to the disk
            let in_flight = saves_first.then(|| InFlight::new(channel, new.data.len()));
            let announced = Arc::clone(is_announced.get_or_insert_default());
            self.when_published(new, is_durable, in_flight, announced, later())
        };
        match stream.publish(&outgoing, &mut completion) {
            Progress::Begun(Some(receipt)) if saves_first && !receipt.is_duplicate => {
                let recipients = channel.members.lock().interest.total();
                Progress::Begun(Some(Receipt {
                    recipients,
                    ..receipt
                }))
            }
            // a caller that waits until a publication is saved gets every outcome by its completion
            Progress::Ended(outcome) if is_durable && outcome != Err(Failure::Closed) => {
                let receipt = *outcome.as_ref().unwrap_or(&NOTHING_DONE);
                completion().complete(outcome);
                Progress::Begun(Some(receipt))
            }
            progress => progress,
        }
    }

    /// Receives the outcome of a publication that does not end at once.
    fn when_published(
        self: &Arc<Self>,
        new: &NewPublication<'_>,
        is_durable: bool,
        in_flight: Option<InFlight>,
        is_announced: Arc<AtomicBool>,
        completion: Completion<Published>,
    ) -> Publishing {
        let node = Arc::clone(self);
        let channel: Box<str> = new.channel.into();
        // for the event of a client's publication, if the application wants it
        let of_client = new
            .from
            .filter(|_| self.events.wanted(new.event).is_some())
            .map(|client| {
                let (event, data) = (new.event.to_owned(), new.data.to_vec());
                (Arc::clone(&client.id), event, data)
            });
        Publishing::new(move |outcome: Result<Receipt, Failure>| {
            if outcome.is_err() && is_durable {
                node.counters.not_saved.add(1);
            }
            let is_new = outcome.as_ref().is_ok_and(|receipt| !receipt.is_duplicate);
            if is_new && !is_announced.swap(true, Ordering::AcqRel) {
                let (id, event, data) = of_client
                    .map_or_else(Default::default, |(id, event, data)| {
                        (Some(id), event, data)
                    });
                node.announce(&channel, &event, id.as_ref(), || Detail::Data(data.into()));
            }
            completion.complete(outcome.map(published).map_err(Error::from));
            if let Some(in_flight) = in_flight {
                let was_full = node.is_full(&in_flight);
                let channel = in_flight.into_channel();
                if was_full && !node.is_full(&channel) {
                    node.shards.wake();
                }
            }
        })
    }

    /// Counts a publication, and tells the application of a client's one.
    fn announce(
        &self,
        channel: &str,
        event: &str,
        client: Option<&Arc<str>>,
        detail: impl FnOnce() -> Detail,
    ) {
        self.counters.publications.add(1);
        self.counters.encoded.add(1);
        if client.is_some() {
            self.events.emit(event, client, Some(channel), detail);
        }
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
}

/// The receipt of a publication that has failed.
const NOTHING_DONE: Receipt = Receipt {
    position: None,
    recipients: 0,
    is_duplicate: false,
};

fn published(receipt: Receipt) -> Published {
    Published {
        recipients: receipt.recipients,
        position: receipt.position,
        is_duplicate: receipt.is_duplicate,
    }
}
