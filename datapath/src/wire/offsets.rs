//! Finds the headers of a packet at variable offsets: after VLAN tags, IP options and extension
//! headers.
//!
//! Slower than the constant offsets of [`crate::wire::parse`], but correct for every packet.

use crate::abi::{Family, ICMP, ICMPV6, Reason, UDP};
use crate::verifier::widen_for_verifier;
use crate::wire::header::{FragmentKind, Ipv4, Ipv6, Ipv6Fragment};
use crate::wire::packet::{ETH_HLEN, Packet};
use crate::wire::parse::{IpHeader, family_for_this_host, from_ipv4, from_ipv6, is_vlan_tag};

/// Maximum number of VLAN tags in a frame (IEEE 802.1ad).
const MAX_TAGS: usize = 2;

/// Maximum offset of an IP header.
const MAX_START: usize = ETH_HLEN + 4 * MAX_TAGS;

/// Maximum number of extension headers that are parsed, fragment header included.
const MAX_EXTENSIONS: usize = 8;

/// Maximum bytes of an IPv6 header and its extension headers.
const MAX_HEADERS: usize = Ipv6::SIZE + 256;

/// The parsed IP header of a packet, and the offsets of its headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParsedHeaders {
    /// The IP header. After [`ParsedHeaders::skip_extensions`], `header_len` and `protocol` take
    /// extension headers into account.
    pub ip: IpHeader,
    /// Offset of the IP header.
    pub start: usize,
    /// The fragment kind. For IPv6, [`ParsedHeaders::skip_extensions`] sets it.
    pub part: FragmentKind,
    /// Offset of the IPv6 fragment header from the IPv6 header, if there is a fragment header.
    fragment: usize,
    /// Whether the frame has a VLAN tag, in its bytes or in the packet's metadata.
    pub tagged: bool,
}

impl ParsedHeaders {
    /// An IP header, without extension headers.
    #[inline(always)]
    pub(crate) const fn new(ip: IpHeader, start: usize, part: FragmentKind, tagged: bool) -> Self {
        Self { ip, start, part, fragment: Ipv6::SIZE, tagged }
    }

    /// Skips the extension headers of an IPv6 packet (RFC 8200 section 4).
    ///
    /// # Errors
    ///
    /// [`Reason::Truncated`], [`Reason::ExtensionHeaders`].
    #[inline(always)]
    pub fn skip_extensions<P: Packet>(self, packet: &P) -> Result<Self, Reason> {
        match self.ip.family {
            Family::V4 => Ok(self),
            Family::V6 => extensions(packet, self),
        }
    }

    /// Identification of a fragment, host order.
    ///
    /// # Errors
    ///
    /// [`Reason::Truncated`].
    #[inline(always)]
    pub(crate) fn identification<P: Packet>(&self, packet: &P) -> Result<u32, Reason> {
        match self.ip.family {
            Family::V4 => packet.load_at(self.start).map(|header: Ipv4| header.identification()),
            Family::V6 => packet
                .load_at(self.start.wrapping_add(self.fragment))
                .map(|header: Ipv6Fragment| header.identification()),
        }
        .ok_or(Reason::Truncated)
    }

    /// Bytes of VLAN tags in the frame; `None` if the frame has no tag there or in the packet's
    /// metadata.
    #[inline(always)]
    pub fn tags(&self) -> Option<usize> {
        self.tagged.then_some(self.start.wrapping_sub(ETH_HLEN))
    }
}

/// Offsets and protocol after the IP headers of a packet. It is encoded in a word, which one stage
/// passes to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeaderOffsets {
    family: Family,
    /// Offset of the IP header.
    start: usize,
    /// Bytes of the IP header, options and extension headers included.
    header: usize,
    /// [`ParsedHeaders::fragment`].
    fragment: usize,
    part: FragmentKind,
    /// Protocol of the next header.
    protocol: u8,
}

