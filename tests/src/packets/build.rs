//! Frames built with etherparse, which also computes every checksum.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::{
    EtherType, Ethernet2Header, IpDscp, IpEcn, IpNumber, Ipv4Header, Ipv4Options, Ipv6FlowLabel,
    Ipv6Header, TcpHeader, UdpHeader,
};

use super::world::{GUE_PORT, UNDERLAY_V4, UNDERLAY_V6, VIP_V4, VIP_V6};

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;
/// Link address of the sender of every frame.
pub const SENDER: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
/// Link address of the receiver: that of the device that a test run gives to a frame, the
/// namespace's loopback device.
pub const RECEIVER: [u8; 6] = [0; 6];
/// Link addresses that are somebody else's: another host's, everybody's, a group's.
pub const OTHERS: [[u8; 6]; 3] = [[0x02, 0, 0, 0, 0, 0x02], [0xff; 6], [0x01, 0, 0x5e, 0, 0, 0x01]];

/// The transport header of a client's packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// A segment that opens a connection.
    TcpSyn,
    /// Any other segment.
    TcpAck,
    /// A segment of the server's side of the handshake.
    TcpSynAck,
    /// A datagram.
    Udp,
}

/// A client's packet; every field may be changed before [`Client::frame`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// Client's address and port.
    pub source: SocketAddr,
    /// Destination address and port, of the same family.
    pub destination: SocketAddr,
    /// Transport header.
    pub transport: Transport,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// Time to live, or hop limit.
    pub hops: u8,
    /// IPv4 options, a multiple of four bytes up to 40.
    pub options: usize,
    /// TCP options, a multiple of four bytes up to 40.
    pub tcp_options: usize,
    /// Bytes behind the transport header.
    pub payload: usize,
    /// What the payload begins with; as much of it as there is room.
    pub begins: Vec<u8>,
    /// IPv4 fragmentation: don't fragment, more fragments, offset in eight bytes.
    pub fragment: (bool, bool, u16),
}

impl Client {
    /// A segment to 443/tcp at [`VIP_V4`].
    pub fn tcp4() -> Self {
        Self::new(
            (Ipv4Addr::new(198, 51, 100, 7), 40_001).into(),
            (VIP_V4, 443).into(),
            Transport::TcpAck,
        )
    }

    /// A segment to 443/tcp at [`VIP_V6`].
    pub fn tcp6() -> Self {
        let client = Ipv6Addr::new(0x2001, 0xdb8, 0x99, 0, 0, 0, 0, 7);
        Self::new((client, 40_001).into(), (VIP_V6, 443).into(), Transport::TcpAck)
    }

    /// A datagram to 53/udp at [`VIP_V4`].
    pub fn udp4() -> Self {
        let mut client = Self::tcp4();
        client.destination.set_port(53);
        Self { transport: Transport::Udp, ..client }
    }

    /// A datagram to 53/udp at [`VIP_V6`].
    pub fn udp6() -> Self {
        let mut client = Self::tcp6();
        client.destination.set_port(53);
        Self { transport: Transport::Udp, ..client }
    }

    /// One of each.
    pub fn each() -> [Self; 4] {
        [Self::tcp4(), Self::tcp6(), Self::udp4(), Self::udp6()]
    }

    /// A segment that opens a connection, of either family.
    pub fn syn(v6: bool) -> Self {
        let client = if v6 { Self::tcp6() } else { Self::tcp4() };
        Self { transport: Transport::TcpSyn, ..client }
    }

