//! The sessions of one process, or of several nodes in one process, in memory. Every call ends inside itself.

mod backend;
mod records;

use crate::base::capacity::shrink_map;
use crate::base::clock::WallTime;
use crate::base::completion::{Later, Progress};
use crate::core::resume_secrets::{SavedSecrets, Secret, Secrets};
use crate::ports::broker::Failure;
use crate::ports::claim::ClaimNumber;
use crate::ports::saved_sessions::{SavedClient, SavedSessions, SessionChange};
use crate::ports::sessions::{
    Change, ClaimFailure, ClaimRequest, Claimed, SessionSink, SessionState, Sessions,
};
use backend::{Backend, Kept};
use records::Record;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// The sessions as one process sees them.
pub struct MemorySessions {
    process: usize,
    backend: Arc<Backend>,
}

impl MemorySessions {
    /// Sessions that are saved to a store, for `resume_ttl` from the release of each.
    pub fn new(store: Arc<dyn SavedSessions>, resume_ttl: Duration) -> Self {
        Self {
            process: 0,
            backend: Arc::new(Backend::new(store, resume_ttl)),
        }
    }

    /// The same sessions as another process sees them. To be called before the first claim.
    #[must_use]
    pub fn of_another_process(&self) -> Self {
        Self {
            process: self.backend.add_process(),
            backend: Arc::clone(&self.backend),
        }
    }
}

impl Sessions for MemorySessions {
    fn attach(&self, sink: Arc<dyn SessionSink>) {
        self.backend.sinks.lock().insert(self.process, sink);
    }

    fn restore(&self, clients: &[SavedClient], memberships: &HashMap<Arc<str>, Vec<Arc<str>>>) {
        let mut sessions = self.backend.sessions.lock();
        for saved in clients {
            if sessions.records.get(&saved.id).is_some() {
                continue;
            }
            let secrets = SavedSecrets {
                root: saved.root,
                rotation: saved.rotation,
                previous: saved.previous,
            };
            let record = Record {
                secrets: Secrets::restored(secrets),
                claim: None,
            };
            sessions.records.set(&saved.id, record);
            let state = SessionState {
                joined: saved.joined,
                last_ping: saved.last_ping,
                user_data: saved.user_data.clone(),
                channels: memberships.get(&saved.id).cloned().unwrap_or_default(),
            };
            let kept = Kept {
                state,
                process: self.process,
                is_held: false,
            };
            sessions.kept.insert(Arc::clone(&saved.id), Box::new(kept));
        }
    }

    fn claim(
        &self,
        request: &ClaimRequest<'_>,
        _: &mut Later<'_, Claimed, ClaimFailure>,
    ) -> Progress<Claimed, ClaimFailure> {
        let claimed = self.backend.claim(self.process, request);
        Progress::Ended(claimed.map(|(claimed, displaced)| {
            let sinks = displaced.map(|process| self.backend.sinks.lock().get(&process).cloned());
            if let Some(sink) = sinks.flatten() {
                sink.displaced(request.client, claimed.claim);
            }
            claimed
        }))
    }

    fn confirm(&self, client: &Arc<str>, claim: ClaimNumber) {
        let mut sessions = self.backend.sessions.lock();
        let Some(mut record) = sessions.records.get(client) else {
            return;
        };
        if record.claim == Some(claim) && record.secrets.confirm() {
            sessions.records.set(client, record);
            if let Some(kept) = sessions.kept.get(client) {
                self.backend.save_client(client, &record, kept);
            }
        }
    }

    fn release(&self, client: &Arc<str>, claim: ClaimNumber, state: &dyn Fn() -> SessionState) {
        if !self.backend.keeps_state() {
            return;
        }
        let mut sessions = self.backend.sessions.lock();
        if let Some((record, kept)) = sessions.current(client, Some(claim)) {
            kept.is_held = false;
            self.backend.replace(client, kept, state());
            self.backend.save_client(client, &record, kept);
        }
    }

    fn end(&self, client: &Arc<str>, claim: Option<ClaimNumber>) {
        let mut sessions = self.backend.sessions.lock();
        if let Some(record) = sessions.records.get(client) {
            if claim < record.claim {
                return;
            }
            sessions.records.remove(client);
            sessions.kept.remove(client);
            shrink_map(&mut sessions.kept);
        }
        // the store has idempotency keys of clients without a session too
        self.backend.write(|| SessionChange::ClientForgotten {
            id: Arc::clone(client),
        });
    }

    fn save(&self, client: &Arc<str>, claim: Option<ClaimNumber>, change: Change<'_>) {
        let backend = &*self.backend;
        if !backend.keeps_state() {
            return;
        }
        let mut sessions = backend.sessions.lock();
        let Some((record, kept)) = sessions.current(client, claim) else {
            return;
        };
        match change {
            Change::UserData(json) => {
                kept.state.user_data = Some(json.clone());
                backend.save_client(client, &record, kept);
            }
            Change::State { make } => {
                backend.replace(client, kept, make());
                backend.save_client(client, &record, kept);
            }
            Change::Joined(channel) => {
                if kept.add_channel(channel) {
                    backend.save_joined(client, channel);
                }
            }
            Change::Left(name) => {
                let mut channels = kept.state.channels.iter();
                if let Some(at) = channels.position(|channel| **channel == *name) {
                    let channel = kept.state.channels.remove(at);
                    backend.save_left(client, &channel);
                }
            }
        }
    }

    fn token(
        &self,
        client: &Arc<str>,
        state: &dyn Fn() -> SessionState,
        _: &mut Later<'_, Secret, Failure>,
    ) -> Progress<Secret, Failure> {
        let backend = &*self.backend;
        let mut sessions = backend.sessions.lock();
        let (record, is_new) = sessions.get_or_add(client);
        if backend.keeps_state() {
            let now = WallTime::now();
            let kept = sessions.kept.entry(Arc::clone(client));
            let kept = kept.or_insert_with(|| Box::new(Kept::new(now, self.process)));
            if is_new {
                backend.replace(client, kept, state());
            }
            backend.save_client(client, &record, kept);
        }
        Progress::Ended(Ok(record.secrets.latest()))
    }
}
