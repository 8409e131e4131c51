//! Every call, through the trait alone: on a node in this process, and on one at the other end of a link. No Python.

use crate::link::Linked;
use crate::peer::{PATIENCE, connected, history_limits, ports_on};
use crate::shards::node_with_shards;
use _tantor::adapters::memory_broker::MemoryBroker;
use _tantor::adapters::memory_store::MemoryStore;
use _tantor::adapters::sqlite::{Limits, SqliteStore};
use _tantor::base::completion::{Completion, Progress};
use _tantor::base::error::{Error, ErrorCode};
use _tantor::core::history::Page;
use _tantor::node::{Asker, Client, ClientCalls, ConnectRequest, ConnectionId, Node, NodeCalls};
use _tantor::ports::calls::{Call, Calls, PublishOptions, Reply};
use _tantor::ports::store::Store;
use _tantor::settings::channel_kind::ChannelKind;
use _tantor::settings::config::Config;
use _tantor::wire::messages::Body;
use std::sync::{Arc, mpsc};
use std::time::Duration;

fn calls_over(store: Arc<dyn Store>) -> Box<dyn Calls> {
    let config = Config::default();
    let broker = MemoryBroker::new(store.clone(), history_limits(1 << 20));
    let ports = ports_on(&config, Arc::new(broker), store);
    let node = Node::new(Arc::new(config), ports);
    Box::new(NodeCalls::new(Arc::new(node)))
}

/// Makes the same calls in this process, where they end at once, and over a link.
fn on_both(store: fn() -> Arc<dyn Store>, check: impl Fn(&dyn Calls)) {
    check(&*calls_over(store()));
    check(&Linked::to(calls_over(store()).into()));
}

fn nothing_saved() -> Arc<dyn Store> {
    Arc::new(MemoryStore)
}

/// The reply to a call.
pub fn ask(calls: &dyn Calls, call: Call<'_>) -> Result<Reply, Error> {
    let (tell, told) = mpsc::channel();
    let mut later = || {
        let tell = tell.clone();
        Completion::new(move |outcome| tell.send(outcome).unwrap())
    };
    match calls.call(call, &mut later) {
        Progress::Ended(reply) => reply,
        Progress::Begun(_) => told.recv_timeout(PATIENCE).unwrap(),
    }
}

macro_rules! asked {
    ($calls:expr, $call:expr, $kind:path) => {
        match ask($calls, $call).unwrap() {
            $kind(content) => content,
            other => panic!("an unexpected reply: {other:?}"),
        }
    };
}

fn broadcast<'a>(channel: &'a str, options: PublishOptions<'a>) -> Call<'a> {
    Call::Broadcast {
        channel,
        event: "news",
        data: b"{\"n\":1}",
        options,
    }
}

fn names(ids: &[Arc<str>]) -> Vec<&str> {
    ids.iter().map(|id| &**id).collect()
}

#[test]
fn channels_and_publications() {
    on_both(nothing_saved, check_channels_and_publications);
}

