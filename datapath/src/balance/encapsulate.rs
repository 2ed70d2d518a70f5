//! Outer headers: IPv4 and IPv6 in each of them (RFC 2003, RFC 2473, RFC 4213 section 3), or in UDP
//! in each of them ([`crate::balance::gue`]).

use crate::abi::{
    Address, Family, Features, IPV4_IN_IP, IPV6_IN_IP, NextHop, Reason, UDP, VipOptions,
};
use crate::balance::gue;
use crate::balance::gue::GueMeta;
use crate::balance::outcome::Forward;
use crate::balance::select::Selection;
use crate::balance::tables::BalancerTables;
use crate::wire::ecn;
use crate::wire::header::{Ipv4, Ipv6, Udp};
use crate::wire::packet::Packet;
use crate::wire::parse::{IpHeader, PacketSize};

/// Time to live of outer headers: enough for any underlay, and not taken from the client.
pub const OUTER_TTL: u8 = 64;

/// The bits of an IPv4 identification that carry the hint. The kernel counts the lower ones up when
/// it cuts a merged packet.
pub const IPV4_HINT_MASK: u16 = 0xffc0;

/// The outer IPv4 header in front of `length` bytes of `protocol`.
///
/// Don't-fragment is set: the outer packet is never cut, so the identification is free to carry the
/// hint (RFC 6864 section 4.1). When the total length does not fit its field it is zero, which only
/// a merged packet can reach: each segment gets its own.
#[inline(always)]
pub fn ipv4(
    source: Address,
    destination: Address,
    protocol: u8,
    length: usize,
    class: u8,
    hint: u16,
) -> Ipv4 {
    let total = u16::try_from(length.wrapping_add(Ipv4::SIZE)).unwrap_or(0);
    let [.., source] = source.words();
    let [.., destination] = destination.words();
    Ipv4::new(
        ecn::encapsulate(class),
        total,
        hint & IPV4_HINT_MASK,
        OUTER_TTL,
        protocol,
        source,
        destination,
    )
}

/// The outer IPv6 header in front of `length` bytes of `protocol`; the flow label carries the hint.
///
/// When the payload length does not fit its field it is zero, as in [`ipv4`].
#[inline(always)]
pub fn ipv6(
    source: Address,
    destination: Address,
    protocol: u8,
    length: usize,
    class: u8,
    hint: u16,
) -> Ipv6 {
    let payload = u16::try_from(length).unwrap_or(0);
    Ipv6::new(
        ecn::encapsulate(class),
        u32::from(hint),
        payload,
        protocol,
        OUTER_TTL,
        source.words(),
        destination.words(),
    )
}

/// The protocol number of a packet of `family` in IP.
const fn protocol(family: Family) -> u8 {
    match family {
        Family::V4 => IPV4_IN_IP,
        Family::V6 => IPV6_IN_IP,
    }
}

/// The way to a backend.
pub(crate) struct TunnelPath {
    /// The family of the outer header.
    pub(crate) family: Family,
    /// Bytes between the outer IP header and the packet: a UDP header's in GUE, else 0.
    between: u32,
    next_hop: NextHop,
}

impl TunnelPath {
    /// Bytes of the outer header, that of UDP included.
    #[inline(always)]
    pub(crate) const fn outer(&self) -> u32 {
        let outer = match self.family {
            Family::V4 => Ipv4::SIZE as u32,
            Family::V6 => Ipv6::SIZE as u32,
        };
        outer.wrapping_add(self.between)
    }

    /// Bytes of the largest packet that is carried, outer header included.
    #[inline(always)]
    pub(crate) const fn mtu(&self) -> u32 {
        self.next_hop.mtu as u32
    }

    /// Bytes of the largest packet that fits with its outer header.
    #[inline(always)]
    pub(crate) const fn room(&self) -> u32 {
        self.mtu().saturating_sub(self.outer())
    }

    /// The protocol of what is behind the outer IP header, in front of a packet of `family`.
    #[inline(always)]
    const fn protocol(&self, family: Family) -> u8 {
        let (protocol, gue) = (protocol(family), (self.between / Udp::SIZE as u32) as u8);
        protocol.wrapping_add(UDP.wrapping_sub(protocol).wrapping_mul(gue))
    }

