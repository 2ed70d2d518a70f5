//! Path MTU discovery towards backends: ICMP errors of routers, and forged ones.

use std::fs;
use std::net::IpAddr;

use etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded;
use etherparse::{
    Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpNumber, Ipv4Header, Ipv6Header,
    PacketBuilder,
};
use libtest_mimic::Completion;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::fixture::{DaemonFixture, wait_until};
use crate::support::{add_address, run, try_run};
use crate::wire::{mac_address, send_frame};

/// The MTU of `eth0`.
const MTU: u16 = 1600;

/// A router's ICMP error about a packet that is too big.
#[derive(Clone, Copy)]
struct TooBigError {
    mtu: u16,
    // Fields of the quoted packet.
    source: IpAddr,
    destination: IpAddr,
    length: u16,
    protocol: IpNumber,
    dont_fragment: bool,
    /// The client's port of a quoted datagram to the VIP; `None`: only eight bytes are quoted.
    client_port: Option<u16>,
}

impl TooBigError {
    /// An error about a packet of the balancer to a backend.
    fn of(destination: &str, mtu: u16) -> Self {
        let destination: IpAddr = destination.parse().unwrap();
        let (source, protocol) = if destination.is_ipv4() {
            ("10.0.0.1", IpNumber::IPV4)
        } else {
            ("2001:db8::1", IpNumber::IPV6)
        };
        Self {
            mtu,
            source: source.parse().unwrap(),
            destination,
            length: MTU,
            protocol,
            dont_fragment: true,
            client_port: None,
        }
    }

    /// The frame with the error, addressed to this host.
    fn frame(&self) -> Vec<u8> {
        let version = if self.protocol == IpNumber::IPV6 { 0x60 } else { 0x45 };
        let mut inner = vec![version, 0, 0, 0, 0, 0, 0, 0];
        if let Some(port) = self.client_port {
            inner.clear();
            PacketBuilder::ipv4([198, 51, 100, 7], [203, 0, 113, 11], 64)
                .udp(port, 53)
                .write(&mut inner, &[0; 64])
                .unwrap();
        }
        let mut frame = mac_address("eth0").to_vec();
        frame.extend([2, 0, 0, 0, 0, 1]);
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let addresses = (source.octets(), destination.octets());
                let mut quoted =
                    Ipv4Header::new(self.length - 20, 63, self.protocol, addresses.0, addresses.1)
                        .unwrap();
                quoted.dont_fragment = self.dont_fragment;
                quoted.header_checksum = quoted.calc_header_checksum();
                let quote = [&quoted.to_bytes()[..], &inner].concat();
                let kind = Icmpv4Type::DestinationUnreachable(FragmentationNeeded {
                    next_hop_mtu: self.mtu,
                });
                let icmp = Icmpv4Header::with_checksum(kind, &quote).to_bytes();
                let mut network = Ipv4Header::new(
                    (icmp.len() + quote.len()) as u16,
                    64,
                    IpNumber::ICMP,
                    [10, 0, 0, 254],
                    [10, 0, 0, 1],
                )
                .unwrap();
                network.header_checksum = network.calc_header_checksum();
                frame.extend([0x08, 0x00]);
                frame.extend([&network.to_bytes()[..], &icmp, &quote].concat());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let quoted = Ipv6Header {
                    payload_length: self.length - 40,
                    next_header: self.protocol,
                    hop_limit: 63,
                    source: source.octets(),
                    destination: destination.octets(),
                    ..Ipv6Header::default()
                };
                let quote = [&quoted.to_bytes()[..], &inner].concat();
                let (router, own) =
                    ("2001:db8::fe".parse::<std::net::Ipv6Addr>().unwrap(), "2001:db8::1");
                let own: std::net::Ipv6Addr = own.parse().unwrap();
                let kind = Icmpv6Type::PacketTooBig { mtu: self.mtu.into() };
                let icmp = Icmpv6Header::with_checksum(kind, router.octets(), own.octets(), &quote)
                    .unwrap()
                    .to_bytes();
                let network = Ipv6Header {
                    payload_length: (icmp.len() + quote.len()) as u16,
                    next_header: IpNumber::IPV6_ICMP,
                    hop_limit: 64,
                    source: router.octets(),
                    destination: own.octets(),
                    ..Ipv6Header::default()
                };
                frame.extend([0x86, 0xdd]);
                frame.extend([&network.to_bytes()[..], &icmp, &quote].concat());
            }
            other => panic!("mixed address families: {other:?}"),
        }
        frame
    }

    fn send(&self) {
        send_frame("far", &self.frame());
    }
}

