//! What the packet path needs from the maps.

#[cfg(doc)]
use crate::entries::Settings;
use crate::entries::{
    Backend, Connection, Fragment, FragmentKey, Listing, NextHop, PrefixKey, RouteKey, Vip,
    VipAddress, VipKey,
};
use crate::flow::Port;
use crate::observe::{Event, Observer};
use crate::options::Features;
use crate::quic::{IdLengths, ServerKey};
use crate::rates::{Asks, SourceKey};
use crate::{Address, Family, Flow, Reason};

/// One service's lookup table: the words of its inner map. See [`crate::entries::TableHead`] for
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

/// The maps through which captures look at the balancer's program. See [`crate::observe`].
pub trait EventTables {
    /// Not 0 when [`crate::observe::begin`] has looked at the packet under way.
    fn watched(&self) -> u64;
    /// A word of [`crate::observe::switch`].
    fn switch(&self, word: u32) -> u64;
    /// Ends a capture whose time is over.
    fn switch_off(&self);
    /// A random number.
    fn random(&self) -> u32;
    /// Lends this CPU's observer.
    fn observer(&self, work: impl FnOnce(&mut Observer)) -> Option<()>;
    /// Writes an event for whoever captures; false when there is no room.
    fn emit(&self, event: &Event) -> bool;
}

/// The maps of the balancer's program.
pub trait BalancerTables: EventTables {
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
    fn take_error(&self) -> bool;
    /// The VIP address entry of a destination, if it is one.
    fn vip_address(&self, address: &Address) -> Option<VipAddress>;
    /// The entry of the longest VIP prefix that holds a destination.
    fn vip_prefix(&self, key: &PrefixKey) -> Option<VipAddress>;
    /// The VIP behind a key, if there is one.
    fn vip(&self, key: &VipKey) -> Option<Vip>;
    /// The service, with its options, whose a client of a service is by the longest prefix that
    /// holds it.
    fn route(&self, key: &RouteKey) -> Option<Vip>;
    /// What the list of sources at an index ([`Listing::OF_ALL`], or a service's) says of a source;
    /// `None` when there is no list.
    fn listing(&self, list: u32, source: &PrefixKey) -> Option<Listing>;
    /// How long a service's QUIC server IDs are.
    fn quic_lengths(&self, service: u32) -> IdLengths;
    /// The backend of a QUIC server ID, and the incarnation that has it.
    fn quic_server(&self, key: &ServerKey) -> Option<Connection>;
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
    fn remember(&self, flow: &Flow, connection: &Connection);
    /// Takes tokens from a source's buckets by the rates of its service; false when there are none
    /// left.
    fn take_from_source(&self, key: &SourceKey, asks: &Asks) -> bool;
    /// Takes tokens from a service's buckets by its rates; false when there are none left.
    fn take_from_service(&self, asks: &Asks) -> bool;
    /// Where the first fragment of a packet went.
    fn fragment(&self, key: &FragmentKey) -> Option<Fragment>;
    /// Writes down where a first fragment went; best effort.
    fn remember_fragment(&self, key: &FragmentKey, fragment: &Fragment);
    /// Accounts a forwarded packet to its service and backend.
    fn count_forwarded(&self, service: u32, backend: u16, forwarded: &Forwarded);
    /// Accounts a packet that was not forwarded.
    fn count_refused(&self, reason: Reason);
    /// Accounts a packet that was dropped to its service, at the reason's [`Reason::drop_index`].
    fn count_dropped(&self, service: u32, drop_index: u32);
}

/// What a forwarded packet adds to counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forwarded {
    /// Packets: the segments of a merged one.
    pub packets: u64,
    /// Bytes of the IP packet as it came.
    pub bytes: u64,
    /// 1 when it opens a TCP connection.
    pub new_flows: u64,
}

/// The maps of the backend's programs.
pub trait BackendTables {
    /// Whether encapsulated packets may come to this address of the host.
    fn is_local(&self, address: &Address) -> bool;
    /// Whether the kernel can take off an outer header of another family than the inner one's; a
    /// constant.
    fn crosses(&self) -> bool;
    /// The port of GUE, a constant; number 0 where none is taken off.
    fn gue_port(&self) -> Port;
    /// Whether the address is one that this backend serves, alone or in a prefix.
    fn is_vip(&self, key: &PrefixKey) -> bool;
    /// The largest maximum segment size that a VIP of a family may tell; 0 where any may be told.
    fn largest_segment(&self, family: Family) -> u32;
    /// Accounts a segment whose maximum segment size was made smaller.
    fn count_clamped(&self);
    /// Accounts a decapsulated packet.
    fn count_decapsulated(&self, packets: u64, bytes: u64);
    /// Accounts a packet that was not decapsulated.
    fn count_refused(&self, reason: Reason);
}