/// The stage that handles a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PacketClass {
    /// [`slow_path`](crate::balance::slow_path::slow_path): TCP, UDP, first fragments and protocols
    /// that are not handled.
    SlowPath,
    /// [`quic`](crate::balance::quic()), if services have server IDs, else
    /// [`slow_path`](crate::balance::slow_path::slow_path): an unfragmented UDP datagram.
    Udp,
    /// [`icmp`](crate::balance::icmp()): an unfragmented ICMP message of the packet's family.
    Icmp,
    /// [`fragment`](crate::balance::fragment()): a non-initial fragment.
    NonFirstFragment,
}

impl HeaderOffsets {
    // Shifts of the encoding. From the lowest bit: offset of the IP header (at most 22), family,
    // bytes of IP headers (at most 296), fragment kind, protocol, and the number of 4-byte words
    // between the IPv6 header and the fragment header (at most 64).
    const FAMILY: u32 = 5;
    const HEADER: u32 = 6;
    const PART: u32 = 15;
    const PROTOCOL: u32 = 17;
    const FRAGMENT: u32 = 25;

    /// The offsets after the parsed headers.
    #[inline(always)]
    pub(crate) const fn of(headers: &ParsedHeaders) -> Self {
        let ParsedHeaders { ip, start, part, fragment, .. } = *headers;
        Self {
            family: ip.family,
            start,
            header: ip.header_len,
            fragment,
            part,
            protocol: ip.protocol,
        }
    }

    /// The offsets of an untagged, unfragmented packet with an IP header without options or
    /// extension headers.
    #[inline(always)]
    pub(crate) const fn direct(ip: IpHeader) -> Self {
        Self::of(&ParsedHeaders::new(ip, ETH_HLEN, FragmentKind::None, false))
    }

    /// Encodes the offsets as a word.
    #[inline(always)]
    pub const fn encode(self) -> u32 {
        let part = match self.part {
            FragmentKind::None => 0,
            FragmentKind::First => 1,
            FragmentKind::NonFirst => 2,
        };
        self.start as u32
            | (matches!(self.family, Family::V6) as u32) << Self::FAMILY
            | (self.header as u32) << Self::HEADER
            | part << Self::PART
            | (self.protocol as u32) << Self::PROTOCOL
            | ((self.fragment as u32).wrapping_sub(Ipv6::SIZE as u32) >> 2) << Self::FRAGMENT
    }

    /// Decodes a word.
    #[inline(always)]
    pub fn decode(word: u32) -> Self {
        let word = widen_for_verifier(word);
        let part = match word >> Self::PART & 3 {
            0 => FragmentKind::None,
            1 => FragmentKind::First,
            _ => FragmentKind::NonFirst,
        };
        Self {
            family: if word & 1 << Self::FAMILY == 0 { Family::V4 } else { Family::V6 },
            start: (word & 0x1f) as usize,
            header: (word >> Self::HEADER & 0x1ff) as usize,
            fragment: ((word >> Self::FRAGMENT) << 2).wrapping_add(Ipv6::SIZE as u32) as usize,
            part,
            protocol: (word >> Self::PROTOCOL) as u8,
        }
    }

    /// The stage that handles the packet.
    #[inline(always)]
    pub const fn class(self) -> PacketClass {
        let icmp = match self.family {
            Family::V4 => ICMP,
            Family::V6 => ICMPV6,
        };
        match self.part {
            FragmentKind::NonFirst => PacketClass::NonFirstFragment,
            FragmentKind::None if self.protocol == icmp => PacketClass::Icmp,
            FragmentKind::None if self.protocol == UDP => PacketClass::Udp,
            _ => PacketClass::SlowPath,
        }
    }

    /// Parses the IP header again.
    ///
    /// # Errors
    ///
    /// [`Reason::Truncated`], [`Reason::BadHeader`].
    #[inline(always)]
    pub(crate) fn parse<P: Packet>(self, packet: &P) -> Result<ParsedHeaders, Reason> {
        let Self { family, start, header, fragment, part, protocol } = self;
        let ip = match family {
            Family::V4 => from_ipv4(&packet.load_at(start).ok_or(Reason::Truncated)?)?,
            Family::V6 => from_ipv6(&packet.load_at(start).ok_or(Reason::Truncated)?)?,
        };
        let tagged = packet.has_vlan() || start != ETH_HLEN;
        Ok(ParsedHeaders {
            ip: IpHeader { header_len: header, protocol, ..ip },
            start,
            part,
            fragment,
            tagged,
        })
    }
}

