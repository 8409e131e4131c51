//! Memory that was let go, given back to the system.

use crate::base::clock::{LastTime, SteadyTime};
use std::time::Duration;

const INTERVAL: Duration = Duration::from_secs(5);

/// Returns true at most once per `INTERVAL` for the whole process: `give_back` walks the heap, which takes its time.
pub(super) fn may_give_back() -> bool {
    static LAST: LastTime = LastTime::never();
    LAST.set_if_due(SteadyTime::now(), INTERVAL)
}

/// Gives what the allocator keeps of freed buffers back to the system: glibc's would keep it for good once large
/// messages have come and gone. To be called by the thread that freed them.
pub(super) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: what is freed was allocated in the same breath, and malloc_trim takes no pointer; both may be called at
    // any time from any thread.
    unsafe {
        libc::free(std::hint::black_box(libc::malloc(SHRINKS_ARENA)));
        libc::malloc_trim(0);
    }
}

/// A block of this size, when it is freed, has glibc cut off the free end of this thread's arena. `malloc_trim` leaves
/// that end alone in all arenas but the first, and itself joins to it what borders on it.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const SHRINKS_ARENA: usize = 72 << 10;
