//! Claims: which connection of a client is the newest.

use std::num::NonZeroU64;

/// The number of a claim on a client. Each connection of a client claims the client under a higher number than every
/// connection before. A call under an older claim changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClaimNumber(NonZeroU64);

impl ClaimNumber {
    pub const FIRST: Self = Self(NonZeroU64::MIN);

    /// The number of the next claim on the same client.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    pub fn get(self) -> u64 {
        self.0.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_on_a_client_increase() {
        let second = ClaimNumber::FIRST.next();
        assert!(ClaimNumber::FIRST < second && second < second.next());
        assert!(None < Some(ClaimNumber::FIRST), "no claim is the oldest");
        assert_eq!(second.get(), 2);
    }
}
