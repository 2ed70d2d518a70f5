//! Reading one encapsulated packet off the wire: header by header, with what must be true of each.

use super::capture::Frame;
use super::topology::{Family, Host, WEB_PORT, balancers, clients};
use anyhow::{Context, Result, ensure};
use etherparse::{EtherType, Ethernet2Header, IpNumber, Ipv4Header, Ipv6Header, TcpHeader};
use std::net::IpAddr;

/// A statement about a packet, and whether it holds.
pub type Statement = (String, bool);

/// A TCP SYN in its two IP headers.
#[derive(Clone, Debug)]
pub struct Encapsulated {
    length: usize,
    ethernet: Ethernet2Header,
    ip: Headers,
    tcp: TcpHeader,
}

/// Outer and inner header. The lab encapsulates each version in itself.
#[derive(Clone, Debug)]
enum Headers {
    V4 { outer: Ipv4Header, inner: Ipv4Header },
    V6 { outer: Ipv6Header, inner: Ipv6Header },
}

impl Encapsulated {
    /// Decodes a frame; an error says at which header it is not an encapsulated TCP packet of that
    /// version.
    pub fn decode(frame: &Frame, family: Family) -> Result<Self> {
        let (ethernet, rest) =
            Ethernet2Header::from_slice(&frame.bytes).context("no Ethernet header")?;
        let (ip, rest) = match family {
            Family::V4 => {
                ensure!(ethernet.ether_type == EtherType::IPV4, "no IPv4 packet");
                let (outer, rest) = Ipv4Header::from_slice(rest).context("no outer IPv4 header")?;
                ensure!(
                    outer.protocol == IpNumber::IPV4,
                    "the protocol is {:?}, not IPv4-in-IPv4",
                    outer.protocol
                );
                let (inner, rest) = Ipv4Header::from_slice(rest).context("no inner IPv4 header")?;
                ensure!(
                    inner.protocol == IpNumber::TCP,
                    "the inner protocol is {:?}, not TCP",
                    inner.protocol
                );
                (Headers::V4 { outer, inner }, rest)
            }
            Family::V6 => {
                ensure!(ethernet.ether_type == EtherType::IPV6, "no IPv6 packet");
                let (outer, rest) = Ipv6Header::from_slice(rest).context("no outer IPv6 header")?;
                ensure!(
                    outer.next_header == IpNumber::IPV6,
                    "the next header is {:?}, not IPv6",
                    outer.next_header
                );
                let (inner, rest) = Ipv6Header::from_slice(rest).context("no inner IPv6 header")?;
                ensure!(
                    inner.next_header == IpNumber::TCP,
                    "the inner next header is {:?}, not TCP",
                    inner.next_header
                );
                (Headers::V6 { outer, inner }, rest)
            }
        };
        let (tcp, _) = TcpHeader::from_slice(rest).context("no TCP header")?;
        Ok(Self { length: frame.length, ethernet, ip, tcp })
    }

    /// Finds the first SYN of that version among a backend's frames.
    pub fn first_syn(frames: &[Frame], family: Family) -> Option<Self> {
        let mut packets = frames
            .iter()
            .filter(|frame| !frame.outgoing)
            .filter_map(|frame| Self::decode(frame, family).ok());
        packets.find(|packet| packet.tcp.syn && !packet.tcp.ack)
    }

