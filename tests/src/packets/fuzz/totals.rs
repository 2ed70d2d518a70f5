//! What the programs counted.

use crate::packets::expectation::{BalancerCounters, DecapCounters};

/// What became of frames: of each program's, what it counted.
#[derive(Debug, Default)]
pub struct Totals {
    /// The balancer's counters.
    pub balanced: BalancerCounters,
    /// The counters of the backend's program that decapsulates.
    pub decapsulated: DecapCounters,
    /// Segments whose maximum segment size was made smaller.
    pub clamped: u64,
}
