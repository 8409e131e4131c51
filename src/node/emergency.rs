//! Emergencies: to every connected client, ahead of everything that waits; kept for clients that are away, and for those
//! that acknowledge until they do.

use super::delivery::Delivery;
use super::encode::with_encoded;
use super::sink::ArrivedEmergency;
use super::wiring::Node;
use crate::base::completion::{Completion, Later, Progress};
use crate::base::error::Error;
use crate::base::names;
use crate::base::priority::Priority;
use crate::core::events::Detail;
use crate::ports::broker::{Failure, Outgoing, PublicationKind, Publishing, Receipt};
use crate::ports::calls::Emergency;
use crate::ports::durability::Committed;
use crate::wire::frame::Unsealed;
use crate::wire::messages::{self, Publication, Stamp};
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Node {
    /// Sends to every connected client once, ahead of everything that waits. Keeps the emergency for clients that are
    /// away, and sends it again to those that acknowledge until they do. Waits for no shard that is behind, and for no
    /// disk; where its channel is durable, the call ends when everything that is kept of it is saved.
    ///
    /// Errors: a message over the limit; the storage cannot be opened.
    pub fn emergency(
        self: &Arc<Self>,
        message: &str,
        later: &mut Later<'_, Emergency>,
    ) -> Progress<Emergency> {
        let checked = self.check_size(message.len()).and_then(|()| self.restore());
        if let Err(error) = checked {
            return Progress::Ended(Err(error));
        }
        let mut data = b"{\"message\":".to_vec();
        messages::write_text(&mut data, message);
        data.extend_from_slice(
            b",\"severity\":\"critical\",\"source\":\"tantor_emergency_system\"}",
        );
        let publication = Publication {
            channel: names::EMERGENCY_CHANNEL,
            event: "emergency_alert",
            data: &data,
            from: None,
            wants_ack: true,
        };
        let stamp = self.stamps.next();
        with_encoded(stamp, &publication, |body| {
            self.publish_emergency(stamp, body);
        });
        self.send_arrived_emergencies();
        let recipients = self.recipients_of(stamp);
        self.counters.publications.add(1);
        self.counters.encoded.add(1);
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
        let emergency = Emergency { stamp, recipients };
        if !self.waits_for_saving(&self.channel(names::EMERGENCY_CHANNEL)) {
            return Progress::Ended(Ok(emergency));
        }
        let completion = later();
        let committed = Committed::new(move |outcome| {
            completion.complete(match outcome {
                Ok(()) => Ok(emergency),
                Err(error) => Err(Error::Storage(error.0)),
            });
        });
        if let Err(refused) = self.store.port().barrier(committed) {
            refused.complete();
        }
        Progress::Begun(Some(emergency))
    }

    /// Sends the emergencies that the broker has delivered to every client.
    ///
    /// The lock of emergencies is held: no client comes or goes meanwhile, so that each gets an emergency once.
    pub(super) fn send_arrived_emergencies(&self) {
        let mut count = self.emergencies.begin();
        while let Some(ArrivedEmergency { message, frame }) = self.distributor.next_emergency() {
            // the outcome of the broker has sent the emergency before the sink was given it
            if !self.distributor.take_unsent(message) && self.emergencies.is_known(message) {
                continue;
            }
            *count += 1;
            let handles = self.shards.load();
            let recipients = if handles.is_empty() {
                0
            } else {
                self.clients.connected()
            };
            let receipt = self.mailroom.open_receipt(message, recipients);
            for handle in handles.iter() {
                handle.inbox.push(Delivery::Urgent {
                    number: *count,
                    frame: frame.clone(),
                    receipt: Some(Arc::clone(&receipt)),
                });
            }
            drop(handles);
            self.counters.messages_sent.add(recipients);
            self.emergencies.add(message);
            self.mail.keep_emergency(message, &frame);
        }
    }

    /// Publishes on the channel of emergencies. Where the broker fails, the emergency goes out all the same, and is not
    /// in the history.
    fn publish_emergency(self: &Arc<Self>, stamp: Stamp, body: Unsealed<'_>) {
        self.distributor.begin_emergency(stamp.id);
        let mut has_room = true;
        loop {
            let channel = self.channel(names::EMERGENCY_CHANNEL);
            let outgoing = Outgoing {
                body,
                priority: Priority::Emergency,
                kind: PublicationKind::Emergency { message: stamp.id },
                // no budget may remove what is to be durable
                is_durable: has_room && self.waits_for_saving(&channel),
                key: None,
            };
            let mut later = || self.when_emergency_published(stamp, body);
            match self.stream(&channel).publish(&outgoing, &mut later) {
                Progress::Ended(Ok(_)) | Progress::Begun(_) => return,
                // a channel that ended in this moment has a successor
                Progress::Ended(Err(Failure::Closed)) => {}
                // what `durable_bytes` has no room for may be evicted
                Progress::Ended(Err(_)) if outgoing.is_durable => has_room = false,
                Progress::Ended(Err(_)) => {
                    let frame = body.seal(None);
                    self.distributor.add_emergency(stamp.id, frame);
                    return;
                }
            }
        }
    }

    /// Receives the outcome where the broker answers later. The emergency goes out now, unless the sink was given it
    /// before: the broker may have failed, and may lose the delivery.
    fn when_emergency_published(self: &Arc<Self>, stamp: Stamp, body: Unsealed<'_>) -> Publishing {
        let node = Arc::clone(self);
        let body = body.bytes().to_vec();
        Completion::new(move |outcome: Result<Receipt, Failure>| {
            node.send_arrived_emergencies();
            if node.distributor.is_unsent(stamp.id) {
                let position = outcome.ok().and_then(|receipt| receipt.position);
                let frame = Unsealed::new(&body).seal(position.map(|position| position.offset));
                node.distributor.add_emergency(stamp.id, frame);
                node.send_arrived_emergencies();
            }
        })
    }

    /// Clients that an emergency was handed over to; before the broker has delivered it, those that are connected.
    fn recipients_of(&self, stamp: Stamp) -> usize {
        self.mailroom.receipt(stamp.id).map_or_else(
            || self.clients.connected(),
            |receipt| receipt.handed_over.load(Ordering::Relaxed) as usize,
        )
    }
}
