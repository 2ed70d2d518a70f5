//! A flow: the 5-tuple of one direction of a connection.

use crate::abi::address::{Address, Family};
use crate::abi::options::VipOptions;
use crate::abi::pod::pod;
use crate::abi::siphash::siphash;

/// TCP's protocol number.
pub const TCP: u8 = 6;
/// UDP's protocol number.
pub const UDP: u8 = 17;
/// ICMP's protocol number. A [`VipKey`](crate::abi::vip::VipKey) for echo requests uses it for both
/// families.
pub const ICMP: u8 = 1;
/// ICMPv6's protocol number.
pub const ICMPV6: u8 = 58;
/// Protocol number of IPv4 in IP (RFC 2003).
pub const IPV4_IN_IP: u8 = 4;
/// Protocol number of IPv6 in IP (RFC 2473).
pub const IPV6_IN_IP: u8 = 41;

/// A TCP or UDP port, held in wire order.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Port(u16);
pod!(Port, 2);

impl Port {
    /// A port from its number in host order.
    pub const fn new(number: u16) -> Self {
        Self(number.to_be())
    }

    /// The two bytes, wire order.
    #[inline(always)]
    pub const fn wire(self) -> [u8; 2] {
        self.0.to_ne_bytes()
    }

    /// Whether the port is 0.
    #[inline(always)]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// The number, host order.
    pub const fn number(self) -> u16 {
        u16::from_be(self.0)
    }
}

impl core::fmt::Debug for Port {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.number().fmt(f)
    }
}

/// The 5-tuple of a client's packet; also the key of the connection table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct Flow {
    /// The client's address.
    pub source: Address,
    /// The VIP address.
    pub destination: Address,
    /// The client's port.
    pub source_port: Port,
    /// The VIP's port.
    pub destination_port: Port,
    /// [`TCP`] or [`UDP`]. A full word, because compilers zero padding with a `memset` call.
    protocol: u32,
}
pod!(Flow, 40);

impl Flow {
    /// A flow from its fields.
    #[inline(always)]
    pub const fn new(
        source: Address,
        destination: Address,
        source_port: Port,
        destination_port: Port,
        protocol: u8,
    ) -> Self {
        Self { source, destination, source_port, destination_port, protocol: protocol as u32 }
    }

    /// The protocol number: [`TCP`] or [`UDP`].
    #[inline(always)]
    pub const fn protocol(&self) -> u8 {
        self.protocol as u8
    }

    /// The flow with the fields cleared that `options` exclude from the hash.
    #[inline(always)]
    #[must_use]
    pub fn hashed_fields(mut self, options: VipOptions) -> Self {
        if options.has(VipOptions::HASH_CLIENT) || options.has(VipOptions::HASH_SOURCE) {
            self.source_port = Port(0);
        }
        if options.has(VipOptions::HASH_SOURCE) {
            self.destination = Address::NONE;
            self.destination_port = Port(0);
            self.protocol = 0;
        }
        self
    }

    /// The hash that selects a slot: SipHash-1-3 over the 5-tuple.
    ///
    /// The input has 13 bytes for IPv4 (source, destination, ports, protocol) and 37 for IPv6.
    /// `family` is the family of both addresses; it is a parameter because every caller has it
    /// already.
    #[inline(always)]
    pub fn hash(&self, family: Family, key: [u64; 2]) -> u64 {
        /// Bytes of both ports and the protocol.
        const PORTS: u64 = 5;

        let s = self.source.words();
        let d = self.destination.words();
        let ports = u64::from(u16::from_le(self.source_port.0))
            | (u64::from(u16::from_le(self.destination_port.0)) << 16)
            | (u64::from(self.protocol) << 32);
        match family {
            Family::V4 => siphash::<1, 3, 1>(key, [pair(s[3], d[3])], ports, PORTS),
            Family::V6 => {
                let addresses =
                    [pair(s[0], s[1]), pair(s[2], s[3]), pair(d[0], d[1]), pair(d[2], d[3])];
                siphash::<1, 3, 4>(key, addresses, ports, PORTS)
            }
        }
    }
}

/// Two words in wire order as one little-endian word.
#[inline(always)]
const fn pair(low: u32, high: u32) -> u64 {
    u32::from_le(low) as u64 | ((u32::from_le(high) as u64) << 32)
}

/// The slot index of a hash in a table of `length` slots.
///
/// Multiply-shift on the upper half of the hash instead of a division (Lemire, "Fast random integer
/// generation in an interval", 2019). The result is below `length`. The number of hashes per slot,
/// out of 2^32, differs by at most one.
#[inline(always)]
pub const fn slot_index(hash: u64, length: u32) -> u32 {
    ((hash >> 32).wrapping_mul(length as u64) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use core::hash::Hasher as _;
    use core::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;
    use siphasher::sip::SipHasher13;

    use super::*;

    proptest! {
        #[test]
        fn an_ipv4_flow_hashes_its_addresses_ports_and_protocol(
            a: Ipv4Addr, b: Ipv4Addr, sp: u16, dp: u16, key: [u64; 2],
        ) {
            let mut oracle = SipHasher13::new_with_keys(key[0], key[1]);
            oracle.write(&[a.octets(), b.octets()].concat());
            oracle.write(&[&sp.to_be_bytes()[..], &dp.to_be_bytes(), &[TCP]].concat());
            let flow = Flow::new(a.into(), b.into(), Port::new(sp), Port::new(dp), TCP);
            prop_assert_eq!(flow.hash(Family::V4, key), oracle.finish());
        }

        #[test]
        fn an_ipv6_flow_hashes_its_addresses_ports_and_protocol(
            a: Ipv6Addr, b: Ipv6Addr, sp: u16, dp: u16, key: [u64; 2],
        ) {
            let mut oracle = SipHasher13::new_with_keys(key[0], key[1]);
            oracle.write(&[a.octets(), b.octets()].concat());
            oracle.write(&[&sp.to_be_bytes()[..], &dp.to_be_bytes(), &[UDP]].concat());
            let flow = Flow::new(a.into(), b.into(), Port::new(sp), Port::new(dp), UDP);
            prop_assert_eq!(flow.hash(Family::V6, key), oracle.finish());
        }

        #[test]
        fn slot_indices_are_below_the_table_length(hash: u64, length in 1u32..=5_000_011) {
            prop_assert!(slot_index(hash, length) < length);
        }
    }

    #[test]
    fn the_smallest_and_largest_hashes_select_the_first_and_last_slots() {
        assert_eq!(slot_index(0, 65_537), 0);
        assert_eq!(slot_index(u64::MAX, 65_537), 65_536);
    }
}
