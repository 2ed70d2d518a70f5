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

    /// Whether a reply to a packet of `family` from this address is allowed. It is not for
    /// multicast, broadcast, loopback and unspecified addresses (RFC 1122 section 3.2.1.3, RFC 4291
    /// section 2.4), nor for an IPv4-mapped address in an IPv6 header.
    #[inline(always)]
    pub const fn is_answerable(&self, family: Family) -> bool {
        match family {
            Family::V4 => !matches!(self.0[3].to_ne_bytes()[0], 0 | 127 | 224..),
            Family::V6 => {
                let low =
                    self.0[0] | self.0[1] == 0 && (self.0[2] == 0 || self.0[2] == Self::MAPPED);
                !low && self.0[0].to_ne_bytes()[0] != 0xff
            }
        }
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
    fn addresses_round_trip() {
        for text in ["203.0.113.10", "255.255.255.255", "2001:db8::1", "::1", "fe80::1:2:3:4"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(IpAddr::from(Address::from(address)), address);
            assert_eq!(Address::from(address).to_string(), text);
        }
    }
}
