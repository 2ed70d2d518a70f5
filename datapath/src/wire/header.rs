//! Header layouts. Every field is in wire order, in an integer of the field's size.
//!
//! The types have the layout of the wire, so that BPF code copies whole words. Only the functions
//! of this module convert between wire order and host order.

use crate::abi::{Address, Port, UDP, pod};
use crate::wire::checksum;

/// TTL or hop limit of the balancer's replies.
pub const REPLY_TTL: u8 = 64;

/// The position of a packet among the fragments of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FragmentKind {
    /// Not fragmented.
    None,
    /// The first fragment, which contains the L4 header.
    First,
    /// A non-initial fragment.
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

/// The first 14 bytes of a TCP header, up to the flags (RFC 9293 section 3.1).
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

/// An IP header followed by a UDP header.
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
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// Checksum, wire order.
    pub checksum: u16,
    /// The second word, whose content depends on the type; wire order.
    pub rest: u32,
}
pod!(Icmp, 8);

impl Icmp {
    /// Bytes of the header.
    pub const SIZE: usize = size_of::<Self>();

    /// The sum of the 16-bit words, checksum included, in wire order.
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

    /// An IPv4 header with the don't-fragment flag and its checksum. `total_length` and
    /// `identification` are in host order, the addresses in wire order.
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

    /// Version field: 4 in an IPv4 header.
    #[inline(always)]
    pub const fn version(&self) -> u8 {
        self.version_and_length >> 4
    }

    /// Header length in bytes, from the header's length field.
    #[inline(always)]
    pub const fn length(&self) -> usize {
        ((self.version_and_length & 0xf) as usize) << 2
    }

    /// Total length of the packet in bytes, from the header.
    #[inline(always)]
    pub const fn total_length(&self) -> usize {
        u16::from_be(self.total_length) as usize
    }

    /// Whether this is a fragment: the more-fragments flag is set, or the fragment offset is not
    /// zero.
    #[inline(always)]
    pub const fn is_fragment(&self) -> bool {
        self.fragment & 0x3fff_u16.to_be() != 0
    }

    /// The fragment kind.
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

    /// Identification, host order. It has no meaning in a packet that is not a fragment (RFC 6864).
    #[inline(always)]
    pub const fn identification(&self) -> u32 {
        u16::from_be(self.identification) as u32
    }

    /// Type of service: DSCP and ECN.
    #[inline(always)]
    pub const fn tos(&self) -> u8 {
        self.tos
    }

    /// Replaces the type of service and updates the checksum.
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

    /// The header of a reply: swapped addresses, a new TTL and an updated checksum.
    #[inline(always)]
    pub const fn into_reply(self, ttl: u8) -> Self {
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

    /// Protocol of the next header.
    #[inline(always)]
    pub const fn protocol(&self) -> u8 {
        self.protocol
    }

    /// Source and destination address, wire order.
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

    /// An IPv6 header. `flow_label` (the lower 20 bits are used) and `payload_length` are in host
    /// order, the addresses in wire order.
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
        let first = (6 << 28) | ((traffic_class as u32) << 20) | (flow_label & 0xf_ffff);
        Self {
            version_class_and_label: first.to_be(),
            payload_length: payload_length.to_be(),
            next_header,
            hop_limit,
            source,
            destination,
        }
    }

    /// Version field: 6 in an IPv6 header.
    #[inline(always)]
    pub const fn version(&self) -> u8 {
        (u32::from_be(self.version_class_and_label) >> 28) as u8
    }

    /// Payload length in bytes, from the header.
    #[inline(always)]
    pub const fn payload_length(&self) -> usize {
        u16::from_be(self.payload_length) as usize
    }

    /// Traffic class: DSCP and ECN.
    #[inline(always)]
    pub const fn traffic_class(&self) -> u8 {
        (u32::from_be(self.version_class_and_label) >> 20) as u8
    }

