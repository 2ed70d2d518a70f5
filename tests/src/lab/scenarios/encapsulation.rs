//! One encapsulated packet of each IP version as it arrived at a backend, header by header.

use anyhow::{Context as _, Result};
use etherparse::{Ethernet2Header, Ipv4Header, Ipv6Header, LaxNetSlice};

use crate::lab::capture::CapturedFrame;
use crate::lab::decode::{DecodedFrame, destination, source};
use crate::lab::reporter::Statement;
use crate::lab::run::LabRun;
use crate::lab::topology::{IpVersion, LabHost, Topology, WEB_PORT};

/// The least outer TTL or hop limit of an encapsulated packet.
const MIN_OUTER_TTL: u8 = 32;

pub(super) fn run(run: &mut LabRun<'_>) -> Result<()> {
    let topology = &run.lab.topology;
    for version in IpVersion::BOTH {
        let found = topology.backends().iter().find_map(|backend| {
            let frames = &run.captures.get(&backend.name)?.frames;
            let frame = frames.iter().find(|frame| is_encapsulated_syn(frame, version))?;
            Some((backend, frame.clone()))
        });
        let Some((backend, frame)) = found else {
            let text = format!("an encapsulated {} SYN reached a backend", version.name());
            run.check(Statement::new(false, text));
            continue;
        };
        let length = frame.length;
        let decoded = frame.decode().context("the frame is not decodable")?;
        let name = &backend.name;
        run.reporter.info(format!("the first {} SYN that arrived at {name}:", version.name()));
        run.reporter.info(picture(&decoded, length));
        let statements = expectations(&decoded, length, topology, backend);
        run.reporter.check_group(
            format!("{}: addresses, lengths and header fields are as expected", version.name()),
            statements,
        );
    }
    Ok(())
}

/// Whether a backend received the frame and it is a SYN encapsulated in its own IP version.
fn is_encapsulated_syn(frame: &CapturedFrame, version: IpVersion) -> bool {
    let Some(decoded) = frame.decode().filter(|_| !frame.outgoing) else { return false };
    let versions_match = matches!(
        (version, decoded.outer_ip(), decoded.ip()),
        (IpVersion::V4, Some(LaxNetSlice::Ipv4(_)), Some(LaxNetSlice::Ipv4(_)))
            | (IpVersion::V6, Some(LaxNetSlice::Ipv6(_)), Some(LaxNetSlice::Ipv6(_)))
    );
    versions_match && decoded.tcp().is_some_and(|tcp| tcp.syn() && !tcp.ack())
}

/// The headers, one line each.
fn picture(frame: &DecodedFrame<'_>, length: usize) -> String {
    let mac = |address: [u8; 6]| address.map(|byte| format!("{byte:02x}")).join(":");
    let Ethernet2Header { source, destination, .. } = frame.ethernet;
    let mut lines =
        vec![format!("Ethernet  {} > {}, {length} bytes", mac(source), mac(destination))];
    for (position, ip) in [("outer", frame.outer_ip()), ("  inner", frame.ip())] {
        match ip {
            Some(LaxNetSlice::Ipv4(v4)) => {
                lines.push(format!("{position:<9} {}", picture_v4(&v4.header().to_header())));
            }
            Some(LaxNetSlice::Ipv6(v6)) => {
                lines.push(format!("{position:<9} {}", picture_v6(&v6.header().to_header())));
            }
            _ => {}
        }
    }
    if let Some(tcp) = frame.tcp() {
        lines.push(format!(
            "    TCP   port {} > {}, SYN, sequence {}",
            tcp.source_port(),
            tcp.destination_port(),
            tcp.sequence_number()
        ));
    }
    lines.join("\n")
}

fn picture_v4(header: &Ipv4Header) -> String {
    format!(
        "IPv4 {} > {}, length {}, id {:#06x}, {}ttl {}, ecn {}, protocol {}, checksum {:#06x}",
        header.source.map(|byte| byte.to_string()).join("."),
        header.destination.map(|byte| byte.to_string()).join("."),
        header.total_len,
        header.identification,
        if header.dont_fragment { "DF, " } else { "" },
        header.time_to_live,
        header.ecn.value(),
        header.protocol.keyword_str().unwrap_or("?"),
        header.header_checksum
    )
}

