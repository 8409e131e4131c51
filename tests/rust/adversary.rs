//! A broker that does everything that a broker may do: it answers late, from other threads, in odd order where order is
//! not promised, and fails at random. What works on top of it works with a broker that is a network away.

use _tantor::base::completion::{Completion, Later, Progress};
use _tantor::base::priority::Priority;
use _tantor::core::history::{Bytes, StreamPosition};
use _tantor::ports::broker::{
    Broker, BrokerSize, Delivered, Failure, IdempotencyKey, Outgoing, PublicationKind, Query,
    Reading, Receipt, Sink, Stream, View,
};
use _tantor::ports::durability::UsedKey;
use _tantor::ports::stream_log::SavedStream;
use _tantor::settings::channel_kind::ChannelKind;
use _tantor::settings::channel_settings::ChannelSettings;
use _tantor::wire::frame::{EncodedFrame, Unsealed};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

/// How an adversary behaves; rates are in percent.
#[derive(Clone, Copy, Debug)]
pub struct Behaviour {
    pub seed: u64,
    /// Calls that fail, with nothing done.
    pub unavailable: u64,
    /// Publications that are made, and reported as `Unknown`.
    pub unknown: u64,
    /// Deliveries that are lost, and told as a gap before the next one.
    pub lost: u64,
    /// The longest delay of a step.
    pub delay: Duration,
}

impl Behaviour {
    /// Late and in odd order, without failures.
    pub const LATE: Self = Self {
        seed: 0,
        unavailable: 0,
        unknown: 0,
        lost: 0,
        delay: Duration::from_micros(200),
    };
}

/// Threads that carry calls out; the calls on one channel go to one of them.
const WORKERS: usize = 2;

pub type Job = Box<dyn FnOnce(&mut Random) + Send>;

pub struct Adversary {
    inner: Arc<dyn Broker>,
    shared: Arc<Shared>,
}

struct Shared {
    behaviour: Behaviour,
    workers: Vec<mpsc::Sender<Job>>,
    /// Completes outcomes in odd order.
    outcomes: mpsc::Sender<Job>,
    /// Calls on each channel that were not carried out yet.
    pending: Mutex<HashMap<Arc<str>, Arc<AtomicUsize>>>,
}

struct LateStream {
    channel: Arc<str>,
    inner: Arc<dyn Stream>,
    shared: Arc<Shared>,
    pending: Arc<AtomicUsize>,
}

/// A sink that loses deliveries at random.
struct LossySink {
    inner: Arc<dyn Sink>,
    lost: u64,
    state: Mutex<(Random, Option<StreamPosition>)>,
    /// An emergency that comes only with the next delivery, behind its outcome.
    held: Mutex<Option<HeldEmergency>>,
}

struct HeldEmergency {
    position: StreamPosition,
    is_kept: bool,
    priority: Priority,
    kind: PublicationKind,
    frame: EncodedFrame,
}

/// Pseudo-random numbers (xorshift64*), the same for one seed.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % bound.max(1)
    }

    pub fn percent(&mut self, rate: u64) -> bool {
        self.below(100) < rate
    }
}

impl Adversary {
    pub fn new(inner: Arc<dyn Broker>, behaviour: Behaviour) -> Self {
        let numbers = 0..WORKERS as u64;
        let workers = numbers.map(|number| in_order(behaviour.seed + number, behaviour.delay));
        Self {
            inner,
            shared: Arc::new(Shared {
                behaviour,
                workers: workers.collect(),
                outcomes: in_odd_order(behaviour),
                pending: Mutex::default(),
            }),
        }
    }
}

/// Starts a thread that carries jobs out in their order, each after a pause of at most `delay`.
pub fn in_order(seed: u64, delay: Duration) -> mpsc::Sender<Job> {
    let (jobs, queue) = mpsc::channel::<Job>();
    thread::spawn(move || {
        let mut random = Random::new(seed);
        for job in queue {
            pause(&mut random, delay);
            job(&mut random);
        }
    });
    jobs
}

/// Starts a thread that carries jobs out in odd order.
pub fn in_odd_order(behaviour: Behaviour) -> mpsc::Sender<Job> {
    let (jobs, queue) = mpsc::channel();
    thread::spawn(move || complete_in_odd_order(&queue, behaviour));
    jobs
}