    /// The headers for a person, one line each.
    pub fn picture(&self) -> String {
        let mac = |address: [u8; 6]| address.map(|byte| format!("{byte:02x}")).join(":");
        let mut lines = vec![format!(
            "Ethernet  {} > {}, {} bytes",
            mac(self.ethernet.source),
            mac(self.ethernet.destination),
            self.length
        )];
        match &self.ip {
            Headers::V4 { outer, inner } => {
                for (what, header) in [("outer", outer), ("  inner", inner)] {
                    lines.push(format!(
                        "{what:<9} IPv4 {} > {}, length {}, id {:#06x}, {}ttl {}, ecn {}, protocol {}, checksum {:#06x}",
                        header.source.map(|byte| byte.to_string()).join("."),
                        header.destination.map(|byte| byte.to_string()).join("."),
                        header.total_len,
                        header.identification,
                        if header.dont_fragment { "DF, " } else { "" },
                        header.time_to_live,
                        header.ecn.value(),
                        header.protocol.keyword_str().unwrap_or("?"),
                        header.header_checksum
                    ));
                }
            }
            Headers::V6 { outer, inner } => {
                for (what, header) in [("outer", outer), ("  inner", inner)] {
                    lines.push(format!(
                        "{what:<9} IPv6 {} > {}, payload {}, flow label {:#07x}, hop limit {}, ecn {}, next header {}",
                        header.source_addr(),
                        header.destination_addr(),
                        header.payload_length,
                        header.flow_label.value(),
                        header.hop_limit,
                        header.traffic_class & 3,
                        header.next_header.keyword_str().unwrap_or("?")
                    ));
                }
            }
        }
        let TcpHeader { source_port, destination_port, sequence_number, .. } = &self.tcp;
        lines.push(format!(
            "    TCP   port {source_port} > {destination_port}, SYN, sequence {sequence_number}"
        ));
        lines.join("\n")
    }

