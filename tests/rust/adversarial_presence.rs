//! A presence that does everything that a presence may do: it answers late, from other threads, in odd order where order
//! is not promised, fails at random, and loses the members of its process now and then.

use crate::adversary::{Job, Random, in_order};
use _tantor::adapters::memory_presence::MemoryPresence;
use _tantor::base::completion::{Abandoned, Completion, Later, Progress};
use _tantor::ports::broker::Failure;
use _tantor::ports::claim::ClaimNumber;
use _tantor::ports::presence::{
    Arrived, ChannelPresence, Cursor, Departed, Presence, PresencePage, PresenceSink, Total,
};
use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

/// How an adversarial presence behaves; rates are in percent.
#[derive(Clone, Copy, Debug)]
pub struct PresenceBehaviour {
    pub seed: u64,
    /// Calls that fail, with nothing done.
    pub unavailable: u64,
    /// Joins that are reported as `Unknown`; half of them are carried out.
    pub unknown: u64,
    /// Joins behind which the members of the process are lost.
    pub lost: u64,
    /// The longest delay of a step.
    pub delay: Duration,
}

impl PresenceBehaviour {
    /// Late and in odd order, without failures.
    pub const LATE: Self = Self {
        seed: 0,
        unavailable: 0,
        unknown: 0,
        lost: 0,
        delay: Duration::from_micros(200),
    };
}

/// Threads that carry calls out, and as many that report outcomes. The calls for one client on one channel go to one of
/// them.
const WORKERS: usize = 3;

/// One process in front of a backend.
pub struct AdversarialPresence(Arc<Shared>);

struct Shared {
    behaviour: PresenceBehaviour,
    backend: Arc<MemoryPresence>,
    sink: Mutex<Option<Arc<dyn PresenceSink>>>,
    /// False once no member may be lost any more. Held while members are lost.
    loses: Mutex<bool>,
    /// Clients that were joined and not taken off since, by channel.
    own: Mutex<HashMap<Arc<str>, HashSet<Arc<str>>>>,
    workers: Vec<mpsc::Sender<Job>>,
    reporters: Vec<mpsc::Sender<Job>>,
}

struct LateChannel {
    name: Arc<str>,
    inner: Arc<dyn ChannelPresence>,
    shared: Arc<Shared>,
}

impl AdversarialPresence {
    pub fn new(backend: Arc<MemoryPresence>, behaviour: PresenceBehaviour) -> Self {
        let threads = |first: u64| {
            let seeds = (0..WORKERS as u64).map(|number| behaviour.seed * 31 + first + number);
            seeds.map(|seed| in_order(seed, behaviour.delay)).collect()
        };
        Self(Arc::new(Shared {
            behaviour,
            backend,
            sink: Mutex::default(),
            loses: Mutex::new(true),
            own: Mutex::default(),
            workers: threads(1),
            reporters: threads(11),
        }))
    }

    /// Loses no more members from now on.
    pub fn be_safe(&self) {
        *self.0.loses.lock().unwrap() = false;
    }
}

impl Presence for AdversarialPresence {
    fn attach(&self, sink: &Arc<dyn PresenceSink>) {
        *self.0.sink.lock().unwrap() = Some(Arc::clone(sink));
    }

    fn open(&self, channel: &Arc<str>) -> Arc<dyn ChannelPresence> {
        Arc::new(LateChannel {
            name: Arc::clone(channel),
            inner: self.0.backend.open(channel),
            shared: Arc::clone(&self.0),
        })
    }

    fn close(&self, channel: &str) {
        self.0.backend.close(channel);
    }

    fn remove(&self, channel: &str) {
        self.0.backend.remove(channel);
    }
}

impl Shared {
    /// Loses all members that this process has joined.
    fn lose_all(&self) {
        let loses = self.loses.lock().unwrap();
        if !*loses {
            return;
        }
        let own = self.own.lock().unwrap().clone();
        let newest = (0..1000).fold(ClaimNumber::FIRST, |claim, _| claim.next());
        for (name, clients) in own {
            let channel = self.backend.open(&name);
            for client in clients {
                ended(channel.leave(&client, Some(newest), &mut inline));
            }
        }
        if let Some(sink) = &*self.sink.lock().unwrap() {
            sink.lease_lost();
        }
    }
}

