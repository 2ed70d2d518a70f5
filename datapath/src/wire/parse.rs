//! Parses headers into small values, at the constant offsets of a packet without VLAN tags, IP
//! options and extension headers.

use crate::abi::{Address, Family, Port, Reason, TCP, UDP};
use crate::wire::header::{Ipv4, Ipv6, Tcp, Udp};
use crate::wire::packet::{ETH_HLEN, Packet, ether_type};

/// EtherType of IPv4, wire order.
const IPV4: u16 = ether_type(Family::V4);
/// EtherType of IPv6, wire order.
const IPV6: u16 = ether_type(Family::V6);
/// EtherTypes of VLAN tags, wire order: 802.1Q and 802.1ad.
const VLAN: u16 = 0x8100_u16.to_be();
const SERVICE_VLAN: u16 = 0x88a8_u16.to_be();

/// Fields of an IP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpHeader {
    /// Family.
    pub family: Family,
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Protocol of the next header (IPv6: the next-header field, extension headers not skipped).
    pub protocol: u8,
    /// Header length in bytes, options included.
    pub header_len: usize,
    /// Length of the IP packet in bytes, from the header, header included.
    pub total_len: usize,
    /// Type of service, or traffic class.
    pub tos: u8,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// Whether the packet is an IPv4 fragment, first fragments included; false for IPv6.
    pub is_fragment: bool,
}

impl IpHeader {
    /// Whether this is an IPv6 header to an IPv4-mapped address. Such addresses must not appear on
    /// the wire. Since [`Address`] stores IPv4 addresses in that form, a lookup would match the
    /// IPv4 address.
    #[inline(always)]
    pub const fn has_mapped_destination(&self) -> bool {
        matches!(self.family, Family::V6) && self.destination.is_mapped()
    }

    /// Whether this is an IPv6 header from an IPv4-mapped address.
    #[inline(always)]
    pub const fn has_mapped_source(&self) -> bool {
        matches!(self.family, Family::V6) && self.source.is_mapped()
    }

    /// Whether the protocol is TCP or UDP. In an IPv4 non-initial fragment, no such header follows.
    #[inline(always)]
    pub const fn is_tcp_or_udp(&self) -> bool {
        self.protocol == TCP || self.protocol == UDP
    }

    /// Whether the packet is TCP or UDP, unfragmented, and without IP options and extension
    /// headers.
    #[inline(always)]
    pub const fn has_fixed_offsets(&self) -> bool {
        let fixed = match self.family {
            Family::V4 => self.header_len == Ipv4::SIZE && !self.is_fragment,
            Family::V6 => true,
        };
        fixed && (self.protocol == TCP || self.protocol == UDP)
    }
}

/// Fields of a TCP or UDP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct L4Header {
    /// Source port.
    pub source_port: Port,
    /// Destination port.
    pub destination_port: Port,
    /// Header length in bytes, from the header, options included.
    pub header_len: usize,
    /// Whether this is a TCP segment that opens a connection: SYN without ACK.
    pub is_syn: bool,
    /// UDP length and checksum, wire order; zeros for TCP.
    pub udp: [u16; 2],
}

/// The family of the frame's IP header, from its EtherType; `None` if the frame has a VLAN tag.
///
/// # Errors
///
/// [`Reason::OtherHost`], [`Reason::NotIp`], [`Reason::Truncated`].
#[inline(always)]
pub fn family<P: Packet>(packet: &P) -> Result<Option<Family>, Reason> {
    family_unless(packet, packet.has_vlan())
}

/// As [`family`], but a priority tag in the packet's metadata is ignored.
///
/// # Errors
///
/// As [`family`].
#[inline(always)]
pub fn family_outside_vlans<P: Packet>(packet: &P) -> Result<Option<Family>, Reason> {
    family_unless(packet, packet.is_in_vlan())
}

#[inline(always)]
fn family_unless<P: Packet>(packet: &P, has_tag: bool) -> Result<Option<Family>, Reason> {
    let ether_type = packet.load::<u16>(ETH_HLEN - 2).ok_or(Reason::Truncated)?;
    if has_tag || is_vlan_tag(ether_type) {
        return Ok(None);
    }
    family_for_this_host(packet, ether_type).map(Some)
}

/// Whether an EtherType, wire order, is a VLAN tag's.
#[inline(always)]
pub const fn is_vlan_tag(ether_type: u16) -> bool {
    matches!(ether_type, VLAN | SERVICE_VLAN)
}

/// The family of an EtherType in wire order.
#[inline(always)]
pub(crate) const fn family_of_ether_type(ether_type: u16) -> Option<Family> {
    match ether_type {
        IPV4 => Some(Family::V4),
        IPV6 => Some(Family::V6),
        _ => None,
    }
}

/// The family of an EtherType in wire order, if the frame is for this host.
#[inline(always)]
pub(crate) fn family_for_this_host<P: Packet>(
    packet: &P,
    ether_type: u16,
) -> Result<Family, Reason> {
    let family = match ether_type {
        IPV4 => Family::V4,
        IPV6 => Family::V6,
        _ => return Err(Reason::NotIp),
    };
    if packet.is_for_this_host() { Ok(family) } else { Err(Reason::OtherHost) }
}

/// Parses the IPv4 header at `offset`, a constant at every call.
///
/// # Errors
///
/// [`Reason::Truncated`], [`Reason::BadHeader`].
#[inline(always)]
pub fn parse_ipv4<P: Packet>(packet: &P, offset: usize) -> Result<IpHeader, Reason> {
    from_ipv4(&packet.load(offset).ok_or(Reason::Truncated)?)
}