    fn new(source: SocketAddr, destination: SocketAddr, transport: Transport) -> Self {
        Self {
            source,
            destination,
            transport,
            traffic_class: 0,
            hops: 57,
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
        let protocol = if self.transport == Transport::Udp { IpNumber::UDP } else { IpNumber::TCP };
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
                    ..ipv4(source, destination, self.traffic_class, self.hops, protocol)
                };
                header.set_payload_len(transport.len()).expect("the packet is short");
                header.header_checksum = header.calc_header_checksum();
                [&header.to_bytes()[..], &transport].concat()
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let header = ipv6(
                    source,
                    destination,
                    self.traffic_class,
                    0x4_2142,
                    self.hops,
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
        if self.transport == Transport::Udp {
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
        header.syn = self.transport != Transport::TcpAck;
        header.ack = self.transport != Transport::TcpSyn;
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

/// A frame of any kind.
pub fn ethernet(ether_type: EtherType, content: &[u8]) -> Vec<u8> {
    let header = Ethernet2Header { source: SENDER, destination: RECEIVER, ether_type };
    [&header.to_bytes()[..], content].concat()
}

/// An IPv4 header that may not be fragmented; length and checksum are the caller's.
pub fn ipv4(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    class: u8,
    hops: u8,
    protocol: IpNumber,
) -> Ipv4Header {
    Ipv4Header {
        dscp: IpDscp::try_new(class >> 2).expect("six bits"),
        ecn: IpEcn::try_new(class & 3).expect("two bits"),
        dont_fragment: true,
        time_to_live: hops,
        protocol,
        source: source.octets(),
        destination: destination.octets(),
        ..Ipv4Header::default()
    }
}

/// An IPv6 header.
pub fn ipv6(
    source: Ipv6Addr,
    destination: Ipv6Addr,
    class: u8,
    flow_label: u32,
    hops: u8,
    next_header: IpNumber,
    payload: usize,
) -> Ipv6Header {
    Ipv6Header {
        traffic_class: class,
        flow_label: Ipv6FlowLabel::try_new(flow_label).expect("20 bits"),
        payload_length: payload.try_into().unwrap_or(0),
        next_header,
        hop_limit: hops,
        source: source.octets(),
        destination: destination.octets(),
    }
}

/// The outer IPv4 header that a balancer writes in front of an IPv6 packet of `length` bytes.
pub fn outer_v4_of_v6(destination: Ipv4Addr, class: u8, hint: u16, length: usize) -> Vec<u8> {
    outer_v4_of(IpNumber::IPV6, destination, class, hint, length)
}

/// The outer IPv6 header that a balancer writes in front of an IPv4 packet of `length` bytes.
pub fn outer_v6_of_v4(destination: Ipv6Addr, class: u8, hint: u16, length: usize) -> Vec<u8> {
    ipv6(UNDERLAY_V6, destination, class, hint.into(), 64, IpNumber::IPV4, length)
        .to_bytes()
        .to_vec()
}

/// The outer IPv4 header that a balancer writes in front of an IPv4 packet of `length` bytes.
pub fn outer_v4(destination: Ipv4Addr, class: u8, hint: u16, length: usize) -> Vec<u8> {
    outer_v4_of(IpNumber::IPV4, destination, class, hint, length)
}

fn outer_v4_of(
    inner: IpNumber,
    destination: Ipv4Addr,
    class: u8,
    hint: u16,
    length: usize,
) -> Vec<u8> {
    let mut header = ipv4(UNDERLAY_V4, destination, class, 64, inner);
    // Only the upper ten bits: the kernel counts the lower six up when it cuts a merged packet.
    header.identification = hint >> 6 << 6;
    header.total_len = (length + 20).try_into().unwrap_or(0);
    header.header_checksum = header.calc_header_checksum();
    header.to_bytes().to_vec()
}

/// The outer IPv6 header that a balancer writes in front of an IPv6 packet of `length` bytes.
pub fn outer_v6(destination: Ipv6Addr, class: u8, hint: u16, length: usize) -> Vec<u8> {
    ipv6(UNDERLAY_V6, destination, class, hint.into(), 64, IpNumber::IPV6, length)
        .to_bytes()
        .to_vec()
}

/// The outer headers of GUE in front of a packet of `length` bytes: `outer`, that of IP-in-IP, as a
/// header of UDP, and behind it that of UDP from the port that a flow's hash selects. Its checksum
/// covers `summed`, with which there is one.
pub fn in_udp(outer: &[u8], length: usize, hash: u64, summed: Option<&[u8]>) -> Vec<u8> {
    let (from, to) = (49_152 + (hash % 16_384) as u16, GUE_PORT.number());
    let unsummed =
        |length| UdpHeader { source_port: from, destination_port: to, length, checksum: 0 };
    if outer[0] >> 4 == 4 {
        let (mut header, _) = Ipv4Header::from_slice(outer).expect("it is a header");
        header.protocol = IpNumber::UDP;
        header.total_len = (length + 28).try_into().unwrap_or(0);
        header.header_checksum = header.calc_header_checksum();
        let udp = summed.map(|bytes| {
            UdpHeader::with_ipv4_checksum(from, to, &header, bytes).expect("it is short")
        });
        let udp = udp.unwrap_or_else(|| unsummed(header.total_len.saturating_sub(20)));
        return [&header.to_bytes()[..], &udp.to_bytes()].concat();
    }
    let (mut header, _) = Ipv6Header::from_slice(outer).expect("it is a header");
    header.next_header = IpNumber::UDP;
    header.payload_length = (length + 8).try_into().unwrap_or(0);
    let udp = summed
        .map(|bytes| UdpHeader::with_ipv6_checksum(from, to, &header, bytes).expect("it is short"));
    let udp = udp.unwrap_or_else(|| unsummed(header.payload_length));
    [&header.to_bytes()[..], &udp.to_bytes()].concat()
}

/// A frame with an outer header between its Ethernet header and the rest.
pub fn wrapped(frame: &[u8], outer: &[u8]) -> Vec<u8> {
    wrapped_behind(frame, ETHERNET, outer)
}

/// A frame whose IP header is at `start`, behind tags, with an outer header in front of that, and
/// the tags gone.
pub fn wrapped_behind(frame: &[u8], start: usize, outer: &[u8]) -> Vec<u8> {
    let ether_type = if outer[0] >> 4 == 4 { EtherType::IPV4 } else { EtherType::IPV6 };
    [&frame[..ETHERNET - 2], &ether_type.0.to_be_bytes(), outer, &frame[start..]].concat()
}

/// A frame with VLAN tags, the outermost first: EtherType and identifier of each.
pub fn tagged(frame: &[u8], tags: &[(u16, u16)]) -> Vec<u8> {
    let tags = tags.iter().flat_map(|(kind, id)| [kind.to_be_bytes(), id.to_be_bytes()].concat());
    [&frame[..ETHERNET - 2], &tags.collect::<Vec<_>>(), &frame[ETHERNET - 2..]].concat()
}