impl LateChannel {
    /// Has `call` carried out and its outcome reported, each behind the earlier ones for the same client.
    fn later<T: Send + 'static>(
        &self,
        client: &str,
        completion: Completion<T, Failure>,
        call: impl FnOnce(&dyn ChannelPresence, &Shared, &mut Random) -> Result<T, Failure>
        + Send
        + 'static,
    ) -> Progress<T, Failure> {
        let mut hasher = DefaultHasher::new();
        (&*self.name, client).hash(&mut hasher);
        let hash = hasher.finish() as usize;
        let (inner, shared) = (Arc::clone(&self.inner), Arc::clone(&self.shared));
        let job: Job = Box::new(move |random| {
            let outcome = call(&*inner, &shared, random);
            let report: Job = Box::new(move |_| completion.complete(outcome));
            let _ = shared.reporters[hash / WORKERS % WORKERS].send(report);
        });
        // the workers live as long as this
        let _ = self.shared.workers[hash % WORKERS].send(job);
        Progress::Begun(None)
    }
}

impl ChannelPresence for LateChannel {
    fn join(
        &self,
        client: &Arc<str>,
        claim: Option<ClaimNumber>,
        later: &mut Later<'_, Arrived, Failure>,
    ) -> Progress<Arrived, Failure> {
        {
            let mut own = self.shared.own.lock().unwrap();
            let own = own.entry(Arc::clone(&self.name)).or_default();
            own.insert(Arc::clone(client));
        }
        let id = Arc::clone(client);
        self.later(client, later(), move |inner, shared, random| {
            let behaviour = shared.behaviour;
            if random.percent(behaviour.unavailable) {
                return Err(unavailable());
            }
            let is_unknown = random.percent(behaviour.unknown);
            if is_unknown && random.percent(50) {
                return Err(unknown());
            }
            let arrived = ended(inner.join(&id, claim, &mut inline));
            if random.percent(behaviour.lost) {
                shared.lose_all();
            }
            if is_unknown {
                Err(unknown())
            } else {
                Ok(arrived)
            }
        })
    }

    fn leave(
        &self,
        client: &Arc<str>,
        claim: Option<ClaimNumber>,
        later: &mut Later<'_, Departed, Failure>,
    ) -> Progress<Departed, Failure> {
        {
            let mut own = self.shared.own.lock().unwrap();
            if let Some(own) = own.get_mut(&self.name) {
                own.remove(client);
            }
        }
        let id = Arc::clone(client);
        self.later(client, later(), move |inner, _, _| {
            Ok(ended(inner.leave(&id, claim, &mut inline)))
        })
    }

    fn count(&self, later: &mut Later<'_, Total, Failure>) -> Progress<Total, Failure> {
        self.later("", later(), |inner, shared, random| {
            if random.percent(shared.behaviour.unavailable) {
                return Err(unavailable());
            }
            Ok(ended(inner.count(&mut inline)))
        })
    }

    fn page(
        &self,
        after: Option<Cursor>,
        limit: usize,
        later: &mut Later<'_, PresencePage, Failure>,
    ) -> Progress<PresencePage, Failure> {
        self.later("", later(), move |inner, shared, random| {
            if random.percent(shared.behaviour.unavailable) {
                return Err(unavailable());
            }
            Ok(ended(inner.page(after, limit, &mut inline)))
        })
    }

    fn own(&self) -> Vec<Arc<str>> {
        let own = self.shared.own.lock().unwrap();
        let own = own.get(&self.name).into_iter().flatten();
        own.cloned().collect()
    }
}

fn inline<T, E: Abandoned>() -> Completion<T, E> {
    unreachable!("memory answers at once")
}

fn ended<T>(progress: Progress<T, Failure>) -> T {
    match progress {
        Progress::Ended(outcome) => outcome.unwrap(),
        Progress::Begun(_) => unreachable!("memory answers at once"),
    }
}

fn unavailable() -> Failure {
    Failure::Unavailable("presence is away".to_owned())
}

fn unknown() -> Failure {
    Failure::Unknown("the reply of presence was lost".to_owned())
}
