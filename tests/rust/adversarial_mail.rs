//! Mail that does everything that an implementation may do: it takes effect late and on another thread, hands messages
//! over later still, sometimes twice, and fails at random.

use crate::adversary::{Behaviour, Job, Random, in_odd_order, in_order};
use _tantor::adapters::memory_mail::MemoryMail;
use _tantor::base::completion::{Completion, Later, Progress};
use _tantor::core::outbound::Unwritten;
use _tantor::ports::broker::Failure;
use _tantor::ports::calls::Sent;
use _tantor::ports::claim::ClaimNumber;
use _tantor::ports::durability::UsedKey;
use _tantor::ports::mail::{
    Acknowledged, Address, Backlog, HandedOver, Instead, Letter, Mail, MailDrop, MailSink,
    MailSize, MailStep, Opening,
};
use _tantor::ports::saved_sessions::SavedMail;
use _tantor::wire::frame::{EncodedFrame, UnsealedMail};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};

/// A `MemoryMail` that is slow, far away, and not always there. `Behaviour::lost` is the rate of messages that are handed
/// over twice.
pub struct AdversarialMail {
    inner: Arc<MemoryMail>,
    lines: Arc<Lines>,
}

/// The threads that carry things out.
struct Lines {
    behaviour: Behaviour,
    /// Calls, in their order.
    calls: mpsc::Sender<Job>,
    /// Calls of the sink, in their order.
    sink: mpsc::Sender<Job>,
    /// Outcomes, in odd order.
    outcomes: mpsc::Sender<Job>,
    /// Jobs that were not carried out yet.
    pending: AtomicUsize,
}

struct LateSink {
    inner: Arc<dyn MailSink>,
    lines: Arc<Lines>,
}

impl AdversarialMail {
    pub fn new(inner: MemoryMail, behaviour: Behaviour) -> Self {
        let in_order = |number| in_order(behaviour.seed + number, behaviour.delay);
        Self {
            inner: Arc::new(inner),
            lines: Arc::new(Lines {
                behaviour,
                calls: in_order(21),
                sink: in_order(22),
                outcomes: in_odd_order(behaviour),
                pending: AtomicUsize::new(0),
            }),
        }
    }

    /// What waits for a client, by the calls that have taken effect.
    pub fn backlog(&self, client: &str) -> Backlog {
        self.inner.backlog(client)
    }

    /// True when every call has taken effect, its outcome is told, and the sink has heard of everything.
    pub fn is_idle(&self) -> bool {
        self.lines.pending.load(Ordering::Acquire) == 0
    }

    fn enqueue(&self, act: impl FnOnce(&MemoryMail, &mut Random) + Send + 'static) {
        let inner = Arc::clone(&self.inner);
        let job = move |random: &mut Random| act(&inner, random);
        self.lines.give(&self.lines.calls, job);
    }

    /// Carries out a call with an outcome, unless it fails before, and perhaps reports its outcome as unknown.
    fn answer<T: Send + 'static>(
        &self,
        completion: Completion<T, Failure>,
        call: impl FnOnce(&MemoryMail, &mut Later<'_, T, Failure>) -> Progress<T, Failure>
        + Send
        + 'static,
    ) -> Progress<T, Failure> {
        let lines = Arc::clone(&self.lines);
        self.enqueue(move |inner, random| {
            let behaviour = lines.behaviour;
            if random.percent(behaviour.unavailable) {
                let failure = Failure::Unavailable("the adversary is away".to_owned());
                lines.complete(completion, Err(failure));
                return;
            }
            let is_unknown = random.percent(behaviour.unknown);
            let reported = move |outcome: Result<T, Failure>| {
                if is_unknown && outcome.is_ok() {
                    Err(Failure::Unknown("the reply was lost".to_owned()))
                } else {
                    outcome
                }
            };
            let mut completion = Some(completion);
            let late = Arc::clone(&lines);
            let progress = call(inner, &mut || {
                let (late, completion) = (Arc::clone(&late), completion.take().unwrap());
                late.pending.fetch_add(1, Ordering::AcqRel);
                Completion::new(move |outcome| {
                    late.complete(completion, reported(outcome));
                    late.pending.fetch_sub(1, Ordering::AcqRel);
                })
            });
            if let (Progress::Ended(outcome), Some(completion)) = (progress, completion) {
                lines.complete(completion, reported(outcome));
            }
        });
        Progress::Begun(None)
    }
}

impl Lines {
    fn give(
        self: &Arc<Self>,
        line: &mpsc::Sender<Job>,
        job: impl FnOnce(&mut Random) + Send + 'static,
    ) {
        self.pending.fetch_add(1, Ordering::AcqRel);
        let lines = Arc::downgrade(self);
        let counted: Job = Box::new(move |random| {
            job(random);
            if let Some(lines) = lines.upgrade() {
                lines.pending.fetch_sub(1, Ordering::AcqRel);
            }
        });
        // the threads live as long as this
        let _ = line.send(counted);
    }

