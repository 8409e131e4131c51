//! A server with real sockets.

use super::*;
use crate::base::completion::{Later, Progress};
use crate::ports::durability::{Committed, Durability, Health, NotTaken, StoreError};
use crate::ports::saved_sessions::{SavedSessions, SessionChange};
use crate::ports::store::Saved;
use crate::ports::stream_log::{Logged, StreamChange, StreamLog};
use crate::settings::config::Value;
use crate::wire::frame::EncodedFrame;
use std::net::TcpStream;
use std::ops::RangeInclusive;
use tokio_tungstenite::tungstenite::{self, Message, WebSocket};

fn connect(server: &Server) -> WebSocket<TcpStream> {
    let stream = TcpStream::connect(server.address().unwrap()).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    tungstenite::client("ws://localhost/", stream).unwrap().0
}

/// Reads on to a message that has this in it.
fn read_to(socket: &mut WebSocket<TcpStream>, wanted: &str) {
    while !matches!(socket.read().unwrap(), Message::Text(text) if text.contains(wanted)) {}
}

/// A store that saves nothing, and that panics when something is published on the channel "faulty".
struct FaultyStore;

impl Durability for FaultyStore {
    fn barrier(&self, _: Committed) -> Result<(), NotTaken> {
        Ok(())
    }

    fn health(&self) -> Health {
        Health::default()
    }

    fn is_durable(&self) -> bool {
        true
    }
}

impl StreamLog for FaultyStore {
    fn append(&self, _: StreamChange<&EncodedFrame>, _: Option<Committed>) -> Result<(), NotTaken> {
        Ok(())
    }

    fn read(
        &self,
        _: &Arc<str>,
        _: RangeInclusive<u64>,
        _: &mut Later<'_, Vec<Logged>, StoreError>,
    ) -> Progress<Vec<Logged>, StoreError> {
        Progress::Ended(Ok(Vec::new()))
    }

    fn note_published(&self, channel: &str, _: bool) -> bool {
        assert_ne!(channel, "faulty", "as the test wants");
        true
    }

    fn is_busy(&self) -> bool {
        false
    }
}

impl SavedSessions for FaultyStore {
    fn save(&self, _: SessionChange<&EncodedFrame>, _: Option<Committed>) -> Result<(), NotTaken> {
        Ok(())
    }
}

impl Store for FaultyStore {
    fn open(&self) -> Result<Saved, StoreError> {
        Ok(Saved::default())
    }

    fn close(&self, _: Duration) {}
}

#[test]
fn a_panic_closes_one_connection() {
    let values = [
        ("port".to_owned(), Value::Integer(0)),
        ("shards".to_owned(), Value::Integer(1)),
    ];
    let config = Config::from_values(&values).unwrap();
    let server = Server::over(config, Arc::new(FaultyStore), Arc::new(AdmitAll));
    server.start(None).unwrap();
    let (mut healthy, mut failing) = (connect(&server), connect(&server));
    read_to(&mut failing, "user_joined");
    let publication = r#"{"action":"broadcast","channel":"faulty","event":"news","data":1}"#;
    failing.send(Message::text(publication)).unwrap();
    let closed = loop {
        if let Message::Close(frame) = failing.read().unwrap() {
            break frame.unwrap();
        }
    };
    assert_eq!(u16::from(closed.code), 1011);
    healthy.send(Message::text(r#"{"action":"ping"}"#)).unwrap();
    read_to(&mut healthy, "pong");
    assert_eq!(server.node().connection_count(), 1);
    server.begin_stop();
    assert!(server.wait_stopped(Some(Duration::from_secs(20))));
}
