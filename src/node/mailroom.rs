//! The mailboxes of all clients: what they hold together, which clients have mail, and the receipts of messages.

use super::client::{Client, ClientState};
use super::counters::Counters;
use super::storage::Storage;
use crate::base::clock::{SteadyTime, WallTime};
use crate::base::sync::Mutex;
use crate::core::events::{EventQueue, LogLevel};
use crate::core::mailbox::{Mail, Mailbox};
use crate::core::outbound::Unwritten;
use crate::core::receipt::{Receipt, Receipts};
use crate::ports::durability::{Committed, NotTaken, StoreError, UsedKey};
use crate::ports::saved_sessions::{SavedMail, SessionChange};
use crate::settings::config::Config;
use crate::wire::frame::EncodedFrame;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// The bound of `Mailroom::receipts`.
const MAX_RECEIPTS: usize = 100_000;

/// The most time between the starts of two rounds through the mailboxes.
const MAX_ROUND_INTERVAL: Duration = Duration::from_secs(1);

/// Clients that are taken from the round at once.
const BATCH: usize = 64;

/// A message to be kept.
pub struct Letter<'a> {
    pub message: u64,
    pub frame: &'a EncodedFrame,
    pub ttl: Duration,
    pub is_emergency: bool,
    /// The message is also on its way to a connection of the client.
    pub is_handed_over: bool,
    /// The idempotency key of the message, to be saved with it.
    pub used_key: Option<Box<UsedKey>>,
}

/// What is kept for clients. Methods that take a `ClientState` or a `Mailbox` change those of one client, which the
/// caller has locked.
pub struct Mailroom {
    config: Arc<Config>,
    counters: Arc<Counters>,
    events: Arc<EventQueue>,
    storage: Arc<Storage>,
    receipts: Receipts,
    mailed: Mutex<Mailed>,
    messages: AtomicUsize,
    bytes: AtomicUsize,
}

/// The clients with mail, and the progress of the round through their mailboxes. Some of the clients have no mail any
/// more.
#[derive(Default)]
struct Mailed {
    clients: VecDeque<Arc<Client>>,
    /// How many clients this round has not come to yet.
    left: usize,
    /// When this round began.
    round: Option<SteadyTime>,
}

impl Mailroom {
    pub fn new(
        config: Arc<Config>,
        counters: Arc<Counters>,
        events: Arc<EventQueue>,
        storage: Arc<Storage>,
    ) -> Self {
        Self {
            config,
            counters,
            events,
            storage,
            receipts: Receipts::new(MAX_RECEIPTS),
            mailed: Mutex::default(),
            messages: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
        }
    }

    /// The messages and bytes of all mailboxes.
    pub fn size(&self) -> (usize, usize) {
        (self.messages.load(Ordering::Relaxed), self.bytes())
    }

    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Opens the receipt of a message that is handed over to this number of connections.
    pub fn open_receipt(&self, message: u64, handed_over: usize) -> Arc<Receipt> {
        self.receipts.open(message, handed_over)
    }

    /// The receipt of a message; `None` if the message is unknown or too long ago.
    pub fn receipt(&self, message: u64) -> Option<Arc<Receipt>> {
        self.receipts.find(message)
    }

