//! Whole HTTP answers: pages, the files of the JavaScript client, and refusals. The connection ends with each.

use crate::wire::client_module::ClientFile;

/// A request that gets an error status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    Malformed(&'static str),
    MethodNotAllowed,
    NotFound,
    TimedOut,
    Version,
    HeadTooLarge,
    Full,
    /// The server is stopping; the client may try again after this many seconds.
    Draining(u64),
    /// The server failed while it answered.
    Failed,
    /// `Auth` refuses the connection.
    Denied(Denial),
    /// `Auth` could not decide.
    Undecided,
    /// `Auth` did not decide in time.
    Unanswered,
}

/// Why a connection is not admitted: status and text of the response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    status: DenialStatus,
    reason: String,
}

/// The status of a `Denial`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DenialStatus {
    /// 401: the request does not say who asks, or not credibly.
    Unauthorized,
    /// 403
    Forbidden,
    /// 429
    TooManyRequests,
    /// 503
    Unavailable,
}

impl Denial {
    /// `reason` is the body of the answer.
    pub fn new(status: DenialStatus, reason: impl Into<String>) -> Self {
        Self {
            status,
            reason: reason.into(),
        }
    }
}

/// The answer to a request that is refused.
pub fn refusal_response(refused: &Refused) -> Vec<u8> {
    let retry_after;
    let (status, extra, body) = match refused {
        Refused::Malformed(problem) => ("400 Bad Request", "", *problem),
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
            RETRY_SOON,
            "as many clients as allowed are connected",
        ),
        Refused::Failed => (
            "500 Internal Server Error",
            "",
            "the server failed while it answered this request",
        ),
        Refused::Undecided => (
            "503 Service Unavailable",
            RETRY_SOON,
            "whether this client may connect could not be checked",
        ),
        Refused::Unanswered => (
            "503 Service Unavailable",
            RETRY_SOON,
            "whether this client may connect was not decided in time",
        ),
        Refused::Denied(denial) => {
            let (status, extra) = match denial.status {
                // RFC 9110 section 15.5.2 asks for a challenge
                DenialStatus::Unauthorized => ("401 Unauthorized", "WWW-Authenticate: Bearer\r\n"),
                DenialStatus::Forbidden => ("403 Forbidden", ""),
                DenialStatus::TooManyRequests => ("429 Too Many Requests", RETRY_SOON),
                DenialStatus::Unavailable => ("503 Service Unavailable", RETRY_SOON),
            };
            (status, extra, denial.reason.as_str())
        }
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

const RETRY_SOON: &str = "Retry-After: 5\r\n";

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
