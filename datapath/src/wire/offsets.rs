//! Parses headers at any offset: after VLAN tags, options and extension headers.
//!
//! Slower than [`wire::parse`](crate::wire::parse), which parses ordinary packets at constant
//! offsets, and correct for every packet.

use crate::abi::{Family, ICMP, ICMPV6, Reason, UDP};
use crate::bits::Field;
use crate::verifier::widen_for_verifier;
use crate::wire::header::{FragmentKind, Ipv4, Ipv6, Ipv6Fragment};
use crate::wire::packet::{ETH_HLEN, Packet};
use crate::wire::parse::{IpHeader, family_for_this_host, from_ipv4, from_ipv6, is_vlan_tag};

/// The maximum number of VLAN tags in a frame's bytes: two (IEEE 802.1ad).
const MAX_TAGS: usize = 2;

/// The maximum offset of an IP header.
const MAX_IP_OFFSET: usize = ETH_HLEN + 4 * MAX_TAGS;

/// The maximum number of extension headers that are parsed, the fragment header included.
const MAX_EXTENSIONS: usize = 8;

/// The maximum length of an IPv6 header with its extension headers, in bytes.
const MAX_HEADERS: usize = Ipv6::SIZE + 256;

/// The headers of a packet, at any offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParsedHeaders {
    /// The IP header. [`IpHeader::header_len`] includes options and extension headers, and
    /// [`IpHeader::protocol`] is that of the L4 header.
    pub ip: IpHeader,
    /// Offset of the IP header.
    pub ip_offset: usize,
    /// The kind of fragment; for IPv6, known once the extension headers are parsed.
    pub fragment_kind: FragmentKind,
    /// Bytes from the start of an IPv6 header to its fragment header; undefined without one.
    fragment_header: usize,
}

impl ParsedHeaders {
    /// An IP header without its extension headers.
    #[inline(always)]
    pub(crate) const fn new(ip: IpHeader, ip_offset: usize, fragment_kind: FragmentKind) -> Self {
        Self { ip, ip_offset, fragment_kind, fragment_header: Ipv6::SIZE }
    }

    /// Parses the extension headers of an IPv6 packet, too (RFC 8200 section 4).
    #[inline(always)]
    pub fn skip_extensions<P: Packet>(self, packet: &P) -> Result<Self, Reason> {
        match self.ip.family {
            Family::V4 => Ok(self),
            Family::V6 => extensions(packet, self),
        }
    }

    /// The identification that all fragments of the packet share, as a number; defined for
    /// fragments only.
    #[inline(always)]
    pub(crate) fn identification<P: Packet>(&self, packet: &P) -> Result<u32, Reason> {
        match self.ip.family {
            Family::V4 => {
                packet.load_at(self.ip_offset).map(|header: Ipv4| header.identification())
            }
            Family::V6 => packet
                .load_at(self.ip_offset.wrapping_add(self.fragment_header))
                .map(|header: Ipv6Fragment| header.identification()),
        }
        .ok_or(Reason::Truncated)
    }

    /// Offset of the L4 header.
    #[inline(always)]
    pub(crate) const fn l4_offset(&self) -> usize {
        self.ip_offset.wrapping_add(self.ip.header_len)
    }

    /// Bytes of VLAN tags in the frame.
    #[inline(always)]
    pub const fn vlan_bytes(&self) -> usize {
        self.ip_offset.wrapping_sub(ETH_HLEN)
    }
}

/// Offsets and kinds of a packet's headers: the result of one stage, encoded as an argument of the
/// next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeaderOffsets {
    family: Family,
    /// [`ParsedHeaders::ip_offset`].
    ip_offset: usize,
    /// [`IpHeader::header_len`], including options and extension headers.
    header_len: usize,
    /// [`ParsedHeaders::fragment_header`].
    fragment_header: usize,
    fragment_kind: FragmentKind,
    /// Protocol of the L4 header.
    protocol: u8,
}

/// The stage that handles a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PacketClass {
    /// The slow path: TCP, a first fragment, or an unsupported protocol.
    SlowPath,
    /// A whole UDP datagram: the QUIC stage where services have server IDs, else the slow path.
    Udp,
    /// A whole ICMP or ICMPv6 message of the packet's family.
    Icmp,
    /// A non-initial fragment.
    NonFirstFragment,
}