fn complete_in_odd_order(queue: &mpsc::Receiver<Job>, behaviour: Behaviour) {
    let mut random = Random::new(!behaviour.seed);
    let mut waiting = Vec::new();
    while let Ok(job) = queue.recv() {
        waiting.push(job);
        pause(&mut random, behaviour.delay);
        waiting.extend(queue.try_iter());
        while !waiting.is_empty() && (waiting.len() > 8 || random.percent(70)) {
            let at = random.below(waiting.len() as u64) as usize;
            waiting.swap_remove(at)(&mut random);
        }
        // nothing may come to push the rest out
        if random.percent(50) || behaviour.delay.is_zero() {
            for job in waiting.drain(..) {
                job(&mut random);
            }
        } else if !waiting.is_empty() {
            while let Ok(job) = queue.recv_timeout(behaviour.delay) {
                waiting.push(job);
            }
            for job in waiting.drain(..).rev() {
                job(&mut random);
            }
        }
    }
}

fn pause(random: &mut Random, most: Duration) {
    let micros = random.below(most.as_micros() as u64 + 1);
    if random.percent(30) {
        thread::sleep(Duration::from_micros(micros));
    }
}

pub fn unavailable() -> Failure {
    Failure::Unavailable("the adversary is away".to_owned())
}

impl Shared {
    /// Has a job carried out behind the earlier jobs on its channel.
    fn enqueue(&self, channel: &str, job: Job) {
        let mut hasher = DefaultHasher::new();
        channel.hash(&mut hasher);
        let worker = hasher.finish() as usize % WORKERS;
        // the workers live as long as this
        let _ = self.workers[worker].send(job);
    }

    fn complete<T: Send + 'static>(
        &self,
        completion: Completion<T, Failure>,
        outcome: Result<T, Failure>,
    ) {
        let job: Job = Box::new(move |_| completion.complete(outcome));
        let _ = self.outcomes.send(job);
    }

    fn pending(&self, channel: &Arc<str>) -> Arc<AtomicUsize> {
        let mut pending = self.pending.lock().unwrap();
        Arc::clone(pending.entry(Arc::clone(channel)).or_default())
    }

    fn is_idle(&self, channel: &str) -> bool {
        let pending = self.pending.lock().unwrap();
        pending
            .get(channel)
            .is_none_or(|pending| pending.load(Ordering::Acquire) == 0)
    }
}

impl Broker for Adversary {
    fn restore(&self, streams: Vec<SavedStream>, used_keys: Vec<UsedKey>) {
        self.inner.restore(streams, used_keys);
    }

    fn attach(
        &self,
        channel: &Arc<str>,
        kind: ChannelKind,
        settings: ChannelSettings,
        sink: &Arc<dyn Sink>,
    ) -> Arc<dyn Stream> {
        let behaviour = self.shared.behaviour;
        let lossy: Arc<dyn Sink> = Arc::new(LossySink {
            inner: Arc::clone(sink),
            lost: behaviour.lost,
            state: Mutex::new((Random::new(behaviour.seed + 99), None)),
            held: Mutex::default(),
        });
        Arc::new(LateStream {
            channel: Arc::clone(channel),
            inner: self.inner.attach(channel, kind, settings, &lossy),
            shared: Arc::clone(&self.shared),
            pending: self.shared.pending(channel),
        })
    }

    fn read(&self, channel: &str, query: Query, later: &mut Later<'_, View, Failure>) -> Reading {
        let (inner, name, completion) = (Arc::clone(&self.inner), channel.to_owned(), later());
        let shared = Arc::clone(&self.shared);
        let job: Job = Box::new(move |_| {
            let reading = inner.read(&name, query, &mut || unreachable!("memory answers at once"));
            if let Reading::Ended(outcome) = reading {
                shared.complete(completion, outcome);
            }
        });
        self.shared.enqueue(channel, job);
        Reading::Begun(None)
    }

    fn detach(&self, channel: &str) -> bool {
        self.shared.is_idle(channel) && self.inner.detach(channel)
    }

    fn remove(&self, channel: &str) {
        self.inner.remove(channel);
    }

    fn expire(&self) {
        self.inner.expire();
    }

    fn forget_keys(&self, client: &Arc<str>) {
        self.inner.forget_keys(client);
    }

    fn size(&self) -> BrokerSize {
        self.inner.size()
    }

    fn used(&self) -> Bytes {
        self.inner.used()
    }

    fn take_evicted(&self) -> Vec<(Arc<str>, usize)> {
        self.inner.take_evicted()
    }

    fn take_emptied(&self) -> Vec<Arc<str>> {
        self.inner.take_emptied()
    }
}

impl LateStream {
    fn enqueue(&self, job: Job) {
        self.pending.fetch_add(1, Ordering::AcqRel);
        let pending = Arc::clone(&self.pending);
        let counted: Job = Box::new(move |random| {
            job(random);
            pending.fetch_sub(1, Ordering::AcqRel);
        });
        self.shared.enqueue(&self.channel, counted);
    }
}

