//! Several instances on one host: priorities of filters, and host state that they share.

use std::net::{Ipv4Addr, SocketAddrV4};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::fixture::{
    DaemonFixture, DaemonProcess, assert_fails, attach_filter, host_state, tc_filter,
};
use crate::support::{add_address, run, sysctl};
use crate::traffic::TrafficClient;
use crate::wire::{mac_address, send_frame, udp_server};

/// The priority of a filter at the ingress of `eth0`, on each line about it.
fn priorities(name: &str) -> Vec<String> {
    let shown = run("tc filter show dev eth0 ingress");
    let lines = shown.lines().filter(|line| line.contains(name));
    lines
        .map(|line| line.split(" pref ").nth(1).unwrap().split(' ').next().unwrap().to_owned())
        .collect()
}

fn reload_with(
    fixture: &mut DaemonFixture,
    daemon: &mut DaemonProcess,
    priority: serde_json::Value,
) {
    fixture.config["priority"] = priority;
    fixture.write();
    daemon.reload();
}

pub(crate) fn a_change_of_the_priority_loses_no_packet() {
    const FILTER: &str = "sluice_lb:edge";

    let mut fixture = DaemonFixture::new();
    let before = host_state();
    let mut daemon = fixture.start(&["lb"]);
    assert_eq!(priorities(FILTER), ["100"]);
    let traffic = TrafficClient::new(1000).start_background();
    for lb in [150, 7, 65_534, 120] {
        reload_with(&mut fixture, &mut daemon, json!({ "lb": lb }));
        assert_eq!(priorities(FILTER), [lb.to_string()], "{}", daemon.log());
    }
    // By a restart.
    daemon.end(Signal::SIGKILL);
    fixture.config["priority"] = json!({ "lb": 130 });
    // With another load-time constant, so that the attached program is replaced.
    fixture.config["services"][0]["encapsulation"] = json!("gue");
    fixture.write();
    let mut daemon = fixture.start(&["lb"]);
    assert_eq!(priorities(FILTER), ["130"], "{}", daemon.log());
    // While maps are resized.
    fixture.config["limits"]["vips"] = json!(64);
    reload_with(&mut fixture, &mut daemon, json!({ "lb": 140 }));
    assert_eq!(priorities(FILTER), ["140"], "{}", daemon.log());
    assert_eq!(daemon.log_count("reload failed"), 0, "{}", daemon.log());
    assert_eq!(daemon.log_count("restored host state"), 0, "{}", daemon.log());
    traffic.stop().assert_all_counted();

    // Another program's filter is there.
    let foreign = attach_filter("eth0", 200);
    let with = host_state();
    reload_with(&mut fixture, &mut daemon, json!({ "lb": 200 }));
    assert_eq!(host_state(), with);
    let refusal = "reload failed; nothing was changed error=cannot move the program on eth0: ";
    assert_eq!(daemon.log_count(refusal), 1, "{}", daemon.log());
    assert_eq!(
        daemon.log_count("change `priority.lb` in the configuration"),
        1,
        "{}",
        daemon.log()
    );
    foreign.remove();
    daemon.reload();
    assert_eq!(priorities(FILTER), ["200"], "{}", daemon.log());
    daemon.end(Signal::SIGTERM);
    fixture.down();
    assert_eq!(host_state(), before);
}

pub(crate) fn two_balancers_run_side_by_side() {
    let fixture = DaemonFixture::new();
    let mut second = fixture.beside("two");
    let before = host_state();
    let first = fixture.start(&["lb"]);
    assert_fails(
        &second.sluice(&["lb", "--config", "edge.json"]),
        1,
        &[
            "\"sluice_lb:edge\" of the instance edge of Sluice",
            "change `priority.lb` in the configuration",
        ],
    );
    second.config["priority"] = json!({ "lb": 110 });
    second.config["services"][0]["vips"] = json!(["203.0.114.10:80/tcp"]);
    second.write();
    let mut other = second.start(&["lb"]);
    assert_eq!(
        (priorities("sluice_lb:edge"), priorities("sluice_lb:two")),
        (vec!["100".into()], vec!["110".into()])
    );
    let mut traffic = TrafficClient::new(10);
    traffic.send(100);
    traffic.assert_all_counted();
    assert_eq!(second.json("counters")["lb"]["services"]["web"]["packets"], 0);

    // A filter of another instance is no predecessor to warn of.
    other.reload();
    // The one that made the qdisc leaves first.
    first.end(Signal::SIGTERM);
    assert!(
        fixture
            .down()
            .contains("left alone: clsact qdisc on eth0: the instance two (lb) uses it, too")
    );
    assert_eq!(priorities("sluice_lb:edge"), Vec::<String>::new());
    other.reload();
    assert_eq!(other.log_count("restored host state"), 0, "{}", other.log());
    assert_eq!(other.log_count("runs before Sluice"), 0, "{}", other.log());
    assert_eq!(priorities("sluice_lb:two"), ["110"]);
    other.end(Signal::SIGTERM);
    second.down();
    assert_eq!(host_state(), before);
}

