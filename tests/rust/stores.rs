//! What every store must do.

use _tantor::adapters::memory_store::MemoryStore;
use _tantor::adapters::sqlite::{Limits, SqliteStore};
use _tantor::base::clock::WallTime;
use _tantor::base::completion::{Later, Progress};
use _tantor::core::history::StreamPosition;
use _tantor::ports::durability::{Committed, Durability, Health, NotTaken, StoreError};
use _tantor::ports::saved_sessions::{SavedClient, SavedSessions, SessionChange};
use _tantor::ports::store::{Saved, Store};
use _tantor::ports::stream_log::{Logged, StreamChange, StreamLog};
use _tantor::settings::channel_kind::ChannelKind;
use _tantor::wire::frame::EncodedFrame;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

pub const PATIENCE: Duration = Duration::from_secs(20);

pub const LIMITS: Limits = Limits {
    file_bytes: 1 << 30,
    queue_bytes: 64 << 20,
    keys: 1000,
    key_ttl: Duration::MAX,
};

/// Expires in the year 2106.
pub const LATE: WallTime = WallTime::from_micros(1 << 52);

pub fn sqlite(folder: &Path) -> SqliteStore {
    SqliteStore::new(&folder.join("tantor.db"), LIMITS)
}

/// A closed store of each kind, its name, and what its files are in.
pub fn every_store() -> Vec<(&'static str, Arc<dyn Store>, tempfile::TempDir)> {
    let folder = || tempfile::tempdir().unwrap();
    let (memory, files) = (folder(), folder());
    let file = sqlite(files.path());
    vec![
        ("memory", Arc::new(MemoryStore), memory),
        ("sqlite", Arc::new(file), files),
    ]
}

/// A durable store that keeps nothing: the function gets the completion of each change, and says whether the store takes
/// the change.
pub struct WaitedFor<F>(pub F);

impl<F: Fn(Option<Committed>) -> Result<(), NotTaken> + Send + Sync> Durability for WaitedFor<F> {
    fn barrier(&self, committed: Committed) -> Result<(), NotTaken> {
        (self.0)(Some(committed))
    }

    fn health(&self) -> Health {
        Health::default()
    }

    fn is_durable(&self) -> bool {
        true
    }
}

impl<F: Fn(Option<Committed>) -> Result<(), NotTaken> + Send + Sync> StreamLog for WaitedFor<F> {
    fn append(
        &self,
        _: StreamChange<&EncodedFrame>,
        committed: Option<Committed>,
    ) -> Result<(), NotTaken> {
        (self.0)(committed)
    }

    fn read(
        &self,
        _: &Arc<str>,
        _: RangeInclusive<u64>,
        _: &mut Later<'_, Vec<Logged>, StoreError>,
    ) -> Progress<Vec<Logged>, StoreError> {
        Progress::Ended(Ok(Vec::new()))
    }

    fn is_busy(&self) -> bool {
        false
    }

    fn note_published(&self, _: &str, _: bool) -> bool {
        true
    }
}

impl<F: Fn(Option<Committed>) -> Result<(), NotTaken> + Send + Sync> SavedSessions
    for WaitedFor<F>
{
    fn save(
        &self,
        _: SessionChange<&EncodedFrame>,
        committed: Option<Committed>,
    ) -> Result<(), NotTaken> {
        (self.0)(committed)
    }
}

impl<F: Fn(Option<Committed>) -> Result<(), NotTaken> + Send + Sync> Store for WaitedFor<F> {
    fn open(&self) -> Result<Saved, StoreError> {
        Ok(Saved::default())
    }

    fn close(&self, _: Duration) {}
}

/// Changes with frames that outlive the test.
pub type GivenStreamChange = StreamChange<&'static EncodedFrame>;
pub type GivenSessionChange = SessionChange<&'static EncodedFrame>;

/// A change for one of the two ports of a store.
pub enum GivenChange {
    Stream(GivenStreamChange),
    Session(GivenSessionChange),
}

impl From<GivenStreamChange> for GivenChange {
    fn from(change: GivenStreamChange) -> Self {
        GivenChange::Stream(change)
    }
}

impl From<GivenSessionChange> for GivenChange {
    fn from(change: GivenSessionChange) -> Self {
        GivenChange::Session(change)
    }
}

pub fn lasting(text: &str) -> &'static EncodedFrame {
    Box::leak(Box::new(frame(text)))
}

pub fn frame(text: &str) -> EncodedFrame {
    EncodedFrame::text(text.as_bytes())
}

/// A channel's key in these tests: the sum of its name's bytes.
pub fn key(channel: &str) -> u64 {
    channel.bytes().map(u64::from).sum()
}

pub fn opened(channel: &str, epoch: u64, durable: bool) -> GivenStreamChange {
    StreamChange::StreamOpened {
        stream: key(channel),
        channel: channel.into(),
        epoch,
        kind: ChannelKind::Public,
        durable,
    }
}

/// A publication at its offset, of a stream that was opened.
pub fn publish(store: &dyn Store, channel: &str, offset: u64, committed: Option<Committed>) {
    publish_text(
        store,
        channel,
        offset,
        &format!("{{\"offset\":{offset}}}"),
        committed,
    );
}

