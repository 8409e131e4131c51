//! How the clients of the property test arrive: their claims come late and fail, and they try again.

use super::{CLIENTS, SHARDS, World};
use crate::adversarial_sessions::LateSessions;
use crate::adversary::Behaviour;
use crate::peer::PATIENCE;
use _tantor::adapters::memory_sessions::MemorySessions;
use _tantor::base::error::Disconnect;
use _tantor::ports::store::Store;
use _tantor::settings::config::Config;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Sessions that another process has too, and an adversary before those of this process.
pub fn sessions_on(
    store: &Arc<dyn Store>,
    behaviour: Behaviour,
) -> (MemorySessions, Arc<LateSessions>) {
    let resume_ttl = Config::default().resume_ttl;
    let memory = MemorySessions::new(Arc::clone(store) as _, resume_ttl);
    let other = memory.of_another_process();
    let late = LateSessions::new(Arc::new(memory), behaviour);
    (other, Arc::new(late))
}

impl World {
    /// Waits until each client had its first welcome.
    pub fn until_all_are_there(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.visitors.iter().any(|visitor| visitor.place.is_none()) {
            assert!(Instant::now() < deadline, "{:?}", self.visitors);
            for shard in &mut self.shards {
                shard.deliver(1000);
            }
            for at in 0..CLIENTS {
                self.arrive(at);
            }
            thread::sleep(Duration::from_micros(50));
        }
    }

    /// A client begins to connect, for the first time or with its token. A connection that it still has is displaced, and
    /// one that waits for its claim ends.
    pub fn connect(&mut self, at: usize) {
        self.abandon(at);
        self.lose(at);
        let index = self.below(SHARDS);
        let visitor = &mut self.visitors[at];
        visitor.place = None;
        let slot = self.shards[index].begin(visitor.token.as_deref());
        visitor.coming = Some((index, slot));
        self.arrive(at);
    }

    /// Gives a client its welcome, if that has come. A client that is refused tries again.
    pub fn arrive(&mut self, at: usize) {
        let visitor = &mut self.visitors[at];
        let Some((index, slot)) = visitor.coming else {
            return;
        };
        let Some(greeted) = self.shards[index].greeted(slot) else {
            return;
        };
        visitor.coming = None;
        let Ok(greeted) = greeted else {
            self.connect(at);
            return;
        };
        assert_eq!(
            visitor.token.is_some(),
            greeted.welcome["resumed"] == true,
            "a known client resumes: {}",
            greeted.welcome
        );
        visitor.welcome(index, &greeted);
        self.flush(at);
    }

    /// Ends the connection that a client waits for.
    fn abandon(&mut self, at: usize) {
        if let Some((index, slot)) = self.visitors[at].coming.take() {
            let shard = &mut self.shards[index];
            match shard.greeted(slot) {
                None => shard.abandon(slot),
                Some(Ok(_)) => shard.end(slot, Disconnect::Lost),
                Some(Err(_)) => {}
            }
        }
    }
}