fn picture_v6(header: &Ipv6Header) -> String {
    format!(
        "IPv6 {} > {}, payload {}, flow label {:#07x}, hop limit {}, ecn {}, next header {}",
        header.source_addr(),
        header.destination_addr(),
        header.payload_length,
        header.flow_label.value(),
        header.hop_limit,
        header.traffic_class & 3,
        header.next_header.keyword_str().unwrap_or("?")
    )
}

/// The statements about an encapsulated SYN that arrived at `backend`.
///
/// The TCP checksum is not verified: on a virtual link it stays partial.
fn expectations(
    frame: &DecodedFrame<'_>,
    length: usize,
    topology: &Topology,
    backend: &LabHost,
) -> Vec<Statement> {
    let on_wire = length - Ethernet2Header::LEN;
    let (version, fields) = match (frame.outer_ip(), frame.ip()) {
        (Some(LaxNetSlice::Ipv4(outer)), Some(LaxNetSlice::Ipv4(inner))) => {
            let [outer, inner] = [outer.header().to_header(), inner.header().to_header()];
            (IpVersion::V4, expectations_v4(&outer, &inner, on_wire))
        }
        (Some(LaxNetSlice::Ipv6(outer)), Some(LaxNetSlice::Ipv6(inner))) => {
            let [outer, inner] = [outer.header().to_header(), inner.header().to_header()];
            (IpVersion::V6, expectations_v6(&outer, &inner, on_wire))
        }
        _ => {
            return vec![Statement::new(false, "the packet is encapsulated in its own IP version")];
        }
    };
    let text = |address: Option<std::net::IpAddr>| {
        address.map_or_else(|| "none".to_owned(), |address| address.to_string())
    };
    let one_of = |hosts: &[LabHost]| {
        let addresses: Vec<_> =
            hosts.iter().map(|host| host.address(version).to_string()).collect();
        addresses
    };
    let outer_source = text(frame.outer_ip().and_then(source));
    let outer_destination = text(frame.outer_ip().and_then(destination));
    let inner_source = text(frame.source());
    let balancers = one_of(topology.balancers());
    let clients = one_of(topology.clients());
    let mut all = vec![
        Statement::measured(
            balancers.contains(&outer_source),
            "outer source, a balancer",
            &outer_source,
            balancers.join(" or "),
        ),
        Statement::equal(
            format!("outer destination, {}", backend.name),
            outer_destination,
            backend.address(version).to_string(),
        ),
        Statement::measured(
            clients.contains(&inner_source),
            "inner source, a client",
            &inner_source,
            clients.join(" or "),
        ),
        Statement::equal(
            "inner destination, the VIP",
            text(frame.destination()),
            version.vip().to_string(),
        ),
        Statement::equal(
            "destination port",
            frame.tcp().map_or(0, |tcp| tcp.destination_port()),
            WEB_PORT,
        ),
    ];
    all.extend(fields);
    all
}

fn expectations_v4(outer: &Ipv4Header, inner: &Ipv4Header, on_wire: usize) -> Vec<Statement> {
    let total = usize::from(outer.total_len);
    vec![
        Statement::equal(
            "outer total length, the inner one plus 20",
            total,
            usize::from(inner.total_len) + 20,
        ),
        Statement::equal("outer total length, that on the wire", total, on_wire),
        Statement::new(
            outer.dont_fragment && !outer.is_fragmenting_payload(),
            "outer header: DF is set, no fragment",
        ),
        // Segmentation offload increments the ID, so the balancer uses the upper bits only.
        Statement::equal("lower 6 bits of the outer ID", outer.identification & 0x3f, 0),
        Statement::equal(
            "outer header checksum",
            format!("{:#06x}", outer.header_checksum),
            format!("{:#06x}", outer.calc_header_checksum()),
        ),
        Statement::equal(
            "inner header checksum",
            format!("{:#06x}", inner.header_checksum),
            format!("{:#06x}", inner.calc_header_checksum()),
        ),
        Statement::equal(
            "outer ECN, that of the inner header (RFC 6040)",
            outer.ecn.value(),
            inner.ecn.value(),
        ),
        Statement::measured(
            outer.time_to_live >= MIN_OUTER_TTL,
            "outer TTL",
            outer.time_to_live,
            format!("at least {MIN_OUTER_TTL}"),
        ),
    ]
}

