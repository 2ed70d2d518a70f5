//! The decoder of captured frames: Ethernet, an optional outer IP or GUE header, and the packet.

use std::net::IpAddr;

use etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded;
use etherparse::{
    Ethernet2Header, Icmpv4Type, Icmpv6Type, IpNumber, LaxNetSlice, LaxSlicedPacket, LinkSlice,
    TcpSlice, TransportSlice, UdpSlice,
};

use super::checksums::L4Sums;
use super::topology::GUE_PORT;

/// Source address, source port, destination port and protocol of a TCP or UDP packet.
pub type FlowKey = (IpAddr, u16, u16, u8);

/// State of the checksum of an outer UDP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OuterChecksum {
    /// Correct, or correct once a device has completed the checksum inside.
    Good,
    /// 0: not computed.
    Zero,
    /// Wrong.
    Bad,
}

/// A frame with an IP packet.
#[derive(Clone, Debug)]
pub struct DecodedFrame<'a> {
    /// The Ethernet header.
    pub ethernet: Ethernet2Header,
    /// The outer header, of IP-in-IP or GUE.
    outer: Option<LaxSlicedPacket<'a>>,
    /// The packet without the outer header.
    packet: LaxSlicedPacket<'a>,
}

impl<'a> DecodedFrame<'a> {
    /// Decodes the first bytes of a frame; `None` if they hold no complete IP header, or no inner
    /// one after an outer header.
    pub fn decode(bytes: &'a [u8]) -> Option<Self> {
        let first = LaxSlicedPacket::from_ethernet(bytes).ok()?;
        let Some(LinkSlice::Ethernet2(ethernet)) = &first.link else { return None };
        let ethernet = ethernet.to_header();
        let inner = match first.net.as_ref()? {
            _ if gue(&first).is_some() => gue(&first).map(|udp| udp.payload()),
            LaxNetSlice::Ipv4(v4) => is_ip(v4.header().protocol()).then_some(v4.payload().payload),
            LaxNetSlice::Ipv6(v6) => {
                is_ip(v6.header().next_header()).then_some(v6.payload().payload)
            }
            LaxNetSlice::Arp(_) => return None,
        };
        Some(match inner {
            None => Self { ethernet, outer: None, packet: first },
            Some(inner) => {
                let packet = LaxSlicedPacket::from_ip(inner).ok()?;
                Self { ethernet, outer: Some(first), packet }
            }
        })
    }

    /// Whether there is an outer header.
    pub fn is_encapsulated(&self) -> bool {
        self.outer.is_some()
    }

    /// The outer IP header.
    pub fn outer_ip(&self) -> Option<&LaxNetSlice<'a>> {
        self.outer.as_ref()?.net.as_ref()
    }

    /// The IP header of the packet, the inner one if it is encapsulated.
    pub fn ip(&self) -> Option<&LaxNetSlice<'a>> {
        self.packet.net.as_ref()
    }

    /// The packet's source address.
    pub fn source(&self) -> Option<IpAddr> {
        self.ip().and_then(source)
    }

    /// The packet's destination address.
    pub fn destination(&self) -> Option<IpAddr> {
        self.ip().and_then(destination)
    }

    /// The TCP header.
    pub fn tcp(&self) -> Option<&TcpSlice<'a>> {
        match &self.packet.transport {
            Some(TransportSlice::Tcp(tcp)) => Some(tcp),
            _ => None,
        }
    }

    /// The outer UDP source port of GUE.
    pub fn gue_source_port(&self) -> Option<u16> {
        self.outer.as_ref().and_then(gue).map(|udp| udp.source_port())
    }

    /// The flow of a TCP or UDP packet.
    pub fn flow(&self) -> Option<FlowKey> {
        let source = self.source()?;
        match self.packet.transport.as_ref()? {
            TransportSlice::Tcp(tcp) => {
                Some((source, tcp.source_port(), tcp.destination_port(), IpNumber::TCP.0))
            }
            TransportSlice::Udp(udp) => {
                Some((source, udp.source_port(), udp.destination_port(), IpNumber::UDP.0))
            }
            _ => None,
        }
    }

    /// Whether the packet is an ICMP "fragmentation needed" or ICMPv6 "packet too big" error.
    pub fn is_too_big_error(&self) -> bool {
        match &self.packet.transport {
            Some(TransportSlice::Icmpv4(icmp)) => matches!(
                icmp.icmp_type(),
                Icmpv4Type::DestinationUnreachable(FragmentationNeeded { .. })
            ),
            Some(TransportSlice::Icmpv6(icmp)) => {
                matches!(icmp.icmp_type(), Icmpv6Type::PacketTooBig { .. })
            }
            _ => false,
        }
    }

    /// Whether the checksum of a TCP packet is correct or partial; `None` for other packets. Needs
    /// the whole frame.
    pub fn tcp_checksum_good(&self) -> Option<bool> {
        self.tcp()?;
        L4Sums::new(&self.packet).map(|sums| sums.is_good())
    }

    /// The state of the outer UDP checksum; `None` without an outer UDP header. Needs the whole
    /// frame.
    pub fn outer_checksum(&self) -> Option<OuterChecksum> {
        let outer = self.outer.as_ref()?;
        // Summing is skipped for nearly all bytes of large transfers.
        if gue(outer)?.checksum() == 0 {
            return Some(OuterChecksum::Zero);
        }
        let outer = L4Sums::new(outer)?;
        let good = match L4Sums::new(&self.packet) {
            // The outer checksum covers the inner one as the device will complete it.
            Some(inner) if inner.is_partial() => outer.is_correct_after(&inner),
            _ => outer.is_correct(),
        };
        Some(if good { OuterChecksum::Good } else { OuterChecksum::Bad })
    }
}

