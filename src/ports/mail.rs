//! Mail: messages to one client. The mail of a client goes to its newest connection, in whichever process the connection
//! is, and waits while there is none.

use super::broker::Failure;
use super::calls::Sent;
use super::claim::ClaimNumber;
use super::durability::UsedKey;
use super::saved_sessions::SavedMail;
use crate::base::completion::{Later, Progress};
use crate::base::priority::Priority;
use crate::core::outbound::Unwritten;
use crate::wire::frame::{EncodedFrame, UnsealedMail};
use crate::wire::messages::Stamp;
use std::sync::Arc;
use std::time::Duration;

/// The mailboxes of all clients.
///
/// The calls on one client take effect in the order in which one process makes them; `keep_emergency` takes effect
/// behind all earlier calls of this process, and before all later ones. A call under a claim changes nothing when the
/// client was opened or closed under a newer one. Calls without an outcome cannot fail: an adapter that cannot reach
/// its backend tries again.
pub trait Mail: Send + Sync {
    /// Sets the sink of this process.
    ///
    /// Ordering: once, before every other call. Errors: none. Blocking: no.
    fn attach(&self, sink: Arc<dyn MailSink>);

    /// Takes in mail and idempotency keys that were saved. Mail that is known already stays as it is.
    ///
    /// Ordering: before the first `open`, and again each time the storage was opened anew. Errors: none. Blocking: no.
    fn restore(&self, mail: Vec<SavedMail>, used_keys: &[UsedKey]);

    /// A connection takes the mail of a client from now on: first what waits, in the order in which it was sent, then
    /// what is sent. What waits is kept on for a client that acknowledges, and is gone for any other.
    ///
    /// Returns what has waited, for the welcome, which then tells the client how many messages were dropped. `None` where
    /// that is not known at once: the welcome says nothing of mail, and a later one tells of the dropped messages.
    ///
    /// Ordering: mail may reach the sink inside the call, so the caller sees to it that the connection takes nothing from
    /// the sink before the welcome. A claim opens once. Errors: none. Blocking: no.
    fn open(&self, client: &Arc<str>, opening: Opening) -> Option<Backlog>;

    /// The connection of a claim has shown that its welcome has arrived: the dropped messages that the welcome has told
    /// of do not count any more.
    ///
    /// Ordering: as all calls on one client. Errors: none. Blocking: no.
    fn confirm(&self, client: &str, claim: ClaimNumber);

    /// The connection of a claim has ended, or did not come, and the client may return: mail and emergencies wait for the
    /// client from now on. `unwritten` are the emergencies that the socket had not taken; they wait too.
    ///
    /// Ordering: the claim does not open any more. Errors: none. Blocking: no.
    fn close(&self, client: &Arc<str>, claim: ClaimNumber, unwritten: Vec<Unwritten>);

    /// A client that has no connection is expected: it has got a resume token. Emergencies wait for the client from now
    /// on. Changes nothing for a client that is connected.
    ///
    /// Ordering: as all calls on one client. Errors: none. Blocking: no.
    fn expect(&self, client: &Arc<str>);

    /// The client does not return; `claim` is its last one, `None` for a client that never connected. Mail that waits
    /// stays until it expires, and the next client of this id gets it; the claims of that client begin anew.
    ///
    /// Ordering: as all calls on one client. Errors: none. Blocking: no.
    fn forget(&self, client: &str, claim: Option<ClaimNumber>);

    /// Sends a letter: to the connection of the client, into its mailbox, or both. The mailbox keeps the letter while
    /// the client is away, and until the client acknowledges the letter if it acknowledges. A full mailbox drops its
    /// oldest messages; no message is handed over after its time.
    ///
    /// A letter whose idempotency key is known is not sent again. Its outcome is that of the first letter, with
    /// `is_duplicate`; while the first is under way, the second waits for the outcome of the first. A durable letter
    /// that is kept ends when it is saved.
    ///
    /// Ordering: a client gets the letters of one caller in the order of the calls. The sink hears of a letter before or
    /// after the outcome. Delivery: at least once; a letter that comes twice has the same id. Errors: `Failure`; after
    /// `Unknown` a retry under the same key is safe. Blocking: no. The outcome may come inside the call, so the caller
    /// holds no lock that the receiver takes.
    fn send(
        &self,
        letter: &Letter<'_>,
        later: &mut Later<'_, Sent, Failure>,
    ) -> Progress<Sent, Failure>;

    /// The client of a claim has taken messages, and acknowledges from now on. An emergency counts once also where it is
    /// not kept for the client.
    ///
    /// Ordering: as all calls on one client. Errors: `Failure`; a retry is safe. Blocking: no. The outcome never comes
    /// inside the call on the caller's own thread: an outcome that is known at once is `Progress::Ended`.
    fn acknowledge(
        &self,
        client: &str,
        claim: ClaimNumber,
        ids: &[u64],
        later: &mut Later<'_, Acknowledged, Failure>,
    ) -> Progress<Acknowledged, Failure>;

