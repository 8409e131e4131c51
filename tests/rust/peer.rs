//! A server to test, and a client that sends and reads bytes.

use _tantor::adapters::admit_all::AdmitAll;
use _tantor::adapters::memory_broker::{BrokerLimits, KeyLimits, MemoryBroker};
use _tantor::adapters::memory_mail::{MailLimits, MemoryMail};
use _tantor::adapters::memory_presence::MemoryPresence;
use _tantor::adapters::memory_sessions::MemorySessions;
use _tantor::adapters::memory_store::MemoryStore;
use _tantor::base::completion::{Abandoned, Completion, Progress};
use _tantor::host::server::Server;
use _tantor::node::{Connected, Connecting, Node, Ports};
use _tantor::ports::auth::Auth;
use _tantor::ports::broker::Broker;
use _tantor::ports::calls::PublishOptions;
use _tantor::ports::sessions::Sessions;
use _tantor::ports::store::Store;
use _tantor::settings::config::{Config, Value};
use serde_json::Value as Json;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// How long anything may take; generous, for what is waited for always comes.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Room for so many bytes of publications that are not durable.
pub fn history_limits(history_bytes: usize) -> BrokerLimits {
    BrokerLimits {
        history_bytes,
        durable_bytes: 1 << 30,
        keys: KeyLimits {
            ttl: Duration::from_secs(3600),
            total: 10_000,
            of_one_client: 1000,
        },
    }
}

/// The ports of a node on top of a broker and a store, with the implementations in memory of all others.
pub fn ports_on(config: &Config, broker: Arc<dyn Broker>, store: Arc<dyn Store>) -> Ports {
    let resume_ttl = Config::default().resume_ttl;
    let sessions = Arc::new(MemorySessions::new(store.clone(), resume_ttl));
    let mail = MemoryMail::new(store.clone(), MailLimits::of_settings(config));
    Ports {
        broker,
        presence: Arc::new(MemoryPresence::default()),
        store,
        sessions,
        mail: Arc::new(mail),
    }
}

/// The client of a connect that has ended; `None` if it is not connected.
pub fn connected(connecting: Connecting) -> Option<Connected> {
    match connecting {
        Connecting::Connected(connected) => Some(connected),
        Connecting::NotConnected(_) => None,
        Connecting::Begun => panic!("the connect has not ended"),
    }
}

/// The members of a channel, whenever presence answers; asks again where presence fails.
pub fn members(node: &Node, channel: &str) -> Vec<Arc<str>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (tell, told) = mpsc::channel();
        let mut later = || {
            let tell = tell.clone();
            Completion::new(move |members| tell.send(members).unwrap())
        };
        let outcome = match node.presence(channel, &mut later) {
            Progress::Ended(outcome) => outcome,
            Progress::Begun(_) => told.recv_timeout(PATIENCE).unwrap(),
        };
        if let Ok(members) = outcome {
            return members;
        }
        assert!(Instant::now() < deadline, "presence always fails");
    }
}

/// Publishes as the application does, without waiting for any disk; returns to how many.
pub fn broadcast(node: &Arc<Node>, channel: &str, event: &str, data: &[u8]) -> usize {
    let options = PublishOptions::default();
    ended(node.broadcast(channel, event, data, &options, &mut not_later)).recipients
}

/// Sends an emergency as the application does; returns to how many.
pub fn emergency(node: &Arc<Node>, message: &str) -> usize {
    ended(node.emergency(message, &mut not_later)).recipients
}

/// Stands for the completion of a call that ends at once.
pub fn not_later<T, E: Abandoned>() -> Completion<T, E> {
    panic!("nothing is durable here")
}

/// The result of a call that has ended.
pub fn ended<T>(progress: Progress<T>) -> T {
    match progress {
        Progress::Ended(outcome) => outcome.unwrap(),
        Progress::Begun(_) => panic!("the call has not ended"),
    }
}

fn config(settings: &[(&str, i64)]) -> Config {
    let mut values = vec![
        ("port".to_owned(), Value::Integer(0)),
        ("host".to_owned(), Value::Text("127.0.0.1".into())),
    ];
    values.extend(
        settings
            .iter()
            .map(|(name, value)| ((*name).to_owned(), Value::Integer(*value))),
    );
    Config::from_values(&values).unwrap()
}

/// A server on a free port, stopped at the end.
pub struct Served(pub Arc<Server>);

impl Served {
    pub fn with(settings: &[(&str, i64)]) -> Self {
        Self::with_auth(settings, Arc::new(AdmitAll))
    }

    pub fn with_auth(settings: &[(&str, i64)], auth: Arc<dyn Auth>) -> Self {
        Self::start(Server::with_auth(config(settings), auth).unwrap())
    }

    /// On a broker and a store in memory, and on these sessions.
    pub fn with_sessions(settings: &[(&str, i64)], sessions: Arc<dyn Sessions>) -> Self {
        let store = Arc::new(MemoryStore);
        let broker = MemoryBroker::new(store.clone(), history_limits(1 << 20));
        let config = config(settings);
        let ports = Ports {
            sessions,
            ..ports_on(&config, Arc::new(broker), store)
        };
        Self::start(Server::with_ports(config, ports, Arc::new(AdmitAll)))
    }

