//! What all processes share: the records of sessions, the state that others need, and the store.

use super::records::{Record, Records};
use crate::base::clock::WallTime;
use crate::base::sync::{Mutex, Rank};
use crate::core::resume_secrets::Secrets;
use crate::ports::claim::ClaimNumber;
use crate::ports::saved_sessions::{SavedClient, SavedSessions, SessionChange};
use crate::ports::sessions::{
    ClaimFailure, ClaimRequest, Claimed, Origin, Presented, SessionSink, SessionState,
};
use crate::wire::frame::EncodedFrame;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

pub struct Backend {
    store: Arc<dyn SavedSessions>,
    /// Zero where the sessions of new clients are not kept.
    resume_ttl: Duration,
    /// How many processes there are.
    processes: AtomicUsize,
    pub sinks: Mutex<HashMap<usize, Arc<dyn SessionSink>>>,
    pub sessions: Mutex<AllSessions>,
}

#[derive(Default)]
pub struct AllSessions {
    pub records: Records,
    /// What another process, or the store, needs of a session besides its record. Empty while there is neither.
    /// In boxes, because a growing map has much unused room.
    pub kept: HashMap<Arc<str>, Box<Kept>>,
    /// The latest claim on any client: the numbers of an ended session are not used again.
    last_claim: Option<ClaimNumber>,
}

pub struct Kept {
    pub state: SessionState,
    /// The process that made the latest claim, or the session.
    pub process: usize,
    /// The latest claim was not released.
    pub is_held: bool,
}

impl Record {
    fn new() -> Self {
        Self {
            secrets: Secrets::generate(),
            claim: None,
        }
    }
}

impl AllSessions {
    /// The session of a client; makes one if there is none. True for a new one.
    pub fn get_or_add(&mut self, client: &Arc<str>) -> (Record, bool) {
        if let Some(record) = self.records.get(client) {
            return (record, false);
        }
        let record = Record::new();
        self.records.set(client, record);
        (record, true)
    }

    /// The session of a client with its state, unless a newer claim than `claim` has it.
    pub fn current(
        &mut self,
        client: &Arc<str>,
        claim: Option<ClaimNumber>,
    ) -> Option<(Record, &mut Kept)> {
        let record = self.records.get(client)?;
        let kept = self.kept.get_mut(client)?;
        (claim >= record.claim).then_some((record, kept))
    }

    fn claim_of_no_session(&mut self) -> Claimed {
        Claimed {
            claim: self.next_claim(),
            secret: None,
            origin: Origin::New,
            state: None,
        }
    }

    fn next_claim(&mut self) -> ClaimNumber {
        let next = self
            .last_claim
            .map_or(ClaimNumber::FIRST, ClaimNumber::next);
        self.last_claim = Some(next);
        next
    }
}

impl Backend {
    pub fn new(store: Arc<dyn SavedSessions>, resume_ttl: Duration) -> Self {
        Self {
            store,
            resume_ttl,
            processes: AtomicUsize::new(1),
            sinks: Mutex::default(),
            sessions: Mutex::new(Rank::Sessions, AllSessions::default()),
        }
    }

    /// The number of one more process.
    pub fn add_process(&self) -> usize {
        self.processes.fetch_add(1, Ordering::Relaxed)
    }

    /// True if something besides the process that has a client needs the state of the client.
    pub fn keeps_state(&self) -> bool {
        self.is_shared() || self.store.is_durable()
    }

