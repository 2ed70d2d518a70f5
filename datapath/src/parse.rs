//! Reads headers into small values, at constant offsets: those of a packet without VLAN tags,
//! options and extension headers.

use crate::flow::{ICMP, ICMPV6, Port, TCP, UDP};
use crate::header::{Ipv4, Ipv6, Tcp, Udp};
use crate::packet::{ETHERNET, ether_type};
use crate::{Address, Family, Packet, Reason};

/// EtherType of IPv4, wire order.
const IPV4: u16 = ether_type(Family::V4);
/// EtherType of IPv6, wire order.
const IPV6: u16 = ether_type(Family::V6);
/// EtherTypes of VLAN tags, wire order: 802.1Q and 802.1ad.
const VLAN: u16 = 0x8100_u16.to_be();
const SERVICE_VLAN: u16 = 0x88a8_u16.to_be();

/// What an IP header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// Its family.
    pub family: Family,
    /// Its source address.
    pub source: Address,
    /// Its destination address.
    pub destination: Address,
    /// Protocol of what follows it (IPv6: its next-header field; extension headers are not
    /// followed).
    pub protocol: u8,
    /// Bytes of the header, options included.
    pub header: usize,
    /// Bytes of the IP packet as the header claims, header included.
    pub length: usize,
    /// Type of service, or traffic class.
    pub traffic_class: u8,
    /// Time to live, or hop limit.
    pub hops: u8,
    /// Whether an IPv4 header is that of a fragment, the first one included.
    pub fragment: bool,
}

impl Network {
    /// Whether this is an IPv6 header to an IPv4-mapped address. Such addresses do not belong on
    /// the wire, and since IPv4 addresses are held in that form, a look-up would take it for the
    /// IPv4 address.
    #[inline(always)]
    pub const fn is_to_mapped(&self) -> bool {
        matches!(self.family, Family::V6) && self.destination.is_mapped()
    }

    /// Whether this is an IPv6 header from an IPv4-mapped address.
    #[inline(always)]
    pub const fn is_from_mapped(&self) -> bool {
        matches!(self.family, Family::V6) && self.source.is_mapped()
    }

    /// Whether what follows the header, and extension headers where they were followed, is its own
    /// family's ICMP.
    #[inline(always)]
    pub const fn is_icmp(&self) -> bool {
        self.protocol
            == match self.family {
                Family::V4 => ICMP,
                Family::V6 => ICMPV6,
            }
    }

    /// Whether a TCP or UDP header is behind this header, as far as it tells: of an IPv4 packet
    /// that is no later fragment, of an IPv6 packet without extension headers.
    #[inline(always)]
    pub const fn has_transport(&self) -> bool {
        self.protocol == TCP || self.protocol == UDP
    }

    /// Whether a whole TCP or UDP packet directly follows an IP header without options.
    #[inline(always)]
    pub const fn is_direct(&self) -> bool {
        let plain = match self.family {
            Family::V4 => self.header == Ipv4::SIZE && !self.fragment,
            Family::V6 => true,
        };
        plain && (self.protocol == TCP || self.protocol == UDP)
    }
}

/// Which part of a fragmented packet a packet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// It is not fragmented.
    Whole,
    /// The first fragment, which holds the transport header.
    First,
    /// Any other fragment.
    Later,
}

/// What a TCP or UDP header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transport {
    /// Source port.
    pub source_port: Port,
    /// Destination port.
    pub destination_port: Port,
    /// Bytes of the header as it claims, options included.
    pub header: usize,
    /// Whether it is a TCP segment that opens a connection: SYN without ACK.
    pub opens: bool,
    /// Length and checksum of UDP, wire order; zeros of TCP.
    pub udp: [u16; 2],
}

/// The family of the frame's IP header, from its EtherType; `None` when the frame is tagged.
///
/// # Errors
///
/// [`Reason::OtherHost`], [`Reason::NotIp`], [`Reason::Truncated`].
#[inline(always)]
pub fn family<P: Packet>(packet: &P) -> Result<Option<Family>, Reason> {
    let ether_type = packet.load::<u16>(ETHERNET - 2).ok_or(Reason::Truncated)?;
    if packet.has_vlan() || is_tag(ether_type) {
        return Ok(None);
    }
    is_ours(packet, ether_type).map(Some)
}

/// Whether an EtherType, wire order, is that of a VLAN tag.
#[inline(always)]
pub const fn is_tag(ether_type: u16) -> bool {
    matches!(ether_type, VLAN | SERVICE_VLAN)
}

/// The family that an EtherType, wire order, says.
#[inline(always)]
pub(crate) const fn family_of(ether_type: u16) -> Option<Family> {
    match ether_type {
        IPV4 => Some(Family::V4),
        IPV6 => Some(Family::V6),
        _ => None,
    }
}

/// The family that an EtherType, wire order, says, if the frame is for this host.
#[inline(always)]
pub(crate) fn is_ours<P: Packet>(packet: &P, ether_type: u16) -> Result<Family, Reason> {
    let family = match ether_type {
        IPV4 => Family::V4,
        IPV6 => Family::V6,
        _ => return Err(Reason::NotIp),
    };
    if packet.is_for_this_host() { Ok(family) } else { Err(Reason::OtherHost) }
}

/// The IPv4 header at `offset`, which is a constant wherever the function is called.
///
/// # Errors
///
/// [`Reason::Truncated`], [`Reason::BadHeader`].
#[inline(always)]
pub fn ipv4<P: Packet>(packet: &P, offset: usize) -> Result<Network, Reason> {
    from_ipv4(&packet.load(offset).ok_or(Reason::Truncated)?)
}

