//! Values that everything builds on: errors, locks, random numbers, names, clocks, memory. No I/O but the clock.

pub mod capacity;
pub mod clock;
pub mod completion;
pub mod error;
pub mod fork;
pub mod lock_rank;
pub mod memory;
pub mod misspelling;
pub mod names;
pub mod priority;
pub mod random;
pub mod sync;
