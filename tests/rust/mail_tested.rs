//! Implementations of the port for mail to test, and what their sinks have heard.

use crate::adversarial_mail::AdversarialMail;
use crate::adversary::Behaviour;
use crate::contract::outcome;
use crate::peer::eventually;
use _tantor::adapters::memory_mail::{MailLimits, MemoryMail};
use _tantor::adapters::memory_store::MemoryStore;
use _tantor::base::clock::WallTime;
use _tantor::base::priority::Priority;
use _tantor::ports::broker::Failure;
use _tantor::ports::calls::Sent;
use _tantor::ports::claim::ClaimNumber;
use _tantor::ports::mail::{
    Acknowledged, Address, Backlog, HandedOver, Instead, Letter, Mail, MailDrop, MailSink,
    MailStep, Opening,
};
use _tantor::settings::config::Config;
use _tantor::wire::frame::{EncodedFrame, UnsealedMail};
use _tantor::wire::messages::Stamp;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

pub const HOUR: Duration = Duration::from_secs(3600);
const SPLIT: UnsealedMail<'static> = UnsealedMail::new(b"{\"n\":1}", Some(6));

/// What the sink of one process has heard.
#[derive(Default)]
pub struct Recorder {
    pub handed_over: Mutex<Vec<(Address, u64, EncodedFrame)>>,
    pub absent: Mutex<Vec<(u64, Instead)>>,
    pub steps: Mutex<Vec<(u64, MailStep)>>,
    pub dropped: Mutex<Vec<(usize, MailDrop)>>,
}

impl MailSink for Recorder {
    fn hand_over(&self, address: Address, mail: HandedOver) {
        let mut handed_over = self.handed_over.lock().unwrap();
        handed_over.push((address, mail.message, mail.frame));
    }

    fn absent(&self, message: u64, _: &str, instead: Instead) {
        self.absent.lock().unwrap().push((message, instead));
    }

    fn note(&self, message: u64, step: MailStep) {
        self.steps.lock().unwrap().push((message, step));
    }

    fn dropped(&self, _: &str, count: usize, drop: MailDrop) {
        self.dropped.lock().unwrap().push((count, drop));
    }
}

impl Recorder {
    /// The messages that an address got.
    pub fn at(&self, number: u32) -> Vec<u64> {
        let handed_over = self.handed_over.lock().unwrap();
        let of_address = handed_over.iter().filter(|got| got.0 == address(number));
        of_address.map(|got| got.1).collect()
    }

    pub fn steps(&self, wanted: MailStep) -> Vec<u64> {
        let steps = self.steps.lock().unwrap();
        let wanted = steps.iter().filter(|(_, step)| *step == wanted);
        wanted.map(|(message, _)| *message).collect()
    }
}

/// One process.
pub struct Process {
    pub mail: Arc<dyn Mail>,
    pub sink: Arc<Recorder>,
    pub is_idle: Box<dyn Fn() -> bool + Send + Sync>,
    backlog: Box<dyn Fn(&str) -> Backlog + Send + Sync>,
}

/// An implementation to test: two processes on one backend.
pub struct Tested {
    pub name: String,
    pub one: Process,
    pub other: Process,
}

impl Process {
    pub fn memory(mail: MemoryMail) -> Self {
        let mail = Arc::new(mail);
        let same = Arc::clone(&mail);
        let backlog = Box::new(move |client: &str| same.backlog(client));
        Self::of(mail, Box::new(|| true), backlog)
    }

    pub fn adversary(mail: MemoryMail, behaviour: Behaviour) -> Self {
        let mail = Arc::new(AdversarialMail::new(mail, behaviour));
        let (same, backlog_of) = (Arc::clone(&mail), Arc::clone(&mail));
        let backlog = Box::new(move |client: &str| backlog_of.backlog(client));
        Self::of(mail, Box::new(move || same.is_idle()), backlog)
    }

