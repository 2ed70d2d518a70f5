//! Headers as they are in memory: every field in wire order, in the largest integer that is its own
//! size.
//!
//! The types have the layout of the wire, so that the BPF machine moves whole words. Numbers are
//! read and written through the functions of this module; nothing else swaps bytes.

use crate::abi::{Address, Port, UDP, pod};
use crate::wire::checksum;

/// TTL or hop limit of packets that the balancer answers with.
pub const REPLY_TTL: u8 = 64;

/// Which part of a fragmented packet a packet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FragmentKind {
    /// It is not fragmented.
    None,
    /// The first fragment, which holds the transport header.
    First,
    /// Any other fragment.
    NonFirst,
}

/// An IPv4 header without options (RFC 791 section 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Ipv4 {
    version_and_length: u8,
    tos: u8,
    total_length: u16,
    identification: u16,
    fragment: u16,
    ttl: u8,
    protocol: u8,
    checksum: u16,
    source: u32,
    destination: u32,
}
pod!(Ipv4, 20);

/// An IPv6 header without extension headers (RFC 8200 section 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Ipv6 {
    version_class_and_label: u32,
    payload_length: u16,
    next_header: u8,
    hop_limit: u8,
    source: [u32; 4],
    destination: [u32; 4],
}
pod!(Ipv6, 40);

/// An IPv6 fragment header (RFC 8200 section 4.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Ipv6Fragment {
    next_header: u8,
    reserved: u8,
    offset_and_more: u16,
    identification: u32,
}
pod!(Ipv6Fragment, 8);

/// The part of a TCP header that is read: its first 14 bytes (RFC 9293 section 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Tcp {
    /// Source port, wire order.
    pub source_port: Port,
    /// Destination port, wire order.
    pub destination_port: Port,
    sequence: [u16; 2],
    acknowledgement: [u16; 2],
    data_offset: u8,
    flags: u8,
}
pod!(Tcp, 14);

/// A UDP header (RFC 768).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Udp {
    /// Source port, wire order.
    pub source_port: Port,
    /// Destination port, wire order.
    pub destination_port: Port,
    length: u16,
    checksum: u16,
}
pod!(Udp, 8);

/// An IP header and the UDP header behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct IpUdp<T> {
    /// The IP header.
    pub ip: T,
    /// The UDP header.
    pub l4: Udp,
}
pod!(IpUdp<Ipv4>, 28);
pod!(IpUdp<Ipv6>, 48);

/// The start of an ICMP or ICMPv6 message (RFC 792, RFC 4443 section 2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Icmp {
    /// Its type.
    pub kind: u8,
    /// Its code.
    pub code: u8,
    /// Its checksum, wire order.
    pub checksum: u16,
    /// What the type makes of it.
    pub rest: u32,
}
pod!(Icmp, 8);

impl Icmp {
    /// Bytes of the header.
    pub const SIZE: usize = size_of::<Self>();

    /// The sum of its words, the checksum included, in wire order.
    #[inline(always)]
    pub const fn sum(&self) -> u32 {
        let first = u16::from_ne_bytes([self.kind, self.code]) as u32;
        first
            .wrapping_add(self.checksum as u32)
            .wrapping_add(self.rest & 0xffff)
            .wrapping_add(self.rest >> 16)
    }
}

impl Ipv4 {
    /// Bytes of the header.
    pub const SIZE: usize = size_of::<Self>();

    /// An IPv4 header that may not be fragmented, with its checksum. `total_length` and
    /// `identification` are numbers.
    #[inline(always)]
    pub const fn new(
        tos: u8,
        total_length: u16,
        identification: u16,
        ttl: u8,
        protocol: u8,
        source: u32,
        destination: u32,
    ) -> Self {
        /// The don't-fragment flag.
        const DONT_FRAGMENT: u16 = 0x4000;

        let mut header = Self {
            version_and_length: 0x45,
            tos,
            total_length: total_length.to_be(),
            identification: identification.to_be(),
            fragment: DONT_FRAGMENT.to_be(),
            ttl,
            protocol,
            checksum: 0,
            source,
            destination,
        };
        header.checksum = checksum::header_checksum(header.words());
        header
    }

    /// The header as five words in wire order.
    #[inline(always)]
    const fn words(&self) -> [u32; 5] {
        [
            word(self.version_and_length, self.tos, self.total_length),
            halves(self.identification, self.fragment),
            word(self.ttl, self.protocol, self.checksum),
            self.source,
            self.destination,
        ]
    }

    /// The version: 4, if this is an IPv4 header.
    #[inline(always)]
    pub const fn version(&self) -> u8 {
        self.version_and_length >> 4
    }