    /// `behind` in GUE, else [`GueMeta::NONE`].
    #[inline(always)]
    pub(crate) const fn in_gue(&self, gue: GueMeta) -> GueMeta {
        GueMeta::decode(gue.encode() & 0_u32.wrapping_sub(self.between / Udp::SIZE as u32))
    }
}

/// Finds the way to the backend: in the packet's own family when there is one, else in the other.
#[inline(always)]
pub(crate) fn resolve_path<T: BalancerTables>(
    inner: &IpHeader,
    options: VipOptions,
    selection: &Selection,
    tables: &T,
) -> Result<TunnelPath, Reason> {
    let mut family = inner.family;
    let mut next_hop = next_hop(tables, selection, family);
    if next_hop.is_none() {
        family = family.other();
        next_hop = self::next_hop(tables, selection, family);
    }
    let Some(next_hop) = next_hop else {
        let nowhere = selection.backend.v4.is_none() && selection.backend.v6.is_none();
        return Err(if nowhere { Reason::BackendWithoutAddress } else { Reason::NoRoute });
    };
    Ok(TunnelPath { family, between: between(options, tables), next_hop })
}

/// [`TunnelPath::between`]. A number on which nothing branches: else the verifier would follow all
/// that comes behind twice.
#[inline(always)]
fn between<T: BalancerTables>(options: VipOptions, tables: &T) -> u32 {
    if !tables.uses(Features::GUE) {
        return 0;
    }
    let gue = (options.bits() / VipOptions::GUE.bits()) & 1;
    core::hint::black_box(gue.wrapping_mul(Udp::SIZE as u32))
}

/// Writes the outer header; the packet fits with it, or its segments do when they `shrink` by it.
/// In GUE the UDP header is left to [`crate::balance::gue::finish_gue`], as `behind` says.
#[expect(
    clippy::too_many_arguments,
    reason = "it is inlined: a struct of them would be copied to the small stack"
)]
#[inline(always)]
pub(crate) fn encapsulate<P: Packet, T: BalancerTables>(
    packet: P,
    inner: &IpHeader,
    size: &PacketSize,
    tags: Option<usize>,
    selection: &Selection,
    path: &TunnelPath,
    gue: GueMeta,
    hash: u64,
    shrink: bool,
    tables: &T,
) -> Result<Forward, Reason> {
    let TunnelPath { family, between, next_hop } = *path;
    let packet = match tags {
        None => packet,
        Some(bytes) => packet.vlan_pop(bytes)?,
    };
    let (class, hint) = (inner.tos, selection.hint);
    let (protocol, length) =
        (path.protocol(inner.family), size.packet.wrapping_add(between as usize));
    let packet = match family {
        Family::V4 => {
            let source = source(tables, family, hash);
            let outer = ipv4(source, selection.backend.v4, protocol, length, class, hint);
            packet.encapsulate(family, inner.family, &outer, shrink, between)?
        }
        Family::V6 => {
            let source = source(tables, family, hash);
            let outer = ipv6(source, selection.backend.v6, protocol, length, class, hint);
            packet.encapsulate(family, inner.family, &outer, shrink, between)?
        }
    };
    if gue != GueMeta::NONE {
        packet.in_place(|packet| gue::finish_gue(packet, gue, tables))?;
    }
    // Sources that differ may have routes that differ.
    let known = !tables.uses(Features::SOURCE_SPREADING);
    let neighbour =
        if known { next_hop.neighbour_index(NextHop::index(selection.index, family)) } else { 0 };
    Ok(Forward { interface: next_hop.interface, family, neighbour, gue })
}

/// The source of an outer header: where sources are spread, some of its bits are the flow's own.
#[inline(always)]
fn source<T: BalancerTables>(tables: &T, family: Family, hash: u64) -> Address {
    let source = tables.source(family);
    if tables.uses(Features::SOURCE_SPREADING) {
        return source.with_bits(hash as u32, tables.source_bits(family));
    }
    source
}

/// The next hop towards a backend in one family.
#[inline(always)]
fn next_hop<T: BalancerTables>(
    tables: &T,
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
    tables.next_hop(NextHop::index(selection.index, family)).filter(|hop| hop.interface != 0)
}
