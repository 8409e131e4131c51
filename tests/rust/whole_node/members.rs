//! Members and notices when everything is quiet.

use super::{CLUB, FLEETING, LASTING, NOTICES, SHARDS, World};
use crate::peer::{PATIENCE, members};
use crate::whole_node_client::Visitor;
use _tantor::core::events::Told;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

impl World {
    pub(super) fn is_club_settled(&self) -> bool {
        let present: BTreeSet<_> = members(&self.node, CLUB).into_iter().collect();
        let is_there = |id: &String| present.contains(id.as_str());
        self.club.iter().all(|(id, wanted)| is_there(id) == *wanted)
    }

    /// The members of each channel are the clients on it, each join and each leave was told once, and a notice tells the
    /// right total.
    pub(super) fn check_members(&mut self) {
        let channels = [LASTING[0], LASTING[1], FLEETING, CLUB];
        for channel in channels {
            self.until(&format!("the members of {channel}"), |world| {
                let present = members(&world.node, channel);
                let all: BTreeSet<_> = present.iter().cloned().collect();
                assert_eq!(all.len(), present.len(), "{channel}: {present:?}");
                all == world.clients_on(channel)
            });
            let on_channel = self.clients_on(channel);
            for visitor in &self.visitors {
                let is_on = on_channel.contains(&*visitor.id);
                assert!(is_on || !visitor.follows(channel), "{channel} {visitor:?}");
            }
        }
        self.check_notices();
        // with a client that only presence knows to be new, because presence counts what is there now
        for channel in channels {
            self.node.subscribe("the last", channel).unwrap();
            let total = self.clients_on(channel).len() + 1;
            self.until(&format!("the last notice of {channel}"), |world| {
                let mut listeners = world.visitors.iter().filter(|who| who.follows(channel));
                listeners.all(|who| who.was_told(channel, "the last", total))
            });
        }
    }

    /// The connected clients that are on a channel, as the node knows them.
    fn clients_on(&self, channel: &str) -> BTreeSet<Arc<str>> {
        let is_on = |visitor: &&Visitor| {
            let info = self.node.connection_info(&visitor.id).unwrap();
            info.channels.iter().any(|name| &**name == channel)
        };
        let on_channel = self.visitors.iter().filter(is_on);
        on_channel.map(|who| Arc::from(&*who.id)).collect()
    }

    /// Joins and leaves of each client alternate, the last one as the client is now.
    fn check_notices(&self) {
        let mut on_channel: BTreeMap<(Arc<str>, Arc<str>), bool> = BTreeMap::new();
        let mut told = Vec::new();
        while !self.node.events.is_empty() {
            self.node.events.take(1000, PATIENCE, &mut told);
        }
        for told in told {
            let Told::Event(event) = told else { continue };
            let (channel, id) = (event.channel.unwrap(), event.client_id.unwrap());
            // a deletion has no notices
            if &*channel == FLEETING {
                continue;
            }
            let joins = &*event.name == NOTICES[0];
            let was_on = on_channel.insert((channel.clone(), id.clone()), joins);
            assert_eq!(was_on.unwrap_or(false), !joins, "{id} on {channel}");
        }
        for channel in [LASTING[0], LASTING[1], CLUB] {
            let clients = self.clients_on(channel);
            for visitor in &self.visitors {
                let key = (Arc::from(channel), Arc::from(&*visitor.id));
                let is_told = on_channel.get(&key).copied().unwrap_or(false);
                let is_on = clients.contains(&key.1);
                assert_eq!(is_told, is_on, "{} on {channel}", visitor.id);
            }
        }
    }

    /// Has everything done that is under way, until something is so.
    fn until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(self) {
            assert!(
                Instant::now() < deadline,
                "{what}: it never came about; {:?}",
                self.visitors
            );
            self.node.tick();
            for index in 0..SHARDS {
                while self.shards[index].deliver(1000) {}
            }
            for at in 0..self.visitors.len() {
                self.read(at, usize::MAX);
            }
            thread::sleep(Duration::from_micros(100));
        }
    }
}