    /// Bytes of the header as it claims, options included.
    #[inline(always)]
    pub const fn length(&self) -> usize {
        ((self.version_and_length & 0xf) as usize) << 2
    }

    /// Bytes of the packet as the header claims.
    #[inline(always)]
    pub const fn total_length(&self) -> usize {
        u16::from_be(self.total_length) as usize
    }

    /// Whether this is a fragment: more of them follow, or it is not the first.
    #[inline(always)]
    pub const fn is_fragment(&self) -> bool {
        self.fragment & 0x3fff_u16.to_be() != 0
    }

    /// Which part of a fragmented packet this is.
    #[inline(always)]
    pub const fn fragment_kind(&self) -> FragmentKind {
        const OFFSET: u16 = 0x1fff;
        const MORE: u16 = 0x2000;

        let fragment = u16::from_be(self.fragment);
        if fragment & OFFSET != 0 {
            FragmentKind::NonFirst
        } else if fragment & MORE != 0 {
            FragmentKind::First
        } else {
            FragmentKind::None
        }
    }

    /// What all fragments of a packet have in common; means nothing for one that is whole (RFC
    /// 6864).
    #[inline(always)]
    pub const fn identification(&self) -> u32 {
        u16::from_be(self.identification) as u32
    }

    /// Type of service: DSCP and ECN.
    #[inline(always)]
    pub const fn tos(&self) -> u8 {
        self.tos
    }

    /// The header with another type of service, checksum updated.
    #[inline(always)]
    pub const fn with_tos(mut self, tos: u8) -> Self {
        if tos != self.tos {
            let old = u16::from_ne_bytes([self.version_and_length, self.tos]);
            let new = u16::from_ne_bytes([self.version_and_length, tos]);
            self.checksum = checksum::updated(self.checksum, old, new);
            self.tos = tos;
        }
        self
    }

    /// The header of an answer to the packet: addresses swapped, time to live new, checksum
    /// updated.
    #[inline(always)]
    pub const fn answered(self, ttl: u8) -> Self {
        let old = u16::from_ne_bytes([self.ttl, self.protocol]);
        let new = u16::from_ne_bytes([ttl, self.protocol]);
        let checksum = checksum::updated(self.checksum, old, new);
        Self { ttl, checksum, source: self.destination, destination: self.source, ..self }
    }

    /// Time to live.
    #[inline(always)]
    pub const fn ttl(&self) -> u8 {
        self.ttl
    }

    /// Protocol of what follows.
    #[inline(always)]
    pub const fn protocol(&self) -> u8 {
        self.protocol
    }

    /// Both addresses as words, wire order: source, destination.
    #[inline(always)]
    pub const fn addresses(&self) -> [u32; 2] {
        [self.source, self.destination]
    }

    /// Source address.
    #[inline(always)]
    pub const fn source(&self) -> Address {
        Address::v4(self.source)
    }

    /// Destination address.
    #[inline(always)]
    pub const fn destination(&self) -> Address {
        Address::v4(self.destination)
    }
}

impl Ipv6 {
    /// Bytes of the header.
    pub const SIZE: usize = size_of::<Self>();

    /// An IPv6 header. `flow_label` (its low 20 bits count) and `payload_length` are numbers,
    /// addresses in wire order.
    #[inline(always)]
    pub const fn new(
        traffic_class: u8,
        flow_label: u32,
        payload_length: u16,
        next_header: u8,
        hop_limit: u8,
        source: [u32; 4],
        destination: [u32; 4],
    ) -> Self {
        let first = 6 << 28 | (traffic_class as u32) << 20 | (flow_label & 0xf_ffff);
        Self {
            version_class_and_label: first.to_be(),
            payload_length: payload_length.to_be(),
            next_header,
            hop_limit,
            source,
            destination,
        }
    }

    /// The version: 6, if this is an IPv6 header.
    #[inline(always)]
    pub const fn version(&self) -> u8 {
        (u32::from_be(self.version_class_and_label) >> 28) as u8
    }

    /// Bytes behind the header as it claims.
    #[inline(always)]
    pub const fn payload_length(&self) -> usize {
        u16::from_be(self.payload_length) as usize
    }

    /// Traffic class: DSCP and ECN.
    #[inline(always)]
    pub const fn traffic_class(&self) -> u8 {
        (u32::from_be(self.version_class_and_label) >> 20) as u8
    }

    /// The header's first word, wire order, with another traffic class.
    #[inline(always)]
    pub const fn first_word_with_traffic_class(&self, class: u8) -> u32 {
        let first = u32::from_be(self.version_class_and_label) & 0xf00f_ffff;
        (first | (class as u32) << 20).to_be()
    }

