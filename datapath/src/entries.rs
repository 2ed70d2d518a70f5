//! Keys and values of the maps that packets read.
//!
//! A live array entry larger than 8 bytes is never rewritten, because a reader on another CPU could
//! see half of it: such an entry is written while nothing refers to its index. Index 0 means
//! nothing in every array, since the kernel's arrays are born zeroed.

use core::net::IpAddr;

use crate::flow::Port;
use crate::options::{AddressOptions, Features, VipOptions};
use crate::plain::plain;
use crate::rates::Rate;
use crate::{Address, Reason};

/// What is known about a VIP address before the port: value of the map `VIP_ADDRESSES`, keyed by
/// [`Address`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct VipAddress {
    /// Number of the address or prefix, the first part of a [`VipKey`]; never 0.
    pub id: u32,
    /// What becomes of packets to this address that no VIP takes: bits of [`AddressOptions`].
    pub options: AddressOptions,
    /// One of its VIPs.
    pub first: FirstVip,
}
plain!(VipAddress, 20);

impl VipAddress {
    /// The entry of an address that holds none of its VIPs.
    pub const fn new(id: u32, options: AddressOptions) -> Self {
        Self { id, options, first: FirstVip::NONE }
    }

    /// The key in `VIPS` of the VIP that the entry holds, if it holds one.
    pub fn first_key(&self) -> Option<VipKey> {
        let [low, high, protocol, _] = self.first.selector.to_ne_bytes();
        let port = Port::new(u16::from_be_bytes([low, high]));
        (self.first != FirstVip::NONE).then(|| VipKey::new(self.id, port, protocol))
    }
}

/// A copy of the entry in `VIPS` of one VIP of an address, so that most packets need one look-up in
/// a hash map and not two.
///
/// It never differs from that entry: it is written after the entry, and cleared before the entry
/// changes or goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct FirstVip {
    /// [`VipKey::selector`]; 0 for none.
    selector: u32,
    vip: Vip,
}
plain!(FirstVip, 12);

impl FirstVip {
    /// No VIP.
    pub const NONE: Self = Self { selector: 0, vip: Vip { service: 0, options: VipOptions::NONE } };

    /// The copy of a VIP's entry.
    pub const fn new(port: Port, protocol: u8, vip: Vip) -> Self {
        Self { selector: VipKey::selector(port, protocol), vip }
    }

    /// The VIP, if it is that at a port; `protocol` is not 0.
    #[inline(always)]
    pub const fn at(&self, port: Port, protocol: u8) -> Option<Vip> {
        if self.selector == VipKey::selector(port, protocol) { Some(self.vip) } else { None }
    }

    /// The VIP, whichever it is.
    pub fn vip(&self) -> Option<Vip> {
        (*self != Self::NONE).then_some(self.vip)
    }
}

/// Key of the map `VIP_PREFIXES`, a longest-prefix-match trie of [`VipAddress`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct PrefixKey {
    /// Bits that count, host order: 0 to 128. An IPv4 prefix of `n` bits has 96 + `n`.
    pub length: u32,
    address: [u32; 4],
}
plain!(PrefixKey, 20);

impl PrefixKey {
    /// The key that looks an address up.
    #[inline(always)]
    pub const fn address(address: &Address) -> Self {
        Self { length: 128, address: address.words() }
    }

    /// The address's words, wire order.
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        self.address
    }

    /// A key from its parts: bits that count, and the address's words, wire order.
    pub const fn new(length: u32, address: [u32; 4]) -> Self {
        Self { length, address }
    }

    /// The key of a prefix: `length` bits as they count in the address's own family.
    pub const fn prefix(address: Address, length: u32) -> Self {
        let length = if address.is_mapped() { length + 96 } else { length };
        Self { length, address: address.words() }
    }

    /// Whether all addresses of `other` are among those of this prefix.
    pub fn holds(&self, other: &Self) -> bool {
        let bits = |key: &Self| {
            key.address.iter().fold(0, |bits, word| bits << 32 | u128::from(u32::from_be(*word)))
        };
        let differ = bits(self) ^ bits(other);
        other.length >= self.length && differ.leading_zeros() >= self.length
    }

    /// The first address of the prefix, and its bits as they count in the address's own family.
    pub const fn to_prefix(self) -> (Address, u32) {
        let address = Address::v6(self.address);
        (address, if address.is_mapped() { self.length - 96 } else { self.length })
    }
}

/// Key of the map `ROUTES`, a longest-prefix-match trie of [`Vip`]: clients of a service that are
/// another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct RouteKey {
    /// Bits that count, host order: those of the service, all 32, and of the prefix as
    /// [`PrefixKey::length`] has them.
    pub length: u32,
    /// The service whose VIP the client aims at.
    pub service: u32,
    address: [u32; 4],
}
plain!(RouteKey, 24);

