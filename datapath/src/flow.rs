//! A flow: the 5-tuple that stays the same for every packet of a connection in one direction.

use crate::plain::plain;
use crate::siphash::siphash;
use crate::{Address, Family};

/// TCP's protocol number.
pub const TCP: u8 = 6;
/// UDP's protocol number.
pub const UDP: u8 = 17;
/// Protocol number of IPv4 in IP (RFC 2003).
pub const IPV4_IN_IP: u8 = 4;
/// Protocol number of IPv6 in IP (RFC 2473).
pub const IPV6_IN_IP: u8 = 41;

/// A 5-tuple as the client sent it; also the key of the connection table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Flow {
    /// The client's address.
    pub source: Address,
    /// The VIP address.
    pub destination: Address,
    /// The client's port, wire order.
    pub source_port: [u8; 2],
    /// The VIP's port, wire order.
    pub destination_port: [u8; 2],
    /// [`TCP`] or [`UDP`].
    pub protocol: u8,
    pad: [u8; 3],
}
plain!(Flow, 40);

impl Flow {
    /// A flow from its parts; ports in wire order.
    #[inline(always)]
    pub const fn new(
        source: Address,
        destination: Address,
        source_port: [u8; 2],
        destination_port: [u8; 2],
        protocol: u8,
    ) -> Self {
        Self { source, destination, source_port, destination_port, protocol, pad: [0; 3] }
    }

    /// The hash that selects a slot: SipHash-1-3 over the 5-tuple.
    ///
    /// IPv4 hashes two words (source and destination; ports and protocol), IPv6 five. `family` must be the family of the
    /// addresses: it is passed along because every caller knows it and the kernel should not find it out again.
    #[inline(always)]
    pub fn hash(&self, family: Family, key: [u64; 2]) -> u64 {
        let [s0, s1] = words(self.source.octets());
        let [d0, d1] = words(self.destination.octets());
        let ports = u64::from(u16::from_le_bytes(self.source_port))
            | u64::from(u16::from_le_bytes(self.destination_port)) << 16
            | u64::from(self.protocol) << 32;
        match family {
            Family::V4 => siphash::<1, 3, 2>(key, [(s1 >> 32) | (d1 & 0xffff_ffff_0000_0000), ports]),
            Family::V6 => siphash::<1, 3, 5>(key, [s0, s1, d0, d1, ports]),
        }
    }
}

/// Sixteen bytes as two little-endian words.
#[inline(always)]
fn words(o: &[u8; 16]) -> [u64; 2] {
    [
        u64::from_le_bytes([o[0], o[1], o[2], o[3], o[4], o[5], o[6], o[7]]),
        u64::from_le_bytes([o[8], o[9], o[10], o[11], o[12], o[13], o[14], o[15]]),
    ]
}

/// The slot of a hash in a table of `length` slots.
///
/// Multiply-shift on the hash's upper half instead of a division (Lemire, "Fast random integer generation in an interval",
/// 2019): the result is below `length`, and no two slots differ by more than one in 2^32 / `length` hashes.
#[inline(always)]
pub const fn slot_index(hash: u64, length: u32) -> u32 {
    ((hash >> 32).wrapping_mul(length as u64) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use core::hash::Hasher as _;

    use proptest::prelude::*;
    use siphasher::sip::SipHasher13;

    use super::*;

    proptest! {
        #[test]
        fn an_ipv4_flow_hashes_its_addresses_ports_and_protocol(a: [u8; 4], b: [u8; 4], sp: [u8; 2], dp: [u8; 2], key: [u64; 2]) {
            let mut oracle = SipHasher13::new_with_keys(key[0], key[1]);
            oracle.write(&[a, b].concat());
            oracle.write(&[sp[0], sp[1], dp[0], dp[1], TCP, 0, 0, 0]);
            let flow = Flow::new(Address::v4(a), Address::v4(b), sp, dp, TCP);
            prop_assert_eq!(flow.hash(Family::V4, key), oracle.finish());
        }

        #[test]
        fn an_ipv6_flow_hashes_its_addresses_ports_and_protocol(a: [u8; 16], b: [u8; 16], sp: [u8; 2], dp: [u8; 2], key: [u64; 2]) {
            let mut oracle = SipHasher13::new_with_keys(key[0], key[1]);
            oracle.write(&[a, b].concat());
            oracle.write(&[sp[0], sp[1], dp[0], dp[1], UDP, 0, 0, 0]);
            let flow = Flow::new(Address::v6(a), Address::v6(b), sp, dp, UDP);
            prop_assert_eq!(flow.hash(Family::V6, key), oracle.finish());
        }

        #[test]
        fn a_slot_is_always_in_its_table(hash: u64, length in 1u32..=5_000_011) {
            prop_assert!(slot_index(hash, length) < length);
        }
    }

    #[test]
    fn the_ends_of_the_hash_select_the_ends_of_the_table() {
        assert_eq!(slot_index(0, 65_537), 0);
        assert_eq!(slot_index(u64::MAX, 65_537), 65_536);
    }
}
