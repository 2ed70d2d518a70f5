//! `sluice backend`.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use etherparse::{IpNumber, Ipv4Header, PacketBuilder};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::fixture::{DaemonFixture, PINS, assert_fails, host_state, tc_filter, wait_until};
use crate::ptrace::kill_before;
use crate::support::{add_address, run, sysctl};
use crate::wire::{mac_address, send_frame};

const FILTER: &str = "sluice_backend:edge";

/// The VIP addresses on `lo`.
fn on_lo() -> Vec<String> {
    let text = run("ip -o -4 addr show dev lo");
    let addresses = text.lines().filter_map(|line| line.split_whitespace().nth(3));
    addresses.filter(|address| address.starts_with("203.")).map(str::to_owned).collect()
}

pub(crate) fn a_backend_starts_reloads_and_is_removed_by_down() {
    let mut fixture = DaemonFixture::new();
    add_address("10.0.1.1/16", "eth0");
    let before = host_state();
    let mut daemon = fixture.start(&["backend"]);
    assert_eq!(on_lo(), ["203.0.113.10/32", "203.0.113.11/32"]);
    assert_eq!(sysctl("eth0", "arp_ignore"), "1");
    // Without tunnel devices in the kernel the program decapsulates; the log and the status show
    // which.
    let by_program = daemon.log_count("by=BPF program") == 1;
    assert_eq!(by_program, tc_filter("eth0", FILTER).contains("direct-action"), "{}", daemon.log());
    let status = fixture.json("status");
    assert_eq!(
        (&status["backend"]["daemon"]["process"], &status["backend"]["program"]),
        (&json!(daemon.id()), &json!(by_program))
    );
    // The same object clamps the MSS.
    assert!(status["backend"]["memory"].is_object(), "{status}");
    assert!(fixture.json("counters")["backend"].is_object());

    // A VIP is removed, another is added.
    let filter = tc_filter("eth0", FILTER);
    fixture.config["services"][0]["vips"] = json!(["203.0.113.10:80/tcp", "203.0.113.12:80/tcp"]);
    fixture.write();
    daemon.reload();
    assert_eq!(on_lo(), ["203.0.113.10/32", "203.0.113.12/32"]);
    assert_eq!(tc_filter("eth0", FILTER), filter, "a change of VIPs keeps the program");

    // More VIPs change than fit into the maps together; some of them stay.
    let vips = |last: std::ops::Range<u8>| {
        last.map(|last| format!("203.0.113.{last}:80/tcp")).collect::<Vec<_>>()
    };
    for range in [10..18, 14..22, 22..30] {
        fixture.config["services"][0]["vips"] = json!(vips(range.clone()));
        fixture.write();
        daemon.reload();
        let mut found = on_lo();
        found.sort();
        assert_eq!(
            found,
            range.map(|last| format!("203.0.113.{last}/32")).collect::<Vec<_>>(),
            "{}",
            daemon.log()
        );
    }
    assert_eq!(daemon.log_count("reload failed"), 0, "{}", daemon.log());
    fixture.config["services"][0]["vips"] = json!(["203.0.113.10:80/tcp", "203.0.113.12:80/tcp"]);
    fixture.write();
    daemon.reload();

    // An invalid configuration is refused completely.
    let with = host_state();
    fixture.config["backends"][0]["address"] = json!("10.9.9.9");
    fixture.write();
    daemon.reload();
    assert_eq!(daemon.log_count("reload failed"), 1, "{}", daemon.log());
    assert_eq!(host_state(), with);
    fixture.config["backends"][0]["address"] = json!("10.0.1.1");
    fixture.write();

    assert_fails(&fixture.sluice(&["down"]), 1, &["still runs", &daemon.id().to_string()]);
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        daemon.end(signal);
        assert_eq!(
            on_lo(),
            ["203.0.113.10/32", "203.0.113.12/32"],
            "{signal}: the VIP addresses stay"
        );
        assert_eq!(tc_filter("eth0", FILTER).is_empty(), !by_program);
        let report = fixture.down();
        assert!(report.contains("undone: net/ipv4/conf/eth0/arp_ignore set back to 0"), "{report}");
        assert_eq!(host_state(), before, "{signal}");
        daemon = fixture.start(&["backend"]);
    }
    drop(daemon);
    fixture.down();
    let daemon = fixture.start(&["backend", "--ephemeral"]);
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
    assert_eq!(host_state(), before);

    // A VIP address on an interface other than `lo` is refused, and nothing is changed.
    add_address("203.0.113.10/24", "eth0");
    let before = host_state();
    let output = fixture.sluice(&["backend", "--config", "edge.json"]);
    assert_fails(&output, 1, &["203.0.113.10 is on eth0"]);
    assert_eq!(host_state(), before);
}

