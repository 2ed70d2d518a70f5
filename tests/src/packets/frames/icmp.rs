//! ICMP messages built with etherparse: errors that quote a packet from a VIP, and echo requests.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpNumber};

use super::client::Client;
use super::headers::{self, ETHERNET, framed, turned_back};

/// The router between client and balancer that sends ICMP errors.
pub const ROUTER_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 254);
/// The same for IPv6.
pub const ROUTER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x99, 0, 0, 0, 0, 0xfe);

/// An ICMP error; every field may be changed before [`IcmpError::frame`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IcmpError {
    /// A packet of the flow in the client's direction; the error quotes a packet of the reverse
    /// direction.
    pub client: Client,
    /// ICMP type.
    pub kind: u8,
    /// Bytes quoted after the quoted IP header; `None` for all.
    pub quoted: Option<usize>,
    /// Bytes of IPv4 options or of an IPv6 extension header in the quoted packet, a multiple of 8.
    pub options: usize,
    /// Offset in units of eight bytes and MF, if the quoted packet is a fragment.
    pub fragment: Option<(u16, bool)>,
    /// Destination of the error, if it is not the quoted source.
    pub to: Option<IpAddr>,
    /// Source of the error, if it is not the router.
    pub from: Option<IpAddr>,
    /// TTL or hop limit of the error.
    pub ttl: u8,
    /// TOS or traffic class of the error.
    pub tos: u8,
}

impl IcmpError {
    /// An error of type `kind` that quotes a whole packet to a client.
    pub fn new(client: &Client, kind: u8) -> Self {
        let client = client.clone();
        Self {
            client,
            kind,
            quoted: None,
            options: 0,
            fragment: None,
            to: None,
            from: None,
            ttl: 61,
            tos: 0xc0,
        }
    }

    /// The quoted packet.
    fn quote(&self) -> Vec<u8> {
        let client = Client {
            source: self.client.destination,
            destination: self.client.source,
            ..self.client.clone()
        };
        let mut packet = if client.is_v6() {
            self.extended(&client.packet())
        } else {
            let (offset, more) = self.fragment.unwrap_or((0, false));
            Client {
                options: self.options,
                fragment: (self.fragment.is_none(), more, offset),
                ..client
            }
            .packet()
        };
        if let Some(bytes) = self.quoted {
            let fragment = if self.client.is_v6() && self.fragment.is_some() { 8 } else { 0 };
            packet.truncate(self.fixed() + self.options + fragment + bytes);
        }
        packet
    }

    /// The IPv6 packet with its extension header and fragment header inserted.
    fn extended(&self, packet: &[u8]) -> Vec<u8> {
        const DESTINATION_OPTIONS: u8 = 60;
        const FRAGMENT: u8 = 44;

        let mut packet = packet.to_vec();
        if let Some((offset, more)) = self.fragment {
            let next = std::mem::replace(&mut packet[6], FRAGMENT);
            let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
            packet.splice(40..40, [next, 0, high, low, 0, 0, 0, 7]);
        }
        if self.options > 0 {
            let next = std::mem::replace(&mut packet[6], DESTINATION_OPTIONS);
            let mut header = vec![0; self.options];
            header[..2].copy_from_slice(&[next, (self.options / 8 - 1) as u8]);
            packet.splice(40..40, header);
        }
        let payload = packet.len() as u16 - 40;
        packet[4..6].copy_from_slice(&payload.to_be_bytes());
        packet
    }

    /// Bytes of an IP header of the family.
    pub fn fixed(&self) -> usize {
        if self.client.is_v6() { 40 } else { 20 }
    }

    /// The IP packet.
    pub fn packet(&self) -> Vec<u8> {
        // Bytes 5 to 8 depend on the type: here the MTU of "fragmentation needed" and "packet too
        // big".
        let rest = 1400_u32.to_be_bytes();
        let code = u8::from(self.kind == 3 && !self.client.is_v6()) * 4;
        let to = self.to.unwrap_or(self.client.destination.ip());
        let router = if self.client.is_v6() { ROUTER_V6.into() } else { ROUTER_V4.into() };
        let router = self.from.unwrap_or(router);
        message(router, to, (self.ttl, self.tos), [self.kind, code], rest, &self.quote())
    }

    /// The frame.
    pub fn frame(&self) -> Vec<u8> {
        framed(&self.packet())
    }
}

/// An echo request; every field may be changed before [`EchoRequest::frame`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EchoRequest {
    /// Source address.
    pub source: IpAddr,
    /// Destination address, of the same family.
    pub destination: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// TOS or traffic class.
    pub tos: u8,
    /// Identifier and sequence number.
    pub rest: [u8; 4],
    /// Data after the sequence number.
    pub payload: Vec<u8>,
}