/// What an IPv4 header says.
#[inline(always)]
pub(crate) fn from_ipv4(h: &Ipv4) -> Result<Network, Reason> {
    if h.version() != 4 || h.length() < Ipv4::SIZE {
        return Err(Reason::BadHeader);
    }
    Ok(Network {
        family: Family::V4,
        source: h.source(),
        destination: h.destination(),
        protocol: h.protocol(),
        header: h.length(),
        length: h.total_length(),
        traffic_class: h.traffic_class(),
        hops: h.hops(),
        fragment: h.is_fragment(),
    })
}

/// The IPv6 header at `offset`, which is a constant wherever the function is called.
///
/// # Errors
///
/// [`Reason::Truncated`], [`Reason::BadHeader`].
#[inline(always)]
pub fn ipv6<P: Packet>(packet: &P, offset: usize) -> Result<Network, Reason> {
    from_ipv6(&packet.load(offset).ok_or(Reason::Truncated)?)
}

/// What an IPv6 header says.
#[inline(always)]
pub(crate) fn from_ipv6(h: &Ipv6) -> Result<Network, Reason> {
    if h.version() != 6 {
        return Err(Reason::BadHeader);
    }
    Ok(Network {
        family: Family::V6,
        source: h.source(),
        destination: h.destination(),
        protocol: h.next_header(),
        header: Ipv6::SIZE,
        length: h.payload_length().wrapping_add(Ipv6::SIZE),
        traffic_class: h.traffic_class(),
        hops: h.hops(),
        fragment: false,
    })
}

/// The TCP or UDP header behind `network`, the IP header of a direct packet
/// ([`Network::is_direct`]).
///
/// # Errors
///
/// [`Reason::Truncated`].
#[inline(always)]
pub fn transport<P: Packet>(packet: &P, network: &Network) -> Result<Transport, Reason> {
    match (network.family, network.protocol) {
        (Family::V4, TCP) => packet.load(ETHERNET + Ipv4::SIZE).map(from_tcp),
        (Family::V4, _) => packet.load(ETHERNET + Ipv4::SIZE).map(from_udp),
        (Family::V6, TCP) => packet.load(ETHERNET + Ipv6::SIZE).map(from_tcp),
        (Family::V6, _) => packet.load(ETHERNET + Ipv6::SIZE).map(from_udp),
    }
    .ok_or(Reason::Truncated)
}

/// The transport header at an offset that is known at run time only.
///
/// # Errors
///
/// [`Reason::OtherProtocol`], [`Reason::Truncated`].
#[inline(always)]
pub fn transport_at<P: Packet>(
    packet: &P,
    offset: usize,
    protocol: u8,
) -> Result<Transport, Reason> {
    match protocol {
        TCP => packet.load_variable(offset).map(from_tcp),
        UDP => packet.load_variable(offset).map(from_udp),
        _ => return Err(Reason::OtherProtocol),
    }
    .ok_or(Reason::Truncated)
}

#[inline(always)]
const fn from_tcp(h: Tcp) -> Transport {
    Transport {
        source_port: h.source_port,
        destination_port: h.destination_port,
        header: h.length(),
        opens: h.opens(),
        udp: [0; 2],
    }
}

#[inline(always)]
const fn from_udp(h: Udp) -> Transport {
    Transport {
        source_port: h.source_port,
        destination_port: h.destination_port,
        header: Udp::SIZE,
        opens: false,
        udp: h.length_and_checksum(),
    }
}

/// The size of a packet, judged by what is there and not by what is claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Bytes of the IP packet, without the padding that Ethernet adds to short frames.
    pub packet: usize,
    /// Bytes of the largest IP packet that it will be cut into: of one segment when it is merged,
    /// else the same.
    pub segment: usize,
}

/// Measures the packet whose IP header is at `start`.
///
/// The claim may be smaller than the frame, because Ethernet pads short frames. A merged packet of
/// more than 65,535 bytes claims zero (Linux's "BIG TCP").
///
/// # Errors
///
/// [`Reason::BadLength`] when the headers claim more than there is, or less than themselves.
#[inline(always)]
pub fn size<P: Packet>(
    packet: &P,
    start: usize,
    network: &Network,
    transport: &Transport,
) -> Result<Size, Reason> {
    let present = packet.length().wrapping_sub(start);
    let merged = packet.segment_size();
    let unclaimed = match network.family {
        Family::V4 => 0,
        Family::V6 => Ipv6::SIZE,
    };
    let length = if merged != 0 && network.length == unclaimed { present } else { network.length };
    let smallest = if network.protocol == TCP { Tcp::SMALLEST } else { Udp::SIZE };
    let headers = network.header.wrapping_add(transport.header);
    if length > present || transport.header < smallest || length < headers {
        return Err(Reason::BadLength);
    }
    let segment = headers.wrapping_add(merged);
    Ok(Size {
        packet: length,
        segment: if merged == 0 || segment > length { length } else { segment },
    })
}

/// Measures a later fragment, whose IP header is at `start`: it has no transport header, and is
/// never merged.
///
/// # Errors
///
/// As [`size`].
#[inline(always)]
pub fn size_of_fragment<P: Packet>(
    packet: &P,
    start: usize,
    network: &Network,
) -> Result<Size, Reason> {
    let length = network.length;
    if length > packet.length().wrapping_sub(start) || length < network.header {
        return Err(Reason::BadLength);
    }
    Ok(Size { packet: length, segment: length })
}