    /// Claims a client. Returns the process that is to hear of this, besides the claim.
    pub fn claim(
        &self,
        process: usize,
        request: &ClaimRequest<'_>,
    ) -> Result<(Claimed, Option<usize>), ClaimFailure> {
        let client = request.client;
        let mut sessions = self.sessions.lock();
        let sessions = &mut *sessions;
        let (mut record, is_new) = match request.presented {
            Presented::New if self.resume_ttl.is_zero() => {
                return Ok((sessions.claim_of_no_session(), None));
            }
            Presented::New => (Record::new(), true),
            Presented::Vouched => sessions.get_or_add(client),
            Presented::Secret(_) => {
                let record = sessions.records.get(client);
                (record.ok_or(ClaimFailure::NoSession)?, false)
            }
        };
        match request.presented {
            Presented::Secret(secret) if !record.secrets.take(&secret) => {
                return Err(ClaimFailure::Used);
            }
            Presented::Vouched if !is_new => record.secrets.take_latest(),
            _ => {}
        }
        let claim = sessions.next_claim();
        record.claim = Some(claim);
        sessions.records.set(client, record);
        let mut claimed = Claimed {
            claim,
            secret: Some(record.secrets.latest()),
            origin: if is_new { Origin::New } else { Origin::Here },
            state: None,
        };
        let mut displaced = None;
        if self.keeps_state() {
            if is_new {
                sessions.kept.remove(client);
            }
            let kept = sessions.kept.entry(Arc::clone(client));
            let kept = kept.or_insert_with(|| Box::new(Kept::new(request.since, process)));
            if !is_new && self.is_shared() {
                claimed.state = Some(Box::new(kept.state.clone()));
            }
            if !is_new && kept.process != process {
                claimed.origin = Origin::Elsewhere;
                displaced = Some(kept.process);
            }
            kept.process = process;
            kept.is_held = true;
            kept.state.last_ping = WallTime::now();
            self.save_client(client, &record, kept);
        }
        Ok((claimed, displaced))
    }

    /// Saves the session of a client, without its channels.
    pub fn save_client(&self, client: &Arc<str>, record: &Record, kept: &Kept) {
        self.write(|| {
            let secrets = record.secrets.saved();
            let saved = SavedClient {
                id: Arc::clone(client),
                root: secrets.root,
                rotation: secrets.rotation,
                previous: secrets.previous,
                expires: (!kept.is_held).then(|| WallTime::now() + self.resume_ttl),
                joined: kept.state.joined,
                last_ping: kept.state.last_ping,
                user_data: kept.state.user_data.clone(),
            };
            SessionChange::ClientSaved {
                client: Box::new(saved),
            }
        });
    }

    /// Replaces the state of a client, and saves how its channels differ.
    pub fn replace(&self, client: &Arc<str>, kept: &mut Kept, state: SessionState) {
        let before = std::mem::replace(&mut kept.state, state);
        let (before, now) = (before.channels, &kept.state.channels);
        if before == *now || !self.store.is_durable() {
            return;
        }
        let was_on: HashSet<&Arc<str>> = before.iter().collect();
        let is_on: HashSet<&Arc<str>> = now.iter().collect();
        for channel in before.iter().filter(|name| !is_on.contains(name)) {
            self.save_left(client, channel);
        }
        for channel in now.iter().filter(|name| !was_on.contains(name)) {
            self.save_joined(client, channel);
        }
    }

    pub fn save_joined(&self, client: &Arc<str>, channel: &Arc<str>) {
        self.write(|| SessionChange::Joined {
            client: Arc::clone(client),
            channel: Arc::clone(channel),
            at: WallTime::now(),
        });
    }

    pub fn save_left(&self, client: &Arc<str>, channel: &Arc<str>) {
        self.write(|| SessionChange::Left {
            client: Arc::clone(client),
            channel: Arc::clone(channel),
        });
    }

    /// Gives a change to the store, if it saves anything. The store counts a change that it refuses.
    pub fn write<'a>(&self, change: impl FnOnce() -> SessionChange<&'a EncodedFrame>) {
        if self.store.is_durable() {
            let _ = self.store.save(change(), None);
        }
    }

    fn is_shared(&self) -> bool {
        self.processes.load(Ordering::Relaxed) > 1
    }
}

impl Kept {
    /// Adds a channel; false if the state has it.
    pub fn add_channel(&mut self, channel: &Arc<str>) -> bool {
        let channels = &mut self.state.channels;
        let is_new = !channels.contains(channel);
        if is_new {
            if channels.is_empty() {
                // most clients are on one channel
                channels.reserve_exact(1);
            }
            channels.push(Arc::clone(channel));
        }
        is_new
    }

    pub fn new(since: WallTime, process: usize) -> Self {
        Self {
            state: SessionState::new(since, since),
            process,
            is_held: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_of_a_client_on_one_channel_takes_little_memory() {
        let mut kept = Kept::new(WallTime::now(), 0);
        assert!(kept.add_channel(&"jungle".into()));
        assert!(!kept.add_channel(&"jungle".into()), "it is on the channel");
        assert_eq!(kept.state.channels.capacity(), 1);
        assert!(size_of::<Kept>() <= 88, "with the header of malloc: 96");
        assert!(kept.add_channel(&"den".into()));
    }
}
