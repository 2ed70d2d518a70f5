//! IP addresses of either family in one 16-byte form.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::abi::pod::pod;

/// The family of an IP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4 (RFC 791).
    V4,
    /// IPv6 (RFC 8200).
    V6,
}

impl Family {
    /// The family of a standard-library address.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

impl Family {
    /// The smallest MTU that an ICMP error reports: the packet that every host must accept (RFC 791
    /// section 3.2), and the minimum MTU of IPv6 (RFC 8200 section 5).
    #[inline(always)]
    pub const fn min_mtu(self) -> u32 {
        match self {
            Self::V4 => 576,
            Self::V6 => 1280,
        }
    }

    /// The other family.
    #[inline(always)]
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }

    /// Index in arrays with one element per family.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        matches!(self, Self::V6) as u32
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// An IPv4 or IPv6 address in wire order. IPv4 addresses are stored in IPv4-mapped form
/// (`::ffff:a.b.c.d`, RFC 4291 section 2.5.5.2).
///
/// Four words rather than sixteen bytes, because compilers for BPF copy byte arrays one byte at a
/// time.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct Address([u32; 4]);
pod!(Address, 16);

impl Address {
    /// No address: all zero.
    pub const NONE: Self = Self([0; 4]);

    /// Third word of an IPv4-mapped address.
    const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

    /// An IPv4 address from a header field, wire order.
    #[inline(always)]
    pub const fn v4(word: u32) -> Self {
        Self([0, 0, Self::MAPPED, word])
    }

    /// An IPv6 address from a header field, wire order.
    #[inline(always)]
    pub const fn v6(words: [u32; 4]) -> Self {
        Self(words)
    }

    /// The four words, wire order. The last word of a mapped address is the IPv4 address.
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        self.0
    }

    /// Sets the bits of `bits` that `mask` selects in the last word. Both are in wire order.
    #[inline(always)]
    #[must_use]
    pub const fn with_bits(mut self, bits: u32, mask: u32) -> Self {
        self.0[3] |= bits & mask;
        self
    }

    /// Whether this is an IPv4 address or an IPv4-mapped IPv6 address.
    #[inline(always)]
    pub const fn is_mapped(&self) -> bool {
        (self.0[0] | self.0[1]) == 0 && self.0[2] == Self::MAPPED
    }

    /// Whether a header of `family` must not have this source: unspecified, loopback, multicast,
    /// broadcast, reserved and link-local addresses (RFC 1812 section 5.3.7, RFC 3927 section 2.7,
    /// RFC 4291 section 2.5), and IPv4-compatible and IPv4-mapped addresses in an IPv6 header.
    #[inline(always)]
    pub const fn is_martian(&self, family: Family) -> bool {
        match family {
            Family::V4 => {
                self.is_link_local(family) || matches!(self.0[3].to_ne_bytes()[0], 0 | 127 | 224..)
            }
            Family::V6 => {
                let low =
                    self.0[0] | self.0[1] == 0 && (self.0[2] == 0 || self.0[2] == Self::MAPPED);
                low || self.is_link_local(family) || self.0[0].to_ne_bytes()[0] == 0xff
            }
        }
    }

    /// Whether this is a link-local address of `family` (RFC 3927, RFC 4291 section 2.5.6).
    #[inline(always)]
    pub const fn is_link_local(&self, family: Family) -> bool {
        match family {
            Family::V4 => matches!(self.0[3].to_ne_bytes(), [169, 254, ..]),
            Family::V6 => matches!(self.0[0].to_ne_bytes(), [0xfe, 0x80..=0xbf, ..]),
        }
    }

    /// A word whose lowest bit is set for each martian source of `family`, and for few others. The
    /// packet path computes it without branches, and [`Self::is_martian`] only if it is set.
    #[inline(always)]
    pub const fn martian_hint(&self, family: Family) -> u64 {
        /// One bit for each four values of an address's first octet: in IPv4 those of 0.0.0.0/8,
        /// 127.0.0.0/8, 169.254.0.0/16 and 224.0.0.0/3; in IPv6 those of ::/96, fe80::/10 and
        /// ff00::/8, which are the first and the last of them.
        const GROUPS: u64 = 1 | 1 << (127 >> 2) | 1 << (169 >> 2) | 0xff << (224 >> 2);

        let word = match family {
            Family::V4 => self.0[3],
            Family::V6 => self.0[0],
        };
        GROUPS >> (u32::from_be(word) >> 26)
    }

    /// Whether this is [`Address::NONE`].
    #[inline(always)]
    pub const fn is_none(&self) -> bool {
        (self.0[0] | self.0[1] | self.0[2] | self.0[3]) == 0
    }
}

impl From<Ipv4Addr> for Address {
    fn from(address: Ipv4Addr) -> Self {
        Self::v4(u32::from_ne_bytes(address.octets()))
    }
}

impl From<Ipv6Addr> for Address {
    fn from(address: Ipv6Addr) -> Self {
        let o = address.octets();
        Self(core::array::from_fn(|i| {
            u32::from_ne_bytes([o[4 * i], o[4 * i + 1], o[4 * i + 2], o[4 * i + 3]])
        }))
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => v6.into(),
        }
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        let mut octets = [0; 16];
        for (four, word) in octets.chunks_exact_mut(4).zip(address.0) {
            four.copy_from_slice(&word.to_ne_bytes());
        }
        IpAddr::V6(Ipv6Addr::from(octets)).to_canonical()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        IpAddr::from(*self).fmt(f)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn martians_are_known_by_their_ranges() {
        let is_martian = |text: &str| {
            let address: IpAddr = text.parse().unwrap();
            let family = Family::of(address);
            let is_martian = Address::from(address).is_martian(family);
            let hint = Address::from(address).martian_hint(family) & 1 == 1;
            assert!(hint || !is_martian, "{text}: the hint is missing");
            is_martian
        };
        for text in [
            "0.0.0.0",
            "0.255.255.255",
            "127.0.0.0",
            "127.255.255.255",
            "169.254.0.0",
            "169.254.255.255",
            "224.0.0.0",
            "239.1.2.3",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::198.51.100.7",
            "::ffff:198.51.100.7",
            "fe80::1",
            "febf::1",
            "ff00::",
            "ff02::1",
            "ffff::1",
        ] {
            assert!(is_martian(text), "{text}");
        }
        for text in [
            "1.0.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.255.255",
            "169.255.0.0",
            "223.255.255.255",
            "10.0.0.1",
            "192.0.2.1",
            "::1:0:0:0",
            "64:ff9b::192.0.2.1",
            "2001:db8::1",
            "fc00::1",
            "fdff::1",
            "fe7f::1",
            "fec0::1",
        ] {
            assert!(!is_martian(text), "{text}");
        }
    }

    #[test]
    fn addresses_round_trip() {
        for text in ["203.0.113.10", "255.255.255.255", "2001:db8::1", "::1", "fe80::1:2:3:4"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(IpAddr::from(Address::from(address)), address);
            assert_eq!(Address::from(address).to_string(), text);
        }
    }
}