/// The source address of an IP header.
pub fn source(ip: &LaxNetSlice<'_>) -> Option<IpAddr> {
    match ip {
        LaxNetSlice::Ipv4(v4) => Some(v4.header().source_addr().into()),
        LaxNetSlice::Ipv6(v6) => Some(v6.header().source_addr().into()),
        LaxNetSlice::Arp(_) => None,
    }
}

/// The destination address of an IP header.
pub fn destination(ip: &LaxNetSlice<'_>) -> Option<IpAddr> {
    match ip {
        LaxNetSlice::Ipv4(v4) => Some(v4.header().destination_addr().into()),
        LaxNetSlice::Ipv6(v6) => Some(v6.header().destination_addr().into()),
        LaxNetSlice::Arp(_) => None,
    }
}

fn gue<'a>(packet: &LaxSlicedPacket<'a>) -> Option<UdpSlice<'a>> {
    match &packet.transport {
        Some(TransportSlice::Udp(udp)) if udp.destination_port() == GUE_PORT => Some(udp.clone()),
        _ => None,
    }
}

fn is_ip(protocol: IpNumber) -> bool {
    protocol == IpNumber::IPV4 || protocol == IpNumber::IPV6
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;
    use crate::lab::checksums::{fold, sum};
    use crate::lab::topology::VIP_V4;

    /// A frame with a TCP packet of 5 bytes payload.
    fn plain() -> Vec<u8> {
        let mut plain = Vec::new();
        let builder =
            PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 1, 2], VIP_V4.octets(), 64);
        builder.tcp(1000, 80, 7, 64_000).write(&mut plain, b"hello").unwrap();
        plain
    }

    fn in_ip() -> Vec<u8> {
        let mut frame = Vec::new();
        let outer =
            PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 1, 2], [10, 0, 1, 11], 64);
        outer.write(&mut frame, IpNumber::IPV4, &plain()[14..]).unwrap();
        frame
    }

    fn in_gue() -> Vec<u8> {
        let mut frame = Vec::new();
        let outer =
            PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 1, 2], [10, 0, 1, 11], 64);
        outer.udp(50_000, GUE_PORT).write(&mut frame, &plain()[14..]).unwrap();
        frame
    }

    fn tcp_checksum(frame: &mut [u8]) -> &mut [u8] {
        let at = frame.len() - 5 - 4;
        &mut frame[at..at + 2]
    }

    fn pseudo_header_sum() -> u16 {
        fold(sum(&[&[10, 0, 1, 2][..], &VIP_V4.octets(), &[0, 6, 0, 25]].concat()))
    }

    fn tcp_checksum_good(frame: &[u8]) -> Option<bool> {
        DecodedFrame::decode(frame)?.tcp_checksum_good()
    }

    fn outer_checksum(frame: &[u8]) -> Option<OuterChecksum> {
        DecodedFrame::decode(frame)?.outer_checksum()
    }

    #[test]
    fn a_plain_packet_has_no_outer_header() {
        let frame = plain();
        let decoded = DecodedFrame::decode(&frame).unwrap();
        assert!(!decoded.is_encapsulated() && decoded.outer_ip().is_none());
        assert_eq!(decoded.destination(), Some(VIP_V4.into()));
        let flow = ([10, 0, 1, 2].into(), 1000, 80, 6);
        for frame in [plain(), in_ip(), in_gue()] {
            assert_eq!(DecodedFrame::decode(&frame).unwrap().flow(), Some(flow));
        }
        assert!(DecodedFrame::decode(&in_ip()).unwrap().is_encapsulated());
    }

    #[test]
    fn complete_and_partial_tcp_checksums_are_good() {
        for mut frame in [plain(), in_ip(), in_gue()] {
            assert_eq!(tcp_checksum_good(&frame), Some(true));
            tcp_checksum(&mut frame)[0] ^= 1;
            assert_eq!(tcp_checksum_good(&frame), Some(false));
            tcp_checksum(&mut frame).copy_from_slice(&pseudo_header_sum().to_be_bytes());
            assert_eq!(tcp_checksum_good(&frame), Some(true));
        }
        assert_eq!(tcp_checksum_good(&[0; 20]), None);
    }

    #[test]
    fn an_outer_checksum_covers_a_partial_one_as_completed() {
        let mut frame = in_gue();
        assert_eq!(outer_checksum(&frame), Some(OuterChecksum::Good));
        tcp_checksum(&mut frame).copy_from_slice(&pseudo_header_sum().to_be_bytes());
        assert_eq!(outer_checksum(&frame), Some(OuterChecksum::Good));
        frame[14 + 20] ^= 1;
        assert_eq!(outer_checksum(&frame), Some(OuterChecksum::Bad));
        frame[14 + 26..14 + 28].fill(0);
        assert_eq!(outer_checksum(&frame), Some(OuterChecksum::Zero));
        assert_eq!(outer_checksum(&plain()), None);
        let decoded = DecodedFrame::decode(&frame).unwrap();
        assert_eq!(decoded.gue_source_port(), Some(50_000 ^ 0x100));
    }
}
