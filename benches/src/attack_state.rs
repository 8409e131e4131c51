//! The phases of an attack, the state that its threads share, and the outcome of a flood.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

/// The state that the threads of one attack share.
#[derive(Default)]
pub struct Shared {
    phase: AtomicU8,
    pub is_over: AtomicBool,
    pub most_memory: AtomicU64,
    pub most_kernel_memory: AtomicU64,
}

pub const READY: u8 = 1;
pub const FLOODING: u8 = 2;
pub const ENDING: u8 = 3;
pub const DRAINED: u8 = 4;

impl Shared {
    pub fn phase(&self) -> u8 {
        self.phase.load(Ordering::Acquire)
    }

    pub fn enter(&self, phase: u8) {
        self.phase.store(phase, Ordering::Release);
    }

    /// True once the flood is to end.
    pub fn is_ending(&self) -> bool {
        self.phase() >= ENDING || self.is_over.load(Ordering::Acquire)
    }
}

/// The outcome of a flood.
#[derive(Default)]
pub struct Outcome {
    pub sent_bytes: usize,
    pub received_bytes: usize,
    /// Clients of the flood: its readers, or those that send if it has none.
    pub clients: usize,
    /// Those of them that the server closed.
    pub closed: usize,
    /// From the flood's end until the readers had read all that waited for them.
    pub drained_after: Duration,
}

/// Waits until the attack has reached a phase.
pub fn wait_for(shared: &Shared, phase: u8) {
    while shared.phase() < phase {
        std::thread::sleep(Duration::from_millis(5));
    }
}
