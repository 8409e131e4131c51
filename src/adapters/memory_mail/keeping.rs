//! Letters on their way: to the connection of a client, into its mailbox, and out of it.

use super::backend::Backend;
use super::post::{Kept, Line, Post};
use crate::base::clock::{SteadyTime, WallTime};
use crate::base::completion::{Later, Progress};
use crate::base::priority::Priority;
use crate::core::idempotency::Ticket;
use crate::core::mailbox::{Mail, Mailbox};
use crate::core::outbound::Unwritten;
use crate::ports::broker::Failure;
use crate::ports::calls::Sent;
use crate::ports::durability::{Committed, NotTaken, StoreError, UsedKey};
use crate::ports::mail::{Acknowledged, HandedOver, Instead, Letter, MailDrop, MailStep};
use crate::ports::saved_sessions::{SavedMail, SessionChange};
use crate::wire::frame::EncodedFrame;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Emergencies whose acknowledgements count also from clients for which the emergency is not kept.
const MAX_KNOWN: usize = 1000;

/// A message to be kept.
struct NewMail {
    message: u64,
    frame: EncodedFrame,
    ttl: Duration,
    is_emergency: bool,
    /// The message is also on its way to a connection of the client.
    is_handed_over: bool,
    /// The sink has heard that the message is kept.
    is_told: bool,
    /// The idempotency key of the message, to be saved with it.
    used_key: Option<Box<UsedKey>>,
}

impl Backend {
    /// Sends a letter. `used` is its idempotency key.
    pub fn send(
        &self,
        sink: u16,
        letter: &Letter<'_>,
        used: Option<&Arc<Ticket>>,
        later: &mut Later<'_, Sent, Failure>,
    ) -> Progress<Sent, Failure> {
        let sent = Sent {
            stamp: letter.stamp,
            is_duplicate: false,
        };
        let client = letter.client;
        let mut kept = Ok(false);
        let known = self.change(client, |post| {
            kept = self.deliver(sink, letter, post, (sent, used), later);
        });
        if known.is_none() && letter.ttl.is_zero() {
            self.with_sink(sink, |sink| {
                sink.absent(sent.stamp.id, letter.channel, Instead::Lost);
            });
        } else if known.is_none() {
            // another thread may have added the client meanwhile
            self.change_or_add(&Arc::from(client), |post| {
                kept = self.deliver(sink, letter, post, (sent, used), later);
            });
        }
        let is_saving = match kept {
            Ok(is_saving) => is_saving,
            Err(not_taken) => {
                let is_saving = not_taken.committed.is_some();
                not_taken.complete();
                is_saving
            }
        };
        self.make_room(sink);
        if is_saving {
            return Progress::Begun(Some(sent));
        }
        if let Some(used) = used {
            self.keys.done(used, sent);
        }
        Progress::Ended(Ok(sent))
    }

    /// The client of a post has taken messages.
    pub fn acknowledge(&self, client: &str, post: &mut Post, ids: &[u64]) -> Acknowledged {
        post.acknowledge_from_now_on();
        let taken = post.kept.as_mut().map_or_else(Vec::new, |kept| {
            self.with_mailbox(kept, |mailbox| mailbox.take_each(ids))
        });
        self.remove_taken(client, &taken);
        // mostly there is one id, which needs no set
        let mut waited: Option<HashSet<u64>> =
            (ids.len() > 1).then(|| taken.iter().map(|mail| mail.message).collect());
        let mut acknowledged = Acknowledged::default();
        for id in ids {
            let has_waited = match &mut waited {
                Some(waited) => waited.remove(id),
                None => !taken.is_empty(),
            };
            if has_waited || self.acknowledge_emergency(client, post, *id) {
                acknowledged.count += 1;
                self.with_each_sink(|sink| sink.note(*id, MailStep::Acknowledged));
            } else {
                acknowledged.unknown = Some(*id);
            }
        }
        acknowledged
    }

    pub fn keep_emergency(&self, sink: u16, message: u64, frame: &EncodedFrame) {
        let mut known = self.emergencies.lock();
        known.push_back(message);
        if known.len() > MAX_KNOWN {
            known.pop_front();
        }
        drop(known);
        if self.limits.emergency_ttl.is_zero() {
            return;
        }
        self.change_all(|client, post| {
            if post.keeps_emergencies() {
                let new = NewMail {
                    is_handed_over: post.line().is_some(),
                    ..self.emergency(message, frame.clone())
                };
                // a full store counts what it refuses
                let _ = self.keep(sink, client, post, new, None);
            }
        });
    }

    /// Keeps the emergencies that the socket of a lost client had not taken.
    pub fn keep_unwritten(
        &self,
        sink: u16,
        client: &str,
        post: &mut Post,
        unwritten: Vec<Unwritten>,
    ) {
        for Unwritten { message, frame } in unwritten {
            let kept = post.kept.as_ref();
            if self.limits.emergency_ttl.is_zero()
                || kept.is_some_and(|kept| kept.mailbox.has(message))
            {
                continue;
            }
            // a full store counts what it refuses
            let _ = self.keep(sink, client, post, self.emergency(message, frame), None);
        }
    }

