//! Generic UDP encapsulation, variant 1 (draft-ietf-intarea-gue, section 4): the inner packet
//! directly follows a UDP header. Its source port differs from flow to flow, so that routers (ECMP)
//! and network cards (RSS) spread flows that are one flow to them in IP-in-IP.
//!
//! The stage that encapsulates reserves space after the outer IP header, and passes the inputs of
//! the UDP header in one word, [`GueMeta`].

use crate::abi::{Features, Port, TCP};
use crate::balance::maps::BalancerMaps;
use crate::bits::Field;
use crate::verifier::widen_for_verifier;
use crate::wire::header::FragmentKind;
use crate::wire::packet::Packet;
use crate::wire::parse::{IpHeader, L4Header, PacketSize};

/// The lowest source port: source ports are from the dynamic range (RFC 6335 section 6), as the
/// draft recommends (section 5.6.1).
pub const FIRST_SOURCE_PORT: u16 = 0xc000;

/// The inputs of the UDP header that are not in the outer or inner IP header, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct GueMeta(u32);

impl GueMeta {
    /// No GUE. The word is 0, which no packet has, since the length of its header is not 0.
    pub const NONE: Self = Self(0);

    /// The bits of the source port that are a hash of the flow.
    const SOURCE_PORT: Field = Field::first(14);
    /// Protocol of the inner packet; 0 if the UDP checksum cannot be computed from headers, and is
    /// sent as zero.
    const PROTOCOL: Field = Self::SOURCE_PORT.next(8);
    /// Bytes of the inner IP header, including options or extension headers.
    const HEADER_LEN: Field = Self::PROTOCOL.next(9);

    /// The bits of [`Self::SOURCE_PORT`] in the word.
    const PORT_BITS: u32 = !FIRST_SOURCE_PORT as u32;

    /// `has_checksum`: the packet has a checksum over everything after its IP header. The source
    /// port is still missing.
    #[inline(always)]
    fn new(ip: &IpHeader, has_checksum: bool) -> Self {
        let protocol = if has_checksum { ip.protocol } else { 0 };
        Self(Self::PROTOCOL.put(u32::from(protocol)) | Self::HEADER_LEN.put(ip.header_len as u32))
    }

    /// For a TCP or UDP packet or its first fragment. Returns `size`, too, unchanged but with
    /// bounds that are equal on every path to here: otherwise the verifier would explore the rest
    /// of the path once for each.
    #[inline(always)]
    pub(crate) fn for_l4<P: Packet, M: BalancerMaps>(
        packet: &P,
        ip: &IpHeader,
        fragment_kind: FragmentKind,
        l4: &L4Header,
        size: PacketSize,
        maps: &M,
    ) -> (PacketSize, Self) {
        if !maps.uses(Features::GUE) {
            return (size, Self::NONE);
        }
        // A UDP checksum must be present, and its datagram must end where the IP packet ends.
        let [length, checksum] = l4.udp;
        let covered = ip.header_len.wrapping_add(u16::from_be(length) as usize);
        let is_covered = ip.protocol == TCP || (checksum != 0 && covered == size.packet);
        // The checksum of a merged packet is not that of any of its segments.
        let is_single = matches!(fragment_kind, FragmentKind::None) && packet.segment_size() == 0;
        let gue = Self::new(ip, is_covered && is_single);
        let size =
            PacketSize { packet: widen_size(size.packet), segment: widen_size(size.segment) };
        (size, Self(widen_for_verifier(gue.0)))
    }

    /// For a whole ICMP message.
    #[inline(always)]
    pub(crate) fn for_icmp<P: Packet, M: BalancerMaps>(
        packet: &P,
        ip: &IpHeader,
        maps: &M,
    ) -> Self {
        if !maps.uses(Features::GUE) {
            return Self::NONE;
        }
        let gue = Self::new(ip, packet.segment_size() == 0);
        Self(widen_for_verifier(gue.0))
    }

    /// For a non-initial fragment.
    #[inline(always)]
    pub(crate) fn for_fragment(ip: &IpHeader) -> Self {
        Self::new(ip, false)
    }

    /// Adds the source port, which depends on the flow hash.
    #[inline(always)]
    pub(crate) const fn with_source_port(self, hash: u64) -> Self {
        Self(self.0 | (hash as u32 & Self::PORT_BITS))
    }

    /// The word.
    #[inline(always)]
    pub const fn encode(self) -> u32 {
        self.0
    }

    /// Decodes a word.
    #[inline(always)]
    pub const fn decode(word: u32) -> Self {
        Self(word)
    }

    /// The source port, at least [`FIRST_SOURCE_PORT`].
    #[inline(always)]
    pub(crate) const fn source_port(self) -> Port {
        Port::new(Self::SOURCE_PORT.get(self.0) as u16 | FIRST_SOURCE_PORT)
    }

    /// Protocol of the inner packet; `None` if the UDP checksum is sent as zero.
    #[inline(always)]
    pub(crate) const fn protocol(self) -> Option<u8> {
        match Self::PROTOCOL.get(self.0) as u8 {
            0 => None,
            protocol => Some(protocol),
        }
    }

    /// Bytes of the inner IP header, including options or extension headers.
    #[inline(always)]
    pub(crate) const fn header_len(self) -> usize {
        Self::HEADER_LEN.get(self.0) as usize
    }
}

#[inline(always)]
fn widen_size(bytes: usize) -> usize {
    widen_for_verifier(bytes as u32) as usize
}