impl RouteKey {
    /// Bits of the service.
    const SERVICE: u32 = u32::BITS;

    /// The key of the clients of a prefix.
    #[inline(always)]
    pub const fn new(service: u32, clients: &PrefixKey) -> Self {
        Self {
            length: clients.length.wrapping_add(Self::SERVICE),
            service,
            address: clients.address,
        }
    }

    /// The prefix.
    pub const fn clients(&self) -> PrefixKey {
        PrefixKey { length: self.length.saturating_sub(Self::SERVICE), address: self.address }
    }

    /// What follows the length, as the trie compares it.
    #[inline(always)]
    pub const fn words(&self) -> [u32; 5] {
        let [a, b, c, d] = self.address;
        [self.service, a, b, c, d]
    }
}

/// What a list of sources says of a prefix: value of an inner map of `LISTS`, a
/// longest-prefix-match trie keyed by [`PrefixKey`].
///
/// The trie holds deny-list, allow-list and what counts for sources in neither, so that one swap
/// changes all of it. Its prefixes of no bits are the latter; IPv4 has one of its own whenever a
/// prefix of IPv6 would otherwise hold it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Listing(u32);
plain!(Listing, 4);

impl Listing {
    /// The sources may come; what is in no prefix of the trie may, too.
    pub const ALLOWED: Self = Self(0);
    /// The deny-list holds them.
    pub const DENIED: Self = Self(1);
    /// There is an allow-list, and it does not hold them.
    pub const NOT_ALLOWED: Self = Self(2);

    /// Index in `LISTS` of the list that counts for all VIPs; a service's list is at the service's
    /// index, which is never 0.
    pub const OF_ALL: u32 = 0;

    /// What a number in a trie says.
    #[inline(always)]
    pub const fn from_word(word: u32) -> Self {
        Self(word)
    }

    /// Whether the sources may come.
    ///
    /// # Errors
    ///
    /// Why not.
    #[inline(always)]
    pub const fn check(self) -> Result<(), Reason> {
        match self {
            Self::ALLOWED => Ok(()),
            Self::DENIED => Err(Reason::Denied),
            _ => Err(Reason::NotAllowed),
        }
    }
}

/// Key of the map `VIPS`: a VIP, its address by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct VipKey {
    /// [`VipAddress::id`].
    pub address: u32,
    /// Its port.
    pub port: Port,
    /// [`crate::flow::TCP`] or [`crate::flow::UDP`]; [`crate::flow::ICMP`], at
    /// [`VipKey::ANY_PORT`], for pings that are forwarded.
    pub protocol: u8,
    pad: u8,
}
plain!(VipKey, 8);

impl VipKey {
    /// The port that stands for every port.
    pub const ANY_PORT: Port = Port::new(0);

    /// The key of the service that gets the pings to the VIP address with number `address`.
    #[inline(always)]
    pub const fn pings(address: u32) -> Self {
        Self::new(address, Self::ANY_PORT, crate::flow::ICMP)
    }

    /// Port and protocol as they lie in the key.
    #[inline(always)]
    const fn selector(port: Port, protocol: u8) -> u32 {
        let [low, high] = port.wire();
        u32::from_ne_bytes([low, high, protocol, 0])
    }

    /// The key of `port` and `protocol` at the VIP address with number `address`.
    #[inline(always)]
    pub const fn new(address: u32, port: Port, protocol: u8) -> Self {
        Self { address, port, protocol, pad: 0 }
    }
}

/// Value of the maps `VIPS` and `ROUTES`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Vip {
    /// Index of the service in `TABLES` and `SERVICE_COUNTERS`; never 0.
    pub service: u32,
    /// How its packets are treated: bits of [`VipOptions`].
    pub options: VipOptions,
}
plain!(Vip, 8);

/// The first word of a lookup table's inner map: what a program must know before it selects a slot.
///
/// It travels with the slots, so that one swap of the outer map's entry changes all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableHead {
    /// Number of slots, at most [`TableHead::MAX_SLOTS`].
    pub slots: u32,
    /// Whether the flows of this service are kept in the connection table.
    pub tracked: bool,
}

impl TableHead {
    /// Words of a table before its first slot: the head, the generation, and the two halves of the
    /// content's digest.
    pub const WORDS: u32 = 4;
    /// Index of the word that holds the head.
    pub const HEAD: u32 = 0;
    /// Index of the word that holds the table's generation: 1 for a service's first table, counting
    /// up.
    pub const GENERATION: u32 = 1;
    /// Index of the first of the two words that hold the content's digest, low half first.
    pub const DIGEST: u32 = 2;
    /// Largest number of slots that a head can say.
    pub const MAX_SLOTS: u32 = 0x00ff_ffff;

