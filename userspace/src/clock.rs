//! The clock of everything that expires.

use nix::time::{ClockId, clock_gettime};

/// Nanoseconds since boot, suspended time included: the clock of everything that rests.
pub fn now() -> u64 {
    // Cannot fail for a clock that the kernel has had since 2.6.39.
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME)
        .map_or_else(|_| Default::default(), std::time::Duration::from);
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}
