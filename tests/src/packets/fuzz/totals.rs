//! Counters of a run.

use crate::packets::expectation::{BalancerCounters, DecapCounters};

/// Sums of the programs' counters.
#[derive(Debug, Default)]
pub struct Totals {
    /// The balancer's counters.
    pub balanced: BalancerCounters,
    /// The counters of the backend's program that decapsulates.
    pub decapsulated: DecapCounters,
    /// Clamped segments.
    pub clamped: u64,
}
