//! Packets with a sum over their bytes in the kernel's metadata (CHECKSUM_COMPLETE), as a VXLAN
//! device with UDP checksums delivers them. The receiver drops a packet whose sum is wrong.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::thread;
use std::time::Duration;

use etherparse::{IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, PacketBuilder};
use nix::sched::{CloneFlags, setns};
use serde_json::json;

use crate::fixture::DaemonFixture;
use crate::named_namespace::NamedNamespace;
use crate::support::{add_address, run, veth};
use crate::wire::{mac_address, send_frame};

/// Limit of the wait for a datagram, long enough for emulated machines.
const TIMEOUT: Duration = Duration::from_secs(60);
/// The receiver verifies the sum of longer packets only; it computes that of short ones again.
const PAYLOAD: [u8; 300] = [0x5a; 300];
/// UDP port of the service.
const PORT: u16 = 53;
/// UDP port of GUE.
const GUE_PORT: u16 = 6080;
/// Codepoints of ECN: capable, and congestion experienced.
const ECT_0: u8 = 2;
const CE: u8 = 3;

/// The VIP address of a family.
fn vip(v6: bool) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 0x10).into()
    } else {
        Ipv4Addr::new(203, 0, 113, 10).into()
    }
}

/// The backend's address of a family.
fn backend(v6: bool) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2).into()
    } else {
        Ipv4Addr::new(10, 0, 1, 1).into()
    }
}

/// A VXLAN device `vx` with UDP checksums, on a link whose other end is `far_wan`.
fn make_vxlan() {
    veth("wan", "far_wan");
    run("ip link set wan mtu 1700");
    run("ip link set far_wan mtu 1700");
    add_address("192.0.2.1/24", "wan");
    run("ip link add vx type vxlan id 7 dstport 4789 local 192.0.2.1 dev wan nolearning udpcsum");
    run("ip link set vx addrgenmode none");
    run("ip link set vx up");
    // Reverse-path filtering, if enabled, needs a route to clients.
    run("ip route add default dev vx");
}

/// Sends an IP packet to `vx`, in VXLAN with a UDP checksum.
fn send_to_vxlan(packet: &[u8]) {
    let ether_type = if packet[0] >> 4 == 6 { [0x86, 0xdd] } else { [0x08, 0x00] };
    let vxlan = [8, 0, 0, 0, 0, 0, 7, 0];
    let inner = [&vxlan, &mac_address("vx")[..], &[2, 0, 0, 0, 0, 7], &ether_type, packet].concat();
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 8], mac_address("wan"))
        .ipv4([192, 0, 2, 2], [192, 0, 2, 1], 64)
        .udp(50_000, 4789)
        .write(&mut frame, &inner)
        .unwrap();
    send_frame("far_wan", &frame);
}

/// A client's datagram to the VIP, with an ECN codepoint.
fn datagram(v6: bool, source_port: u16, ecn: u8) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = match vip(v6) {
        IpAddr::V4(vip) => PacketBuilder::ipv4([198, 51, 100, 7], vip.octets(), 64),
        IpAddr::V6(vip) => PacketBuilder::ipv6(
            Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 7).octets(),
            vip.octets(),
            64,
        ),
    };
    builder.udp(source_port, PORT).write(&mut packet, &PAYLOAD).unwrap();
    if v6 {
        packet[1] |= ecn << 4;
    } else {
        packet[1] |= ecn;
        let (mut header, _) = Ipv4Header::from_slice(&packet).unwrap();
        header.header_checksum = header.calc_header_checksum();
        packet[..20].copy_from_slice(&header.to_bytes());
    }
    packet
}

/// A packet in an outer header that signals congestion, from a balancer to the backend.
fn encapsulated(inner: &[u8], v6: bool, gue: bool) -> Vec<u8> {
    let inner_is_v6 = inner[0] >> 4 == 6;
    let payload = if gue {
        let length = inner.len() as u16 + 8;
        let udp = [[0xc0, 1], GUE_PORT.to_be_bytes(), length.to_be_bytes(), [0, 0]].concat();
        [&udp, inner].concat()
    } else {
        inner.to_vec()
    };
    let protocol = match (gue, inner_is_v6) {
        (true, _) => IpNumber::UDP,
        (false, true) => IpNumber::IPV6,
        (false, false) => IpNumber::IPV4,
    };
    let header = match backend(v6) {
        IpAddr::V4(to) => {
            let mut outer =
                Ipv4Header::new(payload.len() as u16, 64, protocol, [10, 0, 0, 9], to.octets())
                    .unwrap();
            outer.ecn = CE.try_into().unwrap();
            outer.header_checksum = outer.calc_header_checksum();
            outer.to_bytes().to_vec()
        }
        IpAddr::V6(to) => Ipv6Header {
            traffic_class: CE,
            flow_label: Ipv6FlowLabel::ZERO,
            payload_length: payload.len() as u16,
            next_header: protocol,
            hop_limit: 64,
            source: Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 9).octets(),
            destination: to.octets(),
        }
        .to_bytes()
        .to_vec(),
    };
    [header, payload].concat()
}

