//! Messages to one client, kept until it has them: while it is away, and until it acknowledges them if it does that.

use super::client::{Client, ClientState};
use super::delivery::{Delivery, Place};
use super::{Node, PublishOptions, argument, encode};
use crate::error::{Error, ErrorCode, Refusal};
use crate::events::LogLevel;
use crate::frame::EncodedFrame;
use crate::idempotency::Known;
use crate::mailbox::{Mail, Mailbox};
use crate::priority::Priority;
use crate::protocol::{self, Body, Stamp};
use crate::store::{Change, Committed, SavedMail};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A message that was sent.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    pub stamp: Stamp,
    /// Its idempotency key was known: this is the first one's stamp, and nothing was sent now.
    pub is_duplicate: bool,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeliveryReport {
    /// Connections that it was handed over to.
    pub handed_over: usize,
    /// Connections whose socket took it.
    pub written: usize,
    /// Clients that acknowledged it.
    pub acknowledged: usize,
    /// Clients for which it is kept.
    pub waiting: usize,
}

/// A message to be kept.
struct Letter<'a> {
    stamp: Stamp,
    frame: &'a EncodedFrame,
    ttl: Duration,
    is_emergency: bool,
    /// It is on its way to the client already.
    is_handed_over: bool,
}

/// The part of the space for mail that is left in use once it was exceeded.
const KEPT_PERCENT: usize = 90;

/// Emergencies whose acknowledgements are counted also from clients for which they are not kept.
const KNOWN_EMERGENCIES: usize = 1000;

/// Most time between two looks at what has expired.
const TEND_INTERVAL: Duration = Duration::from_secs(1);