    /// Puts saved messages back into the mailboxes of their clients.
    pub fn restore(&self, sink: u16, mail: Vec<SavedMail>) {
        let (now, steady_now) = (WallTime::now(), SteadyTime::now());
        for saved in mail {
            let client = Arc::clone(&saved.client);
            self.change_or_add(&client, |post| {
                let kept = post.kept_for(&client);
                // the store was closed and opened again while the message stayed in memory
                if kept.mailbox.has(saved.message) {
                    return;
                }
                self.with_mailbox(kept, |mailbox| {
                    mailbox.push(Mail {
                        number: saved.number,
                        message: saved.message,
                        expires: steady_now + saved.expires.since(now),
                        is_emergency: saved.is_emergency,
                        frame: saved.frame,
                        handed_over: None,
                    });
                });
                self.with_sink(sink, |sink| sink.note(saved.message, MailStep::Kept));
                self.add_to_round(kept);
            });
        }
    }

    /// Drops the messages of a mailbox that have expired.
    pub fn expire(&self, sink: u16, kept: &mut Kept) {
        let expired = self.with_mailbox(kept, |mailbox| mailbox.expire(SteadyTime::now()));
        self.drop_mail(sink, &kept.client, &expired, MailDrop::Expired);
    }

    /// Hands everything in a mailbox over, and takes it out unless the client acknowledges.
    pub fn hand_over_all(&self, line: Line, kept: &mut Kept) {
        let now = SteadyTime::now();
        let taken = self.with_mailbox(kept, |mailbox| {
            for mail in mailbox.iter_mut() {
                mail.handed_over = Some(now);
                self.hand_over_again(line, mail);
            }
            if line.acknowledges {
                Vec::new()
            } else {
                mailbox.take_all()
            }
        });
        self.remove_taken(&kept.client, &taken);
    }

    /// Hands a message of a mailbox over.
    pub fn hand_over_again(&self, line: Line, mail: &Mail) {
        let priority = if mail.is_emergency {
            Priority::Emergency
        } else {
            Priority::Normal
        };
        let mail = HandedOver {
            message: mail.message,
            frame: mail.frame.clone(),
            priority,
            is_new: false,
            is_kept: false,
        };
        self.with_sink(line.sink, |sink| sink.hand_over(line.address, mail));
    }

    /// Works on a mailbox, and counts the change.
    pub fn with_mailbox<T>(&self, kept: &mut Kept, work: impl FnOnce(&mut Mailbox) -> T) -> T {
        let mailbox = &mut kept.mailbox;
        let (messages, bytes) = (mailbox.len(), mailbox.weight());
        let result = work(mailbox);
        let change = |counter: &AtomicUsize, before: usize, after: usize| {
            // wraps to a subtraction
            counter.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
        };
        change(&self.messages, messages, mailbox.len());
        change(&self.bytes, bytes, mailbox.weight());
        result
    }

    /// Reports messages as dropped before the client got them.
    pub fn drop_mail(&self, sink: u16, client: &str, mail: &[Mail], drop: MailDrop) {
        if !mail.is_empty() {
            self.with_sink(sink, |sink| sink.dropped(client, mail.len(), drop));
            self.remove_taken(client, mail);
        }
    }

    /// Removes messages that were taken out of a mailbox from their counters and from the store.
    pub fn remove_taken(&self, client: &str, mail: &[Mail]) {
        if mail.is_empty() {
            return;
        }
        self.with_each_sink(|sink| {
            for mail in mail {
                sink.note(mail.message, MailStep::Removed);
            }
        });
        if self.sessions.is_durable() {
            let change = SessionChange::Unmailed {
                client: client.into(),
                numbers: mail.iter().map(|mail| mail.number).collect(),
            };
            // the store counts what it refuses
            let _ = self.sessions.save(change, None);
        }
    }

    /// Sends a letter to the client of a post. True if the letter ends only when it is saved.
    ///
    /// Errors: the letter cannot be kept; the caller completes `NotTaken::committed` without locks held.
    fn deliver(
        &self,
        sink: u16,
        letter: &Letter<'_>,
        post: &mut Post,
        (sent, used): (Sent, Option<&Arc<Ticket>>),
        later: &mut Later<'_, Sent, Failure>,
    ) -> Result<bool, NotTaken> {
        let body = letter.body;
        let (line, message) = (post.line(), letter.stamp.id);
        let mut is_kept = !letter.ttl.is_zero()
            && line.is_none_or(|line| line.acknowledges && body.can_want_ack());
        let mut frame = body.seal(is_kept);
        let has_room = Mailbox::has_room(frame.len(), self.limits.mailbox_bytes);
        if is_kept && line.is_some() && !has_room {
            is_kept = false;
            frame = body.seal(false);
        }
        let Some(line) = line else {
            let instead = match (is_kept, has_room) {
                (true, true) => Instead::Kept,
                (true, false) => Instead::Dropped,
                (false, _) => Instead::Lost,
            };
            self.with_sink(sink, |sink| sink.absent(message, letter.channel, instead));
            if !is_kept {
                return Ok(false);
            }
            return self.keep_letter(sink, letter, post, (frame, false), (sent, used), later);
        };
        if !is_kept {
            // what is not kept is not shared either
            self.hand_over_new(sink, line, letter, frame, false);
            return Ok(false);
        }
        self.hand_over_new(sink, line, letter, frame.clone(), true);
        self.keep_letter(sink, letter, post, (frame, true), (sent, used), later)
    }

