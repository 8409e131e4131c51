//! Deletions that are saved before older changes, because a file without room needs the deletions first.

use super::batch::{Batch, Entry, Item};
use crate::ports::saved_sessions::SessionChange;
use crate::ports::stream_log::{StreamChange, StreamKey};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

/// Moves all deletions to the front, in their order, and takes out the additions that they delete, so that the file
/// ends as if nothing had been moved. Returns how many additions were taken out, and their weight; `None`, with nothing
/// changed, when every deletion is in front already. So a second call without a new change gives `None`, and a caller
/// that repeats the call comes to an end.
pub(super) fn put_first(backlog: &mut VecDeque<Batch>) -> Option<(usize, usize)> {
    let entries = backlog.iter().flat_map(|batch| &batch.entries);
    let mut behind = entries.skip_while(|entry| entry.item.deletes());
    if !behind.any(|entry| entry.item.deletes()) {
        return None;
    }
    let mut deleted = Deleted::default();
    let mut first = Vec::new();
    let (mut count, mut weight) = (0, 0);
    // from the newest on, because a deletion is about older changes
    for batch in backlog.iter_mut().rev() {
        let kept = batch.entries.drain(..).rev().filter_map(|mut entry| {
            if entry.item.deletes() {
                deleted.note(&entry.item);
                first.push(entry);
                return None;
            }
            if deleted.has(&entry.item) && !keep_remains(&mut entry) {
                count += 1;
                weight += entry.weight;
                return None;
            }
            Some(entry)
        });
        let mut kept: Vec<_> = kept.collect();
        kept.reverse();
        batch.entries = kept;
    }
    backlog.retain(|batch| !batch.entries.is_empty());
    first.reverse();
    backlog.push_front(Batch::of(first));
    Some((count, weight))
}

/// The rows that the deletions behind a change delete.
#[derive(Default)]
struct Deleted {
    streams: HashSet<StreamKey>,
    trims: HashMap<StreamKey, u64>,
    mail: HashSet<(Arc<str>, u64)>,
    clients: HashSet<Arc<str>>,
    memberships: HashSet<(Arc<str>, Arc<str>)>,
}

impl Deleted {
    fn note(&mut self, item: &Item) {
        match item {
            Item::Stream(StreamChange::StreamForgotten { stream, .. }) => {
                self.streams.insert(*stream);
            }
            Item::Stream(StreamChange::Trimmed { stream, through }) => {
                let trim = self.trims.entry(*stream).or_default();
                *trim = (*trim).max(*through);
            }
            Item::Session(SessionChange::Unmailed { client, numbers }) => {
                let numbers = numbers.iter().map(|number| (Arc::clone(client), *number));
                self.mail.extend(numbers);
            }
            Item::Session(SessionChange::Left { client, channel }) => {
                let membership = (Arc::clone(client), Arc::clone(channel));
                self.memberships.insert(membership);
            }
            Item::Session(SessionChange::ClientForgotten { id }) => {
                self.clients.insert(Arc::clone(id));
            }
            _ => {}
        }
    }

    fn has(&self, item: &Item) -> bool {
        match item {
            Item::Stream(StreamChange::Published {
                stream, position, ..
            }) => {
                self.streams.contains(stream)
                    || self
                        .trims
                        .get(stream)
                        .is_some_and(|through| *through >= position.offset)
            }
            Item::Stream(StreamChange::StreamOpened { stream, .. }) => {
                self.streams.contains(stream)
            }
            Item::Session(SessionChange::Mailed { client, number, .. }) => {
                self.mail.contains(&(Arc::clone(client), *number))
            }
            Item::Session(SessionChange::ClientSaved { client }) => {
                self.clients.contains(&client.id)
            }
            Item::Session(SessionChange::Joined {
                client, channel, ..
            }) => {
                let membership = (Arc::clone(client), Arc::clone(channel));
                self.clients.contains(client) || self.memberships.contains(&membership)
            }
            _ => false,
        }
    }
}

