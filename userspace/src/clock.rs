//! The clock of expiry times, and wall clock time.

use std::time::{SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

/// Nanoseconds since boot, suspended time included (`CLOCK_BOOTTIME`).
pub fn now() -> u64 {
    // Cannot fail: the kernel has this clock since 2.6.39.
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME)
        .map_or_else(|_| Default::default(), std::time::Duration::from);
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// Seconds since 1970 (UTC).
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