/// A fixture with IPv4 and IPv6 whose underlay MTU is large enough.
fn dual_stack_fixture() -> DaemonFixture {
    let mut fixture = DaemonFixture::new();
    for name in ["eth0", "far"] {
        run(&format!("ip link set {name} mtu {MTU}"));
    }
    add_address("2001:db8::1/64", "eth0");
    run("ip route add 2001:db8:1::/64 dev eth0");
    fixture.config["underlay"] = json!({ "v4": "10.0.0.1", "v6": "2001:db8::1" });
    fixture.config["backends"] = json!([
        { "name": "a", "address": { "v4": "10.0.1.1", "v6": "2001:db8:1::1" } },
        { "name": "b", "address": { "v4": "10.0.1.2", "v6": "2001:db8:1::2" } }
    ]);
    fixture.write();
    fixture
}

/// The MTU towards each address, by backend, IPv4 first.
fn mtus(status: &Value) -> Vec<u64> {
    let backends = status["backends"].as_array().unwrap();
    let addresses = backends.iter().flat_map(|backend| {
        backend["addresses"]
            .as_array()
            .unwrap()
            .iter()
            .map(|a| backend["next_hops"][a.as_str().unwrap()]["mtu"].clone())
    });
    addresses.map(|mtu| mtu.as_u64().unwrap()).collect()
}

#[track_caller]
fn wait_for_mtus(fixture: &DaemonFixture, wanted: [u64; 4]) {
    let mut is = Vec::new();
    wait_until(&format!("the MTUs are {wanted:?}"), || {
        is = mtus(&fixture.status());
        is == wanted
    });
}

/// The counters of ICMP errors by outcome, once this number is counted.
#[track_caller]
fn path_errors(fixture: &DaemonFixture, errors: u64) -> Value {
    let mut path_errors = Value::Null;
    wait_until(&format!("{errors} errors are counted"), || {
        path_errors = fixture.json("counters")["lb"]["path_errors"].clone();
        path_errors.as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum::<u64>()
            >= errors
    });
    path_errors
}

/// The number of raw sockets in this network namespace.
fn raw_sockets() -> usize {
    let lines = |file| {
        fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap().lines().count() - 1
    };
    lines("raw") + lines("raw6")
}

