//! Random numbers for ids that nobody may guess: the system's own, drawn many at a time.

use std::cell::RefCell;

/// The next 64 random bits.
pub fn random_u64() -> u64 {
    POOL.with_borrow_mut(Pool::next)
}

/// Bytes that are drawn at once: a system call for each id would show in the cost of a connect.
const DRAWN: usize = 2048;

struct Pool {
    bytes: [u8; DRAWN],
    used: usize,
    /// A fork has the same bytes as its parent, and must draw its own.
    generation: u32,
}

thread_local! {
    static POOL: RefCell<Pool> = const { RefCell::new(Pool { bytes: [0; DRAWN], used: DRAWN, generation: 0 }) };
}

impl Pool {
    fn next(&mut self) -> u64 {
        let generation = crate::fork::generation();
        if self.used == DRAWN || self.generation != generation {
            if getrandom::fill(&mut self.bytes).is_err() {
                return without_source();
            }
            (self.used, self.generation) = (0, generation);
        }
        let mut number = [0; 8];
        number.copy_from_slice(&self.bytes[self.used..self.used + 8]);
        // what was given out is not kept
        self.bytes[self.used..self.used + 8].fill(0);
        self.used += 8;
        u64::from_ne_bytes(number)
    }
}

/// Where the system has no random numbers, the keys of the standard library's maps still differ from run to run.
fn without_source() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::thread::current().id())
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
}