    fn hand_over_new(
        &self,
        sink: u16,
        line: Line,
        letter: &Letter<'_>,
        frame: EncodedFrame,
        is_kept: bool,
    ) {
        let (message, is_own) = (letter.stamp.id, line.sink == sink);
        let mail = HandedOver {
            message,
            frame,
            priority: letter.priority,
            is_new: is_own,
            is_kept,
        };
        self.with_sink(line.sink, |sink| sink.hand_over(line.address, mail));
        if !is_own {
            self.with_sink(sink, |sink| {
                sink.note(message, MailStep::HandedOver);
                if is_kept {
                    sink.note(message, MailStep::Kept);
                }
            });
        }
    }

    /// Keeps a letter, which the sink has heard of. True if the letter ends only when it is saved.
    fn keep_letter(
        &self,
        sink: u16,
        letter: &Letter<'_>,
        post: &mut Post,
        (frame, is_handed_over): (EncodedFrame, bool),
        (sent, used): (Sent, Option<&Arc<Ticket>>),
        later: &mut Later<'_, Sent, Failure>,
    ) -> Result<bool, NotTaken> {
        let new = NewMail {
            message: letter.stamp.id,
            frame,
            ttl: letter.ttl,
            is_emergency: letter.priority == Priority::Emergency,
            is_handed_over,
            is_told: true,
            used_key: used.and_then(|used| self.keys.to_save(used, sent)),
        };
        let is_saving = letter.is_durable;
        let committed = is_saving.then(|| self.keys.when_saved(sent, used.cloned(), later()));
        self.keep(sink, letter.client, post, new, committed)?;
        Ok(is_saving)
    }

    /// Puts a message into the mailbox of a client, and saves it. The oldest messages make room.
    ///
    /// Errors: the message has no room.
    fn keep(
        &self,
        sink: u16,
        client: &str,
        post: &mut Post,
        new: NewMail,
        committed: Option<Committed>,
    ) -> Result<(), NotTaken> {
        let kept = post.kept_for(client);
        let limit = self.limits.mailbox_bytes;
        if !Mailbox::has_room(new.frame.len(), limit) {
            // the message alone exceeds the limit: the other messages stay
            kept.mailbox.count_dropped();
            self.with_sink(sink, |sink| sink.dropped(client, 1, MailDrop::TooLarge));
            let size = new.frame.len();
            let problem = format!(
                "the message has {size} bytes and cannot be kept: mailbox_bytes is {limit}"
            );
            return Err(NotTaken {
                error: StoreError(problem),
                committed,
            });
        }
        let now = SteadyTime::now();
        let to_save = self.sessions.is_durable().then(|| new.frame.clone());
        let mail = Mail {
            number: 0,
            message: new.message,
            expires: now + new.ttl,
            is_emergency: new.is_emergency,
            frame: new.frame,
            handed_over: new.is_handed_over.then_some(now),
        };
        let (number, trimmed) = self.with_mailbox(kept, |mailbox| {
            let number = mailbox.push(mail);
            (number, mailbox.trim(self.limits.mailbox_size, limit))
        });
        if !new.is_told {
            self.with_sink(sink, |sink| sink.note(new.message, MailStep::Kept));
        }
        let mut saved = Ok(());
        if let Some(frame) = &to_save {
            let change = SessionChange::Mailed {
                client: Arc::clone(&kept.client),
                number,
                message: new.message,
                expires: WallTime::now() + new.ttl,
                is_emergency: new.is_emergency,
                frame,
                used_key: new.used_key,
            };
            saved = self.sessions.save(change, committed);
        }
        self.add_to_round(kept);
        self.drop_mail(sink, client, &trimmed, MailDrop::MailboxFull);
        saved
    }

    fn emergency(&self, message: u64, frame: EncodedFrame) -> NewMail {
        NewMail {
            message,
            frame,
            ttl: self.limits.emergency_ttl,
            is_emergency: true,
            is_handed_over: false,
            is_told: false,
            used_key: None,
        }
    }

    /// Acknowledges an emergency that is not kept for the client. True for the first acknowledgement of a known
    /// emergency.
    fn acknowledge_emergency(&self, client: &str, post: &mut Post, id: u64) -> bool {
        let known = self.emergencies.lock();
        let kept = post.kept.as_ref();
        if !known.contains(&id) || kept.is_some_and(|kept| kept.acknowledged.contains(&id)) {
            return false;
        }
        let kept = post.kept_for(client);
        if kept.acknowledged.len() >= MAX_KNOWN {
            kept.acknowledged.retain(|id| known.contains(id));
        }
        kept.acknowledged.push(id);
        true
    }
}