fn check_channels_and_publications(calls: &dyn Calls) {
    let (name, client) = ("den", "somebody");
    let create = |kind| Call::CreateChannel { name, kind };
    assert!(matches!(
        ask(calls, create("secret")),
        Err(Error::Argument(_))
    ));
    assert!(asked!(calls, create("private"), Reply::Changed));
    assert!(!asked!(calls, create("public"), Reply::Changed));
    assert!(asked!(calls, Call::HasChannel { name }, Reply::Known));
    let channel = asked!(calls, Call::Channel { name }, Reply::Channel).unwrap();
    assert_eq!((&*channel.name, channel.kind), (name, ChannelKind::Private));

    let subscribe = Call::Subscribe {
        client,
        channel: name,
    };
    assert!(matches!(ask(calls, subscribe).unwrap(), Reply::Done));
    assert_eq!(
        names(&asked!(calls, Call::Presence { channel: name }, Reply::Ids)),
        [client]
    );
    let census = asked!(calls, Call::Census, Reply::Census);
    assert_eq!(
        census.iter().find(|(known, _)| &**known == name).unwrap().1,
        1
    );
    let unsubscribe = Call::Unsubscribe {
        client,
        channel: name,
    };
    assert!(matches!(ask(calls, unsubscribe).unwrap(), Reply::Done));
    assert!(asked!(calls, Call::Presence { channel: name }, Reply::Ids).is_empty());

    let once = PublishOptions {
        idempotency_key: Some("one"),
        ..PublishOptions::default()
    };
    let first = asked!(calls, broadcast(name, once), Reply::Published);
    let again = asked!(calls, broadcast(name, once), Reply::Published);
    assert_eq!((first.is_duplicate, again.is_duplicate), (false, true));
    assert_eq!(first.position, again.position);
    let page = Page {
        limit: 10,
        after: None,
        before: None,
    };
    let history = asked!(
        calls,
        Call::History {
            channel: name,
            page
        },
        Reply::History
    );
    assert_eq!((history.offset, history.publications.len()), (1, 1));

    let known = asked!(calls, Call::ChannelNames, Reply::Ids);
    assert!(names(&known).contains(&name));
    assert_eq!(asked!(calls, Call::ChannelCount, Reply::Count), known.len());
    assert!(asked!(calls, Call::DeleteChannel { name }, Reply::Changed));
    assert!(!asked!(calls, Call::DeleteChannel { name }, Reply::Changed));
    assert!(asked!(calls, Call::Channel { name }, Reply::Channel).is_none());
}

#[test]
fn clients_and_messages() {
    on_both(nothing_saved, check_clients_and_messages);
}

fn check_clients_and_messages(calls: &dyn Calls) {
    let client = "somebody";
    assert!(asked!(calls, Call::ConnectionIds, Reply::Ids).is_empty());
    assert_eq!(asked!(calls, Call::ConnectionCount, Reply::Count), 0);
    assert!(!asked!(calls, Call::HasConnection { client }, Reply::Known));
    assert!(asked!(calls, Call::Connection { client }, Reply::Connection).is_none());
    let token = asked!(calls, Call::ResumeToken { client }, Reply::Token);
    assert!(!token.is_empty());

    let json = b"{\"name\":\"Ada\"}";
    assert!(matches!(
        ask(calls, Call::SetUserData { client, json }).unwrap(),
        Reply::Done
    ));
    assert_eq!(
        asked!(calls, Call::UserData { client }, Reply::UserData).unwrap(),
        &json[..]
    );

    let send = Call::Send {
        client,
        channel: None,
        body: Body::Message(b"\"hello\""),
        options: PublishOptions::default(),
    };
    let reply = asked!(calls, send, Reply::Sent);
    let message_id = &reply.stamp.id_text();
    let report = asked!(calls, Call::Delivery { message_id }, Reply::Delivery).unwrap();
    assert_eq!((report.handed_over, report.waiting), (0, 1));
    let unknown = Call::Delivery {
        message_id: "msg_0",
    };
    assert!(asked!(calls, unknown, Reply::Delivery).is_none());

    let alarmed = asked!(calls, Call::Emergency { message: "fire" }, Reply::Alarmed);
    assert_eq!(alarmed.recipients, 0);
    let stats = asked!(calls, Call::Stats, Reply::Stats);
    assert_eq!(
        (stats.connections, stats.mail.0, &*stats.storage.kind),
        (0, 2, "memory")
    );
    let counted = |wanted| {
        stats
            .counters
            .iter()
            .find(|(name, _)| *name == wanted)
            .unwrap()
            .1
    };
    assert_eq!((counted("undelivered"), counted("publications")), (1, 1));
}

/// What a client asks for, without a reference.
fn asker(client: &Arc<Client>, connection_id: ConnectionId) -> Asker<'_> {
    Asker {
        client,
        connection_id,
        reference: None,
    }
}

