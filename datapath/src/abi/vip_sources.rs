//! A filter for sources that may be VIP addresses.

use core::net::IpAddr;

use crate::abi::address::{Address, Family};

/// A Bloom filter of address blocks: a /24 in IPv4, a /48 in IPv6. A block has one bit.
///
/// The packet path looks up a source in the map of VIP addresses only if the bit of its block is
/// set, so that the source of nearly every client costs a few instructions and no lookup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VipSources(u64);

impl VipSources {
    /// No block.
    pub const NONE: Self = Self(0);
    /// Every block.
    pub const ALL: Self = Self(u64::MAX);

    /// The filter of a word.
    #[inline(always)]
    pub const fn from_bits(word: u64) -> Self {
        Self(word)
    }

    /// The filter as a word.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// A word whose lowest bit is set if the filter has the block of a source in a header of a
    /// family.
    #[inline(always)]
    pub const fn hint(self, source: &Address, family: Family) -> u64 {
        self.0 >> Self::bit(source, family)
    }

    /// The bit of an address's block: 0 to 63.
    #[inline(always)]
    const fn bit(address: &Address, family: Family) -> u32 {
        const THREE_OCTETS: u32 = u32::from_ne_bytes([0xff, 0xff, 0xff, 0]);
        const TWO_OCTETS: u32 = u32::from_ne_bytes([0xff, 0xff, 0, 0]);
        /// 2^32 divided by the golden ratio: multiplicative hashing.
        const FACTOR: u32 = 0x9e37_79b9;

        let [first, second, _, last] = address.words();
        let block = match family {
            Family::V4 => last & THREE_OCTETS,
            Family::V6 => first ^ (second & TWO_OCTETS),
        };
        block.wrapping_mul(FACTOR) >> (u32::BITS - u64::BITS.trailing_zeros())
    }

    /// Adds the blocks of a prefix. `length` is the prefix length in the address's family; the
    /// address's other bits are zero.
    #[must_use]
    pub fn with(self, address: IpAddr, length: u8) -> Self {
        let (bits, block) = match address {
            IpAddr::V4(v4) => (u128::from(v4.to_bits()), 24_u8),
            IpAddr::V6(v6) => (v6.to_bits(), 48),
        };
        let more = block.saturating_sub(length);
        // A prefix of more blocks than bits sets nearly every bit.
        if more > 6 {
            return Self::ALL;
        }
        let block_size = match address {
            IpAddr::V4(_) => 1 << (32 - block),
            IpAddr::V6(_) => 1_u128 << (128 - block),
        };
        (0..1_u128 << more).fold(self, |filter, number| {
            let bits = bits + number * block_size;
            let (address, family) = match address {
                IpAddr::V4(_) => (IpAddr::V4((bits as u32).into()), Family::V4),
                IpAddr::V6(_) => (IpAddr::V6(bits.into()), Family::V6),
            };
            Self(filter.0 | 1 << Self::bit(&address.into(), family))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    fn may_have(filter: VipSources, address: IpAddr) -> bool {
        filter.hint(&address.into(), Family::of(address)) & 1 == 1
    }

    #[test]
    fn few_blocks_exclude_nearly_all_sources() {
        let vips = ["203.0.113.10", "203.0.113.20", "198.51.100.1", "2001:db8:1::10"];
        let vips = vips.map(|vip| vip.parse::<IpAddr>().unwrap());
        let filter = vips.iter().fold(VipSources::NONE, |filter, vip| {
            filter.with(*vip, if vip.is_ipv4() { 32 } else { 128 })
        });
        assert!(filter.bits().count_ones() <= 3, "addresses of one block share its bit");
        assert!(vips.iter().all(|vip| may_have(filter, *vip)));
        let v4 = (0..1 << 16).map(|block: u32| IpAddr::from(Ipv4Addr::from_bits(block << 8)));
        let v6 = (0..1 << 16).map(|block: u128| {
            IpAddr::from(Ipv6Addr::from_bits((0x2001_0db8_u128 << 96) | (block << 80)))
        });
        for hits in [
            v4.filter(|at| may_have(filter, *at)).count(),
            v6.filter(|at| may_have(filter, *at)).count(),
        ] {
            // 3 of 64 bits, give or take.
            assert!((1 << 11..1 << 12).contains(&hits), "{hits} of 65536");
        }
    }

    #[test]
    fn an_empty_filter_has_no_source_and_a_short_prefix_has_all() {
        assert!(!may_have(VipSources::NONE, IpAddr::V4(Ipv4Addr::UNSPECIFIED)));
        assert_eq!(VipSources::NONE.with(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0), VipSources::ALL);
        assert_eq!(VipSources::NONE.with(Ipv4Addr::new(10, 0, 0, 0).into(), 8), VipSources::ALL);
    }

    proptest! {
        #[test]
        fn a_filter_has_each_address_of_its_prefixes(v4: u32, v6: u128, length in 0..=32_u8, of in 0..=128_u8, host: u128) {
            let mask = |bits: u8, length: u8| u128::MAX.checked_shl(u32::from(bits - length)).unwrap_or(0);
            let network = v4 & mask(32, length) as u32;
            let filter = VipSources::NONE.with(Ipv4Addr::from_bits(network).into(), length);
            let address = Ipv4Addr::from_bits(network | host as u32 & !(mask(32, length) as u32));
            prop_assert!(may_have(filter, address.into()));
            let network = v6 & mask(128, of);
            let filter = VipSources::NONE.with(Ipv6Addr::from_bits(network).into(), of);
            let address = Ipv6Addr::from_bits(network | host & !mask(128, of));
            prop_assert!(may_have(filter, address.into()));
        }
    }
}
