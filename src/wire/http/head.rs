//! The head of an HTTP request: collected from what the socket delivers, and parsed once.

use std::ops::Range;

/// Header fields that a request may have.
const MAX_FIELDS: usize = 100;

/// A complete request head. Owns its bytes; names and values are ranges of these.
#[derive(Clone, PartialEq, Eq)]
pub struct RequestHead {
    bytes: Box<[u8]>,
    method: Span,
    target: Span,
    is_http_1_1: bool,
    fields: Box<[(Span, Span)]>,
}

/// A part of the bytes of a head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Span {
    start: u32,
    end: u32,
}

/// Why bytes are not a request head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadError {
    /// The bytes are not HTTP.
    Malformed,
    /// The head is larger than allowed, or has too many fields.
    TooLarge,
}

impl RequestHead {
    /// Parses the head at the beginning of `bytes`; `None` when the head is not complete.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, HeadError> {
        let mut parsed = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut request = httparse::Request::new(&mut parsed);
        let length = match request.parse(bytes) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(httparse::Error::TooManyHeaders) => return Err(HeadError::TooLarge),
            Err(_) => return Err(HeadError::Malformed),
        };
        let span = |part: &[u8]| Span::of(part, bytes).ok_or(HeadError::TooLarge);
        let mut fields = Vec::with_capacity(request.headers.len());
        for field in &*request.headers {
            fields.push((span(field.name.as_bytes())?, span(field.value)?));
        }
        Ok(Some(Self {
            method: span(request.method.unwrap_or_default().as_bytes())?,
            target: span(request.path.unwrap_or_default().as_bytes())?,
            is_http_1_1: request.version == Some(1),
            fields: fields.into(),
            bytes: bytes[..length].into(),
        }))
    }

    /// The size of the head in bytes, the empty line at its end included.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Bytes of memory that the head takes.
    pub fn memory(&self) -> usize {
        size_of::<Self>() + self.bytes.len() + size_of_val(&*self.fields)
    }

    pub fn method(&self) -> &str {
        self.text(self.method)
    }

    /// The target as the client sent it: path and query, or a whole URL.
    pub fn target(&self) -> &str {
        self.text(self.target)
    }

    pub fn is_http_1_1(&self) -> bool {
        self.is_http_1_1
    }

    /// The path of the target, which has origin form or absolute form (RFC 9112 section 3.2).
    pub fn path(&self) -> &str {
        let target = self.target();
        let origin = match target.split_once("://") {
            Some((scheme, rest))
                if scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https") =>
            {
                rest.find('/').map_or("/", |start| &rest[start..])
            }
            _ => target,
        };
        origin.split(['?', '#']).next().unwrap_or_default()
    }

    /// The query of the target, without the question mark.
    pub fn query(&self) -> Option<&str> {
        let (_, query) = self.target().split_once('?')?;
        query.split('#').next()
    }

    /// The first value of a query parameter, with its escapes.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.query()?
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .find(|(known, _)| *known == name)
            .map(|(_, value)| value)
    }

    /// Names and values of the header fields, in the order in which they came.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let pair = |(name, value): &(Span, Span)| (self.text(*name), self.part(*value));
        self.fields.iter().map(pair)
    }

    /// The values of all header fields of a name; case does not matter.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        // compares bytes: each lookup as text would check each name to be UTF-8 again
        self.fields
            .iter()
            .filter(move |(known, _)| self.part(*known).eq_ignore_ascii_case(name.as_bytes()))
            .map(|(_, value)| self.part(*value))
    }

    /// The value of the first header field of a name; case does not matter.
    pub fn value<'a>(&'a self, name: &'a str) -> Option<&'a [u8]> {
        self.values(name).next()
    }

    /// True when a header field that is a list of tokens has this token; case does not matter.
    pub fn has_token(&self, name: &str, token: &str) -> bool {
        self.values(name)
            .filter_map(|value| std::str::from_utf8(value).ok())
            .flat_map(|value| value.split(','))
            .any(|part| part.trim().eq_ignore_ascii_case(token))
    }

    /// Names and values of the cookies (RFC 6265 section 5.4). Cookies that are not UTF-8 are left out.
    pub fn cookies(&self) -> impl Iterator<Item = (&str, &str)> {
        self.values("cookie")
            .filter_map(|value| std::str::from_utf8(value).ok())
            .flat_map(|value| value.split(';'))
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (name.trim(), value.trim()))
    }

    /// A text that `httparse` has checked to be ASCII or UTF-8.
    fn text(&self, span: Span) -> &str {
        std::str::from_utf8(self.part(span)).unwrap_or_default()
    }

    fn part(&self, span: Span) -> &[u8] {
        &self.bytes[span.range()]
    }
}

