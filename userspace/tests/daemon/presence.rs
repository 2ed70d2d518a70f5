//! Interfaces and addresses that appear late, disappear, or are renamed.

use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::fixture::{
    DaemonFixture, ServiceManager, assert_fails, host_state, tc_filter, wait_until,
};
use crate::instances::assert_delivered;
use crate::support::{add_address, run, veth};
use crate::traffic::TrafficClient;

const LB: &str = "sluice_lb:edge";

/// The status of the balancer, which is an error while an interface is missing.
fn status(fixture: &DaemonFixture) -> Value {
    fixture.failing_status()["lb"].clone()
}

/// Drains a backend, or ends that, by `sluice reload`.
#[track_caller]
fn drain(fixture: &mut DaemonFixture, draining: bool) {
    fixture.config["backends"][1]["draining"] = json!(draining);
    fixture.write();
    let output = fixture.sluice(&["reload"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(status(fixture)["backends"][1]["draining"], json!(draining));
}

fn add_eth0() {
    veth("eth0", "far");
    add_address("10.0.0.1/16", "eth0");
}

pub(crate) fn a_first_start_waits_for_interfaces_and_addresses() {
    let fixture = DaemonFixture::new();
    run("ip link del eth0");
    let before = host_state();
    let manager = ServiceManager::new(&fixture);
    let receive = || manager.receive();
    let socket = manager.variable();
    let mut daemon = fixture.spawn(&["env", &socket], &["lb"]);
    daemon.wait_for_log("waiting for this host missing=interface eth0, address 10.0.0.1", 1);
    let waiting = receive();
    assert!(waiting.starts_with("EXTEND_TIMEOUT_USEC="), "{waiting}");
    assert!(
        waiting.ends_with("STATUS=waiting for interface eth0, address 10.0.0.1\n"),
        "{waiting}"
    );
    assert_eq!(host_state(), before);
    // The interface appears 3 s late, and its address later.
    thread::sleep(Duration::from_secs(3));
    veth("eth0", "far");
    daemon.wait_for_log("waiting for this host missing=address 10.0.0.1", 1);
    assert_eq!(tc_filter("eth0", LB), "");
    add_address("10.0.0.1/16", "eth0");
    let waiting = receive();
    assert!(waiting.ends_with("STATUS=waiting for address 10.0.0.1\n"), "{waiting}");
    assert_eq!(receive(), "READY=1\nSTATUS=running\n");
    assert_ne!(tc_filter("eth0", LB), "");
    let mut traffic = TrafficClient::new(1);
    traffic.send(1);
    traffic.assert_all_counted();
    assert_eq!(daemon.log_count("waiting for this host"), 2, "{}", daemon.log());
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
    fixture.down();

    // A stop ends the wait.
    run("ip link del eth0");
    let mut daemon = fixture.spawn(&[], &["lb"]);
    daemon.wait_for_log("waiting for this host", 1);
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
    assert_eq!(host_state(), before);
}

pub(crate) fn the_wait_of_a_first_start_is_bounded() {
    let mut fixture = DaemonFixture::new();
    let before = host_state();
    fixture.config["interfaces"] = json!(["eth0", "eth7"]);
    fixture.write();
    let lb = ["lb", "--config", "edge.json"];
    for (wait, least) in [(&["--no-wait"][..], 0), (&["--wait", "0"], 0), (&["--wait", "2"], 2)] {
        let start = Instant::now();
        let output = fixture.sluice(&[&lb[..], wait].concat());
        assert_fails(&output, 2, &["edge.json: interfaces[1]: there is no interface eth7", "eth0"]);
        assert!(start.elapsed() >= Duration::from_secs(least), "{wait:?}");
        assert_eq!(host_state(), before);
    }
    assert_eq!(
        fixture.sluice(&[&lb[..], &["--no-wait", "--wait", "2"]].concat()).status.code(),
        Some(2)
    );

    // A backend waits for its address, and for the other family's, which is not confirmed yet.
    let output =
        fixture.sluice(&["backend", "--config", "edge.json", "--no-wait", "--interface", "eth0"]);
    assert_fails(&output, 2, &["no backend has an address of this host"]);
    fixture.config["backends"][0]["address"] = json!({ "v4": "10.0.1.1", "v6": "2001:db8::11" });
    fixture.config["interfaces"] = json!(["eth0"]);
    fixture.write();
    let mut daemon = fixture.spawn(&[], &["backend"]);
    daemon.wait_for_log("missing=an address of a backend", 1);
    add_address("10.0.1.1/16", "eth0");
    daemon.wait_for_log("missing=address 2001:db8::11", 1);
    run("ip -6 addr add 2001:db8::11/64 dev eth0 nodad");
    daemon.wait_for_log("ready: serving", 1);
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
    fixture.down();
}

pub(crate) fn changes_are_applied_while_an_interface_is_missing() {
    let mut fixture = DaemonFixture::new();
    veth("eth1", "far1");
    fixture.config["interfaces"] = json!(["eth0", "eth1"]);
    fixture.write();
    let mut daemon = fixture.start(&["lb"]);
    run("ip link del eth1");
    daemon.wait_for_log("cannot attach to eth1", 1);
    for draining in [true, false] {
        drain(&mut fixture, draining);
    }
    // Another configuration of the program and of the maps' sizes.
    fixture.config["services"][0]["encapsulation"] = json!("gue");
    fixture.config["limits"]["vips"] = json!(64);
    drain(&mut fixture, true);
    veth("eth2", "far2");
    drain(&mut fixture, false);
    assert_eq!(daemon.log_count("cannot attach to eth1"), 1, "{}", daemon.log());
    // A missing interface that was not there before is an error of the configuration.
    fixture.config["interfaces"] = json!(["eth0", "eth1", "eth7"]);
    fixture.write();
    assert_fails(
        &fixture.sluice(&["reload"]),
        2,
        &["nothing was changed", "edge.json: interfaces[2]: there is no interface eth7"],
    );
    fixture.config["interfaces"] = json!(["eth0", "eth1"]);
    fixture.write();

    daemon.end(Signal::SIGKILL);
    let mut daemon = fixture.start(&["lb"]);
    assert_eq!(daemon.log_count("cannot attach to eth1"), 1, "{}", daemon.log());
    drain(&mut fixture, true);
    let mut traffic = TrafficClient::new(10);
    let counted = crate::traffic::counted();
    traffic.send(10);
    wait_until("packets are forwarded", || crate::traffic::counted() == counted + 10);
    veth("eth1", "far1");
    daemon.wait_for_log("program attached after an error target=eth1", 1);
    assert_ne!(tc_filter("eth1", LB), "");
}

pub(crate) fn a_renamed_interface_keeps_forwarding() {
    let mut fixture = DaemonFixture::new();
    veth("eth1", "far1");
    fixture.config["interfaces"] = json!(["eth0", "eth1"]);
    fixture.write();
    let before = host_state();
    let mut daemon = fixture.start(&["lb"]);
    let rename = |from: &str, to: &str| {
        run(&format!("ip link set {from} down"));
        run(&format!("ip link set {from} name {to}"));
        run(&format!("ip link set {to} up"));
    };
    rename("eth1", "lan1");
    daemon.wait_for_log("cannot attach to eth1", 1);
    // A reload that replaces the program, a move, and a restart.
    fixture.config["services"][0]["encapsulation"] = json!("gue");
    drain(&mut fixture, true);
    let filter = |interface: &str| tc_filter(interface, LB);
    let strip = |filter: String| filter.split(" pref ").nth(1).map(str::to_owned);
    assert_eq!(strip(filter("lan1")), strip(filter("eth0")));
    fixture.config["priority"] = json!({ "lb": 150 });
    drain(&mut fixture, false);
    assert!(filter("lan1").contains("pref 150"), "{}", filter("lan1"));
    assert_eq!(strip(filter("lan1")), strip(filter("eth0")));
    daemon.end(Signal::SIGKILL);
    let mut daemon = fixture.start(&["lb"]);
    assert_eq!(strip(filter("lan1")), strip(filter("eth0")));
    // The configuration follows, or the name comes back.
    fixture.config["interfaces"] = json!(["eth0", "lan1"]);
    drain(&mut fixture, true);
    rename("lan1", "eth1");
    daemon.wait_for_log("cannot attach to lan1", 1);
    fixture.config["interfaces"] = json!(["eth0"]);
    drain(&mut fixture, false);
    assert_eq!(filter("eth1"), "");
    daemon.end(Signal::SIGTERM);
    fixture.down();
    assert_eq!(host_state(), before);
}

pub(crate) fn changes_are_applied_while_an_underlay_address_is_missing() {
    let mut fixture = DaemonFixture::new();
    run("ip -6 addr add 2001:db8::1/64 dev eth0 nodad");
    fixture.config["underlay"]["v6"] = json!("2001:db8::1");
    fixture.config["backends"][0]["address"] = json!({ "v4": "10.0.1.1", "v6": "2001:db8::11" });
    fixture.write();
    let mut daemon = fixture.start(&["lb"]);
    let hop = |fixture: &DaemonFixture, address: &str| {
        status(fixture)["backends"][0]["next_hops"][address].clone()
    };
    // A link flap removes IPv6 addresses.
    run("ip -6 addr flush dev eth0");
    daemon.wait_for_log("2001:db8::1 is not an address of this host", 1);
    drain(&mut fixture, true);
    daemon.end(Signal::SIGKILL);
    let mut daemon = fixture.start(&["lb"]);
    assert_eq!(daemon.log_count("2001:db8::1 is not an address of this host"), 1);
    drain(&mut fixture, false);
    assert_eq!(
        (hop(&fixture, "10.0.1.1").is_null(), hop(&fixture, "2001:db8::11")),
        (false, Value::Null)
    );
    // All addresses, and the only interface.
    run("ip link del eth0");
    daemon.wait_for_log("cannot attach to eth0", 1);
    drain(&mut fixture, true);
    daemon.end(Signal::SIGTERM);
    let mut daemon = fixture.start(&["lb"]);
    drain(&mut fixture, false);
    add_eth0();
    run("ip -6 addr add 2001:db8::1/64 dev eth0 nodad");
    daemon.wait_for_log("program attached after an error target=eth0", 1);
    for address in ["10.0.1.1", "2001:db8::11"] {
        wait_until("the backend has a next hop", || !hop(&fixture, address).is_null());
    }
    let mut traffic = TrafficClient::new(10);
    traffic.send(10);
    traffic.assert_all_counted();
}

pub(crate) fn a_backend_follows_changes_while_something_is_missing() {
    let mut fixture = DaemonFixture::new();
    add_address("10.0.1.1/16", "eth0");
    veth("eth1", "far1");
    fixture.config["interfaces"] = json!(["eth0", "eth1"]);
    fixture.write();
    let mut daemon = fixture.start(&["backend"]);
    let mut vips = vec!["203.0.113.10:80/udp".to_owned()];
    let mut add_vip = |fixture: &mut DaemonFixture| {
        let vip = format!("203.0.113.{}:80", 20 + vips.len());
        vips.push(format!("{vip}/udp"));
        fixture.config["services"][0]["vips"] = json!(vips);
        fixture.write();
        let output = fixture.sluice(&["reload"]);
        assert!(output.status.success(), "{output:?}");
        vip
    };
    run("ip link del eth1");
    daemon.wait_for_log("this host lacks interface eth1", 1);
    assert_delivered(&add_vip(&mut fixture));
    daemon.end(Signal::SIGKILL);
    let mut daemon = fixture.start(&["backend"]);
    assert_delivered(&add_vip(&mut fixture));

    // The address by which the backend is found.
    run("ip addr del 10.0.1.1/16 dev eth0");
    daemon.wait_for_log("this host lacks interface eth1, address 10.0.1.1", 1);
    add_vip(&mut fixture);
    daemon.end(Signal::SIGTERM);
    let mut daemon = fixture.start(&["backend"]);
    let vip = add_vip(&mut fixture);
    add_address("10.0.1.1/16", "eth0");
    assert_delivered(&vip);

    // Everything.
    run("ip link del eth0");
    daemon.wait_for_log("this host lacks interface eth0, interface eth1, address 10.0.1.1", 1);
    let vip = add_vip(&mut fixture);
    daemon.end(Signal::SIGKILL);
    let mut daemon = fixture.start(&["backend"]);
    veth("eth1", "far1");
    add_eth0();
    add_address("10.0.1.1/16", "eth0");
    daemon.wait_for_log("host state restored after an error", 1);
    assert_delivered(&vip);
    daemon.end(Signal::SIGTERM);
    fixture.down();
}