    const TRACKED: u32 = 1 << 24;

    /// The head as a word of the table.
    pub const fn to_word(self) -> u32 {
        (self.slots & Self::MAX_SLOTS) | if self.tracked { Self::TRACKED } else { 0 }
    }

    /// The head that a word of a table says.
    #[inline(always)]
    pub const fn from_word(word: u32) -> Self {
        Self { slots: word & Self::MAX_SLOTS, tracked: word & Self::TRACKED != 0 }
    }
}

/// One slot of a lookup table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// Index of the backend that takes the slot's packets; 0 when none can.
    pub first: u16,
    /// What the outer header tells the backend about the other candidates. In IPv4 its upper ten
    /// bits go into the identification.
    pub hint: u16,
}

impl Slot {
    /// The slot as a word of the table.
    pub const fn to_word(self) -> u32 {
        self.first as u32 | (self.hint as u32) << 16
    }

    /// The slot that a word of a table says.
    #[inline(always)]
    pub const fn from_word(word: u32) -> Self {
        Self { first: word as u16, hint: (word >> 16) as u16 }
    }
}

/// Where a backend is: value of the array `BACKENDS`. Written only while no slot refers to its
/// index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Backend {
    /// IPv4 address, or [`Address::NONE`].
    pub v4: Address,
    /// IPv6 address, or [`Address::NONE`].
    pub v6: Address,
    /// Counts up with every use of the index, so that old connection entries notice a new backend;
    /// 0 when the index is free.
    pub incarnation: u32,
}
plain!(Backend, 36);

/// How packets leave towards a backend in one family: value of the array `NEXT_HOPS` at
/// [`NextHop::index`].
///
/// Eight bytes, written as one: it changes under traffic whenever the host's routes do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct NextHop {
    /// Interface towards the backend; 0 when there is no route.
    pub interface: u32,
    /// Largest IP packet, outer header included, that the route carries, in bytes.
    pub mtu: u16,
    /// Which of the two entries in `NEIGHBOURS` counts, 1 or 2; 0 when the kernel finds the
    /// neighbour for every packet.
    pub neighbour: u16,
}
plain!(NextHop, 8);

impl NextHop {
    /// No route.
    pub const NONE: Self = Self::new(0, 0);

    /// A next hop whose neighbour the kernel finds.
    pub const fn new(interface: u32, mtu: u16) -> Self {
        Self { interface, mtu, neighbour: 0 }
    }

    /// Index in `NEIGHBOURS` of the entry that counts, of the next hop at `at`; 0 for none.
    #[inline(always)]
    pub const fn neighbour_index(&self, at: u32) -> u32 {
        if self.neighbour == 0 {
            0
        } else {
            (at << 1).wrapping_add((self.neighbour as u32).wrapping_sub(1))
        }
    }

    /// Index of a backend's next hop for outer headers of a family.
    #[inline(always)]
    pub const fn index(backend: u16, family: crate::Family) -> u32 {
        (backend as u32) << 1 | family.index()
    }
}

/// To whom packets are handed on the link towards a backend: value of the array `NEIGHBOURS`, at
/// [`NextHop::neighbour_index`].
///
/// The kernel's `bpf_redir_neigh`. With it, the kernel need not look up a route for every packet.
/// It changes under traffic whenever the host's routes do and has more than eight bytes: so each
/// next hop has two, of which only the one is written that does not count, and then the next hop,
/// which says that it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Neighbour {
    /// The kernel's number of the address's family, host order; 0 in an entry that was never
    /// written.
    pub family: u32,
    /// The address, wire order; IPv4 has the first word.
    pub address: [u32; 4],
}
plain!(Neighbour, 20);

impl From<IpAddr> for Neighbour {
    fn from(address: IpAddr) -> Self {
        // `AF_INET` and `AF_INET6` of Linux.
        let words = Address::from(address).words();
        match address {
            IpAddr::V4(_) => Self { family: 2, address: [words[3], 0, 0, 0] },
            IpAddr::V6(_) => Self { family: 10, address: words },
        }
    }
}

/// Who has a flow: value of the connection table `CONNECTIONS`, keyed by [`crate::Flow`], and of
/// the map `QUIC_SERVERS`, keyed by [`ServerKey`](crate::quic::ServerKey).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Connection {
    /// Index of the backend that has the flow.
    pub backend: u32,
    /// The backend's incarnation when the entry was written: another one means that the index was
    /// reused.
    pub incarnation: u32,
}
plain!(Connection, 8);

