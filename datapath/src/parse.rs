//! Reads headers into small values.

use crate::flow::{TCP, UDP};
use crate::packet::ETHERNET;
use crate::{Address, Family, Packet, Reason};

/// EtherType of IPv4.
const IPV4: [u8; 2] = [0x08, 0x00];
/// EtherType of IPv6.
const IPV6: [u8; 2] = [0x86, 0xdd];
/// EtherTypes of VLAN tags: 802.1Q and 802.1ad.
const VLAN: [[u8; 2]; 2] = [[0x81, 0x00], [0x88, 0xa8]];

/// Bytes of an IPv4 header without options.
pub const IPV4_HEADER: usize = 20;
/// Bytes of an IPv6 header without extension headers.
pub const IPV6_HEADER: usize = 40;

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

/// What a TCP or UDP header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transport {
    /// Source port, wire order.
    pub source_port: [u8; 2],
    /// Destination port, wire order.
    pub destination_port: [u8; 2],
    /// Bytes of the header as it claims, options included.
    pub header: usize,
    /// Whether it is a TCP segment that opens a connection: SYN without ACK.
    pub opens: bool,
}

/// The family of the frame's IP header, from its EtherType.
///
/// # Errors
///
/// [`Reason::Vlan`], [`Reason::NotIp`], [`Reason::Truncated`].
#[inline(always)]
pub fn family<P: Packet>(packet: &P) -> Result<Family, Reason> {
    if packet.has_vlan() {
        return Err(Reason::Vlan);
    }
    match packet.load(ETHERNET - 2).ok_or(Reason::Truncated)? {
        IPV4 => Ok(Family::V4),
        IPV6 => Ok(Family::V6),
        tag if tag == VLAN[0] || tag == VLAN[1] => Err(Reason::Vlan),
        _ => Err(Reason::NotIp),
    }
}

/// The IPv4 header at `offset`, which is a constant wherever the function is called.
///
/// # Errors
///
/// [`Reason::Truncated`], [`Reason::BadHeader`].
#[inline(always)]
pub fn ipv4<P: Packet>(packet: &P, offset: usize) -> Result<Network, Reason> {
    let h: [u8; IPV4_HEADER] = packet.load(offset).ok_or(Reason::Truncated)?;
    let header = usize::from(h[0] & 0xf) << 2;
    if h[0] >> 4 != 4 || header < IPV4_HEADER {
        return Err(Reason::BadHeader);
    }
    Ok(Network {
        family: Family::V4,
        source: Address::v4([h[12], h[13], h[14], h[15]]),
        destination: Address::v4([h[16], h[17], h[18], h[19]]),
        protocol: h[9],
        header,
        length: usize::from(u16::from_be_bytes([h[2], h[3]])),
        traffic_class: h[1],
        hops: h[8],
        // More-fragments flag, or an offset.
        fragment: u16::from_be_bytes([h[6], h[7]]) & 0x3fff != 0,
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

    let h: [u8; 8] = packet.load(offset).ok_or(Reason::Truncated)?;
    let source = packet.load(offset.wrapping_add(8)).ok_or(Reason::Truncated)?;
    let destination = packet.load(offset.wrapping_add(24)).ok_or(Reason::Truncated)?;
    if h[0] >> 4 != 6 {
        return Err(Reason::BadHeader);
    }
    Ok(Network {
        family: Family::V6,
        source: Address::v6(source),
        destination: Address::v6(destination),
        protocol: h[6],
        header: IPV6_HEADER,
        length: usize::from(u16::from_be_bytes([h[4], h[5]])).wrapping_add(IPV6_HEADER),
        traffic_class: h[0] << 4 | h[1] >> 4,
        hops: h[7],
        fragment: h[6] == FRAGMENT,
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
            let h: [u8; 14] = behind(packet, network)?;
            Ok(Transport {
                source_port: [h[0], h[1]],
                destination_port: [h[2], h[3]],
                header: usize::from(h[12] >> 4) << 2,
                opens: h[13] & (SYN | ACK) == SYN,
            })
        }
        UDP => {
            let h: [u8; UDP_HEADER] = behind(packet, network)?;
            Ok(Transport {
                source_port: [h[0], h[1]],
                destination_port: [h[2], h[3]],
                header: UDP_HEADER,
                opens: false,
            })
        }
        _ => Err(Reason::OtherProtocol),
    }
}

/// Bytes of a TCP header without options.
pub const TCP_HEADER: usize = 20;
/// Bytes of a UDP header.
pub const UDP_HEADER: usize = 8;

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// The first `N` bytes behind the IP header. The header without options is the fast path, at a constant offset.
#[inline(always)]
fn behind<P: Packet, const N: usize>(packet: &P, network: &Network) -> Result<[u8; N], Reason> {
    match (network.family, network.header) {
        (Family::V4, IPV4_HEADER) => packet.load(ETHERNET + IPV4_HEADER),
        (Family::V4, header) => packet.load_variable(ETHERNET.wrapping_add(header)),
        (Family::V6, _) => packet.load(ETHERNET + IPV6_HEADER),
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
    let present = packet.len().wrapping_sub(ETHERNET);
    let merged = packet.segment_size();
    let unclaimed = match network.family {
        Family::V4 => 0,
        Family::V6 => IPV6_HEADER,
    };
    let length = if merged != 0 && network.length == unclaimed { present } else { network.length };
    let smallest = if network.protocol == TCP { TCP_HEADER } else { UDP_HEADER };
    let headers = network.header.wrapping_add(transport.header);
    if length > present || transport.header < smallest || length < headers {
        return Err(Reason::BadLength);
    }
    let segment = headers.wrapping_add(merged);
    Ok(Size { packet: length, segment: if merged == 0 || segment > length { length } else { segment } })
}
