//! The clock of expiry times, and wall clock time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

/// The period in which daemons compare everything with the host, and try failed changes again.
pub const REFRESH: Duration = Duration::from_secs(30);

/// Nanoseconds since boot, suspended time included (`CLOCK_BOOTTIME`).
pub fn now() -> u64 {
    // Cannot fail: the kernel has this clock since 2.6.39.
    let now =
        clock_gettime(ClockId::CLOCK_BOOTTIME).map_or_else(|_| Default::default(), Duration::from);
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// Seconds since 1970 (UTC).
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
