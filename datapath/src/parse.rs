//! Reads headers into small values.

use crate::flow::{Port, TCP, UDP};
use crate::header::{Ipv4, Ipv6, Tcp, Udp};
use crate::packet::ETHERNET;
use crate::{Address, Family, Packet, Plain, Reason};

/// EtherType of IPv4, wire order.
const IPV4: u16 = 0x0800_u16.to_be();
/// EtherType of IPv6, wire order.
const IPV6: u16 = 0x86dd_u16.to_be();
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
    /// Protocol of what follows it (IPv6: its next-header field; extension headers are not followed).
    pub protocol: u8,
    /// Bytes of the header, options included.
    pub header: usize,
    /// Bytes of the IP packet as the header claims, header included.
    pub length: usize,
    /// Type of service, or traffic class.
    pub traffic_class: u8,
    /// Time to live, or hop limit.
    pub hops: u8,
    /// Whether it is a fragment, the first one included.
    pub fragment: bool,
}

impl Network {
    /// Whether this is an IPv6 header to an IPv4-mapped address. Such addresses do not belong on the wire, and since IPv4 addresses
    /// are held in that form, a look-up would take it for the IPv4 address.
    #[inline(always)]
    pub const fn is_to_mapped(&self) -> bool {
        matches!(self.family, Family::V6) && self.destination.is_mapped()
    }
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
}

/// The family of the frame's IP header, from its EtherType.
///
/// # Errors
///
/// [`Reason::OtherHost`], [`Reason::Vlan`], [`Reason::NotIp`], [`Reason::Truncated`].
#[inline(always)]
pub fn family<P: Packet>(packet: &P) -> Result<Family, Reason> {
    if packet.has_vlan() {
        return Err(Reason::Vlan);
    }
    let family = match packet.load::<u16>(ETHERNET - 2).ok_or(Reason::Truncated)? {
        IPV4 => Family::V4,
        IPV6 => Family::V6,
        VLAN | SERVICE_VLAN => return Err(Reason::Vlan),
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
    let h: Ipv4 = packet.load(offset).ok_or(Reason::Truncated)?;
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
    /// The fragment header's protocol number (RFC 8200 section 4.5).
    const FRAGMENT: u8 = 44;

    let h: Ipv6 = packet.load(offset).ok_or(Reason::Truncated)?;
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
        fragment: h.next_header() == FRAGMENT,
    })
}

/// The TCP or UDP header behind `network`, the IP header that directly follows the Ethernet header.
///
/// # Errors
///
/// [`Reason::Fragment`], [`Reason::OtherProtocol`], [`Reason::Truncated`].
#[inline(always)]
pub fn transport<P: Packet>(packet: &P, network: &Network) -> Result<Transport, Reason> {
    if network.fragment {
        return Err(Reason::Fragment);
    }
    match network.protocol {
        TCP => {
            let h: Tcp = behind(packet, network)?;
            Ok(Transport {
                source_port: h.source_port,
                destination_port: h.destination_port,
                header: h.length(),
                opens: h.opens(),
            })
        }
        UDP => {
            let h: Udp = behind(packet, network)?;
            Ok(Transport {
                source_port: h.source_port,
                destination_port: h.destination_port,
                header: Udp::SIZE,
                opens: false,
            })
        }
        _ => Err(Reason::OtherProtocol),
    }
}

/// The header behind the IP header. The IPv4 header without options is the fast path, at a constant offset.
#[inline(always)]
fn behind<P: Packet, T: Plain>(packet: &P, network: &Network) -> Result<T, Reason> {
    match (network.family, network.header) {
        (Family::V4, Ipv4::SIZE) => packet.load(ETHERNET + Ipv4::SIZE),
        (Family::V4, header) => packet.load_variable(ETHERNET.wrapping_add(header)),
        (Family::V6, _) => packet.load(ETHERNET + Ipv6::SIZE),
    }
    .ok_or(Reason::Truncated)
}

/// The size of a packet, judged by what is there and not by what is claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Bytes of the IP packet, without the padding that Ethernet adds to short frames.
    pub packet: usize,
    /// Bytes of the largest IP packet that it will be cut into: of one segment when it is merged, else the same.
    pub segment: usize,
}

/// Measures the packet behind the Ethernet header.
///
/// The claim may be smaller than the frame, because Ethernet pads short frames. A merged packet of more than 65,535 bytes claims
/// zero (Linux's "BIG TCP").
///
/// # Errors
///
/// [`Reason::BadLength`] when the headers claim more than there is, or less than themselves.
#[inline(always)]
pub fn size<P: Packet>(packet: &P, network: &Network, transport: &Transport) -> Result<Size, Reason> {
    let present = packet.length().wrapping_sub(ETHERNET);
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
    Ok(Size { packet: length, segment: if merged == 0 || segment > length { length } else { segment } })
}
