//! Finds the headers of a packet wherever they are: behind VLAN tags, options and extension
//! headers.
//!
//! Slower than [`crate::parse`], which knows where the headers of an ordinary packet are, and right
//! for every packet.

use crate::flow::{ICMP, ICMPV6, UDP};
use crate::header::{Ipv4, Ipv6, Ipv6Fragment};
use crate::packet::{ETHERNET, Packet};
use crate::parse::{Network, Part, from_ipv4, from_ipv6, is_ours, is_tag};
use crate::verifier::forgotten;
use crate::{Family, Reason};

/// The most VLAN tags in a frame's bytes: two (IEEE 802.1ad).
const MAX_TAGS: usize = 2;

/// The largest offset of an IP header.
const MAX_START: usize = ETHERNET + 4 * MAX_TAGS;

/// The most extension headers that are followed, the fragment header included. More are no client's
/// habit.
const MAX_EXTENSIONS: usize = 8;

/// The most bytes of an IPv6 header and its extension headers that are followed.
const MAX_HEADERS: usize = Ipv6::SIZE + 256;

/// Where the headers of a packet are, and what they say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Walked {
    /// What the IP header and what follows it say; [`Network::header`] counts options and extension
    /// headers.
    pub network: Network,
    /// Offset of the IP header.
    pub start: usize,
    /// Which part of a fragmented packet it is; of an IPv6 packet known once its extension headers
    /// are followed.
    pub part: Part,
    /// Bytes from the start of an IPv6 header to the fragment header behind it; means nothing when
    /// there is none.
    fragment: usize,
    /// Whether it has a VLAN tag, in its bytes or beside them.
    pub tagged: bool,
}

impl Walked {
    /// An IP header, extension headers not followed.
    #[inline(always)]
    pub(crate) const fn new(network: Network, start: usize, part: Part, tagged: bool) -> Self {
        Self { network, start, part, fragment: Ipv6::SIZE, tagged }
    }

    /// The same with the extension headers of an IPv6 packet followed (RFC 8200 section 4).
    ///
    /// # Errors
    ///
    /// [`Reason::Truncated`], [`Reason::ExtensionHeaders`].
    #[inline(always)]
    pub fn past_extensions<P: Packet>(self, packet: &P) -> Result<Self, Reason> {
        match self.network.family {
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
        match self.network.family {
            Family::V4 => {
                packet.load_variable(self.start).map(|header: Ipv4| header.identification())
            }
            Family::V6 => packet
                .load_variable(self.start.wrapping_add(self.fragment))
                .map(|header: Ipv6Fragment| header.identification()),
        }
        .ok_or(Reason::Truncated)
    }

    /// Bytes of VLAN tags in the frame, if it has a tag there or beside.
    #[inline(always)]
    pub fn tags(&self) -> Option<usize> {
        self.tagged.then_some(self.start.wrapping_sub(ETHERNET))
    }
}

/// Where the end of a packet's headers is, and what is there: what one stage found out, in a form
/// in which the next one can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    family: Family,
    /// Offset of the IP header.
    start: usize,
    /// Bytes of the IP header, with options or extension headers.
    header: usize,
    /// [`Walked::fragment`].
    fragment: usize,
    part: Part,
    /// Protocol of what follows.
    protocol: u8,
}

/// The stage whose matter a packet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Matter {
    /// [`general`](crate::balance::general): TCP or UDP, or what nobody handles.
    General,
    /// [`quic`](crate::quic()), where services have server IDs, and what names nobody there,
    /// [`general`](crate::balance::general): a whole UDP datagram.
    Datagram,
    /// [`icmp`](crate::icmp()): a whole ICMP message of its family.
    Icmp,
    /// [`follow`](crate::follow()): a later fragment.
    Later,
}

impl Place {
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
    pub(crate) const fn of(walked: &Walked) -> Self {
        let Walked { network, start, part, fragment, .. } = *walked;
        Self {
            family: network.family,
            start,
            header: network.header,
            fragment,
            part,
            protocol: network.protocol,
        }
    }

    /// The place of what directly follows the plain IP header of an untagged packet that is no
    /// fragment.
    #[inline(always)]
    pub(crate) const fn direct(network: Network) -> Self {
        Self::of(&Walked::new(network, ETHERNET, Part::Whole, false))
    }

