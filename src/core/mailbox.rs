//! Messages that are kept for one client until the client has received them, in the order of sending.

use crate::base::clock::SteadyTime;
use crate::wire::frame::EncodedFrame;
use std::collections::{HashSet, VecDeque};

/// A message that is kept.
#[derive(Clone, Debug)]
pub struct Mail {
    /// In the order of sending, within one mailbox.
    pub number: u64,
    /// The message's id.
    pub message: u64,
    pub expires: SteadyTime,
    pub is_emergency: bool,
    pub frame: EncodedFrame,
    /// When the message was last handed over to the client's connection.
    pub handed_over: Option<SteadyTime>,
}

#[derive(Debug, Default)]
pub struct Mailbox {
    mail: VecDeque<Mail>,
    bytes: usize,
    next_number: u64,
    /// Messages that went before the client had them, and that it does not know of.
    dropped: u64,
    /// How many of them were in a welcome that the client may not have received.
    told: u64,
}

/// Bytes that a message takes besides its frame.
const MAIL_OVERHEAD: usize = size_of::<Mail>() + 32;

/// Bytes that a mailbox takes besides its messages, with the client that is known because of it.
const MAILBOX_OVERHEAD: usize = 640;

impl Mailbox {
    /// Keeps a message; returns its number.
    pub fn push(&mut self, mail: Mail) -> u64 {
        let number = self.next_number.max(mail.number);
        self.next_number = number + 1;
        self.bytes += weight(&mail);
        self.mail.push_back(Mail { number, ..mail });
        number
    }

    /// Takes out the message of an id.
    pub fn take(&mut self, message: u64) -> Option<Mail> {
        let at = self.mail.iter().position(|mail| mail.message == message)?;
        let mail = self.mail.remove(at)?;
        self.bytes -= weight(&mail);
        Some(mail)
    }

    /// Takes out the messages of these ids, oldest first.
    pub fn take_each(&mut self, messages: &[u64]) -> Vec<Mail> {
        if let [message] = messages {
            return self.take(*message).into_iter().collect();
        }
        let wanted: HashSet<u64> = messages.iter().copied().collect();
        let (taken, kept) = self
            .mail
            .drain(..)
            .partition::<VecDeque<_>, _>(|mail| wanted.contains(&mail.message));
        self.mail = kept;
        self.bytes -= taken.iter().map(weight).sum::<usize>();
        taken.into()
    }

    pub fn has(&self, message: u64) -> bool {
        self.mail.iter().any(|mail| mail.message == message)
    }

    /// Takes out everything.
    pub fn take_all(&mut self) -> Vec<Mail> {
        self.bytes = 0;
        self.mail.drain(..).collect()
    }

    /// Takes out the oldest beyond so many messages or bytes, those that are no emergencies first; counts them as
    /// dropped.
    pub fn trim(&mut self, size: usize, bytes: usize) -> Vec<Mail> {
        let mut trimmed = self.trim_while(|mail, kept| {
            !mail.is_emergency && (kept.count > size || kept.bytes > bytes)
        });
        trimmed.extend(self.trim_while(|_, kept| kept.count > size || kept.bytes > bytes));
        trimmed
    }

    /// Takes out the oldest until `bytes` less are used or nothing is left to take, emergencies only with
    /// `emergencies_too`; counts them as dropped.
    pub fn release(&mut self, bytes: usize, emergencies_too: bool) -> Vec<Mail> {
        let wanted = self.bytes.saturating_sub(bytes);
        self.trim_while(|mail, kept| (emergencies_too || !mail.is_emergency) && kept.bytes > wanted)
    }

    /// A message could not be kept at all.
    pub fn count_dropped(&mut self) {
        self.dropped += 1;
    }

    /// Takes out what has expired by `now`; counts it as dropped.
    pub fn expire(&mut self, now: SteadyTime) -> Vec<Mail> {
        let mut expired = Vec::new();
        self.mail.retain(|mail| {
            let is_kept = mail.expires > now;
            if !is_kept {
                expired.push(mail.clone());
            }
            is_kept
        });
        self.bytes -= expired.iter().map(weight).sum::<usize>();
        self.dropped += expired.len() as u64;
        expired
    }

    /// Messages that went before the client had them, and that it does not know of.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// A welcome tells the client of the dropped messages. They count on until `confirm`.
    pub fn tell(&mut self) {
        self.told = self.dropped;
    }

