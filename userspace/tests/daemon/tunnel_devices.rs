//! Backends with the tunnel devices of kernels that have them: repair, several instances, and
//! packets from listed balancers.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use etherparse::{IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, PacketBuilder};
use libtest_mimic::Completion;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::fixture::{DaemonFixture, host_state, tc_filter, wait_until};
use crate::repair::restored;
use crate::support::{add_address, run, set_sysctl, sysctl, try_run};
use crate::wire::{mac_address, send_frame, udp_server};

/// Each device, its kind and its local address.
const DEVICES: [(&str, &str, &str); 3] =
    [("sluice4", "ipip", "10.0.1.1"), ("sluice64", "sit", "10.0.1.1"), ("sluice6", "ip6tnl", V6)];
/// The backend's IPv6 address.
const V6: &str = "2001:db8:1::11";
/// A VIP of each family.
const VIPS: [&str; 2] = ["203.0.113.10:80", "[2001:db8:2::10]:80"];

/// Why this kernel cannot run a test.
fn without_devices() -> Option<Completion> {
    DEVICES.iter().find_map(|(_, kind, _)| {
        let local = if *kind == "ip6tnl" { "::1" } else { "127.0.0.1" };
        if !try_run(&format!("ip link add probe type {kind} local {local}")).0 {
            return Some(Completion::ignored_with(format!("this kernel has no {kind} devices")));
        }
        run("ip link del probe");
        None
    })
}

/// A backend with an address of each family and a VIP of each family.
fn fixture() -> DaemonFixture {
    let mut fixture = DaemonFixture::new();
    add_address("10.0.1.1/16", "eth0");
    add_address(&format!("{V6}/64"), "eth0");
    // The network of the frames' client: replies have a route.
    add_address("2001:db8:7::1/64", "eth0");
    fixture.config["underlay"] = json!({ "v4": "10.0.0.8", "v6": "2001:db8:1::8" });
    fixture.config["backends"][0]["address"] = json!({ "v4": "10.0.1.1", "v6": V6 });
    fixture.config["services"][0]["vips"] = VIPS.map(|vip| format!("{vip}/udp")).into();
    fixture.config["backends"][1]["address"] = json!({ "v4": "10.0.1.2", "v6": "2001:db8:1::12" });
    fixture.write();
    fixture
}

/// A datagram to a VIP in a packet to this backend, from an outer source.
fn encapsulated(from: IpAddr, vip: SocketAddr) -> Vec<u8> {
    let mut inner = Vec::new();
    let builder = match vip.ip() {
        IpAddr::V4(vip) => PacketBuilder::ipv4([10, 0, 7, 7], vip.octets(), 64),
        IpAddr::V6(vip) => {
            let client: std::net::Ipv6Addr = "2001:db8:7::7".parse().unwrap();
            PacketBuilder::ipv6(client.octets(), vip.octets(), 64)
        }
    };
    builder.udp(40_000, vip.port()).write(&mut inner, from.to_string().as_bytes()).unwrap();
    let protocol = if vip.is_ipv4() { IpNumber::IPV4 } else { IpNumber::IPV6 };
    let (ethernet_type, outer) = match from {
        IpAddr::V4(from) => {
            let (length, to) = (inner.len() as u16, [10, 0, 1, 1]);
            let mut outer = Ipv4Header::new(length, 64, protocol, from.octets(), to).unwrap();
            outer.header_checksum = outer.calc_header_checksum();
            ([0x08, 0x00], outer.to_bytes().to_vec())
        }
        IpAddr::V6(from) => {
            let outer = Ipv6Header {
                traffic_class: 0,
                flow_label: Ipv6FlowLabel::ZERO,
                payload_length: inner.len() as u16,
                next_header: protocol,
                hop_limit: 64,
                source: from.octets(),
                destination: V6.parse::<std::net::Ipv6Addr>().unwrap().octets(),
            };
            ([0x86, 0xdd], outer.to_bytes().to_vec())
        }
    };
    let mac = mac_address("eth0");
    [&mac[..], &[2, 0, 0, 0, 0, 1], &ethernet_type, &outer, &inner].concat()
}

/// Sends datagrams to a VIP from these outer sources, and returns those of the delivered ones. The
/// last source is one that is accepted.
fn delivered(vip: &str, from: &[&str]) -> Vec<String> {
    let vip: SocketAddr = vip.parse().unwrap();
    let server = udp_server(vip);
    for source in from {
        send_frame("far", &encapsulated(source.parse().unwrap(), vip));
    }
    let mut sources = Vec::new();
    let mut bytes = [0; 64];
    while sources.last().map(String::as_str) != from.last().copied() {
        let length = server.recv(&mut bytes).unwrap_or_else(|error| {
            panic!("{vip} from {from:?}: {error}, after {sources:?}\n{}", run("ip -s -d link"))
        });
        sources.push(String::from_utf8_lossy(&bytes[..length]).into_owned());
    }
    sources
}

/// Checks that packets of both families are decapsulated from both families.
#[track_caller]
fn assert_decapsulated() {
    for vip in VIPS {
        for source in ["10.0.0.9", "2001:db8:1::9"] {
            assert_eq!(delivered(vip, &[source]), [source], "{vip}");
        }
    }
}

fn is_up(device: &str) -> bool {
    let (exists, shown) = try_run(&format!("ip -o link show dev {device}"));
    exists && shown.contains(",UP")
}