impl Node {
    /// Sends to one client; returns the message's stamp. For a client that is not connected it is kept, and handed
    /// over when it returns. `commit` is called when it is kept and `options.durable`.
    ///
    /// Errors: a client id or channel name that cannot be one; a message over the limit; the storage cannot be
    /// opened.
    pub fn send(
        &self,
        client_id: &str,
        channel: &str,
        body: Body<'_>,
        options: &PublishOptions<'_>,
        commit: &mut dyn FnMut() -> Committed,
    ) -> Result<Sent, Error> {
        protocol::check_client_id(client_id).map_err(argument)?;
        protocol::check_channel_name(channel).map_err(argument)?;
        let (Body::Message(bytes) | Body::Fields(bytes, _)) = body;
        self.check_size(bytes.len())?;
        self.check_options(options)?;
        self.restore()?;
        self.wait_for_room();
        let Some(key) = options.idempotency_key else {
            let stamp = self.send_now(client_id, channel, body, options, commit);
            return Ok(Sent {
                stamp,
                is_duplicate: false,
            });
        };
        let scope = (false, client_id);
        let known = self.begin_once(&self.sent_once, scope, key, &mut || {
            options.durable.then(&mut *commit)
        });
        match known {
            Known::Nothing(number) => {
                let stamp = self.send_now(client_id, channel, body, options, commit);
                self.sent_once.published(scope, key, number, stamp, false);
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

    /// What became of a message that `send` or `emergency` sent; `None` for one that is not known (any more).
    pub fn delivery(&self, message_id: &str) -> Option<DeliveryReport> {
        let receipt = self
            .receipts
            .find(protocol::parse_message_id(message_id)?)?;
        Some(DeliveryReport {
            handed_over: receipt.handed_over.load(Ordering::Relaxed) as usize,
            written: receipt.written.load(Ordering::Relaxed) as usize,
            acknowledged: receipt.acknowledged.load(Ordering::Relaxed) as usize,
            waiting: receipt.waiting.load(Ordering::Relaxed) as usize,
        })
    }

    /// Messages and bytes that are kept for clients.
    pub fn mail_size(&self) -> (usize, usize) {
        (
            self.mail_count.load(Ordering::Relaxed),
            self.mail_bytes.load(Ordering::Relaxed),
        )
    }

    /// A client has taken messages; returns how many of them were waiting for that.
    ///
    /// Errors: an id that nothing waits for; the others count all the same.
    pub(super) fn acknowledge(&self, client: &Client, ids: &[u64]) -> Result<usize, Refusal> {
        let mut unknown = None;
        let mut numbers = Vec::new();
        let mut count = 0;
        let mut state = client.state.lock();
        state.acknowledges = true;
        for id in ids {
            let mail = self.with_mailbox(&mut state, |mailbox| mailbox.take(*id));
            let is_known = match mail {
                Some(mail) => {
                    numbers.push(mail.number);
                    self.note_waiting(*id, -1);
                    true
                }
                None => self.known_emergencies.lock().contains(id),
            };
            if !is_known {
                unknown = Some(*id);
                continue;
            }
            count += 1;
            if let Some(receipt) = self.receipts.find(*id) {
                receipt.acknowledged.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.unmail(client, numbers);
        drop(state);
        unknown.map_or(Ok(count), |id| {
            let id = Stamp { id, micros: 0 }.id_text();
            Err(Refusal::new(
                ErrorCode::UnknownMessage,
                format!("nothing waits for {id} to be acknowledged; {count} of the ids were known"),
            ))
        })
    }

    /// Keeps an emergency for clients that are away, and for those that acknowledge until they do. To be called with
    /// `emergencies` locked, so that nobody comes or goes meanwhile.
    pub(super) fn keep_emergency(&self, stamp: Stamp, frame: &EncodedFrame) {
        {
            let mut known = self.known_emergencies.lock();
            known.push_back(stamp.id);
            if known.len() > KNOWN_EMERGENCIES {
                known.pop_front();
            }
        }
        let clients: Vec<_> = self.clients.read().values().cloned().collect();
        for client in clients {
            let mut state = client.state.lock();
            let is_connected = state.place.is_some();
            if state.removed || !(is_connected && state.acknowledges || state.away.is_some()) {
                continue;
            }
            let letter = Letter {
                stamp,
                frame,
                ttl: self.config.emergency_ttl,
                is_emergency: true,
                is_handed_over: is_connected,
            };
            self.keep(&client, &mut state, &letter, None);
        }
        self.make_room_for_mail();
    }

    /// Hands over all that is kept for a client that has connected. Of one that does not acknowledge, it is done with
    /// that.
    pub(super) fn hand_over_mail(&self, client: &Client, state: &mut ClientState, place: Place) {
        let acknowledges = state.acknowledges;
        let now = protocol::now_micros();
        let mut numbers = Vec::new();
        self.with_mailbox(state, |mailbox| {
            for mail in mailbox.iter_mut() {
                mail.handed_over = now;
                self.push_mail(place, mail);
            }
            if !acknowledges {
                for mail in mailbox.take_all() {
                    self.note_waiting(mail.message, -1);
                    numbers.push(mail.number);
                }
            }
            None::<()>
        });
        self.unmail(client, numbers);
    }

    /// Lets go of mail of a mailbox that has expired.
    pub(super) fn expire_mail(&self, client_id: &Arc<str>, mailbox: &mut Mailbox) {
        let (messages, bytes) = (mailbox.len(), mailbox.bytes());
        let expired = mailbox.expire(protocol::now_micros());
        self.count_mail(messages, bytes, mailbox);
        self.let_go(client_id, &expired, "mail_expired");
    }

    /// Looks after mail: what has expired, and emergencies that were not acknowledged.
    pub(super) fn tend_mail(&self) {
        let now = protocol::monotonic_micros();
        let interval = TEND_INTERVAL.min(self.config.ack_timeout / 2).as_micros() as u64;
        let last = self.mail_tended.load(Ordering::Relaxed);
        if now.saturating_sub(last) < interval {
            return;
        }
        self.mail_tended.store(now, Ordering::Relaxed);
        let again =
            protocol::now_micros().saturating_sub(self.config.ack_timeout.as_micros() as u64);
        let mailed: Vec<_> = self.mailed.lock().values().cloned().collect();
        for client in mailed {
            let mut guard = client.state.lock();
            let state = &mut *guard;
            if let Some(mailbox) = &mut state.mailbox {
                self.expire_mail(&client.id, mailbox);
                if let Some(place) = state.place.filter(|_| state.acknowledges) {
                    for mail in mailbox.iter_mut() {
                        if mail.is_emergency && mail.handed_over <= again {
                            mail.handed_over = protocol::now_micros();
                            self.push_mail(place, mail);
                        }
                    }
                }
            }
            self.drop_empty_mailbox(&client, guard);
        }
    }

    /// Takes in mail that was saved.
    pub(super) fn restore_mail(&self, mail: Vec<SavedMail>) {
        for saved in mail {
            let client = self.client_or_new(&saved.client);
            let mut state = client.state.lock();
            let mailbox = state.mailbox.get_or_insert_default();
            // the storage was closed and opened again: what is known is known
            if mailbox.iter_mut().any(|mail| mail.message == saved.message) {
                continue;
            }
            let (messages, bytes) = (mailbox.len(), mailbox.bytes());
            mailbox.push(Mail {
                number: saved.number,
                message: saved.message,
                expires: saved.expires,
                is_emergency: saved.is_emergency,
                frame: saved.frame,
                handed_over: 0,
            });
            self.count_mail(messages, bytes, mailbox);
            self.mailed
                .lock()
                .insert(Arc::clone(&client.id), Arc::clone(&client));
        }
        self.make_room_for_mail();
    }

    fn send_now(
        &self,
        client_id: &str,
        channel: &str,
        body: Body<'_>,
        options: &PublishOptions<'_>,
        commit: &mut dyn FnMut() -> Committed,
    ) -> Stamp {
        let stamp = self.stamp();
        let ttl = self.config.message_ttl;
        loop {
            let client = self.client_or_new(client_id);
            let mut state = client.state.lock();
            if state.removed {
                continue;
            }
            let place = state.place;
            let is_kept =
                !ttl.is_zero() && (place.is_none() || state.acknowledges && body.can_want_ack());
            let wants_ack = is_kept && body.can_want_ack();
            let frame = encode(|out| protocol::write_direct(out, stamp, channel, body, wants_ack));
            let receipt = self.receipts.open(stamp.id, usize::from(place.is_some()));
            if is_kept {
                let letter = Letter {
                    stamp,
                    frame: &frame,
                    ttl,
                    is_emergency: false,
                    is_handed_over: place.is_some(),
                };
                let committed = options.durable.then(&mut *commit);
                self.keep(&client, &mut state, &letter, committed);
            }
            if let Some(place) = place {
                self.counters.messages_sent.add(1);
                self.push(
                    place.shard,
                    Delivery::Direct {
                        place,
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

    fn keep(
        &self,
        client: &Arc<Client>,
        state: &mut ClientState,
        letter: &Letter<'_>,
        committed: Option<Committed>,
    ) {
        let now = protocol::now_micros();
        let expires = now.saturating_add(letter.ttl.as_micros() as u64);
        let mailbox = state.mailbox.get_or_insert_default();
        let (messages, bytes) = (mailbox.len(), mailbox.bytes());
        let number = mailbox.push(Mail {
            number: 0,
            message: letter.stamp.id,
            expires,
            is_emergency: letter.is_emergency,
            frame: letter.frame.clone(),
            handed_over: if letter.is_handed_over { now } else { 0 },
        });
        self.note_waiting(letter.stamp.id, 1);
        if self.store.is_durable() {
            let change = Change::Mailed {
                client: Arc::clone(&client.id),
                number,
                message: letter.stamp.id,
                expires,
                is_emergency: letter.is_emergency,
                frame: letter.frame.clone(),
            };
            self.store.save(change, committed);
        } else if let Some(committed) = committed {
            committed(Ok(()));
        }
        let trimmed = mailbox.trim(self.config.mailbox_size, self.config.mailbox_bytes);
        self.count_mail(messages, bytes, mailbox);
        if messages == 0 {
            self.mailed
                .lock()
                .insert(Arc::clone(&client.id), Arc::clone(client));
        }
        if !trimmed.is_empty() {
            self.events.log(LogLevel::Debug, "connections", || {
                format!(
                    "the mailbox of {} is full; its oldest messages were dropped",
                    client.id
                )
            });
        }
        self.let_go(&client.id, &trimmed, "mailbox_full");
    }

    /// Works on a client's mailbox, if it has one, and keeps the accounts.
    fn with_mailbox<T>(
        &self,
        state: &mut ClientState,
        work: impl FnOnce(&mut Mailbox) -> Option<T>,
    ) -> Option<T> {
        let mailbox = state.mailbox.as_mut()?;
        let (messages, bytes) = (mailbox.len(), mailbox.bytes());
        let result = work(mailbox);
        self.count_mail(messages, bytes, mailbox);
        result
    }

    /// An empty mailbox goes, and with it a client of whom nothing else is known.
    fn drop_empty_mailbox(
        &self,
        client: &Arc<Client>,
        mut state: parking_lot::MutexGuard<'_, ClientState>,
    ) {
        if state
            .mailbox
            .as_ref()
            .is_none_or(|mailbox| mailbox.is_empty())
        {
            if state.mailbox.is_some() {
                self.mailed.lock().remove(&client.id);
            }
            // one that is expected is still to be told what was dropped
            if state.session.is_none() {
                state.mailbox = None;
            }
        }
        let is_idle = state.end_if_idle();
        drop(state);
        if is_idle {
            self.clients.write().remove(&client.id);
        }
    }

    fn push_mail(&self, place: Place, mail: &Mail) {
        let receipt = self.receipts.find(mail.message);
        if let Some(receipt) = &receipt {
            receipt.handed_over.fetch_add(1, Ordering::Relaxed);
        }
        self.counters.messages_sent.add(1);
        let priority = if mail.is_emergency {
            Priority::Emergency
        } else {
            Priority::Normal
        };
        self.push(
            place.shard,
            Delivery::Direct {
                place,
                frame: mail.frame.clone(),
                priority,
                receipt,
            },
        );
    }

    /// Makes room where all mailboxes together take more than they may: the oldest mail goes. Not to be called with a
    /// client's state locked.
    fn make_room_for_mail(&self) {
        let limit = self.config.mailboxes_bytes;
        if self.mail_bytes.load(Ordering::Relaxed) <= limit {
            return;
        }
        let mailed: Vec<_> = self.mailed.lock().values().cloned().collect();
        let mut by_age: Vec<_> = mailed
            .into_iter()
            .map(|client| {
                let oldest = client
                    .state
                    .lock()
                    .mailbox
                    .as_ref()
                    .map_or(u64::MAX, |mailbox| mailbox.oldest());
                (oldest, client)
            })
            .collect();
        by_age.sort_unstable_by_key(|(oldest, _)| *oldest);
        let target = limit / 100 * KEPT_PERCENT;
        for (_, client) in by_age {
            let used = self.mail_bytes.load(Ordering::Relaxed);
            if used <= target {
                return;
            }
            let mut state = client.state.lock();
            let trimmed = self.with_mailbox(&mut state, |mailbox| {
                let left = mailbox.bytes().saturating_sub(used - target);
                Some(mailbox.trim(usize::MAX, left))
            });
            self.let_go(&client.id, &trimmed.unwrap_or_default(), "mailboxes_full");
            self.drop_empty_mailbox(&client, state);
        }
    }

    fn count_mail(&self, messages_before: usize, bytes_before: usize, mailbox: &Mailbox) {
        let change = |counter: &std::sync::atomic::AtomicUsize, before: usize, after: usize| {
            // wraps to a subtraction
            counter.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
        };
        change(&self.mail_count, messages_before, mailbox.len());
        change(&self.mail_bytes, bytes_before, mailbox.bytes());
    }

    /// Mail that goes though the client has not had it.
    fn let_go(&self, client_id: &Arc<str>, mail: &[Mail], reason: &'static str) {
        if mail.is_empty() {
            return;
        }
        self.counters.dropped(reason, "*", mail.len());
        for mail in mail {
            self.note_waiting(mail.message, -1);
        }
        let numbers = mail.iter().map(|mail| mail.number).collect();
        self.unmail_id(client_id, numbers);
    }

    fn unmail(&self, client: &Client, numbers: Vec<u64>) {
        self.unmail_id(&client.id, numbers);
    }

    fn unmail_id(&self, client_id: &Arc<str>, numbers: Vec<u64>) {
        if !numbers.is_empty() && self.store.is_durable() {
            let client = Arc::clone(client_id);
            self.store.save(Change::Unmailed { client, numbers }, None);
        }
    }

    fn note_waiting(&self, message: u64, change: i32) {
        if let Some(receipt) = self.receipts.find(message) {
            // wraps to a subtraction
            receipt
                .waiting
                .fetch_add(change.cast_unsigned(), Ordering::Relaxed);
        }
    }
}
