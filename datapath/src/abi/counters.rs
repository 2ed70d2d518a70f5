//! Counters of services and backends.

use crate::abi::pod::pod;
use crate::abi::reason::Reason;

/// Value of the per-CPU array `SERVICE_COUNTERS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct ServiceCounters {
    /// Forwarded packets. A merged packet counts as its segments.
    pub packets: u64,
    /// Bytes of forwarded IP packets, without outer headers.
    pub bytes: u64,
    /// Forwarded TCP segments that open a connection (SYN without ACK).
    pub new_connections: u64,
    /// Dropped packets, by [`Reason::drop_index`]. `REASONS` counts them as well, and keeps its
    /// counts when a service is removed.
    pub drops: [u64; Reason::DROPS],
}
pod!(ServiceCounters, 24 + 8 * Reason::DROPS);

/// Value of the per-CPU array `BACKEND_COUNTERS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct BackendCounters {
    /// Forwarded packets. A merged packet counts as its segments.
    pub packets: u64,
    /// Bytes of forwarded IP packets, without outer headers.
    pub bytes: u64,
    /// Forwarded TCP segments that open a connection (SYN without ACK).
    pub new_connections: u64,
}
pod!(BackendCounters, 24);
