//! Finds the headers of a packet wherever they are: behind VLAN tags, options and extension headers.
//!
//! Slower than [`crate::parse`], which knows where the headers of an ordinary packet are, and right for every packet.

use crate::flow::{ICMP, ICMPV6};
use crate::header::{Ipv4, Ipv6, Ipv6Fragment};
use crate::packet::{ETHERNET, Packet};
use crate::parse::{Network, Part, from_ipv4, from_ipv6, is_ours, is_tag};
use crate::verifier::forgotten;
use crate::{Family, Reason};

/// The most VLAN tags in a frame's bytes: two (IEEE 802.1ad).
const MAX_TAGS: usize = 2;

/// The largest offset of an IP header.
const MAX_START: usize = ETHERNET + 4 * MAX_TAGS;

/// The most extension headers that are followed, the fragment header included. More are no client's habit.
const MAX_EXTENSIONS: usize = 8;

/// The most bytes of an IPv6 header and its extension headers that are followed.
const MAX_HEADERS: usize = Ipv6::SIZE + 256;

/// Where the headers of a packet are, and what they say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Walked {
    /// What the IP header and what follows it say; [`Network::header`] counts options and extension headers.
    pub network: Network,
    /// Offset of the IP header.
    pub start: usize,
    /// Which part of a fragmented packet it is; of an IPv6 packet known once its extension headers are followed.
    pub part: Part,
    /// What all fragments of the packet have in common; means nothing when it is whole.
    pub identification: u32,
    /// Whether it has a VLAN tag, in its bytes or beside them.
    pub tagged: bool,
}

impl Walked {
    /// The same with the extension headers of an IPv6 packet followed (RFC 8200 section 4).
    ///
    /// # Errors
    ///
    /// [`Reason::Truncated`], [`Reason::ExtensionHeaders`].
    #[inline(always)]
    pub fn past_extensions<P: Packet>(self, packet: &P) -> Result<Self, Reason> {
        match self.network.family {
            Family::V4 => Ok(self),
            Family::V6 => {
                let (network, part, identification) = extensions(packet, self.start, self.network)?;
                Ok(Self { network, part, identification, ..self })
            }
        }
    }

    /// Bytes of VLAN tags in the frame, if it has a tag there or beside.
    #[inline(always)]
    pub fn tags(&self) -> Option<usize> {
        self.tagged.then_some(self.start.wrapping_sub(ETHERNET))
    }
}

/// Where the end of a packet's headers is: what one stage found out, in a form in which the next one can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    family: Family,
    /// Offset of the IP header.
    start: usize,
    /// Bytes of the IP header, with options or extension headers.
    header: usize,
}

impl Place {
    /// The largest [`Place::to_word`].
    pub const LARGEST: u32 = 0xffff;

    /// The place of what follows the headers.
    #[inline(always)]
    pub(crate) const fn of(walked: &Walked) -> Self {
        Self { family: walked.network.family, start: walked.start, header: walked.network.header }
    }

    /// The place as a number: offset (at most 22) in the lower five bits, the family, and the header's bytes (at most 296).
    #[inline(always)]
    pub const fn to_word(self) -> u32 {
        self.start as u32 | (matches!(self.family, Family::V6) as u32) << 5 | (self.header as u32) << 6
    }

    /// The place that a number says.
    #[inline(always)]
    pub fn from_word(word: u32) -> Self {
        let word = forgotten(word);
        let family = if word & 1 << 5 == 0 { Family::V4 } else { Family::V6 };
        Self { family, start: (word & 0x1f) as usize, header: (word >> 6 & 0x1ff) as usize }
    }

    /// The headers of an ICMP message at this place, read once more.
    ///
    /// # Errors
    ///
    /// [`Reason::Truncated`], [`Reason::BadHeader`].
    #[inline(always)]
    pub(crate) fn walked<P: Packet>(self, packet: &P) -> Result<Walked, Reason> {
        let Self { family, start, header } = self;
        let network = match family {
            Family::V4 => from_ipv4(&packet.load_variable(start).ok_or(Reason::Truncated)?)?,
            Family::V6 => from_ipv6(&packet.load_variable(start).ok_or(Reason::Truncated)?)?,
        };
        let protocol = match family {
            Family::V4 => ICMP,
            Family::V6 => ICMPV6,
        };
        let tagged = packet.has_vlan() || start != ETHERNET;
        Ok(Walked {
            network: Network { header, protocol, ..network },
            start,
            part: Part::Whole,
            identification: 0,
            tagged,
        })
    }