    /// The place as a number.
    #[inline(always)]
    pub const fn to_word(self) -> u32 {
        let part = match self.part {
            Part::Whole => 0,
            Part::First => 1,
            Part::Later => 2,
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
    pub fn from_word(word: u32) -> Self {
        let word = forgotten(word);
        let part = match word >> Self::PART & 3 {
            0 => Part::Whole,
            1 => Part::First,
            _ => Part::Later,
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
    pub const fn matter(self) -> Matter {
        let icmp = match self.family {
            Family::V4 => ICMP,
            Family::V6 => ICMPV6,
        };
        match self.part {
            Part::Later => Matter::Later,
            Part::Whole if self.protocol == icmp => Matter::Icmp,
            Part::Whole if self.protocol == UDP => Matter::Datagram,
            _ => Matter::General,
        }
    }

    /// The headers before this place, read once more.
    ///
    /// # Errors
    ///
    /// [`Reason::Truncated`], [`Reason::BadHeader`].
    #[inline(always)]
    pub(crate) fn walked<P: Packet>(self, packet: &P) -> Result<Walked, Reason> {
        let Self { family, start, header, fragment, part, protocol } = self;
        let network = match family {
            Family::V4 => from_ipv4(&packet.load_variable(start).ok_or(Reason::Truncated)?)?,
            Family::V6 => from_ipv6(&packet.load_variable(start).ok_or(Reason::Truncated)?)?,
        };
        let tagged = packet.has_vlan() || start != ETHERNET;
        Ok(Walked {
            network: Network { header, protocol, ..network },
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
/// [`Reason::Truncated`], [`Reason::Vlan`].
#[inline(always)]
pub(crate) fn past_tags<P: Packet>(packet: &P) -> Result<(u16, usize), Reason> {
    let mut start = ETHERNET;
    let mut ether_type: u16 = packet.load(ETHERNET - 2).ok_or(Reason::Truncated)?;
    for _ in 0..MAX_TAGS {
        if !is_tag(ether_type) {
            break;
        }
        // A tag is two bytes of control information and the next EtherType.
        ether_type = packet.load_variable(start.wrapping_add(2)).ok_or(Reason::Truncated)?;
        start = start.wrapping_add(4);
    }
    // However many tags there were, the verifier knows the same about the offset now.
    let start = forgotten(start as u32) as usize;
    if is_tag(ether_type) || start > MAX_START {
        Err(Reason::Vlan)
    } else {
        Ok((ether_type, start))
    }
}

/// Finds the IP header.
///
/// # Errors
///
/// [`Reason::Vlan`], [`Reason::NotIp`], [`Reason::OtherHost`], [`Reason::Truncated`],
/// [`Reason::BadHeader`].
#[inline(always)]
pub fn network<P: Packet>(packet: &P) -> Result<Walked, Reason> {
    let (ether_type, start) = past_tags(packet)?;
    let tagged = packet.has_vlan() || start != ETHERNET;
    let (network, part) = match is_ours(packet, ether_type)? {
        Family::V4 => {
            let header: Ipv4 = packet.load_variable(start).ok_or(Reason::Truncated)?;
            (from_ipv4(&header)?, header.part())
        }
        Family::V6 => {
            let header: Ipv6 = packet.load_variable(start).ok_or(Reason::Truncated)?;
            (from_ipv6(&header)?, Part::Whole)
        }
    };
    Ok(Walked::new(network, start, part, tagged))
}

#[inline(always)]
fn extensions<P: Packet>(packet: &P, walked: Walked) -> Result<Walked, Reason> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    const DESTINATION: u8 = 60;

    let Walked { mut network, start, mut part, mut fragment, tagged } = walked;
    for _ in 0..MAX_EXTENSIONS + 1 {
        // Whichever headers came before, the verifier knows the same about the offset now.
        network.header = forgotten(network.header as u32) as usize;
        if network.header > MAX_HEADERS {
            return Err(Reason::ExtensionHeaders);
        }
        let offset = start.wrapping_add(network.header);
        let length = match network.protocol {
            HOP_BY_HOP | ROUTING | AUTHENTICATION | DESTINATION => {
                let [next, length, _, left]: [u8; 4] =
                    packet.load_variable(offset).ok_or(Reason::Truncated)?;
                // A routing header with segments left: the destination is a waypoint (RFC 8200
                // section 4.4).
                if network.protocol == ROUTING && left != 0 {
                    return Err(Reason::ExtensionHeaders);
                }
                let authentication = network.protocol == AUTHENTICATION;
                network.protocol = next;
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
                let header: Ipv6Fragment = packet.load_variable(offset).ok_or(Reason::Truncated)?;
                if !matches!(part, Part::Whole) {
                    return Err(Reason::ExtensionHeaders);
                }
                (part, fragment) = (header.part(), network.header);
                network.protocol = header.next_header();
                Ipv6Fragment::SIZE
            }
            _ => return Ok(Walked { network, start, part, fragment, tagged }),
        };
        network.header = network.header.wrapping_add(length);
        // What follows the header of a later fragment is the middle of something.
        if matches!(part, Part::Later) {
            return Ok(Walked { network, start, part, fragment, tagged });
        }
    }
    Err(Reason::ExtensionHeaders)
}