/// Skips VLAN tags. Returns the EtherType, wire order, and the offset of the L3 header.
///
/// # Errors
///
/// [`Reason::Truncated`], [`Reason::VlanDepth`].
#[inline(always)]
pub(crate) fn skip_vlan_tags<P: Packet>(packet: &P) -> Result<(u16, usize), Reason> {
    let mut start = ETH_HLEN;
    let mut ether_type: u16 = packet.load(ETH_HLEN - 2).ok_or(Reason::Truncated)?;
    for _ in 0..MAX_TAGS {
        if !is_vlan_tag(ether_type) {
            break;
        }
        // A tag has two bytes of control information and the next EtherType.
        ether_type = packet.load_at(start.wrapping_add(2)).ok_or(Reason::Truncated)?;
        start = start.wrapping_add(4);
    }
    // Now the verifier has the same bounds of the offset for any number of tags.
    let start = widen_for_verifier(start as u32) as usize;
    if is_vlan_tag(ether_type) || start > MAX_START {
        Err(Reason::VlanDepth)
    } else {
        Ok((ether_type, start))
    }
}

/// Finds the IP header.
///
/// # Errors
///
/// [`Reason::VlanDepth`], [`Reason::NotIp`], [`Reason::OtherHost`], [`Reason::Truncated`],
/// [`Reason::BadHeader`].
#[inline(always)]
pub fn parse_ip_header<P: Packet>(packet: &P) -> Result<ParsedHeaders, Reason> {
    let (ether_type, start) = skip_vlan_tags(packet)?;
    let tagged = packet.has_vlan() || start != ETH_HLEN;
    let (ip, part) = match family_for_this_host(packet, ether_type)? {
        Family::V4 => {
            let header: Ipv4 = packet.load_at(start).ok_or(Reason::Truncated)?;
            (from_ipv4(&header)?, header.fragment_kind())
        }
        Family::V6 => {
            let header: Ipv6 = packet.load_at(start).ok_or(Reason::Truncated)?;
            (from_ipv6(&header)?, FragmentKind::None)
        }
    };
    Ok(ParsedHeaders::new(ip, start, part, tagged))
}

#[inline(always)]
fn extensions<P: Packet>(packet: &P, headers: ParsedHeaders) -> Result<ParsedHeaders, Reason> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    const DESTINATION: u8 = 60;

    let ParsedHeaders { mut ip, start, mut part, mut fragment, tagged } = headers;
    for _ in 0..MAX_EXTENSIONS + 1 {
        // Now the verifier has the same bounds of the offset after any headers.
        ip.header_len = widen_for_verifier(ip.header_len as u32) as usize;
        if ip.header_len > MAX_HEADERS {
            return Err(Reason::ExtensionHeaders);
        }
        let offset = start.wrapping_add(ip.header_len);
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
                // The length field of the authentication header is in 4-byte words, minus 2 (RFC
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
                if !matches!(part, FragmentKind::None) {
                    return Err(Reason::ExtensionHeaders);
                }
                (part, fragment) = (header.fragment_kind(), ip.header_len);
                ip.protocol = header.next_header();
                Ipv6Fragment::SIZE
            }
            _ => return Ok(ParsedHeaders { ip, start, part, fragment, tagged }),
        };
        ip.header_len = ip.header_len.wrapping_add(length);
        // The payload of a non-initial fragment does not start with a header.
        if matches!(part, FragmentKind::NonFirst) {
            return Ok(ParsedHeaders { ip, start, part, fragment, tagged });
        }
    }
    Err(Reason::ExtensionHeaders)
}