    /// Puts a message into the mailbox of a client, and saves it. The oldest messages make room.
    ///
    /// Errors: the message has no room; the caller completes `NotTaken::committed` after it has
    /// released its locks.
    pub fn keep(
        &self,
        client: &Arc<Client>,
        state: &mut ClientState,
        letter: Letter<'_>,
        committed: Option<Committed>,
    ) -> Result<(), NotTaken> {
        let now = SteadyTime::now();
        let mailbox = state.mailbox.get_or_insert_default();
        if !Mailbox::has_room(letter.frame.len(), self.config.mailbox_bytes) {
            // the message alone exceeds the limit: the other messages stay
            mailbox.count_dropped();
            self.counters.dropped("mailbox_full", "*", 1);
            let (size, limit) = (letter.frame.len(), self.config.mailbox_bytes);
            let problem = format!(
                "the message has {size} bytes and cannot be kept: mailbox_bytes is {limit}"
            );
            return Err(NotTaken {
                error: StoreError(problem),
                committed,
            });
        }
        let before = (mailbox.len(), mailbox.weight());
        let number = mailbox.push(Mail {
            number: 0,
            message: letter.message,
            expires: now + letter.ttl,
            is_emergency: letter.is_emergency,
            frame: letter.frame.clone(),
            handed_over: letter.is_handed_over.then_some(now),
        });
        self.add_waiting(letter.message, 1);
        let mut saved = Ok(());
        if self.storage.is_durable() {
            let change = SessionChange::Mailed {
                client: Arc::clone(&client.id),
                number,
                message: letter.message,
                expires: WallTime::now() + letter.ttl,
                is_emergency: letter.is_emergency,
                frame: letter.frame,
                used_key: letter.used_key,
            };
            saved = self.storage.save_then(change, committed);
        }
        let trimmed = mailbox.trim(self.config.mailbox_size, self.config.mailbox_bytes);
        self.count(before, mailbox);
        self.add_to_round(client, state);
        if !trimmed.is_empty() {
            self.events.log(LogLevel::Debug, "connections", || {
                format!(
                    "the mailbox of {} is full; its oldest messages were dropped",
                    client.id
                )
            });
        }
        self.drop_mail(&client.id, &trimmed, "mailbox_full");
        saved
    }

    /// Keeps the emergencies that the socket of a lost client had not taken.
    pub fn keep_unwritten(
        &self,
        client: &Arc<Client>,
        state: &mut ClientState,
        unwritten: Vec<Unwritten>,
    ) {
        for Unwritten { message, frame } in unwritten {
            let mailbox = state.mailbox.as_ref();
            if self.config.emergency_ttl.is_zero()
                || mailbox.is_some_and(|mailbox| mailbox.has(message))
            {
                continue;
            }
            let letter = Letter {
                message,
                frame: &frame,
                ttl: self.config.emergency_ttl,
                is_emergency: true,
                is_handed_over: false,
                used_key: None,
            };
            // a full store counts what it refuses
            let _ = self.keep(client, state, letter, None);
        }
    }

    /// Puts a saved message back into the mailbox of its client. `now` is one moment on both clocks.
    pub fn restore(
        &self,
        client: &Arc<Client>,
        state: &mut ClientState,
        saved: SavedMail,
        now: (WallTime, SteadyTime),
    ) {
        let mailbox = state.mailbox.get_or_insert_default();
        // the store was closed and opened again while the message stayed in memory
        if mailbox.has(saved.message) {
            return;
        }
        let before = (mailbox.len(), mailbox.weight());
        mailbox.push(Mail {
            number: saved.number,
            message: saved.message,
            expires: now.1 + saved.expires.since(now.0),
            is_emergency: saved.is_emergency,
            frame: saved.frame,
            handed_over: None,
        });
        self.count(before, mailbox);
        self.add_to_round(client, state);
    }

    /// Takes the messages with these ids out of the mailbox of a client; returns them.
    pub fn take(&self, id: &Arc<str>, state: &mut ClientState, messages: &[u64]) -> Vec<Mail> {
        let taken = self.with_mailbox(state, |mailbox| mailbox.take_each(messages));
        self.remove_taken(id, &taken);
        taken
    }

    /// Calls `hand_over` with each message of a client, and takes the messages out of the mailbox unless the client
    /// acknowledges them.
    pub fn hand_over(
        &self,
        id: &Arc<str>,
        state: &mut ClientState,
        mut hand_over: impl FnMut(&mut Mail),
    ) {
        let acknowledges = state.acknowledges;
        let taken = self.with_mailbox(state, |mailbox| {
            mailbox.iter_mut().for_each(&mut hand_over);
            if acknowledges {
                Vec::new()
            } else {
                mailbox.take_all()
            }
        });
        self.remove_taken(id, &taken);
    }

    /// Drops the messages of a mailbox that have expired.
    pub fn expire(&self, id: &Arc<str>, mailbox: &mut Mailbox) {
        let before = (mailbox.len(), mailbox.weight());
        let expired = mailbox.expire(SteadyTime::now());
        self.count(before, mailbox);
        self.drop_mail(id, &expired, "mail_expired");
    }