pub(crate) fn icmp_errors_about_encapsulated_packets_lower_the_mtu_of_the_backend() {
    let fixture = dual_stack_fixture();
    let daemon = fixture.start(&["lb"]);
    assert_eq!((mtus(&fixture.status()), raw_sockets()), (vec![1600; 4], 2));

    // These errors are not accepted.
    let good = TooBigError::of("10.0.1.1", 1400);
    let mut broken = good.frame();
    broken[44] ^= 1;
    send_frame("far", &broken);
    send_frame("far", &good.frame()[..14 + 20 + 8 + 20 + 4]);
    let v6 = TooBigError::of("2001:db8:1::1", 1400);
    let forged = [
        TooBigError { source: "10.0.0.2".parse().unwrap(), ..good },
        TooBigError { destination: "10.0.1.9".parse().unwrap(), ..good },
        TooBigError { dont_fragment: false, ..good },
        TooBigError { length: 1400, ..good },
        TooBigError { mtu: 0, ..good },
        // A QUIC datagram of 1200 bytes and more still fits after any error.
        TooBigError { mtu: 596, ..good },
        TooBigError { mtu: 1600, ..good },
        TooBigError { source: "2001:db8::2".parse().unwrap(), ..v6 },
        TooBigError { destination: "2001:db8:1::9".parse().unwrap(), ..v6 },
        TooBigError { mtu: 1319, ..v6 },
    ];
    forged.iter().for_each(TooBigError::send);
    // These errors, about packets of other programs, are not counted.
    TooBigError { protocol: IpNumber::UDP, ..good }.send();
    TooBigError { protocol: IpNumber::TCP, ..v6 }.send();
    assert_eq!(
        path_errors(&fixture, 11),
        json!({ "malformed": 1, "other_source": 2, "other_destination": 2, "never_sent": 3, "no_mtu": 1, "too_small": 2 })
    );
    assert_eq!(mtus(&fixture.status()), [1600; 4]);
    assert_eq!(daemon.log_count("less than clients can use"), 2, "{}", daemon.log());

    // Each error lowers the MTU of one backend in one family.
    good.send();
    wait_for_mtus(&fixture, [1400, 1600, 1600, 1600]);
    // A router with GRO quotes the merged packet.
    TooBigError { length: 9000, ..v6 }.send();
    wait_for_mtus(&fixture, [1400, 1400, 1600, 1600]);
    TooBigError { protocol: IpNumber::IPV6, ..TooBigError::of("10.0.1.2", 1450) }.send();
    wait_for_mtus(&fixture, [1400, 1400, 1450, 1600]);
    let status = fixture.status();
    let left = &status["backends"][0]["path_mtus"];
    for address in ["10.0.1.1", "2001:db8:1::1"] {
        assert!((1..=600).contains(&left[address].as_u64().unwrap()), "{status}");
    }
    assert_eq!(status["backends"][1]["path_mtus"].as_object().unwrap().len(), 1);
    let text = String::from_utf8(fixture.sluice(&["status"]).stdout).unwrap();
    assert!(text.contains("MTU 1400 by an ICMP error, for another "), "{text}");
    let text = String::from_utf8(fixture.sluice(&["counters"]).stdout).unwrap();
    assert!(
        text.contains("lowered") && text.contains("accepted") && text.contains("too_small"),
        "{text}"
    );

    // A repeated error changes nothing.
    good.send();
    assert_eq!(path_errors(&fixture, 15)["known"], 1);
    for (address, router) in
        [("10.0.1.1", "10.0.0.254"), ("2001:db8:1::1", "2001:db8::fe"), ("10.0.1.2", "10.0.0.254")]
    {
        assert_eq!(
            daemon.log_count(&format!("address={address} router={router} mtu=14")),
            1,
            "{}",
            daemon.log()
        );
    }

    // Clients get ICMP errors by the smallest MTU of the backends.
    let mut packet = mac_address("eth0").to_vec();
    packet.extend([2, 0, 0, 0, 0, 9, 0x08, 0x00]);
    let mut network =
        Ipv4Header::new(1480, 64, IpNumber::UDP, [198, 51, 100, 7], [203, 0, 113, 11]).unwrap();
    network.header_checksum = network.calc_header_checksum();
    packet.extend(network.to_bytes());
    packet.extend([156, 64, 0, 53, 0x05, 0xc8, 0, 0]);
    packet.resize(14 + 1500, 0);
    send_frame("far", &packet);
    wait_until("an ICMP error is sent to the client", || {
        fixture.json("counters")["lb"]["reasons"]["icmp_too_big_sent"] == 1
    });

    // A path MTU is discarded when the route to the backend changes.
    run("ip route add 10.0.1.1/32 via 10.0.0.254 dev eth0");
    wait_for_mtus(&fixture, [1600, 1400, 1450, 1600]);
    good.send();
    wait_for_mtus(&fixture, [1400, 1400, 1450, 1600]);
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
    assert_eq!(raw_sockets(), 0);
}