#[test]
fn the_calls_of_a_client() {
    let (node, _shards) = node_with_shards(Config::default(), 1);
    let connection_id = ConnectionId {
        shard: 0,
        slot: 0,
        generation: 1,
    };
    let request = ConnectRequest::default();
    let client = connected(node.connect(connection_id, &request))
        .unwrap()
        .client;
    let calls = ClientCalls::new(&node, asker(&client, connection_id));
    let application = NodeCalls::new(Arc::clone(&node));
    let channel = "den";
    let join = Call::Join {
        channel,
        recover: None,
    };
    assert!(matches!(ask(&calls, join), Ok(Reply::Joining)));
    assert!(calls.take_fan_out().is_some(), "the notice");
    let Ok(Reply::Present { online, users }) = ask(&calls, Call::Present { channel }) else {
        panic!("the subscribers");
    };
    assert_eq!((online, users), (1, vec![Arc::clone(&client.id)]));
    let published = ask(&calls, broadcast(channel, PublishOptions::default()));
    assert!(matches!(published, Ok(Reply::Published(published)) if published.recipients == 1));
    let page = |limit| Call::Page {
        channel,
        limit: Some(limit),
        after: None,
        before: None,
    };
    assert!(matches!(ask(&calls, page(10)), Ok(Reply::History(page)) if page.offset == 1));
    let refused = ask(&calls, page(0));
    assert!(matches!(refused, Err(Error::Refused(why)) if why.code == ErrorCode::BadLimit));
    assert!(matches!(ask(&calls, Call::Ping), Ok(Reply::Pong)));
    let message = Call::Message {
        action: Some("dance"),
        text: "{}",
    };
    assert!(matches!(ask(&calls, message), Ok(Reply::Done)));
    let unknown = Call::Acknowledge {
        ids: &[7],
        malformed: None,
    };
    let refused = ask(&calls, unknown);
    assert!(matches!(refused, Err(Error::Refused(why)) if why.code == ErrorCode::UnknownMessage));
    assert!(matches!(
        ask(&calls, Call::Leave { channel }),
        Ok(Reply::Done)
    ));
    assert!(asked!(&application, Call::Presence { channel }, Reply::Ids).is_empty());

    let name = "cave";
    let of_the_application = Call::DeleteChannel { name };
    assert!(matches!(
        ask(&calls, of_the_application),
        Err(Error::Refused(_))
    ));
    assert!(matches!(ask(&application, join), Err(Error::Argument(_))));
}

#[test]
fn a_durable_call_tells_when_its_result_is_saved() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits {
        file_bytes: 1 << 30,
        queue_bytes: 1 << 20,
        keys: 10,
        key_ttl: Duration::from_secs(1),
    };
    let store = Arc::new(SqliteStore::new(&folder.path().join("tantor.db"), limits));
    let calls = calls_over(store);
    let durable = PublishOptions {
        durable: true,
        ..PublishOptions::default()
    };
    let (tell, told) = mpsc::channel();
    let mut later = || {
        let tell = tell.clone();
        Completion::new(move |outcome: Result<Reply, Error>| {
            tell.send(outcome.is_ok()).unwrap();
        })
    };
    let progress = calls.call(broadcast("orders", durable), &mut later);
    let Progress::Begun(Some(Reply::Published(published))) = progress else {
        panic!("{progress:?}")
    };
    assert_eq!(published.position.unwrap().offset, 1);
    assert_eq!(told.recv_timeout(Duration::from_secs(60)), Ok(true));
}

#[test]
fn a_durable_call_without_a_database_ends_with_an_error() {
    on_both(nothing_saved, check_durable_without_a_database);
}

fn check_durable_without_a_database(calls: &dyn Calls) {
    let durable = PublishOptions {
        durable: true,
        ..PublishOptions::default()
    };
    let refused = ask(calls, broadcast("orders", durable));
    assert!(matches!(refused, Err(Error::Argument(why)) if why.contains("database")));
}
