//! The connections of this process as the port for mail sees them, and the receipts of messages.

use super::counters::Counters;
use super::delivery::{ConnectionId, Delivery};
use super::shards::Shards;
use crate::core::events::{EventQueue, LogLevel};
use crate::core::receipt::{Receipt, Receipts};
use crate::ports::mail::{Address, HandedOver, Instead, MailDrop, MailSink, MailStep};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The bound of `Mailroom::receipts`.
const MAX_RECEIPTS: usize = 100_000;

pub struct Mailroom {
    shards: Arc<Shards>,
    counters: Arc<Counters>,
    events: Arc<EventQueue>,
    receipts: Receipts,
}

impl Mailroom {
    pub fn new(shards: Arc<Shards>, counters: Arc<Counters>, events: Arc<EventQueue>) -> Self {
        Self {
            shards,
            counters,
            events,
            receipts: Receipts::new(MAX_RECEIPTS),
        }
    }

    /// The receipt of a message; opened if there is none. Counts connections that the message is handed over to.
    pub fn open_receipt(&self, message: u64, handed_over: usize) -> Arc<Receipt> {
        self.receipts.open(message, handed_over, 0)
    }

    /// The receipt of a message; `None` if the message is unknown or too long ago.
    pub fn receipt(&self, message: u64) -> Option<Arc<Receipt>> {
        self.receipts.find(message)
    }
}

impl MailSink for Mailroom {
    fn hand_over(&self, address: Address, mail: HandedOver) {
        let receipt = if mail.is_new {
            Some(
                self.receipts
                    .open(mail.message, 1, usize::from(mail.is_kept)),
            )
        } else {
            let receipt = self.receipts.find(mail.message);
            receipt.inspect(|receipt| {
                receipt.handed_over.fetch_add(1, Ordering::Relaxed);
            })
        };
        self.counters.messages_sent.add(1);
        let connection_id = ConnectionId::of_address(address);
        self.shards.push(
            connection_id.shard,
            Delivery::Direct {
                connection_id,
                frame: mail.frame,
                priority: mail.priority,
                receipt,
            },
        );
    }

    fn absent(&self, message: u64, channel: &str, instead: Instead) {
        let is_kept = instead == Instead::Kept;
        self.receipts.open(message, 0, usize::from(is_kept));
        self.counters.undelivered.add(1);
        if instead == Instead::Lost {
            self.counters.dropped("not_connected", channel, 1);
        }
    }

    fn note(&self, message: u64, step: MailStep) {
        if step == MailStep::HandedOver {
            self.receipts.open(message, 1, 0);
            return;
        }
        let Some(receipt) = self.receipts.find(message) else {
            return;
        };
        let (counter, change) = match step {
            MailStep::HandedOver => (&receipt.handed_over, 1),
            MailStep::Kept => (&receipt.waiting, 1),
            MailStep::Removed => (&receipt.waiting, -1_i32),
            MailStep::Acknowledged => (&receipt.acknowledged, 1),
        };
        // wraps to a subtraction
        counter.fetch_add(change.cast_unsigned(), Ordering::Relaxed);
    }

    fn dropped(&self, client: &str, count: usize, drop: MailDrop) {
        let reason = match drop {
            MailDrop::MailboxFull | MailDrop::TooLarge => "mailbox_full",
            MailDrop::MailboxesFull => "mailboxes_full",
            MailDrop::Expired => "mail_expired",
        };
        self.counters.dropped(reason, "*", count);
        if drop == MailDrop::MailboxFull {
            self.events.log(LogLevel::Debug, "connections", || {
                format!("the mailbox of {client} is full; its oldest messages were dropped")
            });
        }
    }
}