    fn start(server: Arc<Server>) -> Self {
        assert!(server.start(None).unwrap());
        Self(server)
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.0.address().unwrap()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// A client that is through the handshake and has read its welcome.
    pub fn client(&self) -> Peer {
        let mut peer = Peer::new(self.connect());
        peer.stream.write_all(HANDSHAKE).unwrap();
        let head = peer.read_head();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let welcome = peer.json();
        assert_eq!(welcome["event"], "welcome");
        welcome["client_id"]
            .as_str()
            .unwrap()
            .clone_into(&mut peer.id);
        peer
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.0.begin_stop();
        assert!(
            self.0.wait_stopped(Some(PATIENCE)),
            "the server does not stop"
        );
    }
}

pub const HANDSHAKE: &[u8] =
    b"GET /chat HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

pub struct Peer {
    pub stream: TcpStream,
    pub id: String,
    buffer: Vec<u8>,
}

impl Peer {
    pub fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            id: String::new(),
            buffer: Vec::new(),
        }
    }

    /// Sends one masked frame.
    pub fn frame(&mut self, first: u8, payload: &[u8]) {
        self.stream.write_all(&masked(first, payload)).unwrap();
    }

    pub fn text(&mut self, text: &str) {
        self.frame(0x81, text.as_bytes());
    }

    /// The next frame: its first byte and its payload. `None` at the end of the stream.
    pub fn next_frame(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            if let Some((first, start, end)) = whole_frame(&self.buffer) {
                let payload = self.buffer[start..end].to_vec();
                self.buffer.drain(..end);
                return Some((first, payload));
            }
            let mut chunk = vec![0; 65_536];
            match self.stream.read(&mut chunk) {
                Ok(0) => return None,
                Ok(count) => self.buffer.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("nothing came: {error}"),
            }
        }
    }

    /// The next text frame as JSON; pings are passed over.
    pub fn json(&mut self) -> Json {
        loop {
            match self.next_frame() {
                Some((0x81, payload)) => return serde_json::from_slice(&payload).unwrap(),
                Some((0x89, _)) => {}
                other => panic!("a text frame should have come, not {other:?}"),
            }
        }
    }

    /// The next message for which `wanted` is true.
    pub fn json_where(&mut self, wanted: impl Fn(&Json) -> bool) -> Json {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let message = self.json();
            if wanted(&message) {
                return message;
            }
            assert!(
                Instant::now() < deadline,
                "the message that is waited for did not come"
            );
        }
    }

    /// The code of the close frame that comes next, and that nothing but the end follows it.
    pub fn close_code(&mut self) -> u16 {
        loop {
            match self.next_frame() {
                Some((0x88, payload)) => {
                    assert!(
                        self.next_frame().is_none(),
                        "something followed the close frame"
                    );
                    return u16::from_be_bytes([payload[0], payload[1]]);
                }
                Some(_) => {}
                None => panic!("the connection ended without a close frame"),
            }
        }
    }

    /// The next bytes as text, in whatever pieces they come. `None` at the end of the stream.
    pub fn some_text(&mut self) -> Option<String> {
        if self.buffer.is_empty() {
            let mut chunk = [0; 4096];
            let count = self.stream.read(&mut chunk).unwrap_or(0);
            self.buffer.extend_from_slice(&chunk[..count]);
        }
        let bytes = std::mem::take(&mut self.buffer);
        (!bytes.is_empty()).then(|| String::from_utf8(bytes).unwrap())
    }

    pub fn read_head(&mut self) -> String {
        loop {
            if let Some(end) = self
                .buffer
                .windows(4)
                .position(|window| window == b"\r\n\r\n")
            {
                let head = String::from_utf8(self.buffer.drain(..end + 4).collect()).unwrap();
                return head;
            }
            let mut chunk = [0; 4096];
            let count = self.stream.read(&mut chunk).unwrap();
            assert!(
                count > 0,
                "the connection ended: {:?}",
                String::from_utf8_lossy(&self.buffer)
            );
            self.buffer.extend_from_slice(&chunk[..count]);
        }
    }
}

/// A frame as a client sends it, with a mask that is not all zeros.
pub fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    encode_frame(first, payload, Some([0x12, 0x34, 0x56, 0x78]))
}

/// A frame with any first byte. A client must give a mask.
pub fn encode_frame(first: u8, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    let bit = if mask.is_some() { 0x80 } else { 0 };
    let mut frame = vec![first];
    match payload.len() {
        length @ 0..=125 => frame.push(bit | u8::try_from(length).unwrap()),
        length @ 126..=65_535 => {
            frame.push(bit | 0x7E);
            frame.extend(u16::try_from(length).unwrap().to_be_bytes());
        }
        length => {
            frame.push(bit | 0x7F);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    frame.extend(mask.iter().flatten());
    let key = mask.unwrap_or_default();
    frame.extend(
        payload
            .iter()
            .zip(key.iter().cycle())
            .map(|(byte, key)| byte ^ key),
    );
    frame
}

fn whole_frame(bytes: &[u8]) -> Option<(u8, usize, usize)> {
    let (first, length) = (*bytes.first()?, *bytes.get(1)? as usize);
    let (start, length) = match length {
        126 => (
            4,
            u16::from_be_bytes(bytes.get(2..4)?.try_into().unwrap()) as usize,
        ),
        127 => (
            10,
            usize::try_from(u64::from_be_bytes(bytes.get(2..10)?.try_into().unwrap())).unwrap(),
        ),
        length => (2, length),
    };
    (bytes.len() >= start + length).then_some((first, start, start + length))
}

/// Waits until something is so.
pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "it never came about that {what}");
        std::thread::yield_now();
    }
}