    /// What must be true of a SYN that reached `backend`.
    ///
    /// The TCP checksum is not judged: on a virtual link the sender leaves it to a device that does
    /// not exist (partial checksum).
    pub fn statements(&self, backend: &Host) -> Vec<Statement> {
        let (source, destination, inner_source, inner_destination, family) = match &self.ip {
            Headers::V4 { outer, inner } => (
                IpAddr::from(outer.source),
                IpAddr::from(outer.destination),
                IpAddr::from(inner.source),
                IpAddr::from(inner.destination),
                Family::V4,
            ),
            Headers::V6 { outer, inner } => (
                outer.source_addr().into(),
                outer.destination_addr().into(),
                inner.source_addr().into(),
                inner.destination_addr().into(),
                Family::V6,
            ),
        };
        let from_balancer = balancers().any(|lb| lb.address(family) == source);
        let from_client = clients().any(|client| client.address(family) == inner_source);
        let mut all = vec![
            (format!("the outer source {source} is a balancer's underlay address"), from_balancer),
            (
                format!("the outer destination {destination} is {}", backend.name),
                destination == backend.address(family),
            ),
            (format!("the inner source {inner_source} is a client, untranslated"), from_client),
            (
                format!("the inner destination {inner_destination} is the VIP"),
                inner_destination == family.vip(),
            ),
            ("the port is the service's".into(), self.tcp.destination_port == WEB_PORT),
        ];
        let on_wire = self.length - Ethernet2Header::LEN;
        match &self.ip {
            Headers::V4 { outer, inner } => {
                let (total, within) = (usize::from(outer.total_len), usize::from(inner.total_len));
                all.extend([
                    (
                        format!("the outer length {total} is the inner length {within} + 20"),
                        total == within + 20,
                    ),
                    ("it is also the length on the wire".into(), total == on_wire),
                    (
                        "DF is set and it is no fragment".into(),
                        outer.dont_fragment && !outer.is_fragmenting_payload(),
                    ),
                    // Segmentation offload counts the ID up: the low bits belong to it, the high
                    // ones to the balancer.
                    (
                        "the low 6 bits of the outer ID are zero".into(),
                        outer.identification & 0x3f == 0,
                    ),
                    (
                        "the outer header checksum is right".into(),
                        outer.header_checksum == outer.calc_header_checksum(),
                    ),
                    (
                        "the inner header checksum is right".into(),
                        inner.header_checksum == inner.calc_header_checksum(),
                    ),
                    ("ECN is copied outward (RFC 6040)".into(), outer.ecn == inner.ecn),
                    (
                        format!("the outer TTL {} lets it travel", outer.time_to_live),
                        outer.time_to_live >= 32,
                    ),
                ]);
            }
            Headers::V6 { outer, inner } => {
                let (total, within) =
                    (usize::from(outer.payload_length), usize::from(inner.payload_length));
                all.extend([
                    (
                        format!("the outer payload {total} is the inner payload {within} + 40"),
                        total == within + 40,
                    ),
                    ("with its header it is the length on the wire".into(), total + 40 == on_wire),
                    (
                        "ECN is copied outward (RFC 6040)".into(),
                        outer.traffic_class & 3 == inner.traffic_class & 3,
                    ),
                    (
                        format!("the outer hop limit {} lets it travel", outer.hop_limit),
                        outer.hop_limit >= 32,
                    ),
                ]);
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::topology::{VIP_V4, VIP_V6, host};
    use etherparse::PacketBuilder;
    use std::time::Duration;

    fn frame(bytes: Vec<u8>) -> Frame {
        Frame { time: Duration::ZERO, outgoing: false, length: bytes.len(), segment_size: 0, bytes }
    }

    fn syn_v4() -> Vec<u8> {
        let client = host("client1").unwrap().v4.octets();
        let mut inner = Vec::new();
        PacketBuilder::ipv4(client, VIP_V4.octets(), 63)
            .tcp(40_000, WEB_PORT, 1, 64_000)
            .syn()
            .write(&mut inner, &[])
            .unwrap();
        let (lb, backend) = (host("lb1").unwrap().v4.octets(), host("web-1").unwrap().v4.octets());
        let mut bytes = Vec::new();
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4(lb, backend, 64);
        builder.write(&mut bytes, IpNumber::IPV4, &inner).unwrap();
        bytes
    }

    fn syn_v6() -> Vec<u8> {
        let client = host("client2").unwrap().v6.octets();
        let mut inner = Vec::new();
        let builder =
            PacketBuilder::ipv6(client, VIP_V6.octets(), 63).tcp(40_000, WEB_PORT, 1, 64_000);
        builder.syn().write(&mut inner, &[]).unwrap();
        let (lb, backend) = (host("lb2").unwrap().v6.octets(), host("web-3").unwrap().v6.octets());
        let mut bytes = Vec::new();
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv6(lb, backend, 64);
        builder.write(&mut bytes, IpNumber::IPV6, &inner).unwrap();
        bytes
    }

    fn broken(packet: &Encapsulated, backend: &str) -> Vec<String> {
        let statements = packet.statements(host(backend).unwrap());
        statements.into_iter().filter(|(_, held)| !held).map(|(what, _)| what).collect()
    }

    #[test]
    fn right_packets_satisfy_every_statement() {
        let v4 =
            Encapsulated::first_syn(&[frame(vec![0; 60]), frame(syn_v4())], Family::V4).unwrap();
        assert_eq!(broken(&v4, "web-1"), Vec::<String>::new());
        let v6 = Encapsulated::first_syn(&[frame(syn_v4()), frame(syn_v6())], Family::V6).unwrap();
        assert_eq!(broken(&v6, "web-3"), Vec::<String>::new());
        assert!(v4.picture().contains("203.0.113.10") && v6.picture().contains("2001:db8:ff::10"));
    }

    #[test]
    fn each_fault_breaks_its_statement() {
        // Offset in the frame, value XORed in, and words of the statement that must fail.
        let faults = [
            (14 + 6, 0x40, "DF is set"),
            (14 + 5, 0x01, "low 6 bits"),
            (14 + 10, 0x01, "the outer header checksum"),
            (14 + 15, 0x08, "the outer source"),
            (14 + 19, 0x01, "the outer destination"),
            (14 + 3, 0x02, "the outer length"),
            (14 + 1, 0x01, "ECN is copied"),
            (34 + 10, 0x01, "the inner header checksum"),
            (34 + 15, 0x40, "the inner source"),
            (34 + 19, 0x01, "the inner destination"),
        ];
        for (offset, change, words) in faults {
            let mut bytes = syn_v4();
            bytes[offset] ^= change;
            let packet = Encapsulated::decode(&frame(bytes), Family::V4).unwrap();
            let broken = broken(&packet, "web-1");
            assert!(broken.iter().any(|what| what.contains(words)), "{words}: {broken:?}");
        }
    }

    #[test]
    fn a_plain_packet_is_refused_in_words() {
        let mut bytes = Vec::new();
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([1; 4], [2; 4], 64).udp(1, 2);
        builder.write(&mut bytes, &[]).unwrap();
        let text = Encapsulated::decode(&frame(bytes), Family::V4).unwrap_err().to_string();
        assert!(text.contains("not IPv4-in-IPv4"), "{text}");
    }
}
