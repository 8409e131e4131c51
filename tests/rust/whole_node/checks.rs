//! What must be true when everything is quiet.

use super::{FLEETING, LASTING, World};
use crate::peer::PATIENCE;
use crate::whole_node_client::Fate;
use _tantor::base::clock::WallTime;
use _tantor::base::completion::{Completion, Progress};
use _tantor::base::error::Error;
use _tantor::core::history::Page;
use _tantor::ports::calls::HistoryPage;
use _tantor::ports::sessions::{ClaimRequest, Presented, Sessions};
use serde_json::Value as Json;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, mpsc};
use std::time::Instant;

impl World {
    /// The whole history of a channel: epoch, and number by offset.
    fn history(&self, channel: &str) -> (u64, BTreeMap<u64, usize>) {
        let page = Page {
            limit: usize::MAX,
            after: None,
            before: None,
        };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (tell, told) = mpsc::channel::<Result<HistoryPage, Error>>();
            let mut later = || {
                let tell = tell.clone();
                Completion::new(move |outcome| tell.send(outcome).unwrap())
            };
            let progress = self.node.history(channel, page, usize::MAX, &mut later);
            let outcome = match progress {
                Progress::Ended(outcome) => outcome,
                Progress::Begun(_) => told.recv_timeout(PATIENCE).unwrap(),
            };
            if let Ok(page) = outcome {
                let numbered = page.publications.iter().map(|frame| {
                    let message: Json = serde_json::from_slice(frame.payload()).unwrap();
                    let number = message["data"].as_u64().unwrap() as usize;
                    (message["offset"].as_u64().unwrap(), number)
                });
                return (page.epoch, numbered.collect());
            }
            assert!(Instant::now() < deadline, "the history cannot be read");
        }
    }

    pub fn check(&mut self) {
        for channel in LASTING.into_iter().chain([FLEETING]) {
            let (epoch, history) = self.history(channel);
            for (offset, number) in &history {
                self.sight.note(channel, epoch, *offset, *number);
            }
            for visitor in &self.visitors {
                visitor.check_complete(channel, epoch, &history);
            }
            let mut times: BTreeMap<usize, usize> = BTreeMap::new();
            for number in history.values() {
                *times.entry(*number).or_default() += 1;
            }
            let calls = self.calls.iter().enumerate();
            for (number, call) in calls.filter(|(_, call)| call.channel == channel) {
                let times = times.get(&number).copied().unwrap_or(0);
                let is_right = match call.fate {
                    Fate::Made => times == 1 || channel == FLEETING && times == 0,
                    Fate::Failed => times == 0,
                    Fate::Unknown => times <= 1,
                    Fate::UnderWay => false,
                };
                let (fate, key) = (call.fate, &call.key);
                assert!(
                    is_right,
                    "{channel} {number}, {fate:?}, {key:?}: {times} times"
                );
            }
        }
        self.check_sessions();
        self.sight.check_once();
        self.check_letters();
        for number in 0..self.emergencies {
            for visitor in &self.visitors {
                let seen = &visitor.emergencies;
                assert!(seen.contains_key(&number.to_string()), "emergency {number}");
            }
        }
    }

    /// Another process that claims a client finds the client on the same channels.
    pub fn check_sessions(&self) {
        self.late.drain();
        for visitor in &self.visitors {
            let request = ClaimRequest {
                client: &visitor.id.as_str().into(),
                presented: Presented::Vouched,
                since: WallTime::now(),
            };
            let claimed = self.sessions.claim(&request, &mut || unreachable!());
            let Progress::Ended(Ok(claimed)) = claimed else {
                panic!("{claimed:?}")
            };
            let saved = claimed.state.unwrap().channels;
            let known = self.node.connection_info(&visitor.id).unwrap().channels;
            let lasting = |names: &[Arc<str>]| -> BTreeSet<Arc<str>> {
                let names = names.iter().filter(|name| &***name != FLEETING);
                names.cloned().collect()
            };
            assert_eq!(lasting(&saved), lasting(&known), "{}", visitor.id);
        }
    }
}
