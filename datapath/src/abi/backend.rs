//! Backends, and how packets leave towards them.

use core::net::IpAddr;

use crate::abi::address::{Address, Family};
use crate::abi::pod::pod;

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
    pub epoch: u32,
}
pod!(Backend, 36);

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
pod!(NextHop, 8);

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
    pub const fn index(backend: u16, family: Family) -> u32 {
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

#[cfg(test)]
mod tests {
    use super::*;

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