pub(crate) fn thousands_of_vips_are_applied_in_seconds() {
    /// Far above the time of one listing of addresses and one journal entry for all VIPs, and far
    /// below that of one for each VIP. Not checked on emulated machines (`SLUICE_EMULATED`).
    const LIMIT: Duration = Duration::from_secs(15);
    const VIPS: usize = 8_000;

    let mut fixture = DaemonFixture::new();
    add_address("10.0.1.1/16", "eth0");
    let before = host_state();
    let vips = |number: usize| {
        (0..number)
            .map(|vip| format!("198.18.{}.{}:80/tcp", vip / 250, vip % 250 + 1))
            .chain((0..number / 100).map(|vip| format!("[2001:db8:{vip:x}::/48]:80/tcp")))
            .collect::<Vec<_>>()
    };
    let timed = |what: &str, action: &mut dyn FnMut()| {
        let start = Instant::now();
        action();
        let taken = start.elapsed();
        println!("{VIPS} VIP addresses on a backend: {what}: {taken:.1?}");
        let emulated = std::env::var_os("SLUICE_EMULATED").is_some();
        assert!(emulated || taken < LIMIT, "{what}: {taken:.1?}");
    };
    let on_lo = || run("ip -o -4 addr show dev lo").matches("198.18.").count();
    fixture.config["limits"]["vips"] = json!(VIPS * 2);
    fixture.config["services"][0]["vips"] = json!(vips(VIPS));
    fixture.write();
    let mut daemon = None;
    timed("start", &mut || daemon = Some(fixture.start(&["backend"])));
    let mut daemon = daemon.unwrap();
    assert_eq!(on_lo(), VIPS);
    fixture.config["services"][0]["vips"] = json!(vips(VIPS / 2));
    fixture.write();
    timed("reload that removes half of them", &mut || daemon.reload());
    assert_eq!(on_lo(), VIPS / 2, "{}", daemon.log());
    daemon.end(Signal::SIGTERM);
    timed("restart", &mut || {
        fixture.start(&["backend"]).end(Signal::SIGTERM);
    });
    timed("down", &mut || drop(fixture.down()));
    assert_eq!(host_state(), before);
}

/// An IP-in-IP frame with a datagram to a VIP, from an outer source.
fn encapsulated_from(source: [u8; 4]) -> Vec<u8> {
    let mut inner = Vec::new();
    PacketBuilder::ipv4([198, 51, 100, 7], [203, 0, 113, 11], 64)
        .udp(40_000, 53)
        .write(&mut inner, b"query")
        .unwrap();
    let length = inner.len() as u16;
    let mut outer = Ipv4Header::new(length, 64, IpNumber::IPV4, source, [10, 0, 1, 1]).unwrap();
    outer.header_checksum = outer.calc_header_checksum();
    let mut frame = mac_address("eth0").to_vec();
    frame.extend([2, 0, 0, 0, 0, 1, 0x08, 0x00]);
    frame.extend([&outer.to_bytes()[..], &inner].concat());
    frame
}