/// Reduces an addition that is deleted to its idempotency key and the caller that waits; false when it has neither.
fn keep_remains(entry: &mut Entry) -> bool {
    match std::mem::replace(&mut entry.item, Item::Barrier) {
        Item::Stream(StreamChange::Published {
            used_key: Some(used_key),
            ..
        })
        | Item::Session(SessionChange::Mailed {
            used_key: Some(used_key),
            ..
        }) => {
            entry.item = Item::KeyUsed { used_key };
            true
        }
        _ => entry.committed.is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::batch::Span;
    use super::*;
    use crate::base::clock::WallTime;
    use crate::core::history::StreamPosition;
    use crate::core::idempotency::LostFlag;
    use crate::ports::durability::{KeyResult, UsedKey};
    use crate::ports::saved_sessions::SavedClient;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Publish { stream: u64, key: bool },
        Trim { stream: u64, through: u64 },
        Forget { stream: u64 },
        Mail { client: u64 },
        Unmail { client: u64, number: u64 },
        SaveClient { client: u64 },
        ForgetClient { client: u64 },
        Join { client: u64, channel: u64 },
        Leave { client: u64, channel: u64 },
    }

    fn step() -> impl Strategy<Value = Step> {
        let either = || 0_u64..2;
        prop_oneof![
            (either(), any::<bool>()).prop_map(|(stream, key)| Step::Publish { stream, key }),
            (either(), 0_u64..20).prop_map(|(stream, through)| Step::Trim { stream, through }),
            either().prop_map(|stream| Step::Forget { stream }),
            either().prop_map(|client| Step::Mail { client }),
            (either(), 0_u64..20).prop_map(|(client, number)| Step::Unmail { client, number }),
            either().prop_map(|client| Step::SaveClient { client }),
            either().prop_map(|client| Step::ForgetClient { client }),
            (either(), either()).prop_map(|(client, channel)| Step::Join { client, channel }),
            (either(), either()).prop_map(|(client, channel)| Step::Leave { client, channel }),
        ]
    }

    /// The time of all changes in these tests; no test depends on it.
    const NOW: WallTime = WallTime::from_micros(1);

    fn name(number: u64) -> Arc<str> {
        number.to_string().into()
    }

    /// The change of a step; `number` is its place.
    fn item(step: Step, number: u64) -> Item {
        let used_key = |is_used: bool| {
            is_used.then(|| {
                Box::new(UsedKey {
                    client: None,
                    target: "a".into(),
                    key: number.to_string().into(),
                    expires: NOW,
                    result: KeyResult::Sent(crate::wire::messages::Stamp { id: 0, at: NOW }),
                    lost_flag: LostFlag::default(),
                })
            })
        };
        match step {
            Step::Publish { stream, key } => Item::Stream(StreamChange::Published {
                stream,
                position: StreamPosition {
                    epoch: 1,
                    offset: number,
                },
                at: NOW,
                expires: NOW,
                is_durable: false,
                frame: Span::default(),
                used_key: used_key(key),
            }),
            Step::Trim { stream, through } => {
                Item::Stream(StreamChange::Trimmed { stream, through })
            }
            Step::Forget { stream } => Item::Stream(StreamChange::StreamForgotten {
                stream,
                channel: name(stream),
            }),
            Step::Mail { client } => Item::Session(SessionChange::Mailed {
                client: name(client),
                number,
                message: 0,
                expires: NOW,
                is_emergency: false,
                frame: Span::default(),
                used_key: None,
            }),
            Step::Unmail { client, number } => Item::Session(SessionChange::Unmailed {
                client: name(client),
                numbers: vec![number],
            }),
            Step::SaveClient { client } => Item::Session(SessionChange::ClientSaved {
                client: Box::new(SavedClient {
                    id: name(client),
                    root: [0; 16],
                    rotation: 0,
                    previous: None,
                    expires: Some(NOW),
                    joined: NOW,
                    last_ping: NOW,
                    user_data: None,
                }),
            }),
            Step::ForgetClient { client } => {
                Item::Session(SessionChange::ClientForgotten { id: name(client) })
            }
            Step::Join { client, channel } => Item::Session(SessionChange::Joined {
                client: name(client),
                channel: name(channel),
                at: NOW,
            }),
            Step::Leave { client, channel } => Item::Session(SessionChange::Left {
                client: name(client),
                channel: name(channel),
            }),
        }
    }

    /// The content of a file after these changes.
    fn rows<'a>(entries: impl Iterator<Item = &'a Entry>) -> BTreeSet<(&'static str, String, u64)> {
        let mut rows = BTreeSet::new();
        for entry in entries {
            if let Some(used) = entry.item.used_key() {
                rows.insert(("key", used.key.to_string(), 0));
            }
            match &entry.item {
                Item::Stream(StreamChange::Published {
                    stream, position, ..
                }) => {
                    rows.insert(("publication", stream.to_string(), position.offset));
                }
                Item::Stream(StreamChange::Trimmed { stream, through }) => {
                    let stream = stream.to_string();
                    rows.retain(|row| {
                        row.0 != "publication" || row.1 != stream || row.2 > *through
                    });
                }
                Item::Stream(StreamChange::StreamForgotten { stream, .. }) => {
                    let stream = stream.to_string();
                    rows.retain(|row| row.0 != "publication" || row.1 != stream);
                }
                Item::Session(SessionChange::Mailed { client, number, .. }) => {
                    rows.insert(("mail", client.to_string(), *number));
                }
                Item::Session(SessionChange::Unmailed { client, numbers }) => {
                    rows.retain(|row| {
                        row.0 != "mail" || row.1 != **client || !numbers.contains(&row.2)
                    });
                }
                Item::Session(SessionChange::ClientSaved { client }) => {
                    rows.insert(("client", client.id.to_string(), 0));
                }
                Item::Session(SessionChange::ClientForgotten { id }) => {
                    rows.retain(|row| !matches!(row.0, "client" | "member") || row.1 != **id);
                }
                Item::Session(SessionChange::Joined {
                    client, channel, ..
                }) => {
                    rows.insert(("member", client.to_string(), channel.parse().unwrap()));
                }
                Item::Session(SessionChange::Left { client, channel }) => {
                    let row = ("member", client.to_string(), channel.parse().unwrap());
                    rows.remove(&row);
                }
                _ => {}
            }
        }
        rows
    }

    fn backlog(steps: &[Step], split: usize) -> VecDeque<Batch> {
        let entries = steps.iter().zip(0..).map(|(step, number)| Entry {
            item: item(*step, number),
            committed: None,
            weight: 1,
        });
        let mut older: Vec<_> = entries.collect();
        let newer = older.split_off(split.min(older.len()));
        [Batch::of(older), Batch::of(newer)].into()
    }

    proptest! {
        #[test]
        fn the_file_ends_as_if_nothing_had_been_moved(
            steps in prop::collection::vec(step(), 0..40),
            split in 0_usize..40,
        ) {
            let mut moved = backlog(&steps, split);
            let wanted = rows(backlog(&steps, split).iter().flat_map(|batch| &batch.entries));
            let before = steps.len();
            let taken_out = put_first(&mut moved).map_or(0, |(count, weight)| {
                assert_eq!(count, weight);
                count
            });
            let entries = || moved.iter().flat_map(|batch| &batch.entries);
            prop_assert_eq!(rows(entries()), wanted);
            prop_assert_eq!(entries().count() + taken_out, before);
            let first_kept = entries().position(|entry| !entry.item.deletes()).unwrap_or(before);
            prop_assert!(entries().skip(first_kept).all(|entry| !entry.item.deletes()));
            prop_assert!(put_first(&mut moved).is_none(), "nothing is left to move");
        }
    }
}