pub(crate) fn tunnel_devices_that_disappear_or_change_are_restored() -> Completion {
    if let Some(ignored) = without_devices() {
        return ignored;
    }
    let fixture = fixture();
    // New devices filter strictly.
    set_sysctl("default", "rp_filter", "1");
    let before = host_state();
    let mut daemon = fixture.start(&["backend"]);
    assert_eq!(daemon.log_count("by=tunnel device"), 3, "{}", daemon.log());
    assert_decapsulated();
    let mut taken = Duration::ZERO;
    for (device, kind, local) in DEVICES {
        let other = if kind == "ip6tnl" { "2001:db8:1::99" } else { "10.0.1.99" };
        for change in [
            format!("ip link del {device}"),
            format!("ip link set {device} down"),
            format!("ip link change {device} type {kind} local {other}"),
        ] {
            println!("{change}");
            taken += restored(
                &mut daemon,
                &format!("created {kind} device {device} for {local}"),
                || drop(run(&change)),
                || is_up(device),
            );
            assert_decapsulated();
            // The exit status is 0, because nothing is missing.
            fixture.json("status");
        }
    }
    // By notifications, also on emulated machines: with refreshes alone this takes 86 s.
    assert!(taken < Duration::from_secs(45), "{taken:.1?}");
    let repairs = daemon.log_count("restored host state");
    let state = fixture.json("status")["backend"]["daemon"].clone();
    assert_eq!(state["repairs"], repairs, "{}", daemon.log());
    assert_eq!(daemon.log_count("cannot restore"), 0, "{}", daemon.log());
    // A sysctl of a device, and its address, without which loose filtering drops every packet.
    restored(
        &mut daemon,
        "set net/ipv4/conf/sluice4/rp_filter to 2",
        || set_sysctl("sluice4", "rp_filter", "1"),
        || sysctl("sluice4", "rp_filter") == "2",
    );
    restored(
        &mut daemon,
        "added 10.0.1.1 to sluice4",
        || drop(run("ip addr del 10.0.1.1/32 dev sluice4")),
        || run("ip -o addr show dev sluice4").contains("10.0.1.1/32"),
    );
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
    fixture.down();
    assert_eq!(host_state(), before);
    Completion::Completed
}

pub(crate) fn two_backends_share_tunnel_devices() -> Completion {
    if let Some(ignored) = without_devices() {
        return ignored;
    }
    let fixture = fixture();
    let mut second = fixture.beside("two");
    second.config["priority"] = json!({ "lb": 110 });
    second.write();
    set_sysctl("default", "rp_filter", "1");
    let before = host_state();
    for first_leaves in [true, false] {
        for device_is_replaced in [false, true] {
            let one = fixture.start(&["backend"]);
            let two = second.start(&["backend"]);
            if device_is_replaced {
                for (device, kind, local) in DEVICES {
                    run(&format!("ip link del {device}"));
                    let line = format!("created {kind} device {device} for {local}");
                    wait_until(&line, || one.log_count(&line) + two.log_count(&line) > 1);
                    wait_until(&line, || is_up(device));
                }
            }
            assert_decapsulated();
            for instance in ["edge", "two"] {
                wait_until(&format!("{instance} misses nothing"), || {
                    fixture.sluice(&["status", "--instance", instance]).status.success()
                });
            }
            let ((leaving, first), (staying, second)) = match first_leaves {
                true => ((&fixture, one), (&second, two)),
                false => ((&second, two), (&fixture, one)),
            };
            first.end(Signal::SIGTERM);
            let report = leaving.down();
            for (device, kind, _) in DEVICES {
                let line = format!("left alone: {kind} device {device}");
                assert!(report.contains(&line), "{line:?} is not in: {report}");
                assert!(is_up(device), "{device}: {report}");
            }
            assert_eq!(sysctl("sluice4", "rp_filter"), "2");
            assert_decapsulated();
            let lost = "restored host state";
            if !device_is_replaced {
                assert_eq!(second.log_count(lost), 0, "{}", second.log());
            }
            second.end(Signal::SIGTERM);
            staying.down();
            assert_eq!(host_state(), before, "{first_leaves} {device_is_replaced}");
        }
    }
    Completion::Completed
}

pub(crate) fn tunnel_devices_accept_packets_from_listed_balancers_only() -> Completion {
    if let Some(ignored) = without_devices() {
        return ignored;
    }
    let mut fixture = fixture();
    let before = host_state();
    let mut daemon = fixture.start(&["backend"]);
    let (listed, other) = (["10.0.0.8", "2001:db8:1::8"], ["10.0.0.9", "2001:db8:1::9"]);
    let pairs = || other.into_iter().zip(listed);
    for vip in VIPS {
        for (other, listed) in pairs() {
            assert_eq!(delivered(vip, &[other, listed]), [other, listed], "{vip}");
        }
    }
    fixture.config["underlay"]["balancers"] = json!(listed);
    fixture.write();
    daemon.reload();
    assert_eq!(daemon.log_count("reload failed"), 0, "{}", daemon.log());
    assert!(!tc_filter("eth0", "sluice_backend:edge").is_empty(), "{}", daemon.log());
    for vip in VIPS {
        for (other, listed) in pairs() {
            assert_eq!(delivered(vip, &[other, listed]), [listed], "{vip}");
        }
    }
    let reasons = fixture.json("counters")["backend"]["reasons"].clone();
    assert_eq!(reasons["not_balancer"], 4, "{reasons}");
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
    fixture.down();
    assert_eq!(host_state(), before);
    Completion::Completed
}