/// Key of the map `FRAGMENTS`: what the fragments of one packet have in common (RFC 791 section
/// 3.2, RFC 8200 section 4.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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
plain!(FragmentKey, 40);

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
    /// The lower half of the service's [`Vip::options`] then.
    pub options: u16,
    /// The backend's incarnation then.
    pub incarnation: u32,
    /// Index of the backend.
    pub backend: u16,
    /// The hint that the first fragment carried.
    pub hint: u16,
}
plain!(Fragment, 24);

impl Fragment {
    /// How long a first fragment is remembered, in nanoseconds: what Linux waits for the rest of a
    /// packet by default.
    pub const LIFETIME: u64 = 30_000_000_000;
}

/// Value of the per-CPU array `SERVICE_COUNTERS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct ServiceCounters {
    /// Packets forwarded; a merged packet counts as the segments that it will be cut into.
    pub packets: u64,
    /// Bytes of IP packets forwarded, outer headers not counted.
    pub bytes: u64,
    /// TCP segments that open a connection, forwarded.
    pub new_flows: u64,
    /// Packets dropped, by [`Reason::drop_index`]. They are counted in `REASONS`, too, which stays
    /// when a service goes.
    pub drops: [u64; Reason::DROPS],
}
plain!(ServiceCounters, 24 + 8 * Reason::DROPS);

/// Value of the per-CPU array `BACKEND_COUNTERS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct BackendCounters {
    /// Packets; a merged packet counts as its segments.
    pub packets: u64,
    /// Bytes of the clients' IP packets.
    pub bytes: u64,
    /// TCP segments that open a connection.
    pub new_flows: u64,
}
plain!(BackendCounters, 24);

/// Value of the backend's `DECAPSULATED`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Decapsulated {
    /// Packets; a merged packet counts as its segments.
    pub packets: u64,
    /// Bytes of inner IP packets.
    pub bytes: u64,
}
plain!(Decapsulated, 16);

/// What is fixed when the balancer's program is loaded, each member a constant of its own there;
/// the program is replaced when it changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// The features in use.
    pub features: Features,
    /// Key of the flow hash; the same on every balancer of a fleet.
    pub hash_key: [u64; 2],
    /// Source address of IPv4 outer headers, or [`Address::NONE`].
    pub source_v4: Address,
    /// Source address of IPv6 outer headers, or [`Address::NONE`].
    pub source_v6: Address,
    /// Bits of the last word of `source_v4`, wire order, that a flow's hash fills in; zeros in the
    /// address itself.
    pub source_bits_v4: u32,
    /// Bits of the last word of `source_v6`, as above.
    pub source_bits_v6: u32,
    /// Destination port of GUE.
    pub gue_port: Port,
    /// How often each CPU may send an ICMP error.
    pub errors: Rate,
}

impl Settings {
    /// No feature, no key, no address.
    pub const NONE: Self = Self {
        features: Features::NONE,
        hash_key: [0; 2],
        source_v4: Address::NONE,
        source_v6: Address::NONE,
        source_bits_v4: 0,
        source_bits_v6: 0,
        gue_port: Port::new(0),
        errors: Rate::NONE,
    };
}

/// Value of the backend's map `LOCAL_ADDRESSES`: an address of this host to which encapsulated
/// packets may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct LocalAddress {
    /// Always 1.
    pub present: u32,
}
plain!(LocalAddress, 4);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Family;

    proptest! {
        #[test]
        fn words_of_a_table_survive_the_round_trip(slots in 0..=TableHead::MAX_SLOTS, tracked: bool, first: u16, hint: u16) {
            let head = TableHead { slots, tracked };
            prop_assert_eq!(TableHead::from_word(head.to_word()), head);
            let slot = Slot { first, hint };
            prop_assert_eq!(Slot::from_word(slot.to_word()), slot);
        }
    }

    #[test]
    fn a_next_hop_has_two_neighbours_of_its_own_and_at_index_0_there_is_none() {
        let next_hop = |neighbour| NextHop { neighbour, ..NextHop::NONE };
        let first = NextHop::index(1, Family::V4);
        assert_eq!([0, 1, 2].map(|which| next_hop(which).neighbour_index(first)), [0, 4, 5]);
        assert_eq!([0, 1, 2].map(|which| next_hop(which).neighbour_index(first + 1)), [0, 6, 7]);
    }

    #[test]
    fn a_backend_has_two_next_hops_of_its_own() {
        assert_eq!(NextHop::index(1, Family::V4), 2);
        assert_eq!(NextHop::index(1, Family::V6), 3);
        assert_eq!(NextHop::index(u16::MAX, Family::V6), 131_071);
    }
}
