//! The connection table, and the table of first fragments.

use crate::abi::address::Address;
use crate::abi::pod::pod;

/// Who has a flow: value of the connection table `CONNECTIONS`, keyed by [`crate::abi::flow::Flow`], and of
/// the map `QUIC_SERVERS`, keyed by [`QuicServerKey`](crate::abi::quic::QuicServerKey).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Connection {
    /// Index of the backend that has the flow.
    pub backend: u32,
    /// The backend's epoch when the entry was written: another one means that the index was
    /// reused.
    pub epoch: u32,
}
pod!(Connection, 8);

/// Key of the map `FRAGMENTS`: what the fragments of one packet have in common (RFC 791 section
/// 3.2, RFC 8200 section 4.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct FragmentKey {
    /// The client's address.
    pub source: Address,
    /// The VIP address.
    pub destination: Address,
    /// The packet's identification as a number; IPv4 has 16 bits of it.
    pub identification: u32,
    /// IPv4's protocol; 0 of IPv6, where only the first fragment says what counts.
    pub protocol: u32,
}
pod!(FragmentKey, 40);

/// Value of the map `FRAGMENTS`: where the first fragment went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Fragment {
    /// When the first fragment came, nanoseconds of the kernel's monotonic clock.
    pub seen: u64,
    /// The service whose backend got it.
    pub service: u32,
    /// The service of its VIP, whose lists count: another one where a route led the client.
    pub owner: u16,
    /// The lower half of the service's [`ServiceRef::options`] then.
    pub options: u16,
    /// The backend's epoch then.
    pub epoch: u32,
    /// Index of the backend.
    pub backend: u16,
    /// The hint that the first fragment carried.
    pub hint: u16,
}
pod!(Fragment, 24);

impl Fragment {
    /// How long a first fragment is remembered, in nanoseconds: what Linux waits for the rest of a
    /// packet by default.
    pub const LIFETIME: u64 = 30_000_000_000;
}
