//! Packets during a configuration change: between its steps, and after it has failed halfway.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::acl::long_acl;
use crate::fixture::{DaemonFixture, assert_fails, attach_foreign_filter, host_state, wait_until};
use crate::ptrace::kill_before;
use crate::support::{run, veth};
use crate::traffic::TrafficClient;
use crate::wire;

const CLIENT: &str = "198.51.100.7";
const ALLOWED: &str = "198.51.100.8";
/// The VIP of the added service.
const NEW: &str = "203.0.113.12:80";

impl DaemonFixture {
    /// Adds a service with an ACL that allows [`ALLOWED`] only.
    fn add_service_with_acl(&mut self) {
        self.write_file("allow.txt", ALLOWED);
        self.config["services"].as_array_mut().unwrap().push(json!({
            "name": "new", "vips": ["203.0.113.12:80/tcp"], "table_size": 251, "allow_file": "allow.txt", "backends": [{ "name": "a" }]
        }));
    }

    /// Packets that the new service has forwarded.
    fn forwarded_by_new(&self) -> u64 {
        self.json("counters")["lb"]["services"]["new"]["packets"].as_u64().unwrap_or(0)
    }

    fn dropped(&self, reason: &str) -> u64 {
        self.json("counters")["lb"]["reasons"][reason].as_u64().unwrap_or(0)
    }
}

fn send_denied() {
    wire::send_segment("far", "eth0", CLIENT.parse().unwrap(), NEW.parse().unwrap());
}

pub(crate) fn removing_a_backend_drops_no_packet() {
    let mut fixture = DaemonFixture::new();
    for address in ["10.0.1.1", "10.0.1.2", "10.0.1.3"] {
        // Without a neighbour entry packets would wait for address resolution and block their
        // sender.
        run(&format!("ip neigh add {address} lladdr 02:00:00:00:00:11 dev eth0 nud permanent"));
    }
    let daemon = fixture.start(&["lb"]);
    let mut client = TrafficClient::new(64);
    for (number, backends) in [
        // Removed; added at another index; at another address.
        json!([{ "name": "a", "address": "10.0.1.1" }]),
        json!([{ "name": "a", "address": "10.0.1.1" }, { "name": "b", "address": "10.0.1.2" }]),
        json!([{ "name": "a", "address": "10.0.1.1" }, { "name": "b", "address": "10.0.1.3" }]),
    ]
    .into_iter()
    .enumerate()
    {
        let used =
            backends.as_array().unwrap().iter().map(|backend| json!({ "name": backend["name"] }));
        fixture.config["services"][0]["backends"] = used.collect();
        fixture.config["backends"] = backends;
        fixture.write();
        let killed = kill_before(&daemon, Signal::SIGHUP, usize::MAX, |_| client.send(64));
        assert_eq!((killed, daemon.log_count("ready: ")), (None, number + 2), "{}", daemon.log());
        assert_eq!(fixture.dropped("no_route"), 0, "{}", daemon.log());
        client.assert_all_counted();
    }
}

pub(crate) fn a_new_service_never_forwards_without_its_acl() {
    let mut fixture = DaemonFixture::new();
    let mut daemon = fixture.start(&["lb"]);
    fixture.add_service_with_acl();
    fixture.write();
    assert_eq!(kill_before(&daemon, Signal::SIGHUP, usize::MAX, |_| send_denied()), None);
    daemon.wait_for_log("source ACL in force scope=service new", 1);
    let log = daemon.log();
    let waiting = log.lines().find(|line| line.contains("except for new services")).unwrap();
    assert!(waiting.contains("services=new"), "{waiting}");
    assert!(fixture.dropped("acl_not_allowed") > 0, "{}", daemon.log());
    assert_eq!(fixture.forwarded_by_new(), 0, "{}", daemon.log());
    assert_eq!(fixture.outcome(ALLOWED, NEW), "new");
}