    /// The header of an answer to the packet: addresses swapped, hop limit new.
    #[inline(always)]
    pub const fn answered(self, hop_limit: u8) -> Self {
        Self { hop_limit, source: self.destination, destination: self.source, ..self }
    }

    /// Hop limit.
    #[inline(always)]
    pub const fn hop_limit(&self) -> u8 {
        self.hop_limit
    }

    /// Protocol of what follows.
    #[inline(always)]
    pub const fn next_header(&self) -> u8 {
        self.next_header
    }

    /// Source address.
    #[inline(always)]
    pub const fn source(&self) -> Address {
        Address::v6(self.source)
    }

    /// Destination address.
    #[inline(always)]
    pub const fn destination(&self) -> Address {
        Address::v6(self.destination)
    }
}

impl Ipv6Fragment {
    /// Bytes of the header.
    pub const SIZE: usize = size_of::<Self>();

    /// Protocol of the fragmented part's first header.
    #[inline(always)]
    pub const fn next_header(&self) -> u8 {
        self.next_header
    }

    /// Which part of a fragmented packet this is. A fragment that is all of its packet (RFC 6946)
    /// is none.
    #[inline(always)]
    pub const fn fragment_kind(&self) -> FragmentKind {
        const OFFSET: u16 = 0xfff8;
        const MORE: u16 = 1;

        let bits = u16::from_be(self.offset_and_more);
        if bits & OFFSET != 0 {
            FragmentKind::NonFirst
        } else if bits & MORE != 0 {
            FragmentKind::First
        } else {
            FragmentKind::None
        }
    }

    /// What all fragments of a packet have in common.
    #[inline(always)]
    pub const fn identification(&self) -> u32 {
        u32::from_be(self.identification)
    }
}

impl Tcp {
    /// Bytes of a header without options.
    pub const SMALLEST: usize = 20;

    /// Bytes of the header as it claims, options included.
    #[inline(always)]
    pub const fn length(&self) -> usize {
        ((self.data_offset >> 4) as usize) << 2
    }

    /// Offset of the checksum.
    pub const CHECKSUM: usize = 16;

    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;

    /// Whether the segment is_syn a connection: SYN without ACK.
    #[inline(always)]
    pub const fn is_syn(&self) -> bool {
        self.flags & (Self::SYN | Self::ACK) == Self::SYN
    }

    /// Whether the segment has_syn: the first one of either side, which holds the options of a
    /// connection.
    #[inline(always)]
    pub const fn has_syn(&self) -> bool {
        self.flags & Self::SYN != 0
    }
}

impl Udp {
    /// Bytes of the header.
    pub const SIZE: usize = size_of::<Self>();

    /// A header without a checksum. `length`, in bytes, counts the header and is a number.
    #[inline(always)]
    pub const fn new(source_port: Port, destination_port: Port, length: u16) -> Self {
        Self { source_port, destination_port, length: length.to_be(), checksum: 0 }
    }

    /// The header with a checksum; `rest` is the sum of 32-bit words, wire order, of both addresses
    /// and all that follows the header.
    #[inline(always)]
    #[must_use]
    pub const fn with_checksum(mut self, rest: u64) -> Self {
        let [a, b] = self.source_port.wire();
        let [c, d] = self.destination_port.wire();
        // The length is in the pseudo-header, too (RFC 768).
        let sum = checksum::sum([
            u32::from_ne_bytes([a, b, c, d]),
            self.length as u32,
            self.length as u32,
        ]);
        // A number of 16 bits in wire order has the same weight wherever it stands in a word.
        let protocol = (UDP as u16).to_be() as u64;
        self.checksum = match !checksum::fold_wide(rest.wrapping_add(sum).wrapping_add(protocol)) {
            // Zero says that there is none.
            0 => u16::MAX,
            checksum => checksum,
        };
        self
    }

    /// Bytes of header and payload as it claims, and its checksum, 0 for none; both in wire order.
    #[inline(always)]
    pub const fn length_and_checksum(&self) -> [u16; 2] {
        [self.length, self.checksum]
    }
}

/// Two bytes and a half word in memory order as one word.
#[inline(always)]
const fn word(first: u8, second: u8, rest: u16) -> u32 {
    halves(u16::from_ne_bytes([first, second]), rest)
}

/// Two half words in memory order as one word.
#[inline(always)]
const fn halves(first: u16, second: u16) -> u32 {
    if cfg!(target_endian = "little") {
        first as u32 | (second as u32) << 16
    } else {
        (first as u32) << 16 | second as u32
    }
}
