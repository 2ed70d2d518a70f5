//! Finds the headers of a packet wherever they are: behind VLAN tags, options and extension
//! headers.
//!
//! Slower than [`crate::wire::parse`], which knows where the headers of an ordinary packet are, and
//! right for every packet.

use crate::abi::{Family, ICMP, ICMPV6, Reason, UDP};
use crate::verifier::widen_for_verifier;
use crate::wire::header::{FragmentKind, Ipv4, Ipv6, Ipv6Fragment};
use crate::wire::packet::{ETH_HLEN, Packet};
use crate::wire::parse::{IpHeader, family_for_this_host, from_ipv4, from_ipv6, is_vlan_tag};

/// The most VLAN tags in a frame's bytes: two (IEEE 802.1ad).
const MAX_TAGS: usize = 2;

/// The largest offset of an IP header.
const MAX_START: usize = ETH_HLEN + 4 * MAX_TAGS;

/// The most extension headers that are followed, the fragment header included. More are no client's
/// habit.
const MAX_EXTENSIONS: usize = 8;

/// The most bytes of an IPv6 header and its extension headers that are followed.
const MAX_HEADERS: usize = Ipv6::SIZE + 256;

/// Where the headers of a packet are, and what they say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParsedHeaders {
    /// What the IP header and what follows it say; [`IpHeader::header`] counts options and
    /// extension headers.
    pub ip: IpHeader,
    /// Offset of the IP header.
    pub start: usize,
    /// Which part of a fragmented packet it is; of an IPv6 packet known once its extension headers
    /// are followed.
    pub part: FragmentKind,
    /// Bytes from the start of an IPv6 header to the fragment header behind it; means nothing when
    /// there is none.
    fragment: usize,
    /// Whether it has a VLAN tag, in its bytes or beside them.
    pub tagged: bool,
}

impl ParsedHeaders {
    /// An IP header, extension headers not followed.
    #[inline(always)]
    pub(crate) const fn new(ip: IpHeader, start: usize, part: FragmentKind, tagged: bool) -> Self {
        Self { ip, start, part, fragment: Ipv6::SIZE, tagged }
    }

    /// The same with the extension headers of an IPv6 packet followed (RFC 8200 section 4).
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

    /// What all fragments of the packet have in common, as a number; of a fragment only.
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

    /// Bytes of VLAN tags in the frame, if it has a tag there or beside.
    #[inline(always)]
    pub fn tags(&self) -> Option<usize> {
        self.tagged.then_some(self.start.wrapping_sub(ETH_HLEN))
    }
}

/// Where the end of a packet's headers is, and what is there: what one stage found out, in a form
/// in which the next one can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeaderOffsets {
    family: Family,
    /// Offset of the IP header.
    start: usize,
    /// Bytes of the IP header, with options or extension headers.
    header: usize,
    /// [`ParsedHeaders::fragment`].
    fragment: usize,
    part: FragmentKind,
    /// Protocol of what follows.
    protocol: u8,
}

/// The stage whose matter a packet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PacketClass {
    /// [`general`](crate::balance::slow_path::slow_path): TCP or UDP, or what nobody handles.
    SlowPath,
    /// [`quic`](crate::balance::quic()), where services have server IDs, and what names nobody
    /// there, [`general`](crate::balance::slow_path::slow_path): a whole UDP datagram.
    Udp,
    /// [`icmp`](crate::balance::icmp()): a whole ICMP message of its family.
    Icmp,
    /// [`follow`](crate::follow()): a later fragment.
    NonFirstFragment,
}

impl HeaderOffsets {
    // A place as a number, from the lowest bit on: offset (at most 22), family, bytes of headers
    // (at most 296), part, protocol, and words of four bytes between the IPv6 header and a fragment
    // header (at most 64).
    const FAMILY: u32 = 5;
    const HEADER: u32 = 6;
    const PART: u32 = 15;
    const PROTOCOL: u32 = 17;
    const FRAGMENT: u32 = 25;

    /// The place of what follows the headers.
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

    /// The place of what directly follows the plain IP header of an untagged packet that is no
    /// fragment.
    #[inline(always)]
    pub(crate) const fn direct(ip: IpHeader) -> Self {
        Self::of(&ParsedHeaders::new(ip, ETH_HLEN, FragmentKind::None, false))
    }

    /// The place as a number.
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

    /// The place that a number says.
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

    /// The stage that goes on here.
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

    /// The headers before this place, read once more.
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

/// Finds what is behind the VLAN tags: the EtherType, wire order, and the offset of what it is
/// about.
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
        // A tag is two bytes of control information and the next EtherType.
        ether_type = packet.load_at(start.wrapping_add(2)).ok_or(Reason::Truncated)?;
        start = start.wrapping_add(4);
    }
    // However many tags there were, the verifier knows the same about the offset now.
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
        // Whichever headers came before, the verifier knows the same about the offset now.
        ip.header_len = widen_for_verifier(ip.header_len as u32) as usize;
        if ip.header_len > MAX_HEADERS {
            return Err(Reason::ExtensionHeaders);
        }
        let offset = start.wrapping_add(ip.header_len);
        let length = match ip.protocol {
            HOP_BY_HOP | ROUTING | AUTHENTICATION | DESTINATION => {
                let [next, length, _, left]: [u8; 4] =
                    packet.load_at(offset).ok_or(Reason::Truncated)?;
                // A routing header with segments left: the destination is a waypoint (RFC 8200
                // section 4.4).
                if ip.protocol == ROUTING && left != 0 {
                    return Err(Reason::ExtensionHeaders);
                }
                let authentication = ip.protocol == AUTHENTICATION;
                ip.protocol = next;
                // The authentication header counts in words of four bytes, two less than it has
                // (RFC 4302 section 2.2).
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
        // What follows the header of a later fragment is the middle of something.
        if matches!(part, FragmentKind::NonFirst) {
            return Ok(ParsedHeaders { ip, start, part, fragment, tagged });
        }
    }
    Err(Reason::ExtensionHeaders)
}
