//! Subprotocols of a WebSocket: those that a client offers, and those that the server selects (RFC 6455 section 1.9).

/// The setting `subprotocols`: the names that the server may select.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subprotocols {
    names: Vec<String>,
}

/// The name that stands for every subprotocol.
const ANY: &str = "*";

impl Subprotocols {
    /// Parses names with commas between. An empty text has no names.
    ///
    /// Errors: the first wrong name and its problem, as text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut names = Vec::new();
        for name in text.split(',').map(str::trim) {
            if name.is_empty() {
                if text.trim().is_empty() {
                    break;
                }
                return Err("a name is empty".to_owned());
            }
            if !is_token(name.as_bytes()) {
                return Err(format!(
                    "{name:?} is not a token: letters, digits and !#$%&'*+-.^_`|~"
                ));
            }
            names.push(name.to_owned());
        }
        Ok(Self { names })
    }

    pub fn text(&self) -> String {
        self.names.join(", ")
    }

    /// The first of the offered subprotocols that the server may select.
    pub fn select<'a>(&self, offered: &'a [String]) -> Option<&'a str> {
        let is_allowed = |name: &str| self.names.iter().any(|known| known == name || known == ANY);
        offered
            .iter()
            .map(String::as_str)
            .find(|name| is_allowed(name))
    }
}

/// The subprotocols that a handshake's `Sec-WebSocket-Protocol` fields offer, in the client's order of preference: lists
/// of tokens (RFC 6455 sections 4.3 and 11.3.4), whose empty elements do not count (RFC 9110 section 5.6.1).
///
/// Empty if a field has anything else.
pub fn read_offered<'a>(fields: impl Iterator<Item = &'a [u8]>) -> Option<Vec<String>> {
    fields
        .flat_map(|field| field.split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let name = std::str::from_utf8(name).ok()?;
            is_token(name.as_bytes()).then(|| name.to_owned())
        })
        .collect()
}

/// A `token` (RFC 9110 section 5.6.2).
fn is_token(name: &[u8]) -> bool {
    !name.is_empty()
        && name
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered(fields: &[&str]) -> Option<Vec<String>> {
        read_offered(fields.iter().map(|field| field.as_bytes()))
    }

    #[test]
    fn fields_are_lists_of_tokens() {
        let list = |names: &[&str]| {
            Some(
                names
                    .iter()
                    .map(|name| (*name).to_owned())
                    .collect::<Vec<_>>(),
            )
        };
        assert_eq!(offered(&[]), list(&[]));
        assert_eq!(offered(&["chat"]), list(&["chat"]));
        assert_eq!(
            offered(&["chat , v2.chat,\tsuper-chat"]),
            list(&["chat", "v2.chat", "super-chat"])
        );
        assert_eq!(offered(&["a", "b, c"]), list(&["a", "b", "c"]));
        assert_eq!(offered(&[", a,, b,"]), list(&["a", "b"]));
        for wrong in ["a b", "a;b", "\"a\"", "a,(b)", "é", "a/b", "a\u{7f}"] {
            assert_eq!(offered(&[wrong]), None, "{wrong}");
        }
    }

    #[test]
    fn the_clients_first_that_is_allowed_is_selected() {
        let select = |allowed: &str, fields: &str| {
            let offered = offered(&[fields]).unwrap();
            let allowed = Subprotocols::parse(allowed).unwrap();
            allowed.select(&offered).map(str::to_owned)
        };
        assert_eq!(select("", "chat"), None);
        assert_eq!(select("chat", "other"), None);
        assert_eq!(select("chat", "Chat"), None, "names have case");
        assert_eq!(select("a, b", "c, b, a").as_deref(), Some("b"));
        assert_eq!(select("*", "c, b").as_deref(), Some("c"));
        assert_eq!(select("*", ""), None);
    }

    #[test]
    fn the_setting_takes_tokens() {
        for (text, shown) in [("", ""), (" ", ""), ("a,b", "a, b"), ("*", "*")] {
            assert_eq!(Subprotocols::parse(text).unwrap().text(), shown);
        }
        for wrong in ["a b", "a,,b", "a,", "é"] {
            assert!(Subprotocols::parse(wrong).is_err(), "{wrong}");
        }
    }
}