    fn of(
        mail: Arc<dyn Mail>,
        is_idle: Box<dyn Fn() -> bool + Send + Sync>,
        backlog: Box<dyn Fn(&str) -> Backlog + Send + Sync>,
    ) -> Self {
        let sink = Arc::new(Recorder::default());
        mail.attach(Arc::clone(&sink) as Arc<dyn MailSink>);
        Self {
            mail,
            sink,
            is_idle,
            backlog,
        }
    }

    /// Waits until everything has taken effect, and the sink has heard of it.
    pub fn settle(&self) {
        eventually("everything has taken effect", || (self.is_idle)());
    }

    pub fn open(&self, client: &str, claim: u64, acknowledges: bool) -> Option<Backlog> {
        let opening = Opening {
            claim: claim_number(claim),
            address: address(claim as u32),
            acknowledges,
        };
        self.mail.open(&Arc::from(client), opening)
    }

    pub fn close(&self, client: &str, claim: u64) {
        self.mail
            .close(&Arc::from(client), claim_number(claim), Vec::new());
    }

    pub fn backlog(&self, client: &str) -> Backlog {
        self.settle();
        (self.backlog)(client)
    }

    pub fn acknowledge(&self, client: &str, claim: u64, ids: &[u64]) -> Acknowledged {
        let claim = claim_number(claim);
        outcome(|later| self.mail.acknowledge(client, claim, ids, later)).unwrap()
    }

    pub fn send(&self, letter: &Letter<'_>) -> Result<Sent, Failure> {
        outcome(|later| self.mail.send(letter, later))
    }
}

pub fn memory(limits: MailLimits) -> MemoryMail {
    MemoryMail::new(Arc::new(MemoryStore), limits)
}

pub fn limits() -> MailLimits {
    MailLimits {
        mailbox_size: 10_000,
        ..MailLimits::of_settings(&Config::default())
    }
}

pub fn tested_with(limits: MailLimits) -> Vec<Tested> {
    let late = |seed| Behaviour {
        seed,
        ..Behaviour::LATE
    };
    let (plain, far) = (memory(limits), memory(limits));
    vec![
        Tested {
            name: "memory".to_owned(),
            other: Process::memory(plain.beside(1)),
            one: Process::memory(plain),
        },
        Tested {
            name: "adversary".to_owned(),
            other: Process::adversary(far.beside(1), late(3)),
            one: Process::adversary(far, late(5)),
        },
    ]
}

pub fn tested() -> Vec<Tested> {
    tested_with(limits())
}

pub fn claim_number(number: u64) -> ClaimNumber {
    (1..number).fold(ClaimNumber::FIRST, |claim, _| claim.next())
}

pub fn address(number: u32) -> Address {
    Address([0, number, number])
}

pub fn letter(client: &str, id: u64) -> Letter<'_> {
    let at = WallTime::now();
    Letter {
        client,
        channel: "news",
        stamp: Stamp { id, at },
        body: SPLIT,
        priority: Priority::Normal,
        ttl: HOUR,
        is_durable: false,
        key: None,
    }
}

pub fn send_all(process: &Process, client: &str, ids: impl Iterator<Item = u64>) {
    send_counted(process, client, ids, &AtomicU64::new(0));
}

pub fn send_counted(
    process: &Process,
    client: &str,
    ids: impl Iterator<Item = u64>,
    sent: &AtomicU64,
) {
    for id in ids {
        assert_eq!(process.send(&letter(client, id)).unwrap().stamp.id, id);
        sent.fetch_add(1, Ordering::Release);
    }
}

/// Calls `act` with 1, 2, 3, … whenever some more were sent, until `total` were; returns the last number.
pub fn while_sending(sent: &AtomicU64, total: u64, mut act: impl FnMut(u64)) -> u64 {
    let mut last = 0;
    loop {
        let now = sent.load(Ordering::Acquire);
        if now == total {
            return last;
        }
        if now >= last * 8 {
            last += 1;
            act(last);
        }
        thread::yield_now();
    }
}

pub fn ids(range: std::ops::Range<u64>) -> Vec<u64> {
    range.collect()
}