pub(crate) fn a_new_service_never_forwards_without_its_acl_during_a_start() {
    let mut fixture = DaemonFixture::new();
    fixture.start(&["lb"]).end(Signal::SIGTERM);
    fixture.add_service_with_acl();
    fixture.write();
    let started = AtomicBool::new(false);
    let mut daemon = thread::scope(|scope| {
        // Threads inherit the namespaces of the thread that starts them.
        scope.spawn(|| {
            while !started.load(Ordering::Relaxed) {
                send_denied();
                thread::sleep(Duration::from_millis(1));
            }
        });
        let daemon = fixture.start(&["lb"]);
        started.store(true, Ordering::Relaxed);
        daemon
    });
    daemon.wait_for_log("source ACL in force scope=service new", 1);
    assert_eq!(fixture.forwarded_by_new(), 0, "{}", daemon.log());
    assert_eq!(fixture.outcome(ALLOWED, NEW), "new");
}

pub(crate) fn acl_files_are_read_when_a_failed_change_is_completed() {
    let mut fixture = DaemonFixture::new();
    let foreign = attach_foreign_filter("eth1", "far1");
    let mut daemon = fixture.start(&["lb"]);
    fixture.add_service_with_acl();
    fixture.config["interfaces"] = json!(["eth0", "eth1"]);
    fixture.write();
    daemon.reload();
    assert_eq!(
        daemon.log_count("reload failed; changes logged above were applied, the rest were not error=cannot attach to eth1"),
        1
    );
    let output = fixture.sluice(&["reload"]);
    assert_fails(&output, 1, &["lb: the configuration was applied in part", "eth1"]);
    foreign.remove();
    daemon.wait_for_log("completed the change that had failed", 1);
    daemon.wait_for_log("source ACL in force scope=service new", 1);
    assert_eq!(
        (fixture.outcome(ALLOWED, NEW), fixture.outcome(CLIENT, NEW)),
        ("new".into(), "acl_not_allowed".into())
    );
}

pub(crate) fn the_start_after_a_killed_one_forwards_no_denied_packet() {
    let mut fixture = DaemonFixture::new();
    let before = host_state();
    fixture.write_file("deny.txt", &long_acl(CLIENT));
    fixture.config["deny_file"] = json!("deny.txt");
    fixture.write();
    let mut daemon = fixture.spawn(&[], &["lb"]);
    daemon.wait_for_log("replace the lookup tables", 1);
    daemon.end(Signal::SIGKILL);
    let daemon = fixture.start(&["lb"]);
    assert_eq!(fixture.outcome(CLIENT, "203.0.113.10:80"), "acl_denied", "{}", daemon.log());
    daemon.end(Signal::SIGTERM);
    fixture.down();
    assert_eq!(host_state(), before);
}

pub(crate) fn next_hops_of_one_family_are_updated_while_the_other_lacks_a_source() {
    let mut fixture = DaemonFixture::new();
    veth("eth1", "far1");
    run("ip -6 addr add 2001:db8::1/64 dev eth0 nodad");
    fixture.config["underlay"]["v6"] = json!("2001:db8::1");
    fixture.config["backends"][0]["address"] = json!({ "v4": "10.0.1.1", "v6": "2001:db8::11" });
    fixture.write();
    let mut daemon = fixture.start(&["lb"]);
    run("ip -6 addr del 2001:db8::1/64 dev eth0");
    daemon.wait_for_log("2001:db8::1 is not an address of this host", 1);
    daemon.wait_for_log("packets for the backend are sent to 10.0.1.1", 1);
    // The backend without an IPv6 address is not affected.
    assert_eq!(daemon.log_count("(no_route)"), 0, "{}", daemon.log());
    run("ip route replace 10.0.1.1/32 dev eth1");
    let hop = |address: &str| fixture.status()["backends"][0]["next_hops"][address].clone();
    wait_until("the next hop uses the new route", || hop("10.0.1.1")["interface"] == "eth1");
    assert_eq!(hop("2001:db8::11"), Value::Null);
    run("ip -6 addr add 2001:db8::1/64 dev eth0 nodad");
    wait_until("the other family has a next hop", || hop("2001:db8::11") != Value::Null);
}