    /// Drops messages of a client until `bytes` are free or no message is left, emergencies only with
    /// `emergencies_too`.
    pub fn release(
        &self,
        id: &Arc<str>,
        state: &mut ClientState,
        bytes: usize,
        emergencies_too: bool,
    ) {
        let released = self.with_mailbox(state, |mailbox| mailbox.release(bytes, emergencies_too));
        self.drop_mail(id, &released, "mailboxes_full");
    }

    /// Adds a client to the rounds through the mailboxes.
    pub fn add_to_round(&self, client: &Arc<Client>, state: &mut ClientState) {
        if !std::mem::replace(&mut state.is_in_round, true) {
            self.mailed.lock().clients.push_back(Arc::clone(client));
        }
    }

    /// Begins a round at `now` if none is under way and the next is due. False if none is under way then.
    pub fn begin_round(&self, now: SteadyTime) -> bool {
        let interval = MAX_ROUND_INTERVAL.min(self.config.ack_timeout / 2);
        let mut mailed = self.mailed.lock();
        if mailed.left > 0 {
            return true;
        }
        if mailed.round.is_some_and(|last| now.since(last) < interval) {
            return false;
        }
        mailed.round = Some(now);
        mailed.left = mailed.clients.len();
        true
    }

    /// Takes the next clients of the round; none at its end. The caller adds those that still have mail again.
    pub fn next_of_round(&self) -> Vec<Arc<Client>> {
        let mut mailed = self.mailed.lock();
        // `take_clients` may have taken some
        let count = mailed.left.min(mailed.clients.len()).min(BATCH);
        mailed.left -= count;
        mailed.clients.drain(..count).collect()
    }

    /// Takes all clients with mail out of the rounds.
    pub fn take_clients(&self) -> VecDeque<Arc<Client>> {
        std::mem::take(&mut self.mailed.lock().clients)
    }

    /// Puts clients back that `take_clients` took, except those without mail.
    pub fn put_back(&self, clients: impl Iterator<Item = Arc<Client>>) {
        let still_has_mail = |client: &Arc<Client>| {
            let mut state = client.state.lock();
            let mailbox = state.mailbox.as_ref();
            state.is_in_round = mailbox.is_some_and(|mailbox| !mailbox.is_empty());
            state.is_in_round
        };
        let kept: Vec<_> = clients.filter(still_has_mail).collect();
        self.mailed.lock().clients.extend(kept);
    }

    /// Works on the mailbox of a client, if there is one, and counts the change.
    fn with_mailbox<T: Default>(
        &self,
        state: &mut ClientState,
        work: impl FnOnce(&mut Mailbox) -> T,
    ) -> T {
        let Some(mailbox) = &mut state.mailbox else {
            return T::default();
        };
        let before = (mailbox.len(), mailbox.weight());
        let result = work(mailbox);
        self.count(before, mailbox);
        result
    }

    /// Counts the change of a mailbox that had this number of messages and this weight.
    fn count(&self, (messages, weight): (usize, usize), mailbox: &Mailbox) {
        let change = |counter: &AtomicUsize, before: usize, after: usize| {
            // wraps to a subtraction
            counter.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
        };
        change(&self.messages, messages, mailbox.len());
        change(&self.bytes, weight, mailbox.weight());
    }

    /// Counts messages as dropped before the client got them.
    fn drop_mail(&self, id: &Arc<str>, mail: &[Mail], reason: &'static str) {
        if !mail.is_empty() {
            self.counters.dropped(reason, "*", mail.len());
            self.remove_taken(id, mail);
        }
    }

    /// Removes messages from their receipts and from the store.
    fn remove_taken(&self, id: &Arc<str>, mail: &[Mail]) {
        for mail in mail {
            self.add_waiting(mail.message, -1);
        }
        let numbers = mail.iter().map(|mail| mail.number).collect();
        self.storage.delete_mail(id, numbers);
    }

    fn add_waiting(&self, message: u64, change: i32) {
        if let Some(receipt) = self.receipts.find(message) {
            // wraps to a subtraction
            receipt
                .waiting
                .fetch_add(change.cast_unsigned(), Ordering::Relaxed);
        }
    }
}
