//! The meaning of a request head: a WebSocket, a page, or a refusal.

use super::head::{HeadError, RequestHead};
use super::pages::Refused;
use super::upgrade::{Upgrade, is_upgrade};

/// The meaning of a request head.
#[derive(Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// A WebSocket.
    Upgrade(Upgrade<'a>),
    /// A page, with `GET` or `HEAD`.
    Page {
        path: &'a str,
        is_head: bool,
        /// The versions that the client has already.
        if_none_match: Option<&'a str>,
    },
    /// `OPTIONS`, as load balancers ask to see whether the server is alive.
    Options,
    /// Anything else.
    Refused(Refused),
}

impl<'a> Request<'a> {
    /// Decides by the head alone. The paths of pages are looked up without `prefix`, which a proxy may have kept.
    pub fn of(head: &'a RequestHead, prefix: &str) -> Self {
        if is_upgrade(head) {
            return Upgrade::check(head).map_or_else(Self::Refused, Self::Upgrade);
        }
        match head.method() {
            "OPTIONS" => Self::Options,
            method @ ("GET" | "HEAD") => Self::Page {
                path: without_prefix(head.path(), prefix),
                is_head: method == "HEAD",
                if_none_match: head
                    .value("if-none-match")
                    .and_then(|value| std::str::from_utf8(value).ok()),
            },
            _ => Self::Refused(Refused::MethodNotAllowed),
        }
    }
}

impl From<HeadError> for Refused {
    fn from(error: HeadError) -> Self {
        match error {
            HeadError::Malformed => Self::Malformed("not an HTTP request"),
            HeadError::TooLarge => Self::HeadTooLarge,
        }
    }
}

fn without_prefix<'a>(path: &'a str, prefix: &str) -> &'a str {
    match path.strip_prefix(prefix) {
        Some("") => "/",
        Some(rest) if rest.starts_with('/') => rest,
        _ => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str) -> RequestHead {
        RequestHead::parse(text.as_bytes()).unwrap().unwrap()
    }

    #[test]
    fn plain_requests_are_pages() {
        for (target, path) in [
            ("/healthz?now", "/healthz"),
            ("http://a:80/healthz", "/healthz"),
            ("HTTPS://a/healthz?x#y", "/healthz"),
            ("/rt/healthz", "/healthz"),
            ("http://a/rt/healthz", "/healthz"),
            ("http://a", "/"),
            ("/rt", "/"),
            ("/rt/", "/"),
            ("/rtx", "/rtx"),
        ] {
            let head = head(&format!(
                "GET {target} HTTP/1.1\r\nIf-None-Match: x\r\n\r\n"
            ));
            let page = Request::Page {
                path,
                is_head: false,
                if_none_match: Some("x"),
            };
            assert_eq!(Request::of(&head, "/rt"), page, "{target}");
        }
    }

    #[test]
    fn other_methods_are_answered_or_refused() {
        let options = head("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(Request::of(&options, ""), Request::Options);
        let post = head("POST / HTTP/1.1\r\nHost: a\r\n\r\n");
        let refused = Request::Refused(Refused::MethodNotAllowed);
        assert_eq!(Request::of(&post, ""), refused);
    }

    #[test]
    fn an_upgrade_is_checked_in_full() {
        let asked = head("GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n");
        assert!(matches!(
            Request::of(&asked, ""),
            Request::Refused(Refused::Malformed(_))
        ));
    }
}
