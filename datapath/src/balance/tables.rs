//! What the packet path needs from the maps.

use crate::abi::{
    AclVerdict, Address, Backend, CaptureEvent, CaptureState, ClientKey, Connection, Family,
    Features, Flow, Fragment, FragmentKey, NextHop, Port, PrefixKey, QuicIdLengths, QuicServerKey,
    Reason, RouteKey, ServiceRef, TokenRequest, VipAddress, VipKey,
};

/// One service's lookup table: the words of its inner map. See [`crate::abi::table::TableHead`] for
/// their meaning.
///
/// The kernel's arrays round their elements up to eight bytes, so two words share an element: a
/// slot costs four bytes.
pub trait LookupTable {
    /// The words at `2 * element` (low half) and `2 * element + 1`, or `None` past the end.
    fn pair(&self, element: u32) -> Option<u64>;

    /// The word at `index`, or `None` past the end.
    #[inline(always)]
    fn word(&self, index: u32) -> Option<u32> {
        Some((self.pair(index >> 1)? >> ((index & 1) << 5)) as u32)
    }
}

/// The maps through which captures look at the balancer's program. See [`crate::balance::capture`].
pub trait CaptureTables {
    /// Not 0 when [`crate::balance::capture::start`] has looked at the packet under way.
    fn capture_enabled(&self) -> u64;
    /// A word of [`crate::abi::capture::control`].
    fn control(&self, word: u32) -> u64;
    /// Ends a capture whose time is over.
    fn stop_capture(&self);
    /// A random number.
    fn random(&self) -> u32;
    /// Lends this CPU's state.
    fn with_capture_state(&self, work: impl FnOnce(&mut CaptureState)) -> Option<()>;
    /// Writes an event for whoever captures; false when there is no room.
    fn output_event(&self, event: &CaptureEvent) -> bool;
}

/// The maps of the balancer's program.
pub trait BalancerTables: CaptureTables {
    /// How a lookup table is borrowed. All words read through one borrow belong to one generation.
    type Table<'a>: LookupTable
    where
        Self: 'a;

    /// Whether one feature is among [`Settings::features`]; a constant where it matters.
    fn uses(&self, feature: Features) -> bool;
    /// [`Settings::hash_key`].
    fn hash_key(&self) -> [u64; 2];
    /// [`Settings::source_v4`] or [`Settings::source_v6`].
    fn source(&self, family: Family) -> Address;
    /// [`Settings::source_bits_v4`] or [`Settings::source_bits_v6`].
    fn source_bits(&self, family: Family) -> u32;
    /// [`Settings::gue_port`].
    fn gue_port(&self) -> Port;
    /// Nanoseconds of a clock that never goes back.
    fn now(&self) -> u64;
    /// Whether one more ICMP error may be sent now; if so, it is one less later.
    fn consume_icmp_error_token(&self) -> bool;
    /// The VIP address entry of a destination, if it is one.
    fn vip_address(&self, address: &Address) -> Option<VipAddress>;
    /// The entry of the longest VIP prefix that holds a destination.
    fn vip_prefix(&self, key: &PrefixKey) -> Option<VipAddress>;
    /// The VIP behind a key, if there is one.
    fn vip(&self, key: &VipKey) -> Option<ServiceRef>;
    /// The service, with its options, whose a client of a service is by the longest prefix that
    /// holds it.
    fn route(&self, key: &RouteKey) -> Option<ServiceRef>;
    /// What the list of sources at an index ([`AclVerdict::GLOBAL`], or a service's) says of a
    /// source; `None` when there is no list.
    fn acl_verdict(&self, list: u32, source: &PrefixKey) -> Option<AclVerdict>;
    /// How long a service's QUIC server IDs are.
    fn quic_lengths(&self, service: u32) -> QuicIdLengths;
    /// The backend of a QUIC server ID, and the epoch that has it.
    fn quic_server(&self, key: &QuicServerKey) -> Option<Connection>;
    /// The lookup table of a service.
    fn table(&self, service: u32) -> Option<Self::Table<'_>>;
    /// The backend at an index.
    fn backend(&self, index: u16) -> Option<Backend>;
    /// The next hop at a [`NextHop::index`].
    fn next_hop(&self, index: u32) -> Option<NextHop>;
    /// The connection table's entry of a flow.
    fn connection(&self, flow: &Flow) -> Option<Connection>;
    /// Writes a flow's entry. When the table refuses, the flow is forwarded all the same: it is
    /// best effort.
    fn insert_connection(&self, flow: &Flow, connection: &Connection);
    /// Takes tokens from a source's buckets by the rates of its service; false when there are none
    /// left.
    fn consume_source_tokens(&self, key: &ClientKey, request: &TokenRequest) -> bool;
    /// Takes tokens from a service's buckets by its rates; false when there are none left.
    fn consume_service_tokens(&self, request: &TokenRequest) -> bool;
    /// Where the first fragment of a packet went.
    fn fragment(&self, key: &FragmentKey) -> Option<Fragment>;
    /// Writes down where a first fragment went; best effort.
    fn insert_fragment(&self, key: &FragmentKey, fragment: &Fragment);
    /// Accounts a forwarded packet to its service and backend.
    fn count_forwarded(&self, service: u32, backend: u16, forwarded: &ForwardedCounts);
    /// Accounts a packet that was not forwarded.
    fn count_refused(&self, reason: Reason);
    /// Accounts a packet that was dropped to its service, at the reason's [`Reason::drop_index`].
    fn count_dropped(&self, service: u32, drop_index: u32);
}

/// What a forwarded packet adds to counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForwardedCounts {
    /// Packets: the segments of a merged one.
    pub packets: u64,
    /// Bytes of the IP packet as it came.
    pub bytes: u64,
    /// 1 when it is_syn a TCP connection.
    pub new_connections: u64,
}