pub(crate) fn a_backend_accepts_tunnel_packets_from_listed_balancers_only() {
    const LISTED: [u8; 4] = [10, 0, 0, 1];
    const OTHER: [u8; 4] = [10, 0, 0, 2];

    let mut fixture = DaemonFixture::new();
    add_address("10.0.1.1/16", "eth0");
    let mut daemon = fixture.start(&["backend"]);
    assert_eq!(daemon.log_count("from any source"), 1, "{}", daemon.log());
    let refused = |fixture: &DaemonFixture| {
        fixture.json("counters")["backend"]["reasons"]["not_balancer"].as_u64().unwrap_or(0)
    };
    // Without a list, every source is accepted; with one, the program at ingress checks it, also if
    // a tunnel device decapsulates.
    for (balancers, expected) in [
        (None, 0),
        (Some(json!(["10.0.0.1"])), 1),
        (Some(json!(["10.0.0.0/30"])), 1),
        (Some(json!(["10.0.0.1", "2001:db8::/64"])), 2),
    ] {
        if let Some(balancers) = &balancers {
            fixture.config["underlay"]["balancers"] = balancers.clone();
            fixture.write();
            daemon.reload();
            assert!(!tc_filter("eth0", FILTER).is_empty(), "{}", daemon.log());
        }
        send_frame("far", &encapsulated_from(OTHER));
        send_frame("far", &encapsulated_from(LISTED));
        wait_until(&format!("{expected} packets are refused with {balancers:?}"), || {
            refused(&fixture) == expected
        });
    }
    assert_eq!(daemon.log_count("reload failed"), 0, "{}", daemon.log());
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
}

pub(crate) fn no_packet_meets_maps_without_entries() {
    let mut fixture = DaemonFixture::new();
    add_address("10.0.1.1/16", "eth0");
    fixture.config["underlay"]["balancers"] = json!(["10.0.0.1"]);
    fixture.write();
    fixture.start(&["backend"]).end(Signal::SIGKILL);
    // A map without its pin is made again, while the program over the other one is attached; the
    // limit needs a resize.
    let version = std::fs::read_dir(PINS).unwrap().next().unwrap().unwrap().path();
    std::fs::remove_file(version.join("backend/BALANCERS")).unwrap();
    fixture.config["limits"]["vips"] = json!(64);
    fixture.write();
    let daemon = fixture.spawn_stopped(&["backend"]);
    let sent = std::cell::Cell::new(0);
    let killed = kill_before(&daemon, Signal::SIGCONT, usize::MAX, |_| {
        send_frame("far", &encapsulated_from([10, 0, 0, 1]));
        sent.set(sent.get() + 1);
    });
    assert_eq!((killed, daemon.log_count("maps resized")), (None, 1), "{}", daemon.log());
    assert!(sent.get() > 10, "{}", sent.get());
    let reasons = fixture.json("counters")["backend"]["reasons"].clone();
    assert!(reasons["not_balancer"].is_null(), "{reasons}");
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
}

pub(crate) fn a_priority_tag_does_not_keep_a_packet_from_the_backend() {
    /// Priority 5, VLAN ID 0.
    const TAG: [u8; 4] = [0x81, 0x00, 0xa0, 0x00];
    /// Limit of the wait for a datagram, long enough for emulated machines.
    const TIMEOUT: Duration = Duration::from_secs(60);

    let fixture = DaemonFixture::new();
    add_address("10.0.1.1/16", "eth0");
    // Reverse-path filtering, if enabled, needs a route to clients.
    run("ip route add default dev eth0");
    let _daemon = fixture.start(&["backend"]);
    let socket = UdpSocket::bind("203.0.113.11:53").unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut frame = encapsulated_from([10, 0, 0, 1]);
    frame.splice(12..12, TAG);
    send_frame("far", &frame);
    let mut bytes = [0; 16];
    let received = socket.recv(&mut bytes).map(|length| bytes[..length].to_vec());
    assert_eq!(received.ok().as_deref(), Some(&b"query"[..]), "{}", fixture.json("counters"));
}
