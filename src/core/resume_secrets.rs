//! The secrets of resume tokens, each of which is used once.

use crate::base::random::random_u64;
use sha2::{Digest, Sha256};
use std::fmt;
use std::num::NonZeroU32;

const SECRET: usize = 16;

/// Rotations that a crash may have lost.
const MAX_AHEAD: u64 = 2;

/// The secret in a resume token.
#[derive(Clone, Copy)]
pub struct Secret([u8; SECRET]);

/// Makes the secrets of one session.
///
/// The secrets are derived from a root that never leaves the server. The root and a number are all that has to be saved,
/// and a token that was given out while the number of its rotation was still to be saved is known after a crash.
#[derive(Clone, Copy)]
pub struct Secrets {
    root: [u8; SECRET],
    /// The number of the secret that the client has, or is about to get.
    rotation: u64,
    /// How many rotations ago the earlier secret was made that is good until the client shows that it has the newer one.
    previous: Option<NonZeroU32>,
    /// Later secrets may have been given out before a crash.
    is_restored: bool,
}

/// The state of `Secrets` to save.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedSecrets {
    pub root: [u8; SECRET],
    pub rotation: u64,
    /// The rotation of the earlier secret that is still good.
    pub previous: Option<u64>,
}

impl Secret {
    pub const SIZE: usize = SECRET;

    pub fn new(bytes: [u8; SECRET]) -> Self {
        Self(bytes)
    }

    pub fn bytes(&self) -> &[u8; SECRET] {
        &self.0
    }
}

/// In a time that does not tell where the secrets differ.
impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        let pairs = self.0.iter().zip(&other.0);
        pairs.fold(0, |differences, (one, other)| differences | (one ^ other)) == 0
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Secrets {
    /// The secrets of a new session.
    pub fn generate() -> Self {
        let mut root = [0; SECRET];
        root[..8].copy_from_slice(&random_u64().to_ne_bytes());
        root[8..].copy_from_slice(&random_u64().to_ne_bytes());
        Self {
            root,
            rotation: 0,
            previous: None,
            is_restored: false,
        }
    }

    pub fn restored(saved: SavedSecrets) -> Self {
        let distance = saved
            .previous
            .map(|previous| saved.rotation.saturating_sub(previous));
        Self {
            root: saved.root,
            rotation: saved.rotation,
            previous: distance.and_then(distance_of),
            is_restored: true,
        }
    }

    pub fn saved(&self) -> SavedSecrets {
        SavedSecrets {
            root: self.root,
            rotation: self.rotation,
            previous: self.previous_rotation(),
        }
    }

    /// The latest secret.
    pub fn latest(&self) -> Secret {
        self.secret(self.rotation)
    }

    /// Uses a secret up, and makes the next one; false, with nothing changed, if the secret is not the client's latest.
    /// The secret stays good until `confirm`, because the answer with the next one may be lost.
    pub fn take(&mut self, secret: &Secret) -> bool {
        let ahead = if self.is_restored { MAX_AHEAD } else { 0 };
        let last = self.rotation + ahead;
        let mut good = self
            .previous_rotation()
            .into_iter()
            .chain(self.rotation..=last);
        let used = good.find(|rotation| self.secret(*rotation) == *secret);
        used.inspect(|used| self.rotate(*used)).is_some()
    }

    /// Uses the latest secret up, and makes the next one.
    pub fn take_latest(&mut self) {
        self.rotate(self.rotation);
    }

    /// The client has the latest secret: the one before is void. True if there was one before.
    pub fn confirm(&mut self) -> bool {
        self.previous.take().is_some()
    }

    fn rotate(&mut self, used: u64) {
        self.rotation = self.rotation.max(used) + 1;
        self.previous = distance_of(self.rotation - used);
        self.is_restored = false;
    }

    fn previous_rotation(&self) -> Option<u64> {
        let distance = u64::from(self.previous?.get());
        Some(self.rotation.saturating_sub(distance))
    }

    fn secret(&self, rotation: u64) -> Secret {
        let digest = Sha256::new()
            .chain_update(self.root)
            .chain_update(rotation.to_be_bytes())
            .finalize();
        let mut secret = [0; SECRET];
        secret.copy_from_slice(&digest[..SECRET]);
        Secret(secret)
    }
}

fn distance_of(rotations: u64) -> Option<NonZeroU32> {
    u32::try_from(rotations).ok().and_then(NonZeroU32::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_secret_before_is_good_until_the_newer_one_has_arrived() {
        let mut secrets = Secrets::generate();
        let first = secrets.latest();
        assert!(secrets.take(&first));
        let second = secrets.latest();
        assert_ne!(first, second);
        assert!(secrets.take(&first), "its answer was lost");
        let third = secrets.latest();
        assert!(!secrets.take(&second), "it was never seen, or is a thief's");
        assert!(secrets.take(&third));
        assert!(secrets.confirm());
        assert!(!secrets.take(&third) && !secrets.take(&first));
        let fourth = secrets.latest();
        assert!(secrets.take(&fourth));
    }

    #[test]
    fn a_crash_loses_no_secret_that_was_just_given_out() {
        let mut secrets = Secrets::generate();
        let used = secrets.latest();
        assert!(secrets.take(&used));
        secrets.confirm();
        let saved = secrets.saved();
        let saved_last = secrets.latest();
        assert!(secrets.take(&saved_last));
        secrets.confirm();
        let lost = secrets.latest();
        let mut restored = Secrets::restored(saved);
        assert!(!restored.take(&used), "it was used long before");
        assert!(restored.take(&lost));
        restored.confirm();
        assert!(!restored.take(&lost) && !restored.take(&saved_last));
    }

    #[test]
    fn a_secret_whose_answer_was_lost_is_good_after_a_restart_too() {
        let mut secrets = Secrets::generate();
        let used = secrets.latest();
        for _ in 0..5 {
            assert!(secrets.take(&used), "its answer was lost");
        }
        let saved = secrets.saved();
        let latest = secrets.latest();
        for held in [&used, &latest] {
            assert!(Secrets::restored(saved).take(held));
        }
        assert!(secrets.confirm());
        let mut restored = Secrets::restored(secrets.saved());
        assert!(!restored.take(&used) && restored.take(&latest));
    }

    #[test]
    fn a_session_takes_little_memory() {
        assert_eq!(size_of::<Secrets>(), 32);
    }
}