impl std::fmt::Debug for RequestHead {
    /// Leaves out header fields and query: both may hold secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RequestHead({} {})", self.method(), self.path())
    }
}

impl Span {
    /// Where `part`, a slice of `whole`, lies in `whole`. `None` for more than 4 GiB.
    fn of(part: &[u8], whole: &[u8]) -> Option<Self> {
        if part.is_empty() {
            return Some(Self::default());
        }
        let start = part.as_ptr() as usize - whole.as_ptr() as usize;
        Some(Self {
            start: u32::try_from(start).ok()?,
            end: u32::try_from(start + part.len()).ok()?,
        })
    }

    fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }
}

/// Collects the bytes of a request head until the head is complete.
///
/// The first bytes are parsed at once: most heads come in one piece, and bytes that are not HTTP are refused without
/// delay. A head that comes in pieces is parsed again only at its end, so the work is linear in the size of the head.
#[derive(Debug, Default)]
pub struct HeadReader {
    bytes: Vec<u8>,
    end: EndOfHead,
}

/// A head that is complete.
#[derive(Debug)]
pub struct ReadHead {
    pub head: RequestHead,
    /// The number of bytes of the last read that belong to the head.
    pub used: usize,
}

impl HeadReader {
    /// Takes the next bytes; `None` when the head is not complete.
    pub fn read(&mut self, bytes: &[u8], max_size: usize) -> Result<Option<ReadHead>, HeadError> {
        let before = self.bytes.len();
        if before == 0
            && let Some(head) = RequestHead::parse(bytes)?
        {
            let used = head.size();
            return if used <= max_size {
                Ok(Some(ReadHead { head, used }))
            } else {
                Err(HeadError::TooLarge)
            };
        }
        let used = self.end.find(bytes);
        let size = before + used.unwrap_or(bytes.len());
        if size > max_size || (used.is_none() && size == max_size) {
            return Err(HeadError::TooLarge);
        }
        self.bytes
            .extend_from_slice(&bytes[..used.unwrap_or(bytes.len())]);
        let Some(used) = used else {
            return Ok(None);
        };
        let head = RequestHead::parse(&self.bytes)?.ok_or(HeadError::Malformed)?;
        self.bytes = Vec::new();
        Ok(Some(ReadHead { head, used }))
    }

    /// Bytes of memory that the head takes so far.
    pub fn memory(&self) -> usize {
        self.bytes.capacity()
    }
}

/// Finds the empty line that ends a head. Looks at each byte once.
#[derive(Debug, Default)]
enum EndOfHead {
    /// No byte of the request line has come; empty lines before it do not count (RFC 9112 section 2.2).
    #[default]
    BeforeRequest,
    InLine,
    AtLineStart,
}

