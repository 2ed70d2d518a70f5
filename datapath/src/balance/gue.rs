//! Generic UDP encapsulation, variant 1 (draft-ietf-intarea-gue, section 4): the packet directly
//! behind a UDP header, whose source port is the flow's own, so that routers and network cards
//! spread flows that they would take for one in IP-in-IP.
//!
//! The stage that encapsulates leaves room behind the outer IP header; [`finish_gue`] writes the
//! UDP header there. Its checksum is worked out from headers alone ("local checksum offload"): the
//! checksum of the packet inside says what everything that it covers sums to.

use crate::abi::{Family, Features, ICMP, Port, Reason, TCP};
use crate::balance::tables::BalancerTables;
use crate::verifier::widen_for_verifier;
use crate::wire::checksum::{fold_wide, sum};
use crate::wire::header::{FragmentKind, Icmp, Ipv4, Ipv6, Udp};
use crate::wire::packet::{ETH_HLEN, Packet};
use crate::wire::parse::{IpHeader, L4Header, PacketSize, family_of_ether_type};

/// Source ports are those from this one on: the dynamic ones (RFC 6335 section 6), as the draft
/// asks (section 5.6.1).
pub const FIRST_SOURCE_PORT: u16 = 0xc000;

/// The most bytes of IPv6 extension headers that are summed, all that [`crate::wire::offsets`]
/// follows.
const MAX_EXTENSIONS: usize = 256;

/// What the UDP header in front of a packet depends on, beside the IP headers before and behind it.
///
/// As a number, from the lowest bit on: the flow's own bits of the source port (14); the protocol
/// of the packet inside (8), or 0 when its checksum does not say what its bytes sum to, so that the
/// UDP header has none; bytes of the IP header inside (9), with options or extension headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct GueMeta(u32);

impl GueMeta {
    /// Nothing: no GUE. The number 0, which no packet has, since its header has bytes.
    pub const NONE: Self = Self(0);

    const PROTOCOL: u32 = 14;
    const HEADER: u32 = 22;
    const BITS: u32 = !FIRST_SOURCE_PORT as u32;

    /// Of a packet whose checksum covers all that is behind its IP header, if it is `summed`;
    /// without the flow's own bits.
    #[inline(always)]
    fn new(ip: &IpHeader, summed: bool) -> Self {
        let protocol = if summed { ip.protocol } else { 0 };
        Self(u32::from(protocol) << Self::PROTOCOL | (ip.header_len as u32) << Self::HEADER)
    }

    /// As [`GueMeta::new`], of TCP or UDP, the whole of a packet or its first fragment. With the
    /// size: where GUE is in use, the verifier would find out different things about both on each
    /// way to here, and follow all that comes behind once for each.
    #[inline(always)]
    pub(crate) fn for_l4<P: Packet, T: BalancerTables>(
        packet: &P,
        ip: &IpHeader,
        part: FragmentKind,
        l4: &L4Header,
        size: PacketSize,
        tables: &T,
    ) -> (PacketSize, Self) {
        if !tables.uses(Features::GUE) {
            return (size, Self::NONE);
        }
        let [length, checksum] = l4.udp;
        let covered = ip.header_len.wrapping_add(u16::from_be(length) as usize);
        let own = ip.protocol == TCP || checksum != 0 && covered == size.packet;
        // A merged packet's is that of no packet that will be sent.
        let gue =
            Self::new(ip, own && matches!(part, FragmentKind::None) && packet.segment_size() == 0);
        let size =
            PacketSize { packet: widen_size(size.packet), segment: widen_size(size.segment) };
        (size, Self(widen_for_verifier(gue.0)))
    }

    /// As [`GueMeta::new`], of a whole ICMP message, which may be shorter than its header.
    #[inline(always)]
    pub(crate) fn for_icmp<P: Packet>(packet: &P, ip: &IpHeader, size: &PacketSize) -> Self {
        let whole = size.packet >= ip.header_len.wrapping_add(Icmp::SIZE);
        Self::new(ip, whole && packet.segment_size() == 0)
    }

    /// As [`GueMeta::new`], of a later fragment.
    #[inline(always)]
    pub(crate) fn for_fragment(ip: &IpHeader) -> Self {
        Self::new(ip, false)
    }

    #[inline(always)]
    pub(crate) const fn with_source_port(self, hash: u64) -> Self {
        Self(self.0 | (hash as u32 & Self::BITS))
    }

    /// It, as a number.
    #[inline(always)]
    pub const fn encode(self) -> u32 {
        self.0
    }

    /// What a number says.
    #[inline(always)]
    pub const fn decode(word: u32) -> Self {
        Self(word)
    }

    #[inline(always)]
    const fn source_port(self) -> Port {
        Port::new((self.0 & Self::BITS) as u16 | FIRST_SOURCE_PORT)
    }