fn expectations_v6(outer: &Ipv6Header, inner: &Ipv6Header, on_wire: usize) -> Vec<Statement> {
    let payload = usize::from(outer.payload_length);
    vec![
        Statement::equal(
            "outer payload length, the inner one plus 40",
            payload,
            usize::from(inner.payload_length) + 40,
        ),
        Statement::equal("outer payload length plus 40, that on the wire", payload + 40, on_wire),
        Statement::equal(
            "outer ECN, that of the inner header (RFC 6040)",
            outer.traffic_class & 3,
            inner.traffic_class & 3,
        ),
        Statement::measured(
            outer.hop_limit >= MIN_OUTER_TTL,
            "outer hop limit",
            outer.hop_limit,
            format!("at least {MIN_OUTER_TTL}"),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use etherparse::{IpNumber, PacketBuilder};

    use super::*;
    use crate::lab::topology::{VIP_V4, VIP_V6};

    fn frame(bytes: Vec<u8>) -> CapturedFrame {
        let length = bytes.len();
        let time = Duration::ZERO;
        CapturedFrame { time, outgoing: false, length, segment_size: 0, bytes }
    }

    fn host(name: &str) -> LabHost {
        Topology::standard().host(name).unwrap().clone()
    }

    fn syn_v4() -> Vec<u8> {
        let mut inner = Vec::new();
        PacketBuilder::ipv4(host("client1").v4.octets(), VIP_V4.octets(), 63)
            .tcp(40_000, WEB_PORT, 1, 64_000)
            .syn()
            .write(&mut inner, &[])
            .unwrap();
        let mut bytes = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4(host("lb1").v4.octets(), host("web-1").v4.octets(), 64)
            .write(&mut bytes, IpNumber::IPV4, &inner)
            .unwrap();
        bytes
    }

    fn syn_v6() -> Vec<u8> {
        let mut inner = Vec::new();
        PacketBuilder::ipv6(host("client2").v6.octets(), VIP_V6.octets(), 63)
            .tcp(40_000, WEB_PORT, 1, 64_000)
            .syn()
            .write(&mut inner, &[])
            .unwrap();
        let mut bytes = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv6(host("lb2").v6.octets(), host("web-3").v6.octets(), 64)
            .write(&mut bytes, IpNumber::IPV6, &inner)
            .unwrap();
        bytes
    }

    fn failed(frame: &CapturedFrame, backend: &str) -> Vec<String> {
        let topology = Topology::standard();
        let decoded = frame.decode().unwrap();
        let statements = expectations(&decoded, frame.length, &topology, &host(backend));
        statements.into_iter().filter(|one| !one.holds).map(|one| one.text).collect()
    }

    #[test]
    fn correct_packets_satisfy_every_statement() {
        let [v4, v6] = [frame(syn_v4()), frame(syn_v6())];
        assert!(is_encapsulated_syn(&v4, IpVersion::V4) && is_encapsulated_syn(&v6, IpVersion::V6));
        assert!(!is_encapsulated_syn(&v4, IpVersion::V6));
        assert!(!is_encapsulated_syn(&frame(vec![0; 60]), IpVersion::V4));
        assert_eq!(failed(&v4, "web-1"), Vec::<String>::new());
        assert_eq!(failed(&v6, "web-3"), Vec::<String>::new());
        assert!(picture(&v4.decode().unwrap(), v4.length).contains("203.0.113.10"));
        assert!(picture(&v6.decode().unwrap(), v6.length).contains("2001:db8:ff::10"));
    }

    #[test]
    fn each_wrong_field_fails_its_statement() {
        // Offset in the frame, value to XOR, and words of the statement that must fail.
        let mutations = [
            (14 + 6, 0x40, "DF is set"),
            (14 + 5, 0x01, "lower 6 bits"),
            (14 + 10, 0x01, "outer header checksum"),
            (14 + 15, 0x08, "outer source"),
            (14 + 19, 0x01, "outer destination"),
            (14 + 3, 0x02, "outer total length"),
            (14 + 1, 0x01, "outer ECN"),
            (34 + 10, 0x01, "inner header checksum"),
            (34 + 15, 0x40, "inner source"),
            (34 + 19, 0x01, "inner destination"),
        ];
        for (offset, value, words) in mutations {
            let mut bytes = syn_v4();
            bytes[offset] ^= value;
            let failed = failed(&frame(bytes), "web-1");
            assert!(failed.iter().any(|text| text.contains(words)), "{words}: {failed:?}");
        }
    }
}
