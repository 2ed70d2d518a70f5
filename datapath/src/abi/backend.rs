//! Backends, their next hops and neighbours.

use core::net::IpAddr;

use crate::abi::address::{Address, Family};
use crate::abi::pod::pod;

/// Addresses of a backend: value of the array `BACKENDS`. Written only while no slot refers to its
/// index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Backend {
    /// IPv4 address, or [`Address::NONE`].
    pub v4: Address,
    /// IPv6 address, or [`Address::NONE`].
    pub v6: Address,
    /// Counts the uses of the index, so that a connection entry of an earlier backend is detected;
    /// 0 while the index is free.
    pub epoch: u32,
}
pod!(Backend, 36);

/// Next hop towards a backend for outer headers of one family: value of the array `NEXT_HOPS` at
/// [`NextHop::index`].
///
/// Eight bytes, so that one store updates the entry under traffic when the host's routes change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct NextHop {
    /// Index of the egress interface; 0 without a route.
    pub interface: u32,
    /// MTU of the route in bytes, outer header included.
    pub mtu: u16,
    /// The active one of the two entries in `NEIGHBOURS`, 1 or 2; 0 if the kernel looks up the
    /// neighbour per packet.
    pub neighbour: u16,
}
pod!(NextHop, 8);

impl NextHop {
    /// No route.
    pub const NONE: Self = Self::new(0, 0);

    /// A next hop without an active neighbour entry: the kernel looks the neighbour up per packet.
    pub const fn new(interface: u32, mtu: u16) -> Self {
        Self { interface, mtu, neighbour: 0 }
    }

    /// Index in `NEIGHBOURS` of the active entry, if this is the next hop at index `at`; 0 for
    /// none.
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
    pub const fn index(backend: u16, family: Family) -> u32 {
        ((backend as u32) << 1) | family.index()
    }
}

/// Address of the next hop on the link, with the layout of the kernel's `struct bpf_redir_neigh`:
/// value of the array `NEIGHBOURS` at [`NextHop::neighbour_index`].
///
/// With it, `bpf_redirect_neigh` needs no route lookup per packet. The value changes under traffic
/// when the host's routes change, and is larger than eight bytes. Therefore each next hop has two
/// entries: the daemon writes the inactive one, then the next hop, which makes it the active one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Neighbour {
    /// `AF_INET` or `AF_INET6`, host order; 0 in an entry that was never written.
    pub family: u32,
    /// The address, wire order. An IPv4 address is the first word.
    pub address: [u32; 4],
}
pod!(Neighbour, 20);

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

impl Neighbour {
    /// The address; `None` in an entry that was never written.
    pub fn address(&self) -> Option<IpAddr> {
        let mut octets = [0; 16];
        for (bytes, word) in octets.chunks_exact_mut(4).zip(self.address) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        match self.family {
            2 => Some(IpAddr::from(self.address[0].to_ne_bytes())),
            10 => Some(IpAddr::from(octets)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_next_hop_has_two_neighbour_entries_and_index_0_is_unused() {
        let next_hop = |neighbour| NextHop { neighbour, ..NextHop::NONE };
        let first = NextHop::index(1, Family::V4);
        assert_eq!([0, 1, 2].map(|which| next_hop(which).neighbour_index(first)), [0, 4, 5]);
        assert_eq!([0, 1, 2].map(|which| next_hop(which).neighbour_index(first + 1)), [0, 6, 7]);
    }

    #[test]
    fn each_backend_has_two_next_hops() {
        assert_eq!(NextHop::index(1, Family::V4), 2);
        assert_eq!(NextHop::index(1, Family::V6), 3);
        assert_eq!(NextHop::index(u16::MAX, Family::V6), 131_071);
    }

    #[test]
    fn the_address_of_a_neighbour_is_the_one_it_was_made_of() {
        for text in ["192.0.2.1", "2001:db8::1"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(Neighbour::from(address).address(), Some(address));
        }
        assert_eq!(Neighbour { family: 0, address: [0; 4] }.address(), None);
    }
}