    #[inline(always)]
    pub(crate) const fn protocol(self) -> u8 {
        (self.0 >> Self::PROTOCOL) as u8
    }

    #[inline(always)]
    const fn header(self) -> usize {
        (self.0 >> Self::HEADER) as usize
    }
}

#[inline(always)]
fn widen_size(bytes: usize) -> usize {
    widen_for_verifier(bytes as u32) as usize
}

/// The stage that writes the UDP header of an encapsulated packet.
///
/// # Errors
///
/// [`Reason::AdjustRoomFailed`].
#[inline(always)]
pub fn finish_gue<P: Packet, T: BalancerTables>(
    packet: P,
    gue: GueMeta,
    tables: &T,
) -> Result<(), Reason> {
    write(packet, gue, tables.gue_port())
        .ok_or(Reason::AdjustRoomFailed)
        .and_then(|written| written)
}

#[inline(always)]
fn write<P: Packet>(mut packet: P, gue: GueMeta, port: Port) -> Option<Result<(), Reason>> {
    const BEHIND_V4: usize = ETH_HLEN + Ipv4::SIZE;
    const BEHIND_V6: usize = ETH_HLEN + Ipv6::SIZE;

    let source = gue.source_port();
    Some(match family_of_ether_type(packet.load(ETH_HLEN - 2)?)? {
        Family::V4 => {
            let outer: Ipv4 = packet.load(ETH_HLEN)?;
            // A merged packet's that does not fit is zero, here as there.
            let length = outer.total_length().saturating_sub(Ipv4::SIZE);
            let addresses = sum(outer.addresses());
            let udp = Udp::new(source, port, length as u16);
            let udp = match inner_sum::<P, { BEHIND_V4 + Udp::SIZE }>(&packet, gue)? {
                Some(inner) => udp.with_checksum(addresses.wrapping_add(inner)),
                None => udp,
            };
            packet.write(BEHIND_V4, &udp)
        }
        Family::V6 => {
            let outer: Ipv6 = packet.load(ETH_HLEN)?;
            let addresses =
                sum(outer.source().words()).wrapping_add(sum(outer.destination().words()));
            let udp = Udp::new(source, port, outer.payload_length() as u16);
            let udp = match inner_sum::<P, { BEHIND_V6 + Udp::SIZE }>(&packet, gue)? {
                Some(inner) => udp.with_checksum(addresses.wrapping_add(inner)),
                None => udp,
            };
            packet.write(BEHIND_V6, &udp)
        }
    })
}

/// What the packet at `START` sums to, if its own checksum is right; `Some(None)` when that
/// checksum does not tell.
///
/// What a checksum covers, the checksum itself included, sums to the complement of its
/// pseudo-header (RFC 9293 section 3.1, RFC 768; RFC 8200 section 8.1). That is so, too, of a
/// checksum that a device has yet to fill in. When it is wrong, then the outer one is as wrong.
#[inline(always)]
fn inner_sum<P: Packet, const START: usize>(packet: &P, gue: GueMeta) -> Option<Option<u64>> {
    let (protocol, header) = (gue.protocol(), gue.header());
    if protocol == 0 {
        return Some(None);
    }
    let wire = |number: usize| u64::from((number as u16).to_be());
    Some(Some(match packet.load::<u8>(START)? >> 4 {
        // An IPv4 header sums to zero, its options included, and so does an ICMP message, which has
        // no pseudo-header.
        4 if protocol == ICMP => 0,
        4 => {
            let inner: Ipv4 = packet.load(START)?;
            let pseudo = sum(inner.addresses())
                .wrapping_add(wire(usize::from(protocol)))
                .wrapping_add(wire(inner.total_length().wrapping_sub(header)));
            u64::from(!fold_wide(pseudo))
        }
        // The addresses are in the header and in the pseudo-header.
        _ => {
            let first: [u32; 2] = packet.load(START)?;
            let inner: Ipv6 = packet.load(START)?;
            let covered = inner.payload_length().wrapping_sub(header.wrapping_sub(Ipv6::SIZE));
            let pseudo = wire(usize::from(protocol)).wrapping_add(wire(covered));
            sum(first)
                .wrapping_add(extensions_sum(
                    packet,
                    START.wrapping_add(Ipv6::SIZE),
                    START.wrapping_add(header),
                )?)
                .wrapping_add(u64::from(!fold_wide(pseudo)))
        }
    }))
}

/// What IPv6 extension headers sum to, from one offset to another.
#[inline(always)]
fn extensions_sum<P: Packet>(packet: &P, start: usize, end: usize) -> Option<u64> {
    let mut sum = 0_u64;
    let mut offset = start;
    for _ in 0..MAX_EXTENSIONS / size_of::<u32>() {
        if offset >= end {
            break;
        }
        sum = sum.wrapping_add(u64::from(packet.load_at::<u32>(offset)?));
        offset = offset.wrapping_add(size_of::<u32>());
    }
    Some(sum)
}
