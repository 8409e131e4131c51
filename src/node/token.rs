//! Resume tokens: with what a client comes back.

use crate::protocol::check_client_id;
use crate::random::random_u64;

/// The secret of a client's resume token, and the one before.
pub struct Session {
    secret: [u8; SECRET],
    /// Good until the client has shown that it has the newer one.
    previous: Option<Box<[u8; SECRET]>>,
}

const SECRET: usize = 16;

impl Session {
    pub fn new() -> Self {
        Self::restored(random_secret())
    }

    /// With the secret that was saved.
    pub fn restored(secret: [u8; SECRET]) -> Self {
        Self {
            secret,
            previous: None,
        }
    }

    /// What is to be saved.
    pub fn secret(&self) -> [u8; SECRET] {
        self.secret
    }

    pub fn opens_with(&self, secret: &[u8; SECRET]) -> bool {
        is_equal(&self.secret, secret)
            || self
                .previous
                .as_ref()
                .is_some_and(|previous| is_equal(previous, secret))
    }

    /// Another token, because this one was used.
    pub fn rotate(&mut self, used: &[u8; SECRET]) {
        // the one it came with stays good, should the answer be lost
        self.previous = Some(Box::new(*used));
        self.secret = random_secret();
    }

    /// The client has the newer token.
    pub fn confirm(&mut self) {
        self.previous = None;
    }

    /// URL-safe: the secret and the client's id in hexadecimal.
    pub fn token(&self, client_id: &str) -> String {
        use std::fmt::Write;
        let mut token = String::with_capacity(2 * (SECRET + client_id.len()));
        for byte in self.secret.iter().chain(client_id.as_bytes()) {
            // writing to a String does not fail
            let _ = write!(token, "{byte:02x}");
        }
        token
    }
}

/// The id and the secret in a token; `None` for what is none.
pub fn read_token(token: &str) -> Option<(String, [u8; SECRET])> {
    let is_hex = token.bytes().all(|digit| digit.is_ascii_hexdigit());
    if !is_hex || !token.len().is_multiple_of(2) {
        return None;
    }
    let bytes = (0..token.len() / 2)
        .map(|at| u8::from_str_radix(token.get(2 * at..2 * at + 2)?, 16).ok())
        .collect::<Option<Vec<u8>>>()?;
    let (secret, id) = bytes.split_at_checked(SECRET)?;
    let id = String::from_utf8(id.to_vec()).ok()?;
    check_client_id(&id).ok()?;
    Some((id, secret.try_into().ok()?))
}

fn random_secret() -> [u8; SECRET] {
    let mut secret = [0; SECRET];
    secret[..8].copy_from_slice(&random_u64().to_ne_bytes());
    secret[8..].copy_from_slice(&random_u64().to_ne_bytes());
    secret
}

/// In a time that does not tell where they differ.
fn is_equal(one: &[u8; SECRET], other: &[u8; SECRET]) -> bool {
    one.iter()
        .zip(other)
        .fold(0, |differences, (one, other)| differences | (one ^ other))
        == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_was_written() {
        let session = Session::new();
        let token = session.token("client_é");
        assert!(token.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        let (id, secret) = read_token(&token).expect("valid");
        assert_eq!(id, "client_é");
        assert!(session.opens_with(&secret));
        for bad in [
            "",
            &format!("+{}", &token[1..]),
            "0",
            "zz",
            "é",
            &token[..30],
            &token[..31],
            &format!("{token}ff"),
        ] {
            assert!(read_token(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn the_token_before_is_good_until_the_newer_one_has_arrived() {
        let mut session = Session::new();
        let first = session.secret;
        session.rotate(&first);
        let second = session.secret;
        assert!(first != second && session.opens_with(&first) && session.opens_with(&second));
        session.rotate(&first);
        assert!(session.opens_with(&first) && !session.opens_with(&second));
        session.confirm();
        assert!(!session.opens_with(&first) && session.opens_with(&session.secret));
    }
}
