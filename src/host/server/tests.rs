//! A server with real sockets.

use super::*;
use crate::settings::config::Value;
use std::net::TcpStream;
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

#[test]
fn a_panic_closes_one_connection() {
    let values = [
        ("port".to_owned(), Value::Integer(0)),
        ("shards".to_owned(), Value::Integer(1)),
    ];
    let server = Server::new(Config::from_values(&values).unwrap()).unwrap();
    server.start(None).unwrap();
    let (mut healthy, mut failing) = (connect(&server), connect(&server));
    read_to(&mut failing, "user_joined");
    failing.send(Message::text("panic")).unwrap();
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