/// Whether a socket receives a datagram from the source port.
fn receives(socket: &UdpSocket, source_port: u16) -> bool {
    let mut bytes = [0; 1024];
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    loop {
        match socket.recv_from(&mut bytes) {
            Ok((length, from)) if from.port() == source_port => return bytes[..length] == PAYLOAD,
            Ok(_) => {}
            Err(_) => return false,
        }
    }
}

pub(crate) fn decapsulation_keeps_the_sum_of_a_packet_true() {
    let mut fixture = DaemonFixture::new();
    make_vxlan();
    for v6 in [false, true] {
        let prefix = if v6 { 64 } else { 16 };
        add_address(&format!("{}/{prefix}", backend(v6)), "vx");
    }
    run("ip addr del 10.0.0.1/16 dev eth0");
    fixture.config["interfaces"] = json!(["vx"]);
    fixture.config["backends"][0]["address"] = json!({ "v4": backend(false), "v6": backend(true) });
    fixture.config["services"][0]["vips"] =
        json!([format!("{}:{PORT}/udp", vip(false)), format!("[{}]:{PORT}/udp", vip(true))]);
    let (mut port, mut lost) = (40_000, Vec::new());
    for gue in [false, true] {
        fixture.config["services"][0]["encapsulation"] = json!(if gue { "gue" } else { "ipip" });
        fixture.write();
        let _daemon = fixture.start(&["backend"]);
        for v6 in [false, true] {
            let socket = UdpSocket::bind((vip(v6), PORT)).unwrap();
            port += 1;
            send_to_vxlan(&encapsulated(&datagram(v6, port, ECT_0), v6, gue));
            if !receives(&socket, port) {
                lost.push(format!(
                    "{} of IPv{}",
                    if gue { "GUE" } else { "IP-in-IP" },
                    if v6 { 6 } else { 4 }
                ));
            }
        }
    }
    assert!(lost.is_empty(), "lost: {lost:?}; {}", fixture.json("counters"));
}

pub(crate) fn packets_with_a_sum_reach_backends_in_all_encapsulations() {
    let host = nix::unistd::gettid();
    let namespace = NamedNamespace::new("backend");
    run(&format!("ip -n backend link set far name under netns {host}"));
    run("ip link set under addrgenmode none");
    run("ip link set under up");
    add_address("10.0.0.1/16", "under");
    add_address("2001:db8:1::1/64", "under");
    run("ip -n backend addr flush dev eth0");
    run("ip -n backend link set eth0 mtu 1600");
    run("ip link set under mtu 1600");
    run("ip -n backend route add default dev eth0");
    for v6 in [false, true] {
        let (address, prefix) = (backend(v6), if v6 { "64 nodad" } else { "16" });
        run(&format!("ip -n backend addr add {address}/{prefix} dev eth0"));
    }
    make_vxlan();
    let mut fixture = DaemonFixture::inside(&namespace);
    fixture.config["underlay"] = json!({ "v4": "10.0.0.1", "v6": "2001:db8:1::1" });
    fixture.config["services"][0]["vips"] =
        json!([format!("{}:{PORT}/udp", vip(false)), format!("[{}]:{PORT}/udp", vip(true))]);
    fixture.config["services"][0]["backends"] = json!([{ "name": "a" }]);
    let enter = namespace.nsenter();
    let enter: Vec<_> = enter.split(' ').collect();
    let crosses = sluice::kernel::bpf::decapsulates_across_families();
    let (mut port, mut lost) = (40_000, Vec::new());
    for gue in [false, true] {
        fixture.config["services"][0]["encapsulation"] = json!(if gue { "gue" } else { "ipip" });
        for outer_v6 in [false, true] {
            fixture.config["backends"] = json!([{ "name": "a", "address": backend(outer_v6) }]);
            fixture.config["interfaces"] = json!(["eth0"]);
            fixture.write();
            let _backend = fixture.start_wrapped(&enter, &["backend"]);
            fixture.config["interfaces"] = json!(["vx"]);
            fixture.write();
            let _balancer = fixture.start(&["lb"]);
            for v6 in [false, true] {
                if gue && v6 != outer_v6 && !crosses {
                    continue;
                }
                port += 1;
                let bind = || {
                    let inside = File::open("/run/netns/backend").unwrap();
                    setns(inside, CloneFlags::CLONE_NEWNET).unwrap();
                    UdpSocket::bind((vip(v6), PORT)).unwrap()
                };
                let socket = thread::scope(|scope| scope.spawn(bind).join().unwrap());
                send_to_vxlan(&datagram(v6, port, 0));
                if !receives(&socket, port) {
                    let version = |v6| if v6 { "IPv6" } else { "IPv4" };
                    lost.push(format!("{} in {}, GUE {gue}", version(v6), version(outer_v6)));
                }
            }
        }
    }
    assert!(lost.is_empty(), "lost: {lost:?}; {}", fixture.json("counters"));
}
