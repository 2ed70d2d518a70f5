//! Counters of services and backends.

use crate::abi::pod::pod;
use crate::abi::reason::Reason;

/// Value of the per-CPU array `SERVICE_COUNTERS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct ServiceCounters {
    /// Packets forwarded; a merged packet counts as the segments that it will be cut into.
    pub packets: u64,
    /// Bytes of IP packets forwarded, outer headers not counted.
    pub bytes: u64,
    /// TCP segments that open a connection, forwarded.
    pub new_connections: u64,
    /// Packets dropped, by [`Reason::drop_index`]. They are counted in `REASONS`, too, which stays
    /// when a service goes.
    pub drops: [u64; Reason::DROPS],
}
pod!(ServiceCounters, 24 + 8 * Reason::DROPS);

/// Value of the per-CPU array `BACKEND_COUNTERS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct BackendCounters {
    /// Packets; a merged packet counts as its segments.
    pub packets: u64,
    /// Bytes of the clients' IP packets.
    pub bytes: u64,
    /// TCP segments that open a connection.
    pub new_connections: u64,
}
pod!(BackendCounters, 24);