impl Stream for LateStream {
    fn publish(
        &self,
        publication: &Outgoing<'_>,
        later: &mut Later<'_, Receipt, Failure>,
    ) -> Progress<Receipt, Failure> {
        let (priority, kind, is_durable) = (
            publication.priority,
            publication.kind,
            publication.is_durable,
        );
        let body = body_of(publication.body);
        let key = publication.key.map(|key| {
            let client = key.client.map(str::to_owned);
            (client, key.channel.to_owned(), key.key.to_owned())
        });
        let completion = later();
        let (inner, shared) = (Arc::clone(&self.inner), Arc::clone(&self.shared));
        let job: Job = Box::new(move |random| {
            let behaviour = shared.behaviour;
            if random.percent(behaviour.unavailable) {
                shared.complete(completion, Err(unavailable()));
                return;
            }
            let is_unknown = random.percent(behaviour.unknown);
            let key = key.as_ref().map(|(client, channel, key)| IdempotencyKey {
                client: client.as_deref(),
                channel,
                key,
            });
            let outgoing = Outgoing {
                body: Unsealed::new(&body),
                priority,
                kind,
                is_durable,
                key,
            };
            let reported = move |outcome: Result<Receipt, Failure>| {
                if is_unknown && outcome.is_ok() {
                    Err(Failure::Unknown("the reply was lost".to_owned()))
                } else {
                    outcome
                }
            };
            let mut completion = Some(completion);
            let late = Arc::clone(&shared);
            let progress = inner.publish(&outgoing, &mut || {
                let (late, completion) = (Arc::clone(&late), completion.take().unwrap());
                Completion::new(move |outcome| late.complete(completion, reported(outcome)))
            });
            if let (Progress::Ended(outcome), Some(completion)) = (progress, completion) {
                shared.complete(completion, reported(outcome));
            }
        });
        self.enqueue(job);
        Progress::Begun(None)
    }

    fn notify(&self, body: Unsealed<'_>) -> usize {
        let (inner, body) = (Arc::clone(&self.inner), body_of(body));
        self.enqueue(Box::new(move |_| {
            inner.notify(Unsealed::new(&body));
        }));
        0
    }

    fn read(&self, query: Query, later: &mut Later<'_, View, Failure>) -> Reading {
        let (inner, completion) = (Arc::clone(&self.inner), later());
        let shared = Arc::clone(&self.shared);
        self.enqueue(Box::new(move |random| {
            if random.percent(shared.behaviour.unavailable) {
                shared.complete(completion, Err(unavailable()));
                return;
            }
            let reading = inner.read(query, &mut || unreachable!("memory answers at once"));
            if let Reading::Ended(outcome) = reading {
                shared.complete(completion, outcome);
            }
        }));
        Reading::Begun(None)
    }

    fn epoch(&self) -> u64 {
        self.inner.epoch()
    }

    fn saves_first(&self) -> bool {
        self.inner.saves_first()
    }
}

/// The bytes of a body, by way of a frame around it.
fn body_of(body: Unsealed<'_>) -> Vec<u8> {
    let frame = body.seal(None);
    let payload = frame.payload();
    payload[..payload.len() - 1].to_vec()
}

impl Sink for LossySink {
    fn deliver(&self, delivered: &Delivered<'_>) -> usize {
        let mut state = self.state.lock().unwrap();
        let (random, missing) = &mut *state;
        if delivered.kind != PublicationKind::Notice && random.percent(self.lost) {
            *missing = Some(delivered.position);
            return 0;
        }
        if let Some(held) = self.held.lock().unwrap().take() {
            self.inner.deliver(&Delivered {
                position: held.position,
                is_kept: held.is_kept,
                priority: held.priority,
                kind: held.kind,
                frame: &held.frame,
            });
        }
        if let Some(top) = missing.take() {
            self.inner.gap(Some(top));
        }
        let is_emergency = matches!(delivered.kind, PublicationKind::Emergency { .. });
        if is_emergency && self.lost > 0 && random.percent(50) {
            *self.held.lock().unwrap() = Some(HeldEmergency {
                position: delivered.position,
                is_kept: delivered.is_kept,
                priority: delivered.priority,
                kind: delivered.kind,
                frame: delivered.frame.clone(),
            });
            return 0;
        }
        self.inner.deliver(delivered)
    }

    fn gap(&self, top: Option<StreamPosition>) {
        self.inner.gap(top);
    }

    fn subscribers(&self) -> usize {
        self.inner.subscribers()
    }
}
