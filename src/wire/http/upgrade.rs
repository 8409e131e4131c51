//! The WebSocket handshake (RFC 6455 section 4.2): a head that asks for one is checked, and accepted.

use super::head::RequestHead;
use super::pages::Refused;
use crate::settings::subprotocols::read_offered;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// A valid request for a WebSocket.
#[derive(Debug, PartialEq, Eq)]
pub struct Upgrade<'a> {
    /// The proof that the server has read the client's key.
    accept: String,
    /// The resume token of a client that returns.
    pub resume: Option<&'a str>,
    /// The client acknowledges what is sent to it.
    pub acknowledges: bool,
    /// The client is a page that may be loaded again.
    pub may_return: bool,
    /// The subprotocols that the client offers.
    pub offered: Vec<String>,
}

/// True for a head that asks for a WebSocket, whether the rest of the head is right or not.
pub fn is_upgrade(head: &RequestHead) -> bool {
    head.has_token("upgrade", "websocket")
}

impl<'a> Upgrade<'a> {
    /// Checks a head for which `is_upgrade` is true.
    ///
    /// Errors: the answer that names what is wrong.
    pub fn check(head: &'a RequestHead) -> Result<Self, Refused> {
        if head.method() != "GET" || !head.is_http_1_1() {
            return Err(Refused::Malformed(
                "a WebSocket handshake is a GET with HTTP/1.1",
            ));
        }
        if !head.has_token("connection", "upgrade") {
            return Err(Refused::Malformed(
                "a WebSocket handshake has the header Connection: Upgrade",
            ));
        }
        let version = head.value("sec-websocket-version");
        if version.is_none_or(|version| version.trim_ascii() != b"13") {
            return Err(Refused::Version);
        }
        let Some(offered) = read_offered(head.values("sec-websocket-protocol")) else {
            return Err(Refused::Malformed(
                "Sec-WebSocket-Protocol must be a list of tokens",
            ));
        };
        match head.value("sec-websocket-key").map(<[u8]>::trim_ascii) {
            Some(key) if is_key(key) => Ok(Self {
                accept: derive_accept_key(key),
                resume: head.parameter("resume"),
                acknowledges: head.parameter("ack") == Some("1"),
                may_return: head.parameter("return") == Some("1"),
                offered,
            }),
            Some(_) => Err(Refused::Malformed(
                "Sec-WebSocket-Key must be 16 bytes in base64",
            )),
            None => Err(Refused::Malformed(
                "a WebSocket handshake has the header Sec-WebSocket-Key",
            )),
        }
    }

    /// The response that accepts the request, with the subprotocol that was selected.
    pub fn response(&self, subprotocol: Option<&str>) -> Vec<u8> {
        let selected = subprotocol.map_or_else(String::new, |name| {
            format!("Sec-WebSocket-Protocol: {name}\r\n")
        });
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {}\r\n{selected}\r\n",
            self.accept
        )
        .into_bytes()
    }
}

/// Base64 of 16 bytes has 22 digits and two padding characters.
fn is_key(key: &[u8]) -> bool {
    key.len() == 24
        && key.ends_with(b"==")
        && key[..22]
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UPGRADE: &str = "GET /any?x=1 HTTP/1.1\r\nHost: a\r\nUpgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

    fn head(text: &str) -> RequestHead {
        RequestHead::parse(text.as_bytes()).unwrap().unwrap()
    }

    #[test]
    fn the_sample_of_the_rfc_is_accepted() {
        let plain = head(UPGRADE);
        assert!(is_upgrade(&plain));
        let expected = Upgrade {
            accept: "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".to_owned(),
            resume: None,
            acknowledges: false,
            may_return: false,
            offered: Vec::new(),
        };
        assert_eq!(Upgrade::check(&plain), Ok(expected));
        let returning = head(&UPGRADE.replace("?x=1", "?x=1&resume=12ab&ack=1&return=1&resume=3"));
        let upgrade = Upgrade::check(&returning).unwrap();
        assert_eq!(upgrade.resume, Some("12ab"));
        assert!(upgrade.acknowledges && upgrade.may_return);
    }

    #[test]
    fn what_is_missing_in_an_upgrade_is_named() {
        let refused = |from: &str, to: &str| {
            let head = head(&UPGRADE.replace(from, to));
            Upgrade::check(&head).unwrap_err()
        };
        assert_eq!(refused("Version: 13", "Version: 8"), Refused::Version);
        for (from, to) in [
            ("GET", "POST"),
            ("HTTP/1.1", "HTTP/1.0"),
            ("keep-alive, Upgrade", "keep-alive"),
            ("dGhlIHNhbXBsZSBub25jZQ==", "short"),
            ("Sec-WebSocket-Key", "X-Key"),
        ] {
            assert!(matches!(refused(from, to), Refused::Malformed(_)), "{from}");
        }
    }

    #[test]
    fn offered_subprotocols_are_read_from_every_field() {
        let with = |fields: &str| head(&UPGRADE.replace("Host: a\r\n", fields));
        let fields = "Host: a\r\nSec-WebSocket-Protocol: b, c\r\nsec-websocket-protocol: d\r\n";
        let offering = with(fields);
        let upgrade = Upgrade::check(&offering).unwrap();
        assert_eq!(upgrade.offered, ["b", "c", "d"]);
        let accepted = String::from_utf8(upgrade.response(Some("b"))).unwrap();
        assert!(accepted.ends_with("=\r\nSec-WebSocket-Protocol: b\r\n\r\n"));
        let wrong = with("Sec-WebSocket-Protocol: b c\r\n");
        assert!(matches!(Upgrade::check(&wrong), Err(Refused::Malformed(_))));
    }
}
