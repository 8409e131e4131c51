//! Sessions that do everything that an adapter may do: they answer late, from other threads, in odd order where order is
//! not promised, and fail at random. What works on top of them works with sessions that are a network away.

use crate::adversary::{Behaviour, Job, Random, in_odd_order, in_order, unavailable};
use _tantor::base::completion::{Abandoned, Completion, Later, Progress};
use _tantor::core::resume_secrets::Secret;
use _tantor::ports::broker::Failure;
use _tantor::ports::claim::ClaimNumber;
use _tantor::ports::saved_sessions::SavedClient;
use _tantor::ports::sessions::{
    Change, ClaimFailure, ClaimRequest, Claimed, SessionSink, SessionState, Sessions,
};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, mpsc};

/// Threads that carry calls out; the calls for one client go to one of them.
const WORKERS: usize = 2;

pub struct LateSessions {
    inner: Arc<dyn Sessions>,
    behaviour: Behaviour,
    workers: Vec<mpsc::Sender<Job>>,
    /// Completes outcomes in odd order.
    outcomes: mpsc::Sender<Job>,
}

/// A sink that hears some claims twice.
struct RepeatingSink {
    inner: Arc<dyn SessionSink>,
    random: Mutex<Random>,
}

impl LateSessions {
    /// `inner` answers at once, and keeps the state of clients.
    pub fn new(inner: Arc<dyn Sessions>, behaviour: Behaviour) -> Self {
        let seeds = (0..WORKERS as u64).map(|number| behaviour.seed + 50 + number);
        Self {
            inner,
            behaviour,
            workers: seeds.map(|seed| in_order(seed, behaviour.delay)).collect(),
            outcomes: in_odd_order(behaviour),
        }
    }

    /// Waits until all calls so far are carried out.
    pub fn drain(&self) {
        for worker in &self.workers {
            let (tell, told) = mpsc::channel();
            worker
                .send(Box::new(move |_| tell.send(()).unwrap()))
                .unwrap();
            told.recv().unwrap();
        }
    }

    /// Has a call carried out behind the earlier calls for this client.
    fn enqueue(
        &self,
        client: &Arc<str>,
        call: impl FnOnce(&dyn Sessions, &Arc<str>, &mut Random) + Send + 'static,
    ) {
        let mut hasher = DefaultHasher::new();
        client.hash(&mut hasher);
        let worker = hasher.finish() as usize % WORKERS;
        let (inner, client) = (Arc::clone(&self.inner), Arc::clone(client));
        let job: Job = Box::new(move |random| call(&*inner, &client, random));
        // the workers live as long as this
        let _ = self.workers[worker].send(job);
    }

    /// Has a call carried out that has an outcome, or has it fail.
    fn ask<T: Send + 'static, E: Abandoned + Send + 'static>(
        &self,
        client: &Arc<str>,
        completion: Completion<T, E>,
        failed: fn(Failure) -> E,
        call: impl FnOnce(&dyn Sessions, &Arc<str>) -> Progress<T, E> + Send + 'static,
    ) {
        let (behaviour, outcomes) = (self.behaviour, self.outcomes.clone());
        self.enqueue(client, move |inner, client, random| {
            let outcome = if random.percent(behaviour.unavailable) {
                Err(failed(unavailable()))
            } else {
                let Progress::Ended(outcome) = call(inner, client) else {
                    panic!("memory answers at once");
                };
                if outcome.is_ok() && random.percent(behaviour.unknown) {
                    Err(failed(Failure::Unknown("the reply was lost".to_owned())))
                } else {
                    outcome
                }
            };
            let job: Job = Box::new(move |_| completion.complete(outcome));
            let _ = outcomes.send(job);
        });
    }
}

impl Sessions for LateSessions {
    fn attach(&self, sink: Arc<dyn SessionSink>) {
        self.inner.attach(Arc::new(RepeatingSink {
            inner: sink,
            random: Mutex::new(Random::new(self.behaviour.seed + 60)),
        }));
    }

    fn restore(&self, clients: &[SavedClient], memberships: &HashMap<Arc<str>, Vec<Arc<str>>>) {
        self.inner.restore(clients, memberships);
    }

    fn claim(
        &self,
        request: &ClaimRequest<'_>,
        later: &mut Later<'_, Claimed, ClaimFailure>,
    ) -> Progress<Claimed, ClaimFailure> {
        let (presented, since) = (request.presented, request.since);
        self.ask(
            request.client,
            later(),
            ClaimFailure::Failed,
            move |inner, client| {
                let request = ClaimRequest {
                    client,
                    presented,
                    since,
                };
                inner.claim(&request, &mut || unreachable!("memory answers at once"))
            },
        );
        Progress::Begun(None)
    }

    fn confirm(&self, client: &Arc<str>, claim: ClaimNumber) {
        self.enqueue(client, move |inner, client, _| inner.confirm(client, claim));
    }

    fn release(&self, client: &Arc<str>, claim: ClaimNumber, state: &dyn Fn() -> SessionState) {
        let state = state();
        self.enqueue(client, move |inner, client, _| {
            inner.release(client, claim, &|| state.clone());
        });
    }

    fn end(&self, client: &Arc<str>, claim: Option<ClaimNumber>) {
        self.enqueue(client, move |inner, client, _| inner.end(client, claim));
    }

    fn save(&self, client: &Arc<str>, claim: Option<ClaimNumber>, change: Change<'_>) {
        match change {
            Change::UserData(json) => {
                let json = json.clone();
                self.enqueue(client, move |inner, client, _| {
                    inner.save(client, claim, Change::UserData(&json));
                });
            }
            Change::Joined(channel) => {
                let channel = Arc::clone(channel);
                self.enqueue(client, move |inner, client, _| {
                    inner.save(client, claim, Change::Joined(&channel));
                });
            }
            Change::Left(channel) => {
                let channel = channel.to_owned();
                self.enqueue(client, move |inner, client, _| {
                    inner.save(client, claim, Change::Left(&channel));
                });
            }
            Change::State { make } => {
                let state = make();
                self.enqueue(client, move |inner, client, _| {
                    let make = &|| state.clone();
                    inner.save(client, claim, Change::State { make });
                });
            }
        }
    }

    fn token(
        &self,
        client: &Arc<str>,
        state: &dyn Fn() -> SessionState,
        later: &mut Later<'_, Secret, Failure>,
    ) -> Progress<Secret, Failure> {
        let state = state();
        self.ask(
            client,
            later(),
            |failure| failure,
            move |inner, client| {
                inner.token(client, &|| state.clone(), &mut || {
                    unreachable!("memory answers at once")
                })
            },
        );
        Progress::Begun(None)
    }
}

impl SessionSink for RepeatingSink {
    fn displaced(&self, client: &Arc<str>, claim: ClaimNumber) {
        self.inner.displaced(client, claim);
        if self.random.lock().unwrap().percent(30) {
            self.inner.displaced(client, claim);
        }
    }
}