impl HeaderOffsets {
    /// Offset of the IP header, at most 22.
    const IP_OFFSET: Field = Field::first(5);
    const FAMILY: Field = Self::IP_OFFSET.next(1);
    /// Bytes of headers, at most 296.
    const HEADER_LEN: Field = Self::FAMILY.next(9);
    const FRAGMENT_KIND: Field = Self::HEADER_LEN.next(2);
    const PROTOCOL: Field = Self::FRAGMENT_KIND.next(8);
    /// Words of four bytes between the IPv6 header and the fragment header, at most 64.
    const FRAGMENT_HEADER: Field = Self::PROTOCOL.next(7);

    /// The offsets of parsed headers.
    #[inline(always)]
    pub(crate) const fn of(headers: &ParsedHeaders) -> Self {
        let ParsedHeaders { ip, ip_offset, fragment_kind, fragment_header, .. } = *headers;
        Self {
            family: ip.family,
            ip_offset,
            header_len: ip.header_len,
            fragment_header,
            fragment_kind,
            protocol: ip.protocol,
        }
    }

    /// The offsets of an untagged packet that is no fragment, and whose L4 header directly follows
    /// an IP header without options.
    #[inline(always)]
    pub(crate) const fn fixed(ip: IpHeader) -> Self {
        Self::of(&ParsedHeaders::new(ip, ETH_HLEN, FragmentKind::None))
    }

    /// Encodes the offsets as a word.
    #[inline(always)]
    pub const fn encode(self) -> u32 {
        let fragment_kind = match self.fragment_kind {
            FragmentKind::None => 0,
            FragmentKind::First => 1,
            FragmentKind::NonFirst => 2,
        };
        let fragment_header = (self.fragment_header as u32).wrapping_sub(Ipv6::SIZE as u32) >> 2;
        Self::IP_OFFSET.put(self.ip_offset as u32)
            | Self::FAMILY.put(self.family.index())
            | Self::HEADER_LEN.put(self.header_len as u32)
            | Self::FRAGMENT_KIND.put(fragment_kind)
            | Self::PROTOCOL.put(self.protocol as u32)
            | Self::FRAGMENT_HEADER.put(fragment_header)
    }

    /// Decodes a word.
    #[inline(always)]
    pub fn decode(word: u32) -> Self {
        let word = widen_for_verifier(word);
        let fragment_kind = match Self::FRAGMENT_KIND.get(word) {
            0 => FragmentKind::None,
            1 => FragmentKind::First,
            _ => FragmentKind::NonFirst,
        };
        let fragment_header = Self::FRAGMENT_HEADER.get(word) << 2;
        Self {
            family: if Self::FAMILY.get(word) == 0 { Family::V4 } else { Family::V6 },
            ip_offset: Self::IP_OFFSET.get(word) as usize,
            header_len: Self::HEADER_LEN.get(word) as usize,
            fragment_header: fragment_header.wrapping_add(Ipv6::SIZE as u32) as usize,
            fragment_kind,
            protocol: Self::PROTOCOL.get(word) as u8,
        }
    }

    /// The stage that handles the packet.
    #[inline(always)]
    pub const fn class(self) -> PacketClass {
        let icmp = match self.family {
            Family::V4 => ICMP,
            Family::V6 => ICMPV6,
        };
        match self.fragment_kind {
            FragmentKind::NonFirst => PacketClass::NonFirstFragment,
            FragmentKind::None if self.protocol == icmp => PacketClass::Icmp,
            FragmentKind::None if self.protocol == UDP => PacketClass::Udp,
            _ => PacketClass::SlowPath,
        }
    }

    /// Reads the headers at these offsets again.
    #[inline(always)]
    pub(crate) fn parse<P: Packet>(self, packet: &P) -> Result<ParsedHeaders, Reason> {
        let Self { family, ip_offset, header_len, fragment_header, fragment_kind, protocol } = self;
        let ip = match family {
            Family::V4 => from_ipv4(&packet.load_at(ip_offset).ok_or(Reason::Truncated)?)?,
            Family::V6 => from_ipv6(&packet.load_at(ip_offset).ok_or(Reason::Truncated)?)?,
        };
        let ip = IpHeader { header_len, protocol, ..ip };
        Ok(ParsedHeaders { ip, ip_offset, fragment_kind, fragment_header })
    }
}