impl EchoRequest {
    /// An echo request from a client to the VIP address of its family.
    pub fn new(client: &Client) -> Self {
        Self {
            source: client.source.ip(),
            destination: client.destination.ip(),
            ttl: 57,
            tos: 0,
            rest: [0x12, 0x34, 0, 1],
            payload: (0..56_u8).map(|i| i.wrapping_mul(5).wrapping_add(1)).collect(),
        }
    }

    /// The IP packet.
    pub fn packet(&self) -> Vec<u8> {
        let kind = if self.source.is_ipv6() { 128 } else { 8 };
        self.of_kind(kind, self.source, self.destination, self.ttl)
    }

    /// The IP packet of the echo reply.
    pub fn answer(&self) -> Vec<u8> {
        let kind = if self.source.is_ipv6() { 129 } else { 0 };
        self.of_kind(kind, self.destination, self.source, 64)
    }

    fn of_kind(&self, kind: u8, source: IpAddr, destination: IpAddr, ttl: u8) -> Vec<u8> {
        message(source, destination, (ttl, self.tos), [kind, 0], self.rest, &self.payload)
    }

    /// The frame.
    pub fn frame(&self) -> Vec<u8> {
        framed(&self.packet())
    }
}

/// An IP packet with an ICMP message: TTL and TOS, type and code, the four bytes after the
/// checksum.
pub fn message(
    source: IpAddr,
    destination: IpAddr,
    (ttl, class): (u8, u8),
    [kind, code]: [u8; 2],
    rest: [u8; 4],
    payload: &[u8],
) -> Vec<u8> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let unknown = Icmpv4Type::Unknown { type_u8: kind, code_u8: code, bytes5to8: rest };
            let icmp = Icmpv4Header::with_checksum(unknown, payload);
            let mut header = headers::ipv4(source, destination, class, ttl, IpNumber::ICMP);
            header.set_payload_len(8 + payload.len()).expect("the packet is short");
            header.header_checksum = header.calc_header_checksum();
            [&header.to_bytes()[..], &icmp.to_bytes(), payload].concat()
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let unknown = Icmpv6Type::Unknown { type_u8: kind, code_u8: code, bytes5to8: rest };
            let icmp = Icmpv6Header::with_checksum(
                unknown,
                source.octets(),
                destination.octets(),
                payload,
            )
            .expect("the message is short");
            let header = headers::ipv6(
                source,
                destination,
                class,
                0x2_1421,
                ttl,
                IpNumber::IPV6_ICMP,
                8 + payload.len(),
            );
            [&header.to_bytes()[..], &icmp.to_bytes(), payload].concat()
        }
        _ => unreachable!("both addresses are of one family"),
    }
}

/// The ICMP error in reply to a client's frame whose IP header is `header` bytes long. It reports
/// `mtu` and quotes the frame up to a packet length of 576 (IPv4) or 1280 bytes (IPv6). If an L4
/// header of protocol `transport` directly follows the IP header, its checksum field is the partial
/// checksum that makes the packet's sum zero, because the kernel may complete it.
pub fn packet_too_big(frame: &[u8], header: usize, transport: Option<u8>, mtu: u32) -> Vec<u8> {
    let v6 = frame[ETHERNET] >> 4 == 6;
    let mut quote = frame[ETHERNET..][..if v6 { 1280 - 48 } else { 576 - 28 }].to_vec();
    if let Some(protocol) = transport {
        let field = header + if protocol == 6 { 16 } else { 6 };
        quote[field..field + 2].fill(0);
        // The sum of an IPv4 header is zero.
        let sum = u64::from(sum(&quote[if v6 { header } else { 0 }..]));
        let checksum = (65_535 - sum % 65_535) * 32_768 % 65_535;
        quote[field..field + 2].copy_from_slice(&(checksum as u16).to_be_bytes());
    }
    let (client, vip): (IpAddr, IpAddr) = if v6 {
        let at =
            |at: usize| <[u8; 16]>::try_from(&frame[ETHERNET + at..][..16]).expect("sixteen bytes");
        (at(8).into(), at(24).into())
    } else {
        let at = |at: usize| <[u8; 4]>::try_from(&frame[ETHERNET + at..][..4]).expect("four bytes");
        (at(12).into(), at(16).into())
    };
    let [kind, code] = if v6 { [2, 0] } else { [3, 4] };
    let mut packet = message(vip, client, (64, 0xc0), [kind, code], mtu.to_be_bytes(), &quote);
    if v6 {
        // The flow label is zero.
        packet[1..4].copy_from_slice(&[0, 0, 0]);
    }
    turned_back(frame, &packet)
}

/// The ones' complement sum of RFC 1071, not complemented.
pub fn sum<'a>(bytes: impl IntoIterator<Item = &'a u8>) -> u32 {
    let bytes = bytes.into_iter().enumerate();
    let mut sum =
        bytes.map(|(i, byte)| u32::from(*byte) << if i % 2 == 0 { 8 } else { 0 }).sum::<u32>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}
