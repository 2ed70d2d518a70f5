//! Packets that clients send, built with etherparse, which also computes every checksum.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::{EtherType, IpNumber, Ipv4Header, Ipv4Options, TcpHeader, UdpHeader};

use super::headers::{ethernet, ipv4, ipv6};
use crate::packets::addresses::{VIP_V4, VIP_V6};

/// The L4 header of a client's packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum L4Kind {
    /// A SYN.
    TcpSyn,
    /// An ACK.
    TcpAck,
    /// A SYN-ACK.
    TcpSynAck,
    /// A UDP datagram.
    Udp,
}

/// A client's packet; every field may be changed before [`Client::frame`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// Client's address and port.
    pub source: SocketAddr,
    /// Destination address and port, of the same family.
    pub destination: SocketAddr,
    /// L4 header.
    pub transport: L4Kind,
    /// TOS or traffic class: DSCP and ECN.
    pub tos: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// IPv4 options, a multiple of four bytes up to 40.
    pub options: usize,
    /// TCP options, a multiple of four bytes up to 40.
    pub tcp_options: usize,
    /// Bytes after the L4 header.
    pub payload: usize,
    /// The first bytes of the payload, truncated to its length.
    pub begins: Vec<u8>,
    /// IPv4 fragmentation: DF, MF, offset in units of eight bytes.
    pub fragment: (bool, bool, u16),
}

impl Client {
    /// An ACK to 443/tcp at [`VIP_V4`].
    pub fn tcp4() -> Self {
        Self::new(
            (Ipv4Addr::new(198, 51, 100, 7), 40_001).into(),
            (VIP_V4, 443).into(),
            L4Kind::TcpAck,
        )
    }

    /// An ACK to 443/tcp at [`VIP_V6`].
    pub fn tcp6() -> Self {
        let client = Ipv6Addr::new(0x2001, 0xdb8, 0x99, 0, 0, 0, 0, 7);
        Self::new((client, 40_001).into(), (VIP_V6, 443).into(), L4Kind::TcpAck)
    }

    /// A datagram to 53/udp at [`VIP_V4`].
    pub fn udp4() -> Self {
        let mut client = Self::tcp4();
        client.destination.set_port(53);
        Self { transport: L4Kind::Udp, ..client }
    }

    /// A datagram to 53/udp at [`VIP_V6`].
    pub fn udp6() -> Self {
        let mut client = Self::tcp6();
        client.destination.set_port(53);
        Self { transport: L4Kind::Udp, ..client }
    }

    /// One client of each kind.
    pub fn each() -> [Self; 4] {
        [Self::tcp4(), Self::tcp6(), Self::udp4(), Self::udp6()]
    }

    /// A SYN of a family.
    pub fn syn(v6: bool) -> Self {
        let client = if v6 { Self::tcp6() } else { Self::tcp4() };
        Self { transport: L4Kind::TcpSyn, ..client }
    }

    fn new(source: SocketAddr, destination: SocketAddr, transport: L4Kind) -> Self {
        Self {
            source,
            destination,
            transport,
            tos: 0,
            ttl: 57,
            options: 0,
            tcp_options: 0,
            payload: 64,
            begins: Vec::new(),
            fragment: (true, false, 0),
        }
    }

    /// The same from another port.
    #[must_use]
    pub fn from_port(mut self, port: u16) -> Self {
        self.source.set_port(port);
        self
    }

    /// The same to another port.
    #[must_use]
    pub fn to_port(mut self, port: u16) -> Self {
        self.destination.set_port(port);
        self
    }

    /// The same to another address.
    #[must_use]
    pub fn to_address(mut self, address: impl Into<IpAddr>) -> Self {
        self.destination.set_ip(address.into());
        self
    }

    /// Whether it is IPv6.
    pub fn is_v6(&self) -> bool {
        self.source.is_ipv6()
    }

    /// The IP packet.
    pub fn packet(&self) -> Vec<u8> {
        let mut payload: Vec<u8> = (0..self.payload).map(|i| (i * 7 + 3) as u8).collect();
        let begins = self.begins.len().min(payload.len());
        payload[..begins].copy_from_slice(&self.begins[..begins]);
        let transport = self.transport_bytes(&payload);
        let protocol = if self.transport == L4Kind::Udp { IpNumber::UDP } else { IpNumber::TCP };
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let (dont_fragment, more_fragments, offset) = self.fragment;
                let mut options = [1; 40];
                options[self.options.saturating_sub(1)..].fill(0);
                let mut header = Ipv4Header {
                    identification: 0x1d3c,
                    dont_fragment,
                    more_fragments,
                    fragment_offset: offset.try_into().expect("an offset has 13 bits"),
                    options: Ipv4Options::try_from(&options[..self.options])
                        .expect("a valid length"),
                    ..ipv4(source, destination, self.tos, self.ttl, protocol)
                };
                header.set_payload_len(transport.len()).expect("the packet is short");
                header.header_checksum = header.calc_header_checksum();
                [&header.to_bytes()[..], &transport].concat()
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let header = ipv6(
                    source,
                    destination,
                    self.tos,
                    0x4_2142,
                    self.ttl,
                    protocol,
                    transport.len(),
                );
                [&header.to_bytes()[..], &transport].concat()
            }
            _ => unreachable!("both addresses are of one family"),
        }
    }

    fn transport_bytes(&self, payload: &[u8]) -> Vec<u8> {
        let (source, destination) = (self.source.port(), self.destination.port());
        let addresses = (self.source.ip(), self.destination.ip());
        if self.transport == L4Kind::Udp {
            let header = match addresses {
                (IpAddr::V4(a), IpAddr::V4(b)) => UdpHeader::with_ipv4_checksum(
                    source,
                    destination,
                    &header_v4(a, b, IpNumber::UDP),
                    payload,
                ),
                (IpAddr::V6(a), IpAddr::V6(b)) => UdpHeader::with_ipv6_checksum(
                    source,
                    destination,
                    &ipv6(a, b, 0, 0, 1, IpNumber::UDP, 0),
                    payload,
                ),
                _ => unreachable!("both addresses are of one family"),
            };
            return [&header.expect("the datagram is short").to_bytes()[..], payload].concat();
        }
        let mut header = TcpHeader::new(source, destination, 0x1122_3344, 64_000);
        header.syn = self.transport != L4Kind::TcpAck;
        header.ack = self.transport != L4Kind::TcpSyn;
        header.set_options_raw(&[1; 40][..self.tcp_options]).expect("a valid length");
        header.checksum = match addresses {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                header.calc_checksum_ipv4(&header_v4(a, b, IpNumber::TCP), payload)
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                header.calc_checksum_ipv6(&ipv6(a, b, 0, 0, 1, IpNumber::TCP, 0), payload)
            }
            _ => unreachable!("both addresses are of one family"),
        }
        .expect("the segment is short");
        [&header.to_bytes()[..], payload].concat()
    }

    /// The frame.
    pub fn frame(&self) -> Vec<u8> {
        ethernet(if self.is_v6() { EtherType::IPV6 } else { EtherType::IPV4 }, &self.packet())
    }
}

fn header_v4(source: Ipv4Addr, destination: Ipv4Addr, protocol: IpNumber) -> Ipv4Header {
    ipv4(source, destination, 0, 1, protocol)
}