/// Skips VLAN tags. Returns the EtherType after them, wire order, and the offset of its payload.
#[inline(always)]
pub(crate) fn skip_vlan_tags<P: Packet>(packet: &P) -> Result<(u16, usize), Reason> {
    let mut ip_offset = ETH_HLEN;
    let mut ether_type: u16 = packet.load(ETH_HLEN - 2).ok_or(Reason::Truncated)?;
    for _ in 0..MAX_TAGS {
        if !is_vlan_tag(ether_type) {
            break;
        }
        // A tag is two bytes of tag control information and the next EtherType.
        ether_type = packet.load_at(ip_offset.wrapping_add(2)).ok_or(Reason::Truncated)?;
        ip_offset = ip_offset.wrapping_add(4);
    }
    // The verifier explores the rest once, not once per number of tags.
    let ip_offset = widen_for_verifier(ip_offset as u32) as usize;
    if is_vlan_tag(ether_type) || ip_offset > MAX_IP_OFFSET {
        Err(Reason::VlanDepth)
    } else {
        Ok((ether_type, ip_offset))
    }
}

/// Parses the IP header, after any VLAN tags.
#[inline(always)]
pub fn parse_ip_header<P: Packet>(packet: &P) -> Result<ParsedHeaders, Reason> {
    let (ether_type, ip_offset) = skip_vlan_tags(packet)?;
    let (ip, fragment_kind) = match family_for_this_host(packet, ether_type)? {
        Family::V4 => {
            let header: Ipv4 = packet.load_at(ip_offset).ok_or(Reason::Truncated)?;
            (from_ipv4(&header)?, header.fragment_kind())
        }
        Family::V6 => {
            let header: Ipv6 = packet.load_at(ip_offset).ok_or(Reason::Truncated)?;
            (from_ipv6(&header)?, FragmentKind::None)
        }
    };
    Ok(ParsedHeaders::new(ip, ip_offset, fragment_kind))
}

#[inline(always)]
fn extensions<P: Packet>(packet: &P, headers: ParsedHeaders) -> Result<ParsedHeaders, Reason> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    const DESTINATION: u8 = 60;

    let ParsedHeaders { mut ip, ip_offset, mut fragment_kind, mut fragment_header } = headers;
    for _ in 0..MAX_EXTENSIONS + 1 {
        // The verifier explores the rest once, not once per combination of extension headers.
        ip.header_len = widen_for_verifier(ip.header_len as u32) as usize;
        if ip.header_len > MAX_HEADERS {
            return Err(Reason::ExtensionHeaders);
        }
        let offset = ip_offset.wrapping_add(ip.header_len);
        let length = match ip.protocol {
            HOP_BY_HOP | ROUTING | AUTHENTICATION | DESTINATION => {
                let [next, length, _, left]: [u8; 4] =
                    packet.load_at(offset).ok_or(Reason::Truncated)?;
                // A routing header with segments left: the destination is an intermediate node (RFC
                // 8200 section 4.4).
                if ip.protocol == ROUTING && left != 0 {
                    return Err(Reason::ExtensionHeaders);
                }
                let authentication = ip.protocol == AUTHENTICATION;
                ip.protocol = next;
                // The length field of the authentication header counts 4-byte words, minus 2 (RFC
                // 4302 section 2.2).
                let length = usize::from(length);
                if authentication {
                    length.wrapping_add(2) << 2
                } else {
                    length.wrapping_add(1) << 3
                }
            }
            FRAGMENT => {
                let header: Ipv6Fragment = packet.load_at(offset).ok_or(Reason::Truncated)?;
                if !matches!(fragment_kind, FragmentKind::None) {
                    return Err(Reason::ExtensionHeaders);
                }
                fragment_kind = header.fragment_kind();
                fragment_header = ip.header_len;
                ip.protocol = header.next_header();
                Ipv6Fragment::SIZE
            }
            _ => {
                return Ok(ParsedHeaders { ip, ip_offset, fragment_kind, fragment_header });
            }
        };
        ip.header_len = ip.header_len.wrapping_add(length);
        // A non-initial fragment has no further headers.
        if matches!(fragment_kind, FragmentKind::NonFirst) {
            return Ok(ParsedHeaders { ip, ip_offset, fragment_kind, fragment_header });
        }
    }
    Err(Reason::ExtensionHeaders)
}
