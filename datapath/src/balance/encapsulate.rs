//! Encapsulation: IPv4 or IPv6 in IPv4 or IPv6 (RFC 2003, RFC 2473, RFC 4213 section 3), directly
//! or in UDP ([`GueMeta`]).

use crate::abi::{
    Address, Family, Features, IPV4_IN_IP, IPV6_IN_IP, NextHop, Reason, UDP, VipOptions,
};
use crate::balance::gue::GueMeta;
use crate::balance::maps::BalancerMaps;
use crate::balance::select::Selection;
use crate::balance::stage::Egress;
use crate::wire::ecn;
use crate::wire::header::{Ipv4, Ipv6, Udp};
use crate::wire::packet::Packet;
use crate::wire::parse::{IpHeader, PacketSize};

/// TTL or hop limit of outer headers: enough for any underlay, and not taken from the client.
pub const OUTER_TTL: u8 = 64;

/// The bits of an IPv4 identification that carry the hint. The kernel increments the identification
/// per segment of a merged packet; the lower six bits count 64 segments.
pub const IPV4_HINT_MASK: u16 = 0xffc0;

/// The outer IPv4 header in front of `length` bytes of `protocol`.
///
/// Don't-fragment is set: the outer packet is never fragmented, so the identification is free to
/// carry the hint (RFC 6864 section 4.1). A total length that does not fit the field, which occurs
/// with merged packets only, is zero: each segment gets its own.
#[inline(always)]
pub fn outer_ipv4(
    source: Address,
    destination: Address,
    protocol: u8,
    length: usize,
    tos: u8,
    hint: u16,
) -> Ipv4 {
    let total = u16::try_from(length.wrapping_add(Ipv4::SIZE)).unwrap_or(0);
    let [.., source] = source.words();
    let [.., destination] = destination.words();
    Ipv4::new(
        ecn::encapsulate(tos),
        total,
        hint & IPV4_HINT_MASK,
        OUTER_TTL,
        protocol,
        source,
        destination,
    )
}

/// The outer IPv6 header in front of `length` bytes of `protocol`. The flow label carries the hint.
/// A payload length that does not fit the field is zero, as in [`outer_ipv4`].
#[inline(always)]
pub fn outer_ipv6(
    source: Address,
    destination: Address,
    protocol: u8,
    length: usize,
    traffic_class: u8,
    hint: u16,
) -> Ipv6 {
    let payload = u16::try_from(length).unwrap_or(0);
    Ipv6::new(
        ecn::encapsulate(traffic_class),
        u32::from(hint),
        payload,
        protocol,
        OUTER_TTL,
        source.words(),
        destination.words(),
    )
}

/// The protocol number of an inner packet of `family` directly in IP.
const fn ip_in_ip_protocol(family: Family) -> u8 {
    match family {
        Family::V4 => IPV4_IN_IP,
        Family::V6 => IPV6_IN_IP,
    }
}

/// The route to a backend, and the headers that it needs.
pub(crate) struct TunnelPath {
    /// The family of the outer header.
    pub(crate) family: Family,
    /// Bytes of the UDP header between the outer IP header and the packet; 0 without GUE.
    udp_len: u32,
    next_hop: NextHop,
}

impl TunnelPath {
    /// Bytes of the outer headers.
    #[inline(always)]
    pub(crate) const fn outer_len(&self) -> u32 {
        let ip_len = match self.family {
            Family::V4 => Ipv4::SIZE as u32,
            Family::V6 => Ipv6::SIZE as u32,
        };
        ip_len.wrapping_add(self.udp_len)
    }

    /// The MTU of the route: bytes of the largest packet, outer headers included.
    #[inline(always)]
    pub(crate) const fn mtu(&self) -> u32 {
        self.next_hop.mtu as u32
    }

    /// Bytes of the largest inner packet.
    #[inline(always)]
    pub(crate) const fn inner_mtu(&self) -> u32 {
        self.mtu().saturating_sub(self.outer_len())
    }

    /// 1 with GUE, else 0. Code that depends on GUE computes with this number and does not branch
    /// on it: the verifier would explore the rest of the path twice.
    #[inline(always)]
    const fn gue_factor(&self) -> u32 {
        self.udp_len / Udp::SIZE as u32
    }

    /// The protocol of the outer IP header of an inner packet of a family: UDP with GUE, else
    /// that of IP-in-IP.
    #[inline(always)]
    const fn outer_protocol(&self, inner: Family) -> u8 {
        let ip_in_ip = ip_in_ip_protocol(inner);
        ip_in_ip.wrapping_add(UDP.wrapping_sub(ip_in_ip).wrapping_mul(self.gue_factor() as u8))
    }

