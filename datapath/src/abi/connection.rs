//! The connection table, and the table of first fragments.

use crate::abi::address::Address;
use crate::abi::options::VipOptions;
use crate::abi::pod::pod;

/// The backend of a flow: value of the connection table `CONNECTIONS`, keyed by
/// [`Flow`](crate::abi::flow::Flow), and of the map `QUIC_SERVERS`, keyed by
/// [`QuicServerKey`](crate::abi::quic::QuicServerKey).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Connection {
    /// Index of the backend.
    pub backend: u32,
    /// Epoch of the backend when the entry was written. If it differs from the backend's, the index
    /// was reused.
    pub epoch: u32,
}
pod!(Connection, 8);

/// Key of the map `FRAGMENTS`: the fields shared by all fragments of a packet (RFC 791 section 3.2,
/// RFC 8200 section 4.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct FragmentKey {
    /// The client's address.
    pub source: Address,
    /// The VIP address.
    pub destination: Address,
    /// Identification, host order; 16 bits in IPv4.
    pub identification: u32,
    /// Protocol field of IPv4; 0 for IPv6, where the next header of non-initial fragments may
    /// differ from the first fragment's (RFC 8200 section 4.5).
    pub protocol: u32,
}
pod!(FragmentKey, 40);

/// A first fragment's destination, for the other fragments: value of the map `FRAGMENTS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct FirstFragment {
    /// Arrival time of the first fragment, nanoseconds of `CLOCK_MONOTONIC`.
    pub seen: u64,
    /// Index of the service whose backend was selected.
    pub service: u32,
    /// Index of the VIP's service, whose ACL applies. It differs from `service` if a route matched
    /// the client.
    pub vip_service: u16,
    /// Lower half of [`ServiceRef::options`](crate::abi::vip::ServiceRef::options) at that time. It
    /// holds [`FirstFragment::OPTIONS`].
    pub options: u16,
    /// Epoch of the backend at that time.
    pub epoch: u32,
    /// Index of the backend.
    pub backend: u16,
    /// [`Slot::hint`](crate::abi::table::Slot::hint) of the first fragment's slot.
    pub hint: u16,
}
pod!(FirstFragment, 24);

impl FirstFragment {
    /// The options of a service that apply to non-initial fragments, too. Add an option here if
    /// [`FirstFragment::options`] must carry it.
    pub const OPTIONS: VipOptions = VipOptions::GUE.with(VipOptions::ZERO_UDP_CHECKSUM);

    /// Lifetime of an entry in nanoseconds: Linux's default reassembly timeout (`ipfrag_time`).
    pub const LIFETIME: u64 = 30_000_000_000;
}

const _: () = assert!(
    FirstFragment::OPTIONS.bits() <= u16::MAX as u32,
    "`FirstFragment::options` has 16 bits"
);