    /// Keeps an emergency, which the caller has handed over to every connection of this process: for each client that
    /// may return and is away, and for each that is connected and acknowledges, until it does. To the latter the
    /// emergency is handed over again from time to time.
    ///
    /// Ordering: behind all earlier calls, before all later ones. Errors: none. Blocking: no.
    fn keep_emergency(&self, message: u64, frame: &EncodedFrame);

    /// Does the regular work that is due: messages and keys that have expired, emergencies that are handed over again.
    ///
    /// Ordering: any. Errors: none. Blocking: no.
    fn tick(&self);

    /// The messages in all mailboxes, and the approximate bytes of memory that they take in this process.
    ///
    /// Ordering: any. Errors: none. Blocking: no.
    fn size(&self) -> MailSize;

    /// How many idempotency keys are known, and how many were forgotten before their time to make room.
    ///
    /// Ordering: any. Errors: none. Blocking: no.
    fn keys(&self) -> (usize, u64);
}

/// The connections and the counters of this process.
///
/// An adapter may hold locks of its own while it calls a sink, so a sink does not call the adapter, takes no lock of a
/// client, and does not block.
pub trait MailSink: Send + Sync {
    /// Hands a message over to a connection of this process. A connection that has ended gets nothing.
    ///
    /// Ordering: the messages for one client come one after another, in their order. Errors: none. Blocking: no.
    fn hand_over(&self, address: Address, mail: HandedOver);

    /// A letter of this process has found no connection of its client. `channel` is that of the letter.
    ///
    /// Ordering: any. Errors: none. Blocking: no.
    fn absent(&self, message: u64, channel: &str, instead: Instead);

    /// A message has come further.
    ///
    /// Ordering: any. Errors: none. Blocking: no.
    fn note(&self, message: u64, step: MailStep);

    /// Messages are dropped that the client did not get.
    ///
    /// Ordering: any. Errors: none. Blocking: no.
    fn dropped(&self, client: &str, count: usize, drop: MailDrop);
}

/// A connection, in numbers that only the sink of its process understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Address(pub [u32; 3]);

/// The connection that takes the mail of a client.
#[derive(Clone, Copy, Debug)]
pub struct Opening {
    pub claim: ClaimNumber,
    pub address: Address,
    /// The client acknowledges what is sent to it.
    pub acknowledges: bool,
}

/// What waits for a client, as its welcome tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    pub waiting: usize,
    /// Messages that were dropped and that the client does not know of.
    pub dropped: u64,
}

/// A message to one client.
#[derive(Clone, Copy, Debug)]
pub struct Letter<'a> {
    pub client: &'a str,
    /// The channel that the message names.
    pub channel: &'a str,
    pub stamp: Stamp,
    pub body: UnsealedMail<'a>,
    /// An emergency is the last to make room, and is handed over until it is acknowledged.
    pub priority: Priority,
    /// For how long the letter is kept; zero for one that is not kept.
    pub ttl: Duration,
    pub is_durable: bool,
    /// The idempotency key; counts for this client alone.
    pub key: Option<&'a str>,
}

/// A message on its way to a connection.
#[derive(Clone, Debug)]
pub struct HandedOver {
    pub message: u64,
    pub frame: EncodedFrame,
    pub priority: Priority,
    /// This process has just sent the message; else the message has waited, or comes from another process.
    pub is_new: bool,
    /// A new message waits from now on, until the client acknowledges it.
    pub is_kept: bool,
}

/// What becomes of a letter whose client has no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instead {
    /// It waits from now on.
    Kept,
    /// It is too large for a mailbox, and is reported as dropped.
    Dropped,
    /// It is not to be kept.
    Lost,
}

/// How far a message has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MailStep {
    /// A letter that this process has just sent was handed over to a connection of another process.
    HandedOver,
    /// It waits in one mailbox more, and no other call has told the sink.
    Kept,
    /// It waits in one mailbox less.
    Removed,
    /// One client more has acknowledged it.
    Acknowledged,
}

/// Why messages are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MailDrop {
    /// They were the oldest of a mailbox that is full.
    MailboxFull,
    /// A message is larger than a mailbox.
    TooLarge,
    /// They made room for other mailboxes.
    MailboxesFull,
    Expired,
}

/// The outcome of an acknowledgement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Acknowledged {
    /// How many of the ids were known.
    pub count: usize,
    /// The last id that nothing waited for.
    pub unknown: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MailSize {
    pub messages: usize,
    pub bytes: usize,
}