    /// `gue` with GUE, else [`GueMeta::NONE`].
    #[inline(always)]
    pub(crate) const fn keep_if_gue(&self, gue: GueMeta) -> GueMeta {
        let mask = 0_u32.wrapping_sub(self.gue_factor());
        GueMeta::decode(gue.encode() & mask)
    }
}

/// Resolves the path to the backend: in the packet's own family if there is one, else in the other.
#[inline(always)]
pub(crate) fn resolve_path<M: BalancerMaps>(
    inner: &IpHeader,
    options: VipOptions,
    selection: &Selection,
    maps: &M,
) -> Result<TunnelPath, Reason> {
    let mut family = inner.family;
    let mut next_hop = find_next_hop(maps, selection, family);
    if next_hop.is_none() {
        family = family.other();
        next_hop = find_next_hop(maps, selection, family);
    }
    let Some(next_hop) = next_hop else {
        let no_address = selection.backend.v4.is_none() && selection.backend.v6.is_none();
        return Err(if no_address { Reason::BackendWithoutAddress } else { Reason::NoRoute });
    };
    Ok(TunnelPath { family, udp_len: udp_len(options, maps), next_hop })
}

/// [`TunnelPath::udp_len`]. Computed without a branch, because a branch here would make the
/// verifier explore the rest of the path twice.
#[inline(always)]
fn udp_len<M: BalancerMaps>(options: VipOptions, maps: &M) -> u32 {
    if !maps.uses(Features::GUE) {
        return 0;
    }
    let is_gue = (options.bits() / VipOptions::GUE.bits()) & 1;
    core::hint::black_box(is_gue.wrapping_mul(Udp::SIZE as u32))
}

/// Removes VLAN tags and writes the outer IP header. The packet fits, or with `resegment` its
/// smaller segments do. With GUE,
/// [`FinishGueStage`](crate::balance::finish_gue::FinishGueStage) writes the UDP header.
#[expect(
    clippy::too_many_arguments,
    reason = "the function is inlined; a struct of the arguments would be copied to the stack"
)]
#[inline(always)]
pub(crate) fn encapsulate<P: Packet, M: BalancerMaps>(
    packet: P,
    inner: &IpHeader,
    size: &PacketSize,
    vlan_bytes: Option<usize>,
    selection: &Selection,
    path: &TunnelPath,
    gue: GueMeta,
    hash: u64,
    resegment: bool,
    maps: &M,
) -> Result<Egress, Reason> {
    let TunnelPath { family, udp_len, next_hop } = *path;
    let packet = match vlan_bytes {
        None => packet,
        Some(bytes) => packet.vlan_pop(bytes)?,
    };
    let tos = inner.tos;
    let hint = selection.hint;
    let protocol = path.outer_protocol(inner.family);
    let length = size.packet.wrapping_add(udp_len as usize);
    let _ = match family {
        Family::V4 => {
            let source = outer_source(maps, family, hash);
            let outer = outer_ipv4(source, selection.backend.v4, protocol, length, tos, hint);
            packet.encapsulate(family, inner.family, &outer, resegment, udp_len)?
        }
        Family::V6 => {
            let source = outer_source(maps, family, hash);
            let outer = outer_ipv6(source, selection.backend.v6, protocol, length, tos, hint);
            packet.encapsulate(family, inner.family, &outer, resegment, udp_len)?
        }
    };
    // With spread sources, the route may depend on the source: the kernel looks it up.
    let neighbour = if maps.uses(Features::SOURCE_SPREADING) {
        0
    } else {
        // Each next hop has two entries in `NEIGHBOURS`, whose indexes follow from its own.
        next_hop.neighbour_index(NextHop::index(selection.index, family))
    };
    Ok(Egress { interface: next_hop.interface, family, neighbour, gue })
}

/// The source of an outer header. With source spreading, some of its bits are a hash of the flow.
#[inline(always)]
fn outer_source<M: BalancerMaps>(maps: &M, family: Family, hash: u64) -> Address {
    let source = maps.outer_source(family);
    if maps.uses(Features::SOURCE_SPREADING) {
        return source.with_bits(hash as u32, maps.outer_source_bits(family));
    }
    source
}

/// The next hop towards a backend in one family.
#[inline(always)]
fn find_next_hop<M: BalancerMaps>(
    maps: &M,
    selection: &Selection,
    family: Family,
) -> Option<NextHop> {
    let address = match family {
        Family::V4 => selection.backend.v4,
        Family::V6 => selection.backend.v6,
    };
    if address.is_none() {
        return None;
    }
    maps.next_hop(NextHop::index(selection.index, family)).filter(|hop| hop.interface != 0)
}