/// Fields of an IPv4 header.
#[inline(always)]
pub(crate) fn from_ipv4(h: &Ipv4) -> Result<IpHeader, Reason> {
    if h.version() != 4 || h.length() < Ipv4::SIZE {
        return Err(Reason::BadHeader);
    }
    Ok(IpHeader {
        family: Family::V4,
        source: h.source(),
        destination: h.destination(),
        protocol: h.protocol(),
        header_len: h.length(),
        total_len: h.total_length(),
        tos: h.tos(),
        ttl: h.ttl(),
        is_fragment: h.is_fragment(),
    })
}

/// Parses the IPv6 header at `offset`, a constant at every call.
///
/// # Errors
///
/// [`Reason::Truncated`], [`Reason::BadHeader`].
#[inline(always)]
pub fn parse_ipv6<P: Packet>(packet: &P, offset: usize) -> Result<IpHeader, Reason> {
    from_ipv6(&packet.load(offset).ok_or(Reason::Truncated)?)
}

/// Fields of an IPv6 header.
#[inline(always)]
pub(crate) fn from_ipv6(h: &Ipv6) -> Result<IpHeader, Reason> {
    if h.version() != 6 {
        return Err(Reason::BadHeader);
    }
    Ok(IpHeader {
        family: Family::V6,
        source: h.source(),
        destination: h.destination(),
        protocol: h.next_header(),
        header_len: Ipv6::SIZE,
        total_len: h.payload_length().wrapping_add(Ipv6::SIZE),
        tos: h.traffic_class(),
        ttl: h.hop_limit(),
        is_fragment: false,
    })
}

/// Parses the TCP or UDP header after `ip`, which has fixed offsets
/// ([`IpHeader::has_fixed_offsets`]).
///
/// # Errors
///
/// [`Reason::Truncated`].
#[inline(always)]
pub fn l4_header<P: Packet>(packet: &P, ip: &IpHeader) -> Result<L4Header, Reason> {
    match (ip.family, ip.protocol) {
        (Family::V4, TCP) => packet.load(ETH_HLEN + Ipv4::SIZE).map(from_tcp),
        (Family::V4, _) => packet.load(ETH_HLEN + Ipv4::SIZE).map(from_udp),
        (Family::V6, TCP) => packet.load(ETH_HLEN + Ipv6::SIZE).map(from_tcp),
        (Family::V6, _) => packet.load(ETH_HLEN + Ipv6::SIZE).map(from_udp),
    }
    .ok_or(Reason::Truncated)
}

/// Parses the L4 header at a variable offset.
///
/// # Errors
///
/// [`Reason::OtherProtocol`], [`Reason::Truncated`].
#[inline(always)]
pub fn l4_header_at<P: Packet>(
    packet: &P,
    offset: usize,
    protocol: u8,
) -> Result<L4Header, Reason> {
    match protocol {
        TCP => packet.load_at(offset).map(from_tcp),
        UDP => packet.load_at(offset).map(from_udp),
        _ => return Err(Reason::OtherProtocol),
    }
    .ok_or(Reason::Truncated)
}

#[inline(always)]
const fn from_tcp(h: Tcp) -> L4Header {
    L4Header {
        source_port: h.source_port,
        destination_port: h.destination_port,
        header_len: h.length(),
        is_syn: h.is_syn(),
        udp: [0; 2],
    }
}

#[inline(always)]
const fn from_udp(h: Udp) -> L4Header {
    L4Header {
        source_port: h.source_port,
        destination_port: h.destination_port,
        header_len: Udp::SIZE,
        is_syn: false,
        udp: h.length_and_checksum(),
    }
}

/// The size of a packet, from its headers, checked against the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PacketSize {
    /// Bytes of the IP packet, without Ethernet padding.
    pub packet: usize,
    /// Bytes of the largest IP packet on the wire: one segment of a merged packet, else `packet`.
    pub segment: usize,
}

/// The size of a packet. `ip_offset` is the offset of the IP header.
///
/// The length in the header may be less than the frame's, because Ethernet pads short frames. It is
/// zero in a merged packet of more than 65,535 bytes (Linux "BIG TCP").
///
/// # Errors
///
/// [`Reason::BadLength`] if the length in the headers exceeds the frame, or is less than the
/// headers.
#[inline(always)]
pub fn packet_size<P: Packet>(
    packet: &P,
    ip_offset: usize,
    ip: &IpHeader,
    l4: &L4Header,
) -> Result<PacketSize, Reason> {
    let available = packet.frame_len().wrapping_sub(ip_offset);
    let merged = packet.segment_size();
    let zero_length = match ip.family {
        Family::V4 => 0,
        Family::V6 => Ipv6::SIZE,
    };
    let length = if merged != 0 && ip.total_len == zero_length { available } else { ip.total_len };
    let smallest = if ip.protocol == TCP { Tcp::SMALLEST } else { Udp::SIZE };
    let headers = ip.header_len.wrapping_add(l4.header_len);
    if length > available || l4.header_len < smallest || length < headers {
        return Err(Reason::BadLength);
    }
    let segment = headers.wrapping_add(merged);
    Ok(PacketSize {
        packet: length,
        segment: if merged == 0 || segment > length { length } else { segment },
    })
}

/// The size of a packet that the kernel never merges: a non-initial fragment, or ICMP. `ip_offset`
/// is the offset of the IP header.
///
/// # Errors
///
/// As [`packet_size`].
#[inline(always)]
pub fn unmerged_size<P: Packet>(
    packet: &P,
    ip_offset: usize,
    ip: &IpHeader,
) -> Result<PacketSize, Reason> {
    let length = ip.total_len;
    if length > packet.frame_len().wrapping_sub(ip_offset) || length < ip.header_len {
        return Err(Reason::BadLength);
    }
    Ok(PacketSize { packet: length, segment: length })
}
