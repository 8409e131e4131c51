//! What is kept for one client until it has it: messages in the order in which they were sent.

use crate::frame::EncodedFrame;
use std::collections::VecDeque;

/// A message that is kept. Times are microseconds since 1970.
#[derive(Clone, Debug)]
pub struct Mail {
    /// In the order of sending, within one mailbox.
    pub number: u64,
    /// The message's id.
    pub message: u64,
    pub expires: u64,
    pub is_emergency: bool,
    pub frame: EncodedFrame,
    /// When it was last handed over to the client's connection; 0 for never.
    pub handed_over: u64,
}

#[derive(Debug, Default)]
pub struct Mailbox {
    mail: VecDeque<Mail>,
    bytes: usize,
    next_number: u64,
    /// Messages that went before the client had them, since it was last told.
    dropped: u64,
}

/// Bytes that a message takes besides its frame.
const MAIL_OVERHEAD: usize = size_of::<Mail>() + 32;

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

    /// Takes out everything.
    pub fn take_all(&mut self) -> Vec<Mail> {
        self.bytes = 0;
        self.mail.drain(..).collect()
    }

    /// Takes out the oldest beyond so many messages or bytes, those that are no emergencies first; counts them as
    /// dropped.
    pub fn trim(&mut self, size: usize, bytes: usize) -> Vec<Mail> {
        let mut trimmed = Vec::new();
        while self.mail.len() > size || self.bytes > bytes {
            let at = self
                .mail
                .iter()
                .position(|mail| !mail.is_emergency)
                .unwrap_or(0);
            let Some(mail) = self.mail.remove(at) else {
                break;
            };
            self.bytes -= weight(&mail);
            trimmed.push(mail);
        }
        self.dropped += trimmed.len() as u64;
        trimmed
    }

    /// Takes out what has expired by `now`; counts it as dropped.
    pub fn expire(&mut self, now: u64) -> Vec<Mail> {
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

    /// How many were dropped since it was last asked.
    pub fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Mail> {
        self.mail.iter_mut()
    }

    /// When the oldest will expire, in microseconds since 1970: the order in which mailboxes make room.
    pub fn oldest(&self) -> u64 {
        self.mail.front().map_or(u64::MAX, |mail| mail.expires)
    }

    pub fn len(&self) -> usize {
        self.mail.len()
    }

    /// True when nothing is kept; it may still have to tell of what was dropped.
    pub fn is_empty(&self) -> bool {
        self.mail.is_empty()
    }

    /// Bytes of memory that the messages take, about.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

fn weight(mail: &Mail) -> usize {
    mail.frame.len() + MAIL_OVERHEAD
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mail(message: u64, expires: u64, is_emergency: bool) -> Mail {
        Mail {
            number: 0,
            message,
            expires,
            is_emergency,
            frame: EncodedFrame::text(b"{}"),
            handed_over: 0,
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
        assert_eq!(ids(&mailbox.trim(1, usize::MAX)), [1]);
        assert_eq!((mailbox.take_dropped(), mailbox.take_dropped()), (3, 0));
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
        assert_eq!(ids(&mailbox.expire(5)), [2]);
        assert_eq!(mailbox.oldest(), 10);
        assert_eq!(ids(&mailbox.take_all()), [1]);
        assert_eq!(
            (mailbox.bytes(), mailbox.take_dropped(), mailbox.oldest()),
            (0, 1, u64::MAX)
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