    /// The client has received the number of dropped messages.
    pub fn confirm(&mut self) {
        self.dropped -= std::mem::take(&mut self.told);
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Mail> {
        self.mail.iter_mut()
    }

    /// When the oldest message that is no emergency will expire: the order in which mailboxes make room. `None` where
    /// all are emergencies: such mailboxes come last.
    pub fn oldest(&self) -> Option<SteadyTime> {
        let oldest = self.mail.iter().find(|mail| !mail.is_emergency);
        oldest.map(|mail| mail.expires)
    }

    /// Whether a message of this size has room in a mailbox of so many bytes.
    pub fn has_room(frame_len: usize, bytes: usize) -> bool {
        frame_len + MAIL_OVERHEAD <= bytes
    }

    pub fn len(&self) -> usize {
        self.mail.len()
    }

    /// True when nothing is kept; it may still have to tell of what was dropped.
    pub fn is_empty(&self) -> bool {
        self.mail.is_empty()
    }

    /// The approximate bytes of memory that the messages take.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The approximate bytes of memory that the mailbox takes, with its receipts and entries in maps.
    pub fn weight(&self) -> usize {
        if self.is_empty() {
            0
        } else {
            self.bytes + MAILBOX_OVERHEAD
        }
    }

    /// Takes out those that `goes` says, oldest first, given what would be kept with them; counts them as dropped.
    fn trim_while(&mut self, mut goes: impl FnMut(&Mail, Kept) -> bool) -> Vec<Mail> {
        let mut trimmed = Vec::new();
        let (mut count, mut bytes) = (self.mail.len(), self.bytes);
        // the oldest go, which are in front: mostly there is nothing to look at behind them
        let mut at = 0;
        while let Some(mail) = self.mail.get(at) {
            if goes(mail, Kept { count, bytes }) {
                count -= 1;
                bytes -= weight(mail);
                trimmed.extend(self.mail.remove(at));
            } else if mail.is_emergency {
                at += 1;
            } else {
                break;
            }
        }
        self.bytes = bytes;
        self.dropped += trimmed.len() as u64;
        trimmed
    }
}

/// The content of a mailbox.
#[derive(Clone, Copy)]
struct Kept {
    count: usize,
    bytes: usize,
}

fn weight(mail: &Mail) -> usize {
    mail.frame.len() + MAIL_OVERHEAD
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(micros: u64) -> SteadyTime {
        SteadyTime::START + Duration::from_micros(micros)
    }

    fn mail(message: u64, expires: u64, is_emergency: bool) -> Mail {
        Mail {
            number: 0,
            message,
            expires: at(expires),
            is_emergency,
            frame: EncodedFrame::text(b"{}"),
            handed_over: None,
        }
    }

    fn ids(mail: &[Mail]) -> Vec<u64> {
        mail.iter().map(|mail| mail.message).collect()
    }

    #[test]
    fn the_oldest_go_first_and_emergencies_last() {
        let mut mailbox = Mailbox::default();
        for (message, is_emergency) in [(1, true), (2, false), (3, false), (4, true)] {
            mailbox.push(mail(message, 10, is_emergency));
        }
        assert_eq!(ids(&mailbox.trim(2, usize::MAX)), [2, 3]);
        mailbox.tell();
        assert_eq!(ids(&mailbox.trim(1, usize::MAX)), [1]);
        assert_eq!(mailbox.dropped(), 3);
        mailbox.confirm();
        assert_eq!(mailbox.dropped(), 1, "one was not told");
        mailbox.tell();
        mailbox.confirm();
        assert_eq!(mailbox.dropped(), 0);
        assert_eq!(ids(&mailbox.trim(9, 0)), [4]);
        assert_eq!((mailbox.len(), mailbox.bytes()), (0, 0));
    }

    #[test]
    fn what_is_acknowledged_or_expired_is_gone() {
        let mut mailbox = Mailbox::default();
        for (message, expires) in [(1, 10), (2, 5), (3, 10)] {
            mailbox.push(mail(message, expires, false));
        }
        assert_eq!(mailbox.take(3).map(|mail| mail.message), Some(3));
        assert!(mailbox.take(3).is_none());
        assert_eq!(ids(&mailbox.expire(at(5))), [2]);
        assert_eq!(mailbox.oldest(), Some(at(10)));
        assert_eq!(ids(&mailbox.take_all()), [1]);
        assert_eq!(
            (mailbox.bytes(), mailbox.dropped(), mailbox.oldest()),
            (0, 1, None)
        );
    }

    #[test]
    fn numbers_go_on_from_what_was_saved() {
        let mut mailbox = Mailbox::default();
        assert_eq!(
            mailbox.push(Mail {
                number: 7,
                ..mail(1, 1, false)
            }),
            7
        );
        assert_eq!(mailbox.push(mail(2, 1, false)), 8);
    }
}
