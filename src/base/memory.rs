//! Gives freed memory back to the system.

use crate::base::clock::{LastTime, SteadyTime};
use std::time::Duration;

/// Fewer freed bytes are not worth the time that `give_back` takes.
const MUCH_FREED: usize = 4 << 20;

/// The shortest time between two walks of the heap, in the whole process.
const INTERVAL: Duration = Duration::from_secs(5);

/// Gives freed memory back when `freed`, the bytes that were freed since the last time, is large. To be called by the
/// thread that freed the memory; resets `freed` when it does anything.
pub fn give_back_if_due(freed: &mut usize) {
    if *freed > MUCH_FREED && is_due() {
        *freed = 0;
        give_back();
    }
}

/// True once in an interval, for one thread of the process: `give_back` walks the heap.
fn is_due() -> bool {
    static LAST: LastTime = LastTime::never();
    LAST.set_if_due(SteadyTime::now(), INTERVAL)
}

/// glibc would keep the memory of freed buffers for good once large messages have come and gone.
fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the freed block was allocated by the call beside, and malloc_trim takes no pointer; both may be called at
    // any time from any thread.
    unsafe {
        libc::free(std::hint::black_box(libc::malloc(SHRINKS_ARENA)));
        libc::malloc_trim(0);
    }
}

/// When a block of this size is freed, glibc cuts off the free end of this thread's arena. `malloc_trim` leaves this end
/// alone in all arenas but the first.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const SHRINKS_ARENA: usize = 72 << 10;
