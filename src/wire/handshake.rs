//! The first request on a connection: a WebSocket upgrade (RFC 6455 section 4.2) or plain HTTP. No I/O.

use crate::settings::subprotocols::read_offered;
use crate::wire::client_module::ClientFile;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// Header lines that a request may have.
const MAX_HEADERS: usize = 100;

/// What the bytes so far are.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    /// More bytes are needed.
    Incomplete,
    /// A valid upgrade; `len` is where the head ends and frames begin.
    Upgrade {
        accept: String,
        len: usize,
        resume: Option<String>,
        acknowledges: bool,
        /// The subprotocols that the client offers.
        offered: Vec<String>,
        /// The client is a page that may be loaded again.
        may_return: bool,
    },
    /// A request that is no upgrade, with `GET` or `HEAD`.
    Page {
        path: String,
        is_head: bool,
        /// The versions that the client has already.
        if_none_match: Option<String>,
    },
    /// `OPTIONS`, as load balancers ask to see whether the server is alive.
    Options,
    /// Anything else: the answer that it gets.
    Refused(Refused),
}

/// A request that gets an error status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    Malformed(&'static str),
    MethodNotAllowed,
    NotFound,
    TimedOut,
    Version,
    HeadTooLarge,
    Full,
    /// With after how many seconds to come back.
    Draining(u64),
}

/// Reads a request head of at most `max_size` bytes. Pages are looked up without `prefix`, which a proxy may have kept.
pub fn read_request(bytes: &[u8], max_size: usize, prefix: &str) -> Request {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(len)) if len <= max_size => {
            read_complete(&request, len, prefix)
        }
        Ok(httparse::Status::Partial) if bytes.len() < max_size => Request::Incomplete,
        Ok(_) | Err(httparse::Error::TooManyHeaders) => Request::Refused(Refused::HeadTooLarge),
        Err(_) => Request::Refused(Refused::Malformed("not an HTTP request")),
    }
}

/// The answer to a valid upgrade, with the subprotocol that was selected.
pub fn accept_response(accept: &str, subprotocol: Option<&str>) -> Vec<u8> {
    let selected = subprotocol.map_or_else(String::new, |name| {
        format!("Sec-WebSocket-Protocol: {name}\r\n")
    });
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n{selected}\r\n"
    )
    .into_bytes()
}

/// The whole answer to a request that is refused; the connection ends with it.
pub fn refusal_response(refused: Refused) -> Vec<u8> {
    let retry_after;
    let (status, extra, body) = match refused {
        Refused::Malformed(problem) => ("400 Bad Request", "", problem),
        Refused::MethodNotAllowed => (
            "405 Method Not Allowed",
            ALLOW,
            "only GET, HEAD and OPTIONS are answered here",
        ),
        Refused::NotFound => (
            "404 Not Found",
            "",
            "there are /, /healthz, /tantor.js and /tantor.d.ts here, and WebSockets on any path",
        ),
        Refused::TimedOut => ("408 Request Timeout", "", "the request head took too long"),
        Refused::Version => (
            "426 Upgrade Required",
            "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
            "only WebSocket version 13 is spoken here",
        ),
        Refused::HeadTooLarge => (
            "431 Request Header Fields Too Large",
            "",
            "the request head is too large",
        ),
        Refused::Full => (
            "503 Service Unavailable",
            "Retry-After: 5\r\n",
            "as many clients as allowed are connected",
        ),
        Refused::Draining(seconds) => {
            retry_after = format!("Retry-After: {seconds}\r\n");
            (
                "503 Service Unavailable",
                retry_after.as_str(),
                "the server is stopping",
            )
        }
    };
    response(
        status,
        &format!("Content-Type: text/plain; charset=utf-8\r\n{NO_STORE}{extra}"),
        format!("{body}\n").as_bytes(),
        false,
    )
}

/// `OPTIONS`: the methods that are answered (RFC 9110 section 9.3.7).
pub fn options_response() -> Vec<u8> {
    head("204 No Content", &format!("{ALLOW}{NO_STORE}")).into_bytes()
}

/// `GET /favicon.ico`: the elephant.
pub fn icon_response(is_head: bool) -> Vec<u8> {
    response(
        "200 OK",
        "Content-Type: image/svg+xml\r\nCache-Control: max-age=86400\r\n",
        ICON.as_bytes(),
        is_head,
    )
}

/// `GET /healthz`: whether connects are welcome, and how many clients there are.
pub fn health_response(is_draining: bool, connections: usize, is_head: bool) -> Vec<u8> {
    let (status, word) = if is_draining {
        ("503 Service Unavailable", "draining")
    } else {
        ("200 OK", "ok")
    };
    let extra = if is_draining {
        "Retry-After: 1\r\n"
    } else {
        ""
    };
    let body = format!("{{\"status\":\"{word}\",\"connections\":{connections}}}\n");
    response(
        status,
        &format!("Content-Type: application/json\r\n{NO_STORE}{extra}"),
        body.as_bytes(),
        is_head,
    )
}