pub fn publish_text(
    store: &dyn Store,
    channel: &str,
    offset: u64,
    text: &str,
    committed: Option<Committed>,
) {
    let change = StreamChange::Published {
        stream: key(channel),
        position: StreamPosition { epoch: 0, offset },
        at: WallTime::from_micros(offset),
        expires: LATE,
        is_durable: false,
        frame: lasting(text),
        used_key: None,
    };
    give(store, change, committed);
}

/// Gives a change to a store; a refusal goes to its completion.
pub fn give(store: &dyn Store, change: impl Into<GivenChange>, committed: Option<Committed>) {
    let taken = match change.into() {
        GivenChange::Stream(change) => store.append(change, committed),
        GivenChange::Session(change) => store.save(change, committed),
    };
    if let Err(refused) = taken {
        refused.complete();
    }
}

pub fn trimmed(channel: &str, through: u64) -> GivenStreamChange {
    StreamChange::Trimmed {
        stream: key(channel),
        through,
    }
}

pub fn mailed(client: &str, number: u64, is_emergency: bool) -> GivenSessionChange {
    SessionChange::Mailed {
        client: client.into(),
        number,
        message: u64::MAX - number,
        expires: LATE,
        is_emergency,
        frame: lasting(&format!("{{\"number\":{number}}}")),
        used_key: None,
    }
}

pub fn client(id: &str) -> SavedClient {
    SavedClient {
        id: id.into(),
        root: [7; 16],
        rotation: 3,
        previous: Some(2),
        expires: None,
        joined: WallTime::from_micros(1),
        last_ping: WallTime::from_micros(2),
        user_data: Some(bytes::Bytes::from_static(b"{\"x\":1}")),
    }
}

/// The channels of `client`, in the order in which it joined them.
pub const CHANNELS: [&str; 2] = ["jungle", "a \"b\" é"];

pub fn joined(client: &str, channel: &str, at: u64) -> GivenSessionChange {
    SessionChange::Joined {
        client: client.into(),
        channel: channel.into(),
        at: WallTime::from_micros(at),
    }
}

/// Saves `client`, and that it is on its channels.
pub fn save_with_channels(store: &dyn Store, id: &str) {
    let client = Box::new(client(id));
    give(store, SessionChange::ClientSaved { client }, None);
    for (channel, at) in CHANNELS.into_iter().zip(1..) {
        give(store, joined(id, channel, at), None);
    }
}

/// Somebody who waits, and where they hear.
pub fn waiting() -> (Committed, mpsc::Receiver<Result<(), StoreError>>) {
    let (tell, told) = mpsc::channel();
    (
        Committed::new(move |outcome| tell.send(outcome).unwrap()),
        told,
    )
}

/// Saves a change and waits until it is, or could not be.
pub fn save(store: &dyn Store, change: impl Into<GivenChange>) -> Result<(), StoreError> {
    let (committed, told) = waiting();
    give(store, change, Some(committed));
    told.recv_timeout(PATIENCE).unwrap()
}

/// Publishes and waits until it is saved, or could not be.
pub fn publish_and_wait(store: &dyn Store, channel: &str, offset: u64) -> Result<(), StoreError> {
    let (committed, told) = waiting();
    publish(store, channel, offset, Some(committed));
    told.recv_timeout(PATIENCE).unwrap()
}

pub fn reopen(store: &dyn Store) -> Saved {
    store.close(PATIENCE);
    store.open().unwrap()
}

pub fn offsets(saved: &Saved, channel: &str) -> Vec<u64> {
    let stream = saved
        .streams
        .iter()
        .find(|stream| &*stream.channel == channel);
    stream.map_or(Vec::new(), |stream| {
        stream.publications.iter().map(|kept| kept.offset).collect()
    })
}

#[test]
fn whoever_waits_hears_in_the_order_of_saving() {
    for (name, store, _folder) in every_store() {
        store.open().unwrap();
        give(&*store, opened("a", 1, false), None);
        let (tell, told) = mpsc::channel();
        for offset in 1..=1000 {
            let tell = tell.clone();
            let committed: Committed =
                Committed::new(move |outcome| tell.send((offset, outcome.is_ok())).unwrap());
            publish(&*store, "a", offset, Some(committed));
        }
        for offset in 1..=1000 {
            assert_eq!(
                told.recv_timeout(PATIENCE).unwrap(),
                (offset, true),
                "{name}"
            );
        }
        store.close(PATIENCE);
    }
}

#[test]
fn it_may_be_closed_and_opened_again_and_closed_twice() {
    for (name, store, _folder) in every_store() {
        for _ in 0..3 {
            store.open().unwrap();
            assert!(save(&*store, mailed("a", 0, false)).is_ok(), "{name}");
            store.close(PATIENCE);
            store.close(PATIENCE);
        }
        let health = store.health();
        assert!(
            !health.is_degraded && health.changes_lost == 0,
            "{name}: {health:?}"
        );
    }
}

