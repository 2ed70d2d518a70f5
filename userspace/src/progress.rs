//! The time of the daemon's last progress, which the service manager's watchdog depends on.
//!
//! The core reports progress whenever it takes an input. Work that may take long reports it between
//! its steps, and before each wait that has a limit.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock;

/// The longest time without progress: longer than the limit of each wait, which is 30 s for a
/// netlink request and for a file.
const LIMIT: Duration = Duration::from_secs(40);

/// Nanoseconds since boot.
static LAST: AtomicU64 = AtomicU64::new(0);

/// Reports progress.
pub(crate) fn report() {
    LAST.store(clock::now(), Ordering::Relaxed);
}

/// Whether the daemon makes progress, or is in a wait that has a limit.
pub(crate) fn is_recent() -> bool {
    let since = clock::now().saturating_sub(LAST.load(Ordering::Relaxed));
    Duration::from_nanos(since) < LIMIT
}
