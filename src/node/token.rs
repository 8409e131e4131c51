//! Resume tokens: with what a client comes back.

use crate::base::names::check_client_id;
use crate::base::random::random_u64;
use sha2::{Digest, Sha256};

/// Makes the secrets of a client's resume tokens, each of which is used once.
///
/// They are derived from a root that never leaves the server, so that the root and a number are all that has to be saved,
/// and a token that was given out while the number of its rotation was still to be saved is known after a crash.
pub struct Session {
    root: [u8; SECRET],
    /// Of the token that the client has, or is about to get.
    rotation: u64,
    /// Earlier ones that are good until the client has shown that it has the newer one.
    previous: Option<u64>,
    /// Later ones that may have been given out before a crash.
    ahead: u64,
}

const SECRET: usize = 16;

/// Rotations that a crash may have lost.
const MAX_AHEAD: u64 = 2;

impl Session {
    pub fn new() -> Self {
        Self {
            root: random_secret(),
            rotation: 0,
            previous: None,
            ahead: 0,
        }
    }

    /// As it was saved.
    pub fn restored(root: [u8; SECRET], rotation: u64, previous: Option<u64>) -> Self {
        Self {
            root,
            rotation,
            previous,
            ahead: MAX_AHEAD,
        }
    }

    /// The state to save: the root, the number of the latest rotation, and of the one before that is still good.
    pub fn saved(&self) -> ([u8; SECRET], u64, Option<u64>) {
        (self.root, self.rotation, self.previous)
    }

    /// The rotation that a token's secret is of; `None` when it is not the client's latest.
    pub fn find(&self, secret: &[u8; SECRET]) -> Option<u64> {
        let last = self.rotation + self.ahead;
        let mut good = self.previous.into_iter().chain(self.rotation..=last);
        good.find(|rotation| is_equal(&self.secret(*rotation), secret))
    }

    /// Another token, because the one of this rotation was used.
    pub fn rotate(&mut self, used: u64) {
        // the one it came with stays good, should the answer be lost
        self.previous = Some(used);
        self.rotation = self.rotation.max(used) + 1;
        self.ahead = 0;
    }

    /// The client has the newer token; true when that was not known.
    pub fn confirm(&mut self) -> bool {
        self.previous.take().is_some()
    }

    fn secret(&self, rotation: u64) -> [u8; SECRET] {
        let digest = Sha256::new()
            .chain_update(self.root)
            .chain_update(rotation.to_be_bytes())
            .finalize();
        let mut secret = [0; SECRET];
        secret.copy_from_slice(&digest[..SECRET]);
        secret
    }

    /// URL-safe: the secret and the client's id in hexadecimal.
    pub fn token(&self, client_id: &str) -> String {
        let mut token = String::with_capacity(2 * (SECRET + client_id.len()));
        let secret = self.secret(self.rotation);
        // once a connect: formatting each byte would show in its cost
        for byte in secret.iter().chain(client_id.as_bytes()) {
            for digit in [byte >> 4, byte & 15] {
                token.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
            }
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
        assert_eq!(session.find(&secret), Some(0));
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

    fn secret(session: &Session) -> [u8; SECRET] {
        read_token(&session.token("a")).expect("valid").1
    }

    fn take(session: &mut Session, secret: &[u8; SECRET]) -> bool {
        let used = session.find(secret);
        used.inspect(|used| session.rotate(*used)).is_some()
    }

    #[test]
    fn the_token_before_is_good_until_the_newer_one_has_arrived() {
        let mut session = Session::new();
        let first = secret(&session);
        assert!(take(&mut session, &first));
        let second = secret(&session);
        assert_ne!(first, second);
        assert!(take(&mut session, &first), "its answer was lost");
        let third = secret(&session);
        assert!(
            !take(&mut session, &second),
            "it was never seen, or is a thief's"
        );
        assert!(take(&mut session, &third));
        session.confirm();
        assert!(!take(&mut session, &third) && !take(&mut session, &first));
        let fourth = secret(&session);
        assert!(take(&mut session, &fourth));
    }

    #[test]
    fn a_crash_loses_no_token_that_was_just_given_out() {
        let mut session = Session::new();
        let used = secret(&session);
        assert!(take(&mut session, &used));
        session.confirm();
        let (root, rotation, previous) = session.saved();
        let saved_last = secret(&session);
        assert!(take(&mut session, &saved_last));
        session.confirm();
        let lost = secret(&session);
        let mut restored = Session::restored(root, rotation, previous);
        assert!(!take(&mut restored, &used), "it was used long before");
        assert!(take(&mut restored, &lost));
        restored.confirm();
        assert!(!take(&mut restored, &lost) && !take(&mut restored, &saved_last));
    }

    #[test]
    fn a_token_whose_answer_was_lost_is_good_after_a_restart_too() {
        let mut session = Session::new();
        let used = secret(&session);
        for _ in 0..5 {
            assert!(take(&mut session, &used), "its answer was lost");
        }
        let (root, rotation, previous) = session.saved();
        let latest = secret(&session);
        for held in [&used, &latest] {
            assert!(take(&mut Session::restored(root, rotation, previous), held));
        }
        assert!(session.confirm());
        let (root, rotation, previous) = session.saved();
        let mut restored = Session::restored(root, rotation, previous);
        assert!(!take(&mut restored, &used) && take(&mut restored, &latest));
    }
}
