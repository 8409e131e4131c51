//! What the processes on one backend share: the clients, and the sinks.

use super::keys::Keys;
use super::limits::MailLimits;
use super::post::Post;
use super::rounds::Rounds;
use crate::base::capacity::shrink_map;
use crate::base::sync::{Mutex, Rank};
use crate::ports::mail::{MailSink, MailSize};
use crate::ports::saved_sessions::SavedSessions;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

/// The number of parts of the map of clients, each with a lock of its own.
const PARTS: usize = 16;

/// How many processes share a backend at most.
const MAX_PROCESSES: usize = 4;

pub(super) struct Backend {
    pub limits: MailLimits,
    pub sessions: Arc<dyn SavedSessions>,
    pub keys: Arc<Keys>,
    /// The clients, by id. A thread holds the lock of one part only.
    parts: [Mutex<HashMap<Arc<str>, Post>>; PARTS],
    /// By the numbers of the processes.
    sinks: [OnceLock<Arc<dyn MailSink>>; MAX_PROCESSES],
    pub rounds: Mutex<Rounds>,
    /// The ids of the latest emergencies.
    pub emergencies: Mutex<VecDeque<u64>>,
    pub messages: AtomicUsize,
    pub bytes: AtomicUsize,
}

impl Backend {
    pub fn new(sessions: Arc<dyn SavedSessions>, limits: MailLimits) -> Self {
        Self {
            limits,
            keys: Arc::new(Keys::new(&limits, Arc::clone(&sessions))),
            sessions,
            parts: std::array::from_fn(|_| Mutex::new(Rank::Mail, HashMap::new())),
            sinks: [const { OnceLock::new() }; MAX_PROCESSES],
            rounds: Mutex::default(),
            emergencies: Mutex::default(),
            messages: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
        }
    }

    /// Sets the sink of a process; the first one stays.
    pub fn attach(&self, number: u16, sink: Arc<dyn MailSink>) {
        if let Some(place) = self.sinks.get(usize::from(number)) {
            place.get_or_init(|| sink);
        }
    }

    /// Calls `tell` with the sink of a process.
    pub fn with_sink(&self, number: u16, tell: impl FnOnce(&dyn MailSink)) {
        let sink = self.sinks.get(usize::from(number));
        if let Some(sink) = sink.and_then(OnceLock::get) {
            tell(&**sink);
        }
    }

    /// Calls `tell` with the sink of each process: the counters of a message are in the process that sent it.
    pub fn with_each_sink(&self, tell: impl Fn(&dyn MailSink)) {
        for sink in self.sinks.iter().filter_map(OnceLock::get) {
            tell(&**sink);
        }
    }

    /// Works on a client, if the client is known. Removes the client when nothing is known of it any more.
    pub fn change<T>(&self, client: &str, work: impl FnOnce(&mut Post) -> T) -> Option<T> {
        let mut posts = self.part(client).lock();
        let post = posts.get_mut(client)?;
        let result = work(post);
        if post.is_idle() {
            posts.remove(client);
            shrink_map(&mut posts);
        }
        Some(result)
    }

    /// As `change`; adds a client that is not known.
    pub fn change_or_add<T>(&self, client: &Arc<str>, work: impl FnOnce(&mut Post) -> T) -> T {
        let mut posts = self.part(client).lock();
        let post = posts.entry(Arc::clone(client)).or_default();
        let result = work(post);
        if post.is_idle() {
            posts.remove(client);
        }
        result
    }

    /// Works on every client.
    pub fn change_all(&self, mut work: impl FnMut(&Arc<str>, &mut Post)) {
        for part in &self.parts {
            for (client, post) in part.lock().iter_mut() {
                work(client, post);
            }
        }
    }

    pub fn size(&self) -> MailSize {
        MailSize {
            messages: self.messages.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }

    fn part(&self, client: &str) -> &Mutex<HashMap<Arc<str>, Post>> {
        let ends = client.bytes().rev().take(4);
        let sum = ends.fold(0_usize, |sum, byte| sum * 31 + usize::from(byte));
        &self.parts[sum % PARTS]
    }
}