/// A UDP datagram for a VIP, encapsulated in IPv4 for the backend 10.0.1.1.
fn encapsulated(vip: SocketAddrV4) -> Vec<u8> {
    let header = |protocol, length: u16, from: [u8; 4], to: Ipv4Addr| {
        let mut header = vec![0x45, 0];
        header.extend(length.to_be_bytes());
        header.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
        header.extend(from);
        header.extend(to.octets());
        let words = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
        let sum: u32 = words.sum();
        let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        header
    };
    let mut frame = mac_address("eth0").to_vec();
    frame.extend([0x02, 0, 0, 0, 0, 0x01, 0x08, 0x00]);
    frame.extend(header(4, 52, [10, 0, 0, 9], Ipv4Addr::new(10, 0, 1, 1)));
    frame.extend(header(17, 32, [10, 0, 7, 7], *vip.ip()));
    frame.extend(4000_u16.to_be_bytes());
    frame.extend(vip.port().to_be_bytes());
    frame.extend([0, 12, 0, 0, 1, 2, 3, 4]);
    frame
}

/// Sends an encapsulated datagram, and checks that it arrives at its VIP.
#[track_caller]
pub(crate) fn assert_delivered(vip: &str) {
    let vip: SocketAddrV4 = vip.parse().unwrap();
    let server = udp_server(vip.into());
    send_frame("far", &encapsulated(vip));
    let mut bytes = [0; 16];
    let received = server.recv(&mut bytes);
    assert!(received.is_ok_and(|length| bytes[..length] == [1, 2, 3, 4]), "{vip}");
}

/// The settings that both backends need.
fn shared() -> [String; 3] {
    let vip = run("ip -o -4 addr show dev lo to 203.0.113.10");
    [vip, sysctl("eth0", "arp_ignore"), sysctl("eth0", "arp_announce")]
}

pub(crate) fn a_backend_serves_two_fleets() {
    let mut fixture = DaemonFixture::new();
    add_address("10.0.1.1/16", "eth0");
    fixture.config["services"][0]["vips"] = json!(["203.0.113.10:80/udp", "203.0.113.11:80/udp"]);
    fixture.write();
    let mut second = fixture.beside("two");
    // Fleets of different routers may share an address.
    second.config["services"][0]["vips"] =
        json!(["203.0.113.10:443/udp", "203.0.114.10:80/udp", "203.0.115.0/24:80/udp"]);
    second.write();
    let (before, settings) = (host_state(), shared());
    for first_leaves in [true, false] {
        let mut one = fixture.start(&["backend"]);
        let taken = second.sluice(&["backend", "--config", "edge.json"]);
        if !tc_filter("eth0", "sluice_backend:edge").is_empty() {
            assert_fails(&taken, 1, &["sluice_backend:edge", "change `priority.backend`"]);
        }
        second.config["priority"] = json!({ "lb": 110 });
        second.write();
        let mut two = second.start(&["backend"]);
        for vip in ["203.0.113.10:80", "203.0.113.11:80", "203.0.114.10:80", "203.0.115.9:80"] {
            assert_delivered(vip);
        }
        let with = shared();
        assert_ne!(with, settings);
        for daemon in [&mut one, &mut two] {
            daemon.reload();
            assert_eq!(daemon.log_count("reload failed"), 0, "{}", daemon.log());
        }

        // One of them stops serving the address of both.
        let mut without = fixture.config.clone();
        without["services"][0]["vips"] = json!(["203.0.113.11:80/udp"]);
        fixture.write_text(&without.to_string());
        one.reload();
        assert_eq!(shared(), with, "{}", one.log());
        fixture.write();
        one.reload();

        one.end(Signal::SIGTERM);
        two.end(Signal::SIGTERM);
        let (leaving, staying, vip) = match first_leaves {
            true => (&fixture, &second, "203.0.114.10:80"),
            false => (&second, &fixture, "203.0.113.11:80"),
        };
        let report = leaving.down();
        assert_eq!(shared(), with, "{report}");
        assert_delivered(vip);
        staying.down();
        assert_eq!((host_state(), shared()), (before.clone(), settings.clone()));
        second.config["priority"] = json!({});
        second.write();
    }
}

pub(crate) fn both_roles_leave_nothing_behind() {
    let fixture = DaemonFixture::new();
    add_address("10.0.1.1/16", "eth0");
    let before = host_state();
    let (lb, backend) = (fixture.start(&["lb"]), fixture.start(&["backend"]));
    lb.end(Signal::SIGTERM);
    backend.end(Signal::SIGTERM);
    fixture.down();
    assert_eq!(host_state(), before);
}