impl EndOfHead {
    /// The number of bytes up to the end of the head, if the end is among these bytes. A carriage return may be missing,
    /// and one at a wrong place is left to the parser.
    fn find(&mut self, bytes: &[u8]) -> Option<usize> {
        for (position, byte) in bytes.iter().enumerate() {
            match (&self, byte) {
                (_, b'\r') | (Self::BeforeRequest, b'\n') => {}
                (Self::AtLineStart, b'\n') => return Some(position + 1),
                (Self::InLine, b'\n') => *self = Self::AtLineStart,
                _ => *self = Self::InLine,
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "GET /a/b?x=1&y=2&x=3#z HTTP/1.1\r\nHost: a\r\nCookie: one=1; two=a=b\r\nEmpty:\r\n\
        X-Raw: \u{e9}\r\ncookie: three=3\r\n\r\n";

    fn read_whole(text: &[u8]) -> Result<Option<ReadHead>, HeadError> {
        HeadReader::default().read(text, 4096)
    }

    /// Reads pieces of these sizes until the head is complete.
    fn read_in_pieces(text: &[u8], size: usize) -> Result<Option<ReadHead>, HeadError> {
        let mut reader = HeadReader::default();
        for piece in text.chunks(size) {
            if let Some(read) = reader.read(piece, 4096)? {
                return Ok(Some(read));
            }
        }
        Ok(None)
    }

    #[test]
    fn the_parts_of_a_head_are_found() {
        let head = read_whole(HEAD.as_bytes()).unwrap().unwrap().head;
        assert_eq!((head.method(), head.size()), ("GET", HEAD.len()));
        assert_eq!(head.target(), "/a/b?x=1&y=2&x=3#z");
        assert_eq!((head.path(), head.query()), ("/a/b", Some("x=1&y=2&x=3")));
        assert_eq!(
            (head.parameter("x"), head.parameter("z")),
            (Some("1"), None)
        );
        assert_eq!(head.value("HOST"), Some(&b"a"[..]));
        assert_eq!(head.value("empty"), Some(&b""[..]));
        assert_eq!(head.value("x-raw"), Some("\u{e9}".as_bytes()));
        assert_eq!((head.value("none"), head.fields().count()), (None, 5));
        let cookies: Vec<_> = head.cookies().collect();
        assert_eq!(cookies, [("one", "1"), ("two", "a=b"), ("three", "3")]);
        assert!(!format!("{head:?}").contains("x=1"));
    }

    #[test]
    fn a_head_in_pieces_is_the_head_in_one() {
        let whole = read_whole(HEAD.as_bytes()).unwrap().unwrap();
        let text = format!("{HEAD}rest");
        for size in 1..text.len() {
            let read = read_in_pieces(text.as_bytes(), size).unwrap().unwrap();
            assert_eq!(read.head, whole.head, "{size}");
            let end_in_piece = (HEAD.len() - 1) % size + 1;
            assert_eq!(read.used, end_in_piece, "{size}");
        }
        for cut in 0..HEAD.len() {
            assert!(read_whole(&HEAD.as_bytes()[..cut]).unwrap().is_none());
        }
    }

    #[test]
    fn line_ends_are_as_the_parser_takes_them() {
        for text in [
            "GET / HTTP/1.1\nHost: a\n\n",
            "GET / HTTP/1.1\r\nHost: a\n\r\n",
            "\r\n\r\n\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
        ] {
            let whole = read_whole(text.as_bytes()).unwrap().unwrap();
            assert_eq!(whole.used, text.len(), "{text:?}");
            for size in 1..text.len() {
                let read = read_in_pieces(text.as_bytes(), size).unwrap().unwrap();
                assert_eq!(read.head, whole.head, "{text:?} {size}");
            }
        }
        for text in ["GET / HTTP/1.1\r\nHost: a\r\n\r\r\n", "nonsense\r\n\r\n"] {
            for size in 1..=text.len() {
                let error = read_in_pieces(text.as_bytes(), size).unwrap_err();
                assert_eq!(error, HeadError::Malformed, "{text:?} {size}");
            }
        }
    }

    #[test]
    fn what_is_not_http_is_refused_by_its_first_bytes() {
        for bytes in [&b"\x16\x03\x01 tls"[..], b"\0", b"GET\0"] {
            assert_eq!(read_whole(bytes).unwrap_err(), HeadError::Malformed);
        }
    }

    #[test]
    fn a_head_has_at_most_the_size_that_is_allowed() {
        let max = HEAD.len();
        for size in 1..=max {
            let read = |max_size: usize| {
                let mut reader = HeadReader::default();
                let results: Vec<_> = HEAD
                    .as_bytes()
                    .chunks(size)
                    .map(|piece| reader.read(piece, max_size))
                    .collect();
                results
                    .into_iter()
                    .find(|result| !matches!(result, Ok(None)))
            };
            assert!(matches!(read(max), Some(Ok(Some(_)))), "{size}");
            assert!(
                matches!(read(max - 1), Some(Err(HeadError::TooLarge))),
                "{size}"
            );
        }
        let endless = vec![b'x'; 8192];
        assert!(matches!(
            read_in_pieces(&endless, 1000),
            Err(HeadError::TooLarge | HeadError::Malformed)
        ));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "X: 1\r\n".repeat(150));
        assert_eq!(
            read_whole(many.as_bytes()).unwrap_err(),
            HeadError::TooLarge
        );
    }
}