    /// The headers of a later fragment at this place, read once more.
    ///
    /// # Errors
    ///
    /// [`Reason::Truncated`], [`Reason::BadHeader`], [`Reason::Fragment`] when it is no later fragment.
    #[inline(always)]
    pub(crate) fn later<P: Packet>(self, packet: &P) -> Result<Walked, Reason> {
        let Self { family, start, header } = self;
        let (network, part, identification) = match family {
            Family::V4 => {
                let fields: Ipv4 = packet.load_variable(start).ok_or(Reason::Truncated)?;
                (from_ipv4(&fields)?, fields.part(), fields.identification())
            }
            Family::V6 => {
                let network = from_ipv6(&packet.load_variable(start).ok_or(Reason::Truncated)?)?;
                // The fragment header is the last one that was followed.
                let at = start.wrapping_add(header).wrapping_sub(Ipv6Fragment::SIZE);
                let fragment: Ipv6Fragment = packet.load_variable(at).ok_or(Reason::Truncated)?;
                let network = Network { header, protocol: fragment.next_header(), ..network };
                (network, fragment.part(), fragment.identification())
            }
        };
        let Part::Later = part else { return Err(Reason::Fragment) };
        let tagged = packet.has_vlan() || start != ETHERNET;
        Ok(Walked { network, start, part, identification, tagged })
    }
}

/// Finds what is behind the VLAN tags: the EtherType, wire order, and the offset of what it is about.
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
    if is_tag(ether_type) || start > MAX_START { Err(Reason::Vlan) } else { Ok((ether_type, start)) }
}

/// Finds the IP header.
///
/// # Errors
///
/// [`Reason::Vlan`], [`Reason::NotIp`], [`Reason::OtherHost`], [`Reason::Truncated`], [`Reason::BadHeader`].
#[inline(always)]
pub fn network<P: Packet>(packet: &P) -> Result<Walked, Reason> {
    let (ether_type, start) = past_tags(packet)?;
    let tagged = packet.has_vlan() || start != ETHERNET;
    let (network, part, identification) = match is_ours(packet, ether_type)? {
        Family::V4 => {
            let header: Ipv4 = packet.load_variable(start).ok_or(Reason::Truncated)?;
            (from_ipv4(&header)?, header.part(), header.identification())
        }
        Family::V6 => {
            let header: Ipv6 = packet.load_variable(start).ok_or(Reason::Truncated)?;
            (from_ipv6(&header)?, Part::Whole, 0)
        }
    };
    Ok(Walked { network, start, part, identification, tagged })
}

#[inline(always)]
fn extensions<P: Packet>(packet: &P, start: usize, mut network: Network) -> Result<(Network, Part, u32), Reason> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    const DESTINATION: u8 = 60;

    let (mut part, mut identification) = (Part::Whole, 0);
    for _ in 0..MAX_EXTENSIONS + 1 {
        // Whichever headers came before, the verifier knows the same about the offset now.
        network.header = forgotten(network.header as u32) as usize;
        if network.header > MAX_HEADERS {
            return Err(Reason::ExtensionHeaders);
        }
        let offset = start.wrapping_add(network.header);
        let length = match network.protocol {
            HOP_BY_HOP | ROUTING | AUTHENTICATION | DESTINATION => {
                let [next, length, _, left]: [u8; 4] = packet.load_variable(offset).ok_or(Reason::Truncated)?;
                // A routing header with segments left: the destination is a waypoint (RFC 8200 section 4.4).
                if network.protocol == ROUTING && left != 0 {
                    return Err(Reason::ExtensionHeaders);
                }
                let authentication = network.protocol == AUTHENTICATION;
                network.protocol = next;
                // The authentication header counts in words of four bytes, two less than it has (RFC 4302 section 2.2).
                let length = usize::from(length);
                if authentication { length.wrapping_add(2) << 2 } else { length.wrapping_add(1) << 3 }
            }
            FRAGMENT => {
                let header: Ipv6Fragment = packet.load_variable(offset).ok_or(Reason::Truncated)?;
                if !matches!(part, Part::Whole) {
                    return Err(Reason::ExtensionHeaders);
                }
                (part, identification) = (header.part(), header.identification());
                network.protocol = header.next_header();
                Ipv6Fragment::SIZE
            }
            _ => return Ok((network, part, identification)),
        };
        network.header = network.header.wrapping_add(length);
        // What follows the header of a later fragment is the middle of something.
        if matches!(part, Part::Later) {
            return Ok((network, part, identification));
        }
    }
    Err(Reason::ExtensionHeaders)
}