/// `GET /` without an upgrade: what this is and how to connect.
pub fn index_response(is_head: bool) -> Vec<u8> {
    response(
        "200 OK",
        &format!("Content-Type: text/html; charset=utf-8\r\n{NO_STORE}"),
        INDEX
            .replace("{version}", env!("CARGO_PKG_VERSION"))
            .as_bytes(),
        is_head,
    )
}

/// A file of the JavaScript client, for pages of any origin; only that it is unchanged, if the client has it.
pub fn file_response(file: &ClientFile, if_none_match: Option<&str>, is_head: bool) -> Vec<u8> {
    let shared = format!(
        "ETag: {}\r\nCache-Control: no-cache\r\nAccess-Control-Allow-Origin: *\r\n",
        file.etag
    );
    if if_none_match.is_some_and(|known| file.is_known(known)) {
        return head("304 Not Modified", &shared).into_bytes();
    }
    let headers = format!("Content-Type: {}\r\n{shared}", file.content_type);
    response("200 OK", &headers, file.body, is_head)
}

const INDEX: &str = include_str!("index.html");

const ICON: &str = include_str!("favicon.svg");

const ALLOW: &str = "Allow: GET, HEAD, OPTIONS\r\n";

const NO_STORE: &str = "Cache-Control: no-store\r\n";

fn response(status: &str, headers: &str, body: &[u8], is_head: bool) -> Vec<u8> {
    let length = format!("Content-Length: {}\r\n", body.len());
    let mut response = head(status, &(length + headers)).into_bytes();
    if !is_head {
        response.extend_from_slice(body);
    }
    response
}

fn head(status: &str, headers: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{headers}Connection: close\r\n\r\n")
}

fn read_complete(request: &httparse::Request<'_, '_>, len: usize, prefix: &str) -> Request {
    let header = |name: &str| {
        request
            .headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case(name))
            .map(|header| header.value)
    };
    let has_token = |name: &str, token: &str| {
        request
            .headers
            .iter()
            .filter(|header| header.name.eq_ignore_ascii_case(name))
            .filter_map(|header| std::str::from_utf8(header.value).ok())
            .flat_map(|value| value.split(','))
            .any(|part| part.trim().eq_ignore_ascii_case(token))
    };
    let method = request.method.unwrap_or_default();
    if !has_token("upgrade", "websocket") {
        let target = request.path.unwrap_or_default();
        return match method {
            "OPTIONS" => Request::Options,
            "GET" | "HEAD" => Request::Page {
                path: page_of(target, prefix).to_owned(),
                is_head: method == "HEAD",
                if_none_match: header("if-none-match")
                    .and_then(|value| std::str::from_utf8(value).ok())
                    .map(str::to_owned),
            },
            _ => Request::Refused(Refused::MethodNotAllowed),
        };
    }
    if method != "GET" || request.version != Some(1) {
        return Request::Refused(Refused::Malformed(
            "a WebSocket handshake is a GET with HTTP/1.1",
        ));
    }
    if !has_token("connection", "upgrade") {
        return Request::Refused(Refused::Malformed(
            "a WebSocket handshake has the header Connection: Upgrade",
        ));
    }
    if header("sec-websocket-version").is_none_or(|version| version.trim_ascii() != b"13") {
        return Request::Refused(Refused::Version);
    }
    let fields = request
        .headers
        .iter()
        .filter(|header| header.name.eq_ignore_ascii_case("sec-websocket-protocol"));
    let Some(offered) = read_offered(fields.map(|header| header.value)) else {
        return Request::Refused(Refused::Malformed(
            "Sec-WebSocket-Protocol must be a list of tokens",
        ));
    };
    match header("sec-websocket-key").map(<[u8]>::trim_ascii) {
        Some(key) if is_key(key) => {
            let target = request.path.unwrap_or_default();
            Request::Upgrade {
                accept: derive_accept_key(key),
                len,
                resume: query_value(target, "resume").map(str::to_owned),
                acknowledges: query_value(target, "ack") == Some("1"),
                offered,
                may_return: query_value(target, "return") == Some("1"),
            }
        }
        Some(_) => Request::Refused(Refused::Malformed(
            "Sec-WebSocket-Key must be 16 bytes in base64",
        )),
        None => Request::Refused(Refused::Malformed(
            "a WebSocket handshake has the header Sec-WebSocket-Key",
        )),
    }
}