pub(crate) fn a_quoted_flow_must_select_the_backend_and_listed_routers_send_errors() {
    let mut fixture = dual_stack_fixture();
    fixture.config["underlay"]["min_path_mtu"] = json!(596);
    fixture.write();
    let mut daemon = fixture.start(&["lb"]);
    let quoting = |port, destination, mtu| TooBigError {
        client_port: Some(port),
        ..TooBigError::of(destination, mtu)
    };
    // Of two backends, a flow selects one; only an error about that one is accepted, and may then
    // report an MTU that no unproven error may.
    let ports = 40_000..40_008;
    for port in ports.clone() {
        quoting(port, "10.0.1.1", 1000).send();
        quoting(port, "10.0.1.2", 1000).send();
    }
    let errors = 2 * ports.len() as u64;
    let counts = path_errors(&fixture, errors);
    assert_eq!(counts["wrong_flow"], ports.len(), "{counts}");
    let accepted = counts["lowered"].as_u64().unwrap() + counts["known"].as_u64().unwrap_or(0);
    assert_eq!(accepted, ports.len() as u64, "{counts}");
    let lowered = mtus(&fixture.status());
    assert!(lowered[0] == 1000 || lowered[2] == 1000, "{lowered:?}");
    TooBigError::of("10.0.1.1", 1299).send();
    TooBigError::of("10.0.1.2", 1299).send();
    assert_eq!(path_errors(&fixture, errors + 2)["too_small"], 2);

    fixture.config["underlay"]["path_mtu_routers"] = json!(["10.0.0.253", "2001:db8::/64"]);
    fixture.write();
    daemon.reload();
    quoting(40_000, "10.0.1.1", 900).send();
    assert_eq!(path_errors(&fixture, errors + 3)["other_router"], 1);
    TooBigError::of("2001:db8:1::1", 1400).send();
    wait_for_mtus(&fixture, [lowered[0], 1400, lowered[2], 1600]);
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
}

/// The maps of the instance decide: a prefix of VIPs, a route, and the connection table.
pub(crate) fn a_quoted_flow_is_resolved_by_prefix_route_and_connection() {
    const PORTS: std::ops::Range<u16> = 40_000..40_016;

    let mut fixture = dual_stack_fixture();
    fixture.config["underlay"]["min_path_mtu"] = json!(596);
    fixture.config["services"][0]["vips"] = json!(["203.0.113.0/24:53/udp"]);
    fixture.config["services"][0]["tracking"] = json!("always");
    fixture.write();
    let mut daemon = fixture.start(&["lb"]);
    let mut errors = 0;
    // The errors about the flows, by outcome, if each was sent to this backend.
    let mut outcomes = |fixture: &DaemonFixture, destination: &str, mtu| {
        let before = path_errors(fixture, errors);
        for port in PORTS {
            let error = TooBigError::of(destination, mtu);
            TooBigError { client_port: Some(port), ..error }.send();
        }
        errors += PORTS.len() as u64;
        let after = path_errors(fixture, errors);
        let count = |counts: &Value, name: &str| counts[name].as_u64().unwrap_or(0);
        let new = |name| count(&after, name) - count(&before, name);
        (new("lowered") + new("known"), new("wrong_flow"))
    };
    let all = PORTS.len() as u64;

    // The prefix contains the quoted VIP, and a flow has one of two backends.
    let (first, second) =
        (outcomes(&fixture, "10.0.1.1", 1100), outcomes(&fixture, "10.0.1.2", 1100));
    assert_eq!((first.0 + second.0, first.1 + second.1), (all, all), "{first:?} {second:?}");
    assert!(first.0 > 0 && second.0 > 0, "{first:?} {second:?}");

    // Connections keep their backends, although all slots are those of the first one.
    for port in PORTS {
        let mut frame = mac_address("eth0").to_vec();
        frame.extend([2, 0, 0, 0, 0, 9, 0x08, 0x00]);
        PacketBuilder::ipv4([198, 51, 100, 7], [203, 0, 113, 11], 64)
            .udp(port, 53)
            .write(&mut frame, &[0; 64])
            .unwrap();
        send_frame("far", &frame);
    }
    wait_until("the connections are tracked", || {
        fixture.json("counters")["lb"]["services"]["web"]["packets"] == all
    });
    fixture.config["backends"][1]["draining"] = json!(true);
    fixture.write();
    daemon.reload();
    assert_eq!(outcomes(&fixture, "10.0.1.2", 1100), second);

    // A route takes the client to a service with the second backend only.
    fixture.config["backends"][1]["draining"] = json!(false);
    fixture.config["services"][0].as_object_mut().unwrap().remove("tracking");
    fixture.config["services"][0]["routes"] =
        json!([{ "sources": ["198.51.100.0/24"], "service": "near" }]);
    let near =
        json!({ "name": "near", "vips": [], "table_size": 251, "backends": [{ "name": "b" }] });
    fixture.config["services"].as_array_mut().unwrap().push(near);
    fixture.write();
    daemon.reload();
    assert_eq!(outcomes(&fixture, "10.0.1.1", 1100), (0, all), "{}", daemon.log());
    assert_eq!(outcomes(&fixture, "10.0.1.2", 1100), (all, 0));
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
}

