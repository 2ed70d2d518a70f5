//! The maps of the balancer, as the packet path accesses them.

use crate::abi::{
    AclVerdict, Address, Backend, CaptureEvent, CaptureState, ClientKey, Connection, Family,
    Features, FirstFragment, Flow, FragmentKey, Neighbour, NextHop, Port, PrefixKey, QuicIdLengths,
    QuicServerKey, Reason, RouteKey, ServiceRef, TokenRequest, VipAddress, VipKey, VipSources,
};

/// The lookup table of a service: the words of its inner map (see
/// [`TableHead`](crate::abi::TableHead)).
///
/// The kernel rounds array elements up to eight bytes, so two words share an element: a slot takes
/// four bytes.
pub trait LookupTable {
    /// The words at `2 * element` (low half) and `2 * element + 1`, or `None` past the end.
    fn pair(&self, element: u32) -> Option<u64>;

    /// The word at `index`, or `None` past the end.
    #[inline(always)]
    fn word(&self, index: u32) -> Option<u32> {
        Some((self.pair(index >> 1)? >> ((index & 1) << 5)) as u32)
    }
}

/// The maps of packet captures.
pub trait CaptureMaps {
    /// Not 0 while a capture is enabled for the current packet.
    fn capture_enabled(&self) -> u64;
    /// A word of [`crate::abi::capture::control`].
    fn capture_control(&self, word: u32) -> u64;
    /// Ends an expired capture.
    fn stop_capture(&self);
    /// A random number.
    fn random(&self) -> u32;
    /// Runs `work` on the state of this CPU.
    fn with_capture_state(&self, work: impl FnOnce(&mut CaptureState)) -> Option<()>;
    /// Writes an event to the ring buffer; false when it is full.
    fn output_event(&self, event: &CaptureEvent) -> bool;
}

/// The maps that decide which backend takes a flow.
pub trait SelectionMaps {
    /// A borrowed lookup table. All words read through one borrow are of the same generation.
    type LookupTable<'a>: LookupTable
    where
        Self: 'a;

    /// Whether [`Settings::features`](crate::abi::Settings::features) has a feature. In the kernel,
    /// a constant for the verifier.
    fn uses(&self, feature: Features) -> bool;
    /// [`Settings::hash_key`](crate::abi::Settings::hash_key).
    fn hash_key(&self) -> [u64; 2];
    /// The entry of a VIP address.
    fn vip_address(&self, address: &Address) -> Option<VipAddress>;
    /// The entry of the longest VIP prefix that contains an address.
    fn vip_prefix(&self, key: &PrefixKey) -> Option<VipAddress>;
    /// The service of a VIP.
    fn vip(&self, key: &VipKey) -> Option<ServiceRef>;
    /// The target of the longest route of a service that contains a client.
    fn route(&self, key: &RouteKey) -> Option<ServiceRef>;
    /// The lookup table of a service.
    fn lookup_table(&self, service: u32) -> Option<Self::LookupTable<'_>>;
    /// The backend at an index.
    fn backend(&self, index: u16) -> Option<Backend>;
    /// The connection table's entry of a flow.
    fn connection(&self, flow: &Flow) -> Option<Connection>;
    /// Writes a flow's entry. A failure is ignored: the flow is forwarded without an entry.
    fn insert_connection(&self, flow: &Flow, connection: &Connection);
}

/// The maps of the balancer's program.
pub trait BalancerMaps: SelectionMaps + CaptureMaps {
    /// The source address of outer headers of a family.
    fn outer_source(&self, family: Family) -> Address;
    /// The bits of that address, in its last word, that the flow hash fills in.
    fn outer_source_bits(&self, family: Family) -> u32;
    /// The destination port of GUE.
    fn gue_port(&self) -> Port;
    /// [`Settings::vip_sources`](crate::abi::Settings::vip_sources).
    fn vip_sources(&self) -> VipSources;
    /// The monotonic clock, in nanoseconds.
    fn now(&self) -> u64;
    /// Consumes a token of the rate limit of ICMP errors; false when there is none.
    fn consume_icmp_error_token(&self) -> bool;
    /// The verdict of an ACL ([`AclVerdict::GLOBAL`], or a service's) on a client; `None` if there
    /// is no such ACL.
    fn acl_verdict(&self, acl: u32, client: &PrefixKey) -> Option<AclVerdict>;
    /// The lengths of a service's QUIC server IDs.
    fn quic_lengths(&self, service: u32) -> QuicIdLengths;
    /// The backend of a QUIC server ID.
    fn quic_server(&self, key: &QuicServerKey) -> Option<Connection>;
    /// The next hop at a [`NextHop::index`].
    fn next_hop(&self, index: u32) -> Option<NextHop>;
    /// The address at a [`NextHop::neighbour_index`].
    fn neighbour(&self, index: u32) -> Option<&Neighbour>;
    /// Consumes tokens of a client's buckets at a service; false when there are none.
    fn consume_client_tokens(&self, key: &ClientKey, request: &TokenRequest) -> bool;
    /// Consumes tokens of a service's buckets; false when there are none.
    fn consume_service_tokens(&self, request: &TokenRequest) -> bool;
    /// Consumes a token of a service's bucket of fragments; false when there is none.
    fn consume_fragment_token(&self, service: u32) -> bool;
    /// The entry of a packet's first fragment.
    fn first_fragment(&self, key: &FragmentKey) -> Option<FirstFragment>;
    /// Writes the entry of a first fragment. A failure is ignored.
    fn insert_first_fragment(&self, key: &FragmentKey, first: &FirstFragment);
    /// Counts a forwarded packet for its service and backend.
    fn count_forwarded(&self, service: u32, backend: u16, forwarded: &ForwardedCounts);
    /// Counts a packet that is not forwarded, by reason.
    fn count_reason(&self, reason: Reason);
    /// Counts a dropped packet for its service, at [`Reason::drop_index`].
    fn count_dropped(&self, service: u32, drop_index: u32);
}

/// The amounts that a forwarded packet adds to counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForwardedCounts {
    /// Packets; a merged packet counts as its segments.
    pub packets: u64,
    /// Bytes of the client's IP packet.
    pub bytes: u64,
    /// 1 for a SYN.
    pub new_connections: u64,
}