    /// The header's first word with a different traffic class, wire order.
    #[inline(always)]
    pub const fn first_word_with_traffic_class(&self, class: u8) -> u32 {
        let first = u32::from_be(self.version_class_and_label) & 0xf00f_ffff;
        (first | (class as u32) << 20).to_be()
    }

    /// The header of a reply: swapped addresses and a new hop limit.
    #[inline(always)]
    pub const fn into_reply(self, hop_limit: u8) -> Self {
        Self { hop_limit, source: self.destination, destination: self.source, ..self }
    }

    /// Hop limit.
    #[inline(always)]
    pub const fn hop_limit(&self) -> u8 {
        self.hop_limit
    }

    /// Protocol of the next header.
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

    /// Protocol of the first header of the fragmentable part.
    #[inline(always)]
    pub const fn next_header(&self) -> u8 {
        self.next_header
    }

    /// The fragment kind. An atomic fragment (RFC 6946) is [`FragmentKind::None`].
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

    /// Identification, host order.
    #[inline(always)]
    pub const fn identification(&self) -> u32 {
        u32::from_be(self.identification)
    }
}

impl Tcp {
    /// Length of a header without options in bytes.
    pub const SMALLEST: usize = 20;

    /// Header length in bytes, from the header's length field.
    #[inline(always)]
    pub const fn length(&self) -> usize {
        ((self.data_offset >> 4) as usize) << 2
    }

    /// Offset of the checksum.
    pub const CHECKSUM: usize = 16;

    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;

    /// Whether the segment opens a connection: SYN without ACK.
    #[inline(always)]
    pub const fn is_syn(&self) -> bool {
        (self.flags & (Self::SYN | Self::ACK)) == Self::SYN
    }

    /// Whether the segment is a SYN or SYN-ACK, which contain the options of a connection.
    #[inline(always)]
    pub const fn has_syn(&self) -> bool {
        self.flags & Self::SYN != 0
    }
}

impl Udp {
    /// Bytes of the header.
    pub const SIZE: usize = size_of::<Self>();

    /// A header without a checksum. `length` is in bytes and host order, header included.
    #[inline(always)]
    pub const fn new(source_port: Port, destination_port: Port, length: u16) -> Self {
        Self { source_port, destination_port, length: length.to_be(), checksum: 0 }
    }

    /// Sets the checksum. `rest` is the sum of 32-bit words in wire order of both addresses and of
    /// the UDP payload.
    #[inline(always)]
    #[must_use]
    pub const fn with_checksum(mut self, rest: u64) -> Self {
        let [a, b] = self.source_port.wire();
        let [c, d] = self.destination_port.wire();
        // The pseudo-header contains the length as well (RFC 768).
        let sum = checksum::sum([
            u32::from_ne_bytes([a, b, c, d]),
            self.length as u32,
            self.length as u32,
        ]);
        // A 16-bit value in wire order adds the same to the sum in either half of a word.
        let protocol = (UDP as u16).to_be() as u64;
        self.checksum = match !checksum::fold_wide(rest.wrapping_add(sum).wrapping_add(protocol)) {
            // Zero means no checksum (RFC 768).
            0 => u16::MAX,
            checksum => checksum,
        };
        self
    }

    /// The length field, and the checksum, 0 for none. Both in wire order.
    #[inline(always)]
    pub const fn length_and_checksum(&self) -> [u16; 2] {
        [self.length, self.checksum]
    }
}

/// Two bytes and a 16-bit value in memory order as one word.
#[inline(always)]
const fn word(first: u8, second: u8, rest: u16) -> u32 {
    halves(u16::from_ne_bytes([first, second]), rest)
}

/// Two 16-bit values in memory order as one word.
#[inline(always)]
const fn halves(first: u16, second: u16) -> u32 {
    if cfg!(target_endian = "little") {
        first as u32 | ((second as u32) << 16)
    } else {
        ((first as u32) << 16) | second as u32
    }
}