    fn complete<T: Send + 'static>(
        self: &Arc<Self>,
        completion: Completion<T, Failure>,
        outcome: Result<T, Failure>,
    ) {
        self.give(&self.outcomes, move |_| completion.complete(outcome));
    }
}

impl Mail for AdversarialMail {
    fn attach(&self, sink: Arc<dyn MailSink>) {
        self.inner.attach(Arc::new(LateSink {
            inner: sink,
            lines: Arc::clone(&self.lines),
        }));
    }

    fn restore(&self, mail: Vec<SavedMail>, used_keys: &[UsedKey]) {
        self.inner.restore(mail, used_keys);
    }

    fn open(&self, client: &Arc<str>, opening: Opening) -> Option<Backlog> {
        let client = Arc::clone(client);
        self.enqueue(move |inner, _| inner.open_untold(&client, opening));
        None
    }

    fn confirm(&self, client: &str, claim: ClaimNumber) {
        let client = client.to_owned();
        self.enqueue(move |inner, _| inner.confirm(&client, claim));
    }

    fn close(&self, client: &Arc<str>, claim: ClaimNumber, unwritten: Vec<Unwritten>) {
        let client = Arc::clone(client);
        self.enqueue(move |inner, _| inner.close(&client, claim, unwritten));
    }

    fn expect(&self, client: &Arc<str>) {
        let client = Arc::clone(client);
        self.enqueue(move |inner, _| inner.expect(&client));
    }

    fn forget(&self, client: &str, claim: Option<ClaimNumber>) {
        let client = client.to_owned();
        self.enqueue(move |inner, _| inner.forget(&client, claim));
    }

    fn send(
        &self,
        letter: &Letter<'_>,
        later: &mut Later<'_, Sent, Failure>,
    ) -> Progress<Sent, Failure> {
        let Letter {
            stamp,
            priority,
            ttl,
            is_durable,
            ..
        } = *letter;
        let (message, ack_at) = letter.body.parts();
        let message = message.to_vec();
        let (client, channel) = (letter.client.to_owned(), letter.channel.to_owned());
        let key = letter.key.map(str::to_owned);
        self.answer(later(), move |inner, later| {
            let letter = Letter {
                client: &client,
                channel: &channel,
                stamp,
                body: UnsealedMail::new(&message, ack_at),
                priority,
                ttl,
                is_durable,
                key: key.as_deref(),
            };
            inner.send(&letter, later)
        })
    }

    fn acknowledge(
        &self,
        client: &str,
        claim: ClaimNumber,
        ids: &[u64],
        later: &mut Later<'_, Acknowledged, Failure>,
    ) -> Progress<Acknowledged, Failure> {
        let (client, ids) = (client.to_owned(), ids.to_vec());
        self.answer(later(), move |inner, later| {
            inner.acknowledge(&client, claim, &ids, later)
        })
    }

    fn keep_emergency(&self, message: u64, frame: &EncodedFrame) {
        let frame = frame.clone();
        self.enqueue(move |inner, _| inner.keep_emergency(message, &frame));
    }

    fn tick(&self) {
        self.enqueue(|inner, _| inner.tick());
    }

    fn size(&self) -> MailSize {
        self.inner.size()
    }

    fn keys(&self) -> (usize, u64) {
        self.inner.keys()
    }
}

impl LateSink {
    fn enqueue(&self, tell: impl FnOnce(&dyn MailSink, &mut Random) + Send + 'static) {
        let inner = Arc::clone(&self.inner);
        let job = move |random: &mut Random| tell(&*inner, random);
        self.lines.give(&self.lines.sink, job);
    }
}

impl MailSink for LateSink {
    fn hand_over(&self, address: Address, mail: HandedOver) {
        let twice = self.lines.behaviour.lost;
        self.enqueue(move |inner, random| {
            let again = HandedOver {
                is_new: false,
                is_kept: false,
                ..mail.clone()
            };
            inner.hand_over(address, mail);
            if random.percent(twice) {
                inner.hand_over(address, again);
            }
        });
    }

    fn absent(&self, message: u64, channel: &str, instead: Instead) {
        let channel = channel.to_owned();
        self.enqueue(move |inner, _| inner.absent(message, &channel, instead));
    }

    fn note(&self, message: u64, step: MailStep) {
        self.enqueue(move |inner, _| inner.note(message, step));
    }

    fn dropped(&self, client: &str, count: usize, drop: MailDrop) {
        let client = client.to_owned();
        self.enqueue(move |inner, _| inner.dropped(&client, count, drop));
    }
}