pub(crate) fn a_path_mtu_outlives_the_daemon_and_expires() -> Completion {
    // A time namespace with a clock ahead shortens the ten minutes.
    let uptime = |text: &str| text.split('.').next().unwrap().parse::<u64>().unwrap();
    let (has, ahead) = try_run("unshare -T --boottime 100000 cat /proc/uptime");
    let here = uptime(&fs::read_to_string("/proc/uptime").unwrap());
    if !has || uptime(&ahead) < here + 99_000 {
        return Completion::ignored_with("this kernel has no time namespaces (CONFIG_TIME_NS)");
    }
    let fixture = dual_stack_fixture();
    let daemon = fixture.start(&["lb"]);
    TooBigError::of("10.0.1.1", 1400).send();
    TooBigError::of("2001:db8:1::2", 1500).send();
    wait_for_mtus(&fixture, [1400, 1600, 1600, 1500]);
    assert_eq!(daemon.end(Signal::SIGKILL), None);
    assert_eq!(
        mtus(&fixture.status()),
        [1400, 1600, 1600, 1500],
        "the path MTU applies while no daemon runs"
    );

    // The next daemon keeps the path MTU and its lifetime, also over a reload.
    let mut daemon = fixture.start(&["lb"]);
    daemon.reload();
    let status = fixture.status();
    assert_eq!(mtus(&status), [1400, 1600, 1600, 1500]);
    let left = status["backends"][0]["path_mtus"]["10.0.1.1"].as_u64().unwrap();
    assert!((1..600).contains(&left), "{status}");
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));

    // A daemon whose clock is shortly before the expiry adopts the path MTU and discards it later.
    let ahead = (left - 5).to_string();
    let mut daemon = fixture.start_wrapped(&["unshare", "-T", "--boottime", &ahead], &["lb"]);
    wait_for_mtus(&fixture, [1600; 4]);
    let status = fixture.status();
    for backend in [0, 1] {
        assert_eq!(status["backends"][backend]["path_mtus"], json!({}), "{status}");
    }
    // A new error lowers the MTU again.
    TooBigError::of("10.0.1.1", 1400).send();
    wait_for_mtus(&fixture, [1400, 1600, 1600, 1600]);
    daemon.wait_for_log("mtu=1400", 1);
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));

    // A daemon whose clock is after the expiry ignores the path MTU.
    let _daemon = fixture.start_wrapped(&["unshare", "-T", "--boottime", "2000"], &["lb"]);
    assert_eq!(mtus(&fixture.status()), [1600; 4]);
    Completion::Completed
}

pub(crate) fn without_cap_net_raw_icmp_errors_are_ignored_and_packets_forwarded() {
    let fixture = dual_stack_fixture();
    let drop = ["setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw"];
    let mut daemon = fixture.start_wrapped(&drop, &["lb"]);
    assert_eq!(raw_sockets(), 0);
    for family in ["IPv4", "IPv6"] {
        assert_eq!(
            daemon.log_count(&format!("backends ({family}): this process lacks CAP_NET_RAW")),
            1,
            "{}",
            daemon.log()
        );
    }
    TooBigError::of("10.0.1.1", 1400).send();
    daemon.reload();
    assert_eq!(mtus(&fixture.status()), [1600; 4]);
    assert_eq!(fixture.json("counters")["lb"]["path_errors"], json!({}));
}