/// The path of a request's target, in origin form or in absolute form (RFC 9112 section 3.2), without the prefix.
fn page_of<'a>(target: &'a str, prefix: &str) -> &'a str {
    let origin = match target.split_once("://") {
        Some((scheme, rest))
            if scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https") =>
        {
            rest.find('/').map_or("/", |start| &rest[start..])
        }
        _ => target,
    };
    let path = origin.split(['?', '#']).next().unwrap_or_default();
    match path.strip_prefix(prefix) {
        Some("") => "/",
        Some(rest) if rest.starts_with('/') => rest,
        _ => path,
    }
}

/// The value of a parameter in a request's target, as it stands there: what is looked for needs no escapes.
fn query_value<'a>(target: &'a str, name: &str) -> Option<&'a str> {
    let (_, query) = target.split_once('?')?;
    let query = query.split('#').next().unwrap_or_default();
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find(|(known, _)| *known == name)
        .map(|(_, value)| value)
}

/// 16 bytes in base64 are 22 digits and two signs of padding.
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

    fn read(text: &str) -> Request {
        read_request(text.as_bytes(), 4096, "/rt")
    }

    #[test]
    fn the_sample_of_the_rfc_is_accepted() {
        let accept = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".to_owned();
        assert_eq!(
            read(&format!("{UPGRADE}rest")),
            Request::Upgrade {
                accept,
                len: UPGRADE.len(),
                resume: None,
                acknowledges: false,
                offered: Vec::new(),
                may_return: false,
            }
        );
        let Request::Upgrade {
            resume,
            acknowledges,
            may_return,
            ..
        } = read(&UPGRADE.replace("?x=1", "?x=1&resume=12ab&ack=1&return=1&resume=3"))
        else {
            panic!("an upgrade");
        };
        assert_eq!(resume.as_deref(), Some("12ab"));
        assert_eq!((acknowledges, may_return), (true, true));
        for cut in 0..UPGRADE.len() {
            assert_eq!(read(&UPGRADE[..cut]), Request::Incomplete, "{cut}");
        }
    }

    #[test]
    fn what_is_missing_in_an_upgrade_is_named() {
        let refused = |from: &str, to: &str| read(&UPGRADE.replace(from, to));
        assert_eq!(
            refused("Version: 13", "Version: 8"),
            Request::Refused(Refused::Version)
        );
        for (from, to) in [
            ("GET", "POST"),
            ("HTTP/1.1", "HTTP/1.0"),
            ("keep-alive, Upgrade", "keep-alive"),
            ("dGhlIHNhbXBsZSBub25jZQ==", "short"),
            ("Sec-WebSocket-Key", "X-Key"),
        ] {
            assert!(
                matches!(refused(from, to), Request::Refused(Refused::Malformed(_))),
                "{from}"
            );
        }
    }

    #[test]
    fn offered_subprotocols_are_read_from_every_field() {
        let with = |fields: &str| read(&UPGRADE.replace("Host: a\r\n", fields));
        let fields = "Host: a\r\nSec-WebSocket-Protocol: b, c\r\nsec-websocket-protocol: d\r\n";
        let Request::Upgrade { offered, .. } = with(fields) else {
            panic!("an upgrade");
        };
        assert_eq!(offered, ["b", "c", "d"]);
        assert!(matches!(
            with("Sec-WebSocket-Protocol: b c\r\n"),
            Request::Refused(Refused::Malformed(_))
        ));
        let accepted = String::from_utf8(accept_response("x=", Some("b"))).unwrap();
        assert!(accepted.ends_with("x=\r\nSec-WebSocket-Protocol: b\r\n\r\n"));
    }

    #[test]
    fn plain_requests_are_pages() {
        let page = Request::Page {
            path: "/healthz".to_owned(),
            is_head: false,
            if_none_match: None,
        };
        for target in [
            "/healthz?now",
            "http://a:80/healthz",
            "HTTPS://a/healthz?x#y",
            "/rt/healthz",
            "http://a/rt/healthz",
        ] {
            let request = format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
            assert_eq!(read(&request), page, "{target}");
        }
        for (target, path) in [
            ("http://a", "/"),
            ("/rt", "/"),
            ("/rt/", "/"),
            ("/rtx", "/rtx"),
        ] {
            assert_eq!(page_of(target, "/rt"), path);
        }
        assert_eq!(
            read("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n"),
            Request::Options
        );
        assert_eq!(
            read("POST / HTTP/1.1\r\nHost: a\r\n\r\n"),
            Request::Refused(Refused::MethodNotAllowed)
        );
        assert!(matches!(
            read("\x16\x03\x01 tls"),
            Request::Refused(Refused::Malformed(_))
        ));
    }

    #[test]
    fn a_large_head_is_refused_whole_or_not() {
        let long = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(5000));
        assert_eq!(read(&long), Request::Refused(Refused::HeadTooLarge));
        assert_eq!(read(&long[..4096]), Request::Refused(Refused::HeadTooLarge));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "X: 1\r\n".repeat(150));
        assert_eq!(read(&many), Request::Refused(Refused::HeadTooLarge));
    }
}
