//! Keys and values of the maps that packets read.
//!
//! A live array entry larger than 8 bytes is never rewritten, because a reader on another CPU could see half of it: such an entry
//! is written while nothing refers to its index. Index 0 means nothing in every array, since the kernel's arrays are born zeroed.

use crate::Address;
use crate::flow::Port;
use crate::plain::plain;

/// What is known about a VIP address before the port: value of the map `VIP_ADDRESSES`, keyed by [`Address`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct VipAddress {
    /// Number of the address, the first part of a [`VipKey`]; never 0.
    pub id: u32,
}
plain!(VipAddress, 4);

/// Key of the map `VIPS`: a VIP, its address by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct VipKey {
    /// [`VipAddress::id`].
    pub address: u32,
    /// Its port.
    pub port: Port,
    /// [`crate::flow::TCP`] or [`crate::flow::UDP`].
    pub protocol: u8,
    pad: u8,
}
plain!(VipKey, 8);

impl VipKey {
    /// The key of `port` and `protocol` at the VIP address with number `address`.
    #[inline(always)]
    pub const fn new(address: u32, port: Port, protocol: u8) -> Self {
        Self { address, port, protocol, pad: 0 }
    }
}

/// Value of the map `VIPS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Vip {
    /// Index of the service in `TABLES` and `SERVICE_COUNTERS`; never 0.
    pub service: u32,
}
plain!(Vip, 4);

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
    /// Words of a table before its first slot: the head, the generation, and the two halves of the content's digest.
    pub const WORDS: u32 = 4;
    /// Index of the word that holds the head.
    pub const HEAD: u32 = 0;
    /// Index of the word that holds the table's generation: 1 for a service's first table, counting up.
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
    /// What the outer header tells the backend about the other candidates. In IPv4 its upper ten bits go into the identification.
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

/// Where a backend is: value of the array `BACKENDS`. Written only while no slot refers to its index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Backend {
    /// IPv4 address, or [`Address::NONE`].
    pub v4: Address,
    /// IPv6 address, or [`Address::NONE`].
    pub v6: Address,
    /// Counts up with every use of the index, so that old connection entries notice a new backend; 0 when the index is free.
    pub incarnation: u32,
}
plain!(Backend, 36);

/// How packets leave towards a backend in one family: value of the array `NEXT_HOPS` at [`NextHop::index`].
///
/// Eight bytes, written as one: it changes under traffic whenever the host's routes do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct NextHop {
    /// Interface towards the backend; 0 when there is no route.
    pub interface: u32,
    /// Largest IP packet, outer header included, that the route carries, in bytes; at most 65,535.
    pub mtu: u32,
}
plain!(NextHop, 8);

impl NextHop {
    /// Index of a backend's next hop for outer headers of a family.
    #[inline(always)]
    pub const fn index(backend: u16, family: crate::Family) -> u32 {
        (backend as u32) << 1 | matches!(family, crate::Family::V6) as u32
    }
}

/// Value of the connection table `CONNECTIONS`, keyed by [`crate::Flow`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Connection {
    /// Index of the backend that has the flow.
    pub backend: u32,
    /// The backend's incarnation when the entry was written: another one means that the index was reused.
    pub incarnation: u32,
}
plain!(Connection, 8);

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
}
plain!(ServiceCounters, 24);

/// Value of the per-CPU array `BACKEND_COUNTERS`, and of the backend's own `DECAPSULATED`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct BackendCounters {
    /// Packets; a merged packet counts as its segments.
    pub packets: u64,
    /// Bytes of inner IP packets.
    pub bytes: u64,
}
plain!(BackendCounters, 16);

/// What is fixed when the balancer's program is loaded; the program is replaced when it changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Settings {
    /// Key of the flow hash; the same on every balancer of a fleet.
    pub hash_key: [u64; 2],
    /// Source address of IPv4 outer headers, or [`Address::NONE`].
    pub underlay_v4: Address,
    /// Source address of IPv6 outer headers, or [`Address::NONE`].
    pub underlay_v6: Address,
}
plain!(Settings, 48);

/// Value of the backend's map `LOCAL_ADDRESSES`: an address of this host to which encapsulated packets may come.
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
    fn a_backend_has_two_next_hops_of_its_own() {
        assert_eq!(NextHop::index(1, Family::V4), 2);
        assert_eq!(NextHop::index(1, Family::V6), 3);
        assert_eq!(NextHop::index(u16::MAX, Family::V6), 131_071);
    }
}