#[derive(Clone, Debug)]
enum Step {
    Publish { channel: usize, count: u64 },
    Trim { channel: usize, behind: u64 },
    Forget { channel: usize },
    Mail { client: usize },
    Unmail { client: usize, which: u64 },
    SaveClient { client: usize },
    ForgetClient { client: usize },
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0_usize..3, 1_u64..40).prop_map(|(channel, count)| Step::Publish { channel, count }),
        2 => (0_usize..3, 0_u64..20).prop_map(|(channel, behind)| Step::Trim { channel, behind }),
        1 => (0_usize..3).prop_map(|channel| Step::Forget { channel }),
        3 => (0_usize..3).prop_map(|client| Step::Mail { client }),
        2 => (0_usize..3, 0_u64..5).prop_map(|(client, which)| Step::Unmail { client, which }),
        1 => (0_usize..3).prop_map(|client| Step::SaveClient { client }),
        1 => (0_usize..3).prop_map(|client| Step::ForgetClient { client }),
        1 => Just(Step::Reopen),
    ]
}

/// A stream of the model: epoch, top, and the first offset that is kept.
type Model = BTreeMap<String, (u64, u64, u64)>;

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// A durable store gives back what a plain model of it has.
    #[test]
    fn what_was_saved_is_what_is_opened(steps in prop::collection::vec(step(), 1..60)) {
        let folder = tempfile::tempdir().unwrap();
        let store = sqlite(folder.path());
        store.open().unwrap();
        let mut streams = Model::new();
        let mut mail: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        let mut clients: Vec<String> = Vec::new();
        let mut next_epoch = 0;
        // streams are opened anew when the store was
        let mut announced = BTreeSet::new();
        let mut next_number = 0;
        for step in steps.into_iter().chain([Step::Reopen]) {
            match step {
                Step::Publish { channel, count } => {
                    let name = format!("channel {channel}");
                    let stream = streams.entry(name.clone()).or_insert_with(|| {
                        next_epoch += 1;
                        (next_epoch, 0, 1)
                    });
                    if announced.insert(name.clone()) {
                        give(&store, opened(&name, stream.0, false), None);
                    }
                    for _ in 0..count {
                        stream.1 += 1;
                        publish(&store, &name, stream.1, None);
                    }
                }
                Step::Trim { channel, behind } => {
                    let name = format!("channel {channel}");
                    if let Some(stream) = streams.get_mut(&name).filter(|_| announced.contains(&name)) {
                        let through = stream.1.saturating_sub(behind);
                        stream.2 = stream.2.max(through + 1);
                        give(&store, trimmed(&name, through), None);
                    }
                }
                Step::Forget { channel } => {
                    let name = format!("channel {channel}");
                    streams.remove(&name);
                    announced.remove(&name);
                    give(&store, StreamChange::StreamForgotten { stream: key(&name), channel: name.as_str().into() }, None);
                }
                Step::Mail { client } => {
                    let name = format!("client {client}");
                    give(&store, mailed(&name, next_number, next_number % 2 == 0), None);
                    mail.entry(name).or_default().push(next_number);
                    next_number += 1;
                }
                Step::Unmail { client, which } => {
                    let name = format!("client {client}");
                    let kept = mail.entry(name.clone()).or_default();
                    let gone: Vec<u64> = kept.iter().copied().filter(|number| number % 5 == which).collect();
                    kept.retain(|number| number % 5 != which);
                    give(&store, SessionChange::Unmailed { client: name.as_str().into(), numbers: gone }, None);
                }
                Step::SaveClient { client: number } => {
                    let name = format!("client {number}");
                    give(&store, SessionChange::ClientSaved { client: Box::new(client(&name)) }, None);
                    clients.retain(|known| *known != name);
                    clients.push(name);
                }
                Step::ForgetClient { client } => {
                    let name = format!("client {client}");
                    clients.retain(|known| *known != name);
                    give(&store, SessionChange::ClientForgotten { id: name.as_str().into() }, None);
                }
                Step::Reopen => {
                    let saved = reopen(&store);
                    announced.clear();
                    let seen: Model = saved.streams.iter().map(|stream| {
                        let first = stream.publications.first().map_or(stream.top + 1, |kept| kept.offset);
                        (stream.channel.to_string(), (stream.epoch, stream.top, first))
                    }).collect();
                    prop_assert_eq!(&seen, &streams);
                    for (name, (_, top, first)) in &streams {
                        prop_assert_eq!(offsets(&saved, name), (*first..=*top).collect::<Vec<_>>());
                    }
                    let seen: BTreeMap<String, Vec<u64>> = saved.mail.iter().fold(BTreeMap::new(), |mut all, mail| {
                        all.entry(mail.client.to_string()).or_insert_with(Vec::new).push(mail.number);
                        all
                    });
                    mail.retain(|_, kept| !kept.is_empty());
                    prop_assert_eq!(&seen, &mail);
                    let mut seen: Vec<String> = saved.clients.iter().map(|client| client.id.to_string()).collect();
                    seen.sort();
                    clients.sort();
                    prop_assert_eq!(&seen, &clients);
                }
            }
        }
        store.close(PATIENCE);
    }
}
