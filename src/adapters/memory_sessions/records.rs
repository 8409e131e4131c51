//! The records of all sessions, by the id of the client.

use crate::base::capacity::shrink_set;
use crate::core::resume_secrets::Secrets;
use crate::ports::claim::ClaimNumber;
use std::borrow::Borrow;
use std::cell::Cell;
use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// A session.
#[derive(Clone, Copy)]
pub struct Record {
    pub secrets: Secrets,
    /// The latest claim; `None` before the first.
    pub claim: Option<ClaimNumber>,
}

/// The records. Each connected client has one, so a record takes little memory: the set holds only pointers, because a
/// growing set has much unused room, and a record is with its key.
#[derive(Default)]
pub struct Records(HashSet<Box<Keyed>>);

struct Keyed {
    client: Arc<str>,
    record: Cell<Record>,
}

impl Records {
    pub fn get(&self, client: &str) -> Option<Record> {
        self.0.get(client).map(|keyed| keyed.record.get())
    }

    /// Sets the record of a client.
    pub fn set(&mut self, client: &Arc<str>, record: Record) {
        if let Some(keyed) = self.0.get(&**client) {
            keyed.record.set(record);
        } else {
            self.0.insert(Box::new(Keyed {
                client: Arc::clone(client),
                record: Cell::new(record),
            }));
        }
    }

    pub fn remove(&mut self, client: &str) {
        self.0.remove(client);
        shrink_set(&mut self.0);
    }
}

impl Borrow<str> for Box<Keyed> {
    fn borrow(&self) -> &str {
        &self.client
    }
}

impl Hash for Keyed {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.client.hash(state);
    }
}

impl PartialEq for Keyed {
    fn eq(&self, other: &Self) -> bool {
        self.client == other.client
    }
}

impl Eq for Keyed {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_found_until_it_is_removed() {
        let mut records = Records::default();
        let id: Arc<str> = "dumbo".into();
        let record = Record {
            secrets: Secrets::generate(),
            claim: None,
        };
        records.set(&id, record);
        let claim = Some(ClaimNumber::FIRST);
        records.set(&id, Record { claim, ..record });
        assert_eq!(records.get("dumbo").map(|record| record.claim), Some(claim));
        records.remove("dumbo");
        assert!(records.get("dumbo").is_none());
        assert!(size_of::<Keyed>() <= 56, "with the header of malloc: 64");
    }
}
