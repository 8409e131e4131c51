//! Idempotency keys of publications. A repeat gets the receipt of the first publication, and publishes nothing.

use crate::base::clock::{SteadyTime, WallTime};
use crate::base::completion::Later;
use crate::core::idempotency::{Idempotency, Limits, Lookup, Scope, Ticket, Waiting};
use crate::ports::broker::{Failure, IdempotencyKey, Receipt};
use crate::ports::durability::{KeyResult, UsedKey, complete_when_saved};
use crate::ports::stream_log::StreamLog;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long keys are known, and how many.
#[derive(Clone, Copy, Debug)]
pub struct KeyLimits {
    pub ttl: Duration,
    pub total: usize,
    pub of_one_client: usize,
}

/// The keys of the application, and those of clients.
pub(super) struct Keys {
    limits: KeyLimits,
    log: Arc<dyn StreamLog>,
    application: Idempotency<Receipt, Failure>,
    /// In a map of their own, so that the keys of clients cannot displace those of the application.
    clients: Idempotency<Receipt, Failure>,
}

/// A key in use: its publication is under way. A key that is dropped without a report, after a panic, is free again.
pub(super) struct KeyInUse {
    keys: Arc<Keys>,
    is_reported: AtomicBool,
    ticket: Ticket,
    expires: Option<WallTime>,
}

impl Keys {
    pub fn new(limits: KeyLimits, log: Arc<dyn StreamLog>) -> Self {
        let of_each = Limits {
            total: limits.total,
            of_one_client: limits.of_one_client,
        };
        Self {
            limits,
            log,
            application: Idempotency::new(limits.ttl, of_each),
            clients: Idempotency::new(limits.ttl, of_each),
        }
    }

    /// Takes a free key for a publication. `Err` for a key that is known or in use: `Repeat::Known` with the first receipt,
    /// or `Repeat::Queued` where the completion from `later` receives the outcome.
    pub fn begin(
        self: &Arc<Self>,
        key: &IdempotencyKey<'_>,
        needs_saved: bool,
        later: &mut Later<'_, Receipt, Failure>,
    ) -> Result<KeyInUse, Repeat> {
        let scope = scope_of(key.client, key.channel);
        let now = SteadyTime::now();
        match self
            .of(key.client)
            .begin(scope, key.key, now, None, needs_saved, later)
        {
            Lookup::Free(ticket) => Ok(KeyInUse {
                keys: Arc::clone(self),
                is_reported: AtomicBool::new(false),
                ticket,
                expires: self.saves().then(|| WallTime::now() + self.limits.ttl),
            }),
            Lookup::Known(receipt) => Err(Repeat::Known(duplicate(receipt))),
            Lookup::Queued(receipt) => Err(Repeat::Queued(receipt.map(duplicate))),
            Lookup::Unsaved(receipt, lost_flag) => {
                let saved = (duplicate(receipt), lost_flag);
                complete_when_saved(&*self.log, saved, later());
                Err(Repeat::Queued(Some(duplicate(receipt))))
            }
        }
    }

    /// Reports a receipt that no caller waits to be saved.
    pub fn done(&self, used: &KeyInUse, receipt: Receipt) {
        used.is_reported.store(true, Ordering::Release);
        let waiting = self.table(used).done(&used.ticket, receipt);
        for Waiting {
            completion,
            needs_saved,
        } in waiting
        {
            if needs_saved {
                let lost_flag = used.ticket.lost_flag.clone();
                let saved = (duplicate(receipt), lost_flag);
                complete_when_saved(&*self.log, saved, completion);
            } else {
                completion.complete(Ok(duplicate(receipt)));
            }
        }
    }

    /// Reports the receipt of a publication that is being saved.
    pub fn saving(&self, used: &KeyInUse, receipt: Receipt) {
        let waiting = self.table(used).saving(&used.ticket, receipt);
        for Waiting { completion, .. } in waiting {
            completion.complete(Ok(duplicate(receipt)));
        }
    }

    /// Reports that a publication is saved, or has failed, and the key is free again.
    pub fn ended(&self, used: &KeyInUse, outcome: &Result<Receipt, Failure>) {
        used.is_reported.store(true, Ordering::Release);
        let result = outcome.as_ref().ok().copied();
        let waiting = self.table(used).ended(&used.ticket, result);
        for Waiting { completion, .. } in waiting {
            completion.complete(outcome.clone().map(duplicate));
        }
    }

    /// Takes in keys that were saved.
    pub fn restore(&self, used_keys: Vec<UsedKey>) {
        let (now, steady_now) = (WallTime::now(), SteadyTime::now());
        for used in used_keys {
            let KeyResult::Published {
                position,
                recipients,
            } = used.result
            else {
                continue;
            };
            let receipt = Receipt {
                position: Some(position),
                recipients,
                is_duplicate: false,
            };
            let client = used.client.as_deref();
            let left = used.expires.since(now);
            let scope = scope_of(client, &used.target);
            self.of(client)
                .restore(scope, &used.key, steady_now, left, receipt);
        }
    }

    pub fn expire(&self) {
        let now = SteadyTime::now();
        self.application.expire(now);
        self.clients.expire(now);
    }

    pub fn forget_client(&self, client: &Arc<str>) {
        self.clients.forget_client(client);
    }

    /// Returns the number of known keys, and of those that were forgotten before their time.
    pub fn size(&self) -> (usize, u64) {
        let (application, clients) = (self.application.size(), self.clients.size());
        (application.0 + clients.0, application.1 + clients.1)
    }

    fn saves(&self) -> bool {
        !self.limits.ttl.is_zero() && self.limits.total > 0 && self.log.is_durable()
    }

    fn table(&self, used: &KeyInUse) -> &Idempotency<Receipt, Failure> {
        self.of(used.ticket.scope().client)
    }

    fn of(&self, client: Option<&str>) -> &Idempotency<Receipt, Failure> {
        match client {
            None => &self.application,
            Some(_) => &self.clients,
        }
    }
}

/// The answer to a caller whose key is known or in use.
pub(super) enum Repeat {
    Known(Receipt),
    /// The completion receives the outcome; the receipt, if it is known.
    Queued(Option<Receipt>),
}

impl KeyInUse {
    /// The key, to be saved with its publication; `None` where nothing is saved.
    pub fn to_save(&self, receipt: Receipt) -> Option<Box<UsedKey>> {
        let result = KeyResult::Published {
            position: receipt.position?,
            recipients: receipt.recipients,
        };
        Some(UsedKey::of(&self.ticket, self.expires?, result))
    }
}

impl Drop for KeyInUse {
    fn drop(&mut self) {
        if !self.is_reported.load(Ordering::Acquire) {
            let failure = Failure::Unknown("publishing has failed".to_owned());
            self.keys.ended(self, &Err(failure));
        }
    }
}

fn scope_of<'a>(client: Option<&'a str>, channel: &'a str) -> Scope<'a> {
    Scope {
        client,
        target: channel,
    }
}

fn duplicate(receipt: Receipt) -> Receipt {
    Receipt {
        is_duplicate: true,
        ..receipt
    }
}
