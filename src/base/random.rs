//! Random numbers for ids and tokens that must not be guessable. The source is the operating system.

use crate::base::error::Error;
use std::cell::RefCell;

/// Returns 64 random bits.
///
/// Panics when the system's source fails. A guessable token would be worse, and `check_source` refuses to start a
/// server without a source.
pub fn random_u64() -> u64 {
    POOL.with_borrow_mut(Pool::next)
}

/// Draws from the system's source once, so that a server without one does not start.
///
/// Errors: `Error::Start` when the source fails.
pub fn check_source() -> Result<(), Error> {
    check(getrandom::fill)
}

fn check(fill: fn(&mut [u8]) -> Result<(), getrandom::Error>) -> Result<(), Error> {
    fill(&mut [0; 8]).map_err(|error| {
        Error::Start(format!(
            "the system has no source of random numbers ({error}); Tantor needs one for tokens that must not be guessable"
        ))
    })
}

/// Bytes in one draw. A system call for each id would show in the cost of a connect.
const DRAWN: usize = 2048;

struct Pool {
    bytes: [u8; DRAWN],
    used: usize,
    /// The fork generation that drew the bytes: a child must not use its parent's.
    generation: u32,
}

thread_local! {
    static POOL: RefCell<Pool> = const { RefCell::new(Pool { bytes: [0; DRAWN], used: DRAWN, generation: 0 }) };
}

impl Pool {
    fn next(&mut self) -> u64 {
        let generation = crate::base::fork::generation();
        if self.used == DRAWN || self.generation != generation {
            if let Err(error) = getrandom::fill(&mut self.bytes) {
                panic!("the system's source of random numbers failed: {error}");
            }
            (self.used, self.generation) = (0, generation);
        }
        let mut number = [0; 8];
        number.copy_from_slice(&self.bytes[self.used..self.used + 8]);
        // a number that was given out does not stay in memory
        self.bytes[self.used..self.used + 8].fill(0);
        self.used += 8;
        u64::from_ne_bytes(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn numbers_do_not_come_twice() {
        let numbers: HashSet<u64> = (0..10_000).map(|_| random_u64()).collect();
        assert_eq!(numbers.len(), 10_000);
    }

    #[test]
    fn a_system_without_a_source_is_an_error() {
        check_source().unwrap();
        let error = check(|_| Err(getrandom::Error::UNSUPPORTED)).unwrap_err();
        assert!(error.to_string().contains("no source of random numbers"));
    }
}
