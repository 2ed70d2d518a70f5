//! What packets meet while a configuration changes: between its steps, and where they cannot all be
//! made at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::site::{Site, hold_place, wait_until, world};
use crate::sources::many;
use crate::steps::kill_before;
use crate::support::{run, veth};
use crate::traffic::Client;
use crate::wire;

const CLIENT: &str = "198.51.100.7";
const FRIEND: &str = "198.51.100.8";
/// The VIP of the service that is added.
const NEW: &str = "203.0.113.12:80";

impl Site {
    /// Adds a service that only [`FRIEND`] may use.
    fn add_listed_service(&mut self) {
        self.write_list("allow.txt", FRIEND);
        self.config["services"].as_array_mut().unwrap().push(json!({
            "name": "new", "vips": ["203.0.113.12:80/tcp"], "table_size": 251, "allow_file": "allow.txt", "backends": [{ "name": "a" }]
        }));
    }

    /// How many packets of anybody the new service has forwarded.
    fn served(&self) -> u64 {
        self.json("counters")["lb"]["services"]["new"]["packets"].as_u64().unwrap_or(0)
    }

    fn dropped(&self, reason: &str) -> u64 {
        self.json("counters")["lb"]["reasons"][reason].as_u64().unwrap_or(0)
    }
}

fn knock() {
    wire::send("far", "eth0", CLIENT.parse().unwrap(), NEW.parse().unwrap());
}

pub(crate) fn a_backend_that_goes_away_loses_no_packet_of_those_that_others_take_over() {
    let mut site = Site::new();
    for address in ["10.0.1.1", "10.0.1.2", "10.0.1.3"] {
        // Otherwise packets wait for an answer of it that never comes, and the client with them.
        run(&format!("ip neigh add {address} lladdr 02:00:00:00:00:11 dev eth0 nud permanent"));
    }
    let daemon = site.start(&["lb"]);
    let mut client = Client::new(64);
    for (number, backends) in [
        // Away; back at another index; at another address.
        json!([{ "name": "a", "address": "10.0.1.1" }]),
        json!([{ "name": "a", "address": "10.0.1.1" }, { "name": "b", "address": "10.0.1.2" }]),
        json!([{ "name": "a", "address": "10.0.1.1" }, { "name": "b", "address": "10.0.1.3" }]),
    ]
    .into_iter()
    .enumerate()
    {
        let used =
            backends.as_array().unwrap().iter().map(|backend| json!({ "name": backend["name"] }));
        site.config["services"][0]["backends"] = used.collect();
        site.config["backends"] = backends;
        site.write();
        let killed = kill_before(&daemon, Signal::SIGHUP, usize::MAX, |_| client.send(64));
        assert_eq!((killed, daemon.said("ready: ")), (None, number + 2), "{}", daemon.log());
        assert_eq!(site.dropped("no_route"), 0, "{}", daemon.log());
        client.all_counted();
    }
}

pub(crate) fn a_new_service_with_a_list_is_closed_from_its_first_moment_on() {
    let mut site = Site::new();
    let mut daemon = site.start(&["lb"]);
    site.add_listed_service();
    site.write();
    assert_eq!(kill_before(&daemon, Signal::SIGHUP, usize::MAX, |_| knock()), None);
    daemon.wait_for_log("source ACL of service new is in force", 1);
    assert!(site.dropped("acl_not_allowed") > 0, "{}", daemon.log());
    assert_eq!(site.served(), 0, "{}", daemon.log());
    assert_eq!(site.fate(FRIEND, NEW), "new");
}

pub(crate) fn a_new_service_with_a_list_is_closed_while_a_daemon_starts() {
    let mut site = Site::new();
    site.start(&["lb"]).end(Signal::SIGTERM);
    site.add_listed_service();
    site.write();
    let started = AtomicBool::new(false);
    let mut daemon = thread::scope(|scope| {
        // A namespace is a thread's own, and goes to the threads that it makes.
        scope.spawn(|| {
            while !started.load(Ordering::Relaxed) {
                knock();
                thread::sleep(Duration::from_millis(1));
            }
        });
        let daemon = site.start(&["lb"]);
        started.store(true, Ordering::Relaxed);
        daemon
    });
    daemon.wait_for_log("source ACL of service new is in force", 1);
    assert_eq!(site.served(), 0, "{}", daemon.log());
    assert_eq!(site.fate(FRIEND, NEW), "new");
}

pub(crate) fn lists_are_read_when_a_change_is_completed_later() {
    let mut site = Site::new();
    let held = hold_place("eth1", "far1");
    let mut daemon = site.start(&["lb"]);
    site.add_listed_service();
    site.config["interfaces"] = json!(["eth0", "eth1"]);
    site.write();
    daemon.reload();
    assert_eq!(
        daemon.said("reload failed; changes logged above were applied, the rest were not error=cannot attach to eth1"),
        1
    );
    held.release();
    daemon.wait_for_log("completed the change that had failed", 1);
    daemon.wait_for_log("source ACL of service new is in force", 1);
    assert_eq!(
        (site.fate(FRIEND, NEW), site.fate(CLIENT, NEW)),
        ("new".into(), "acl_not_allowed".into())
    );
}

pub(crate) fn a_start_that_was_killed_before_it_attached_lets_nobody_through_after_it() {
    let mut site = Site::new();
    let before = world();
    site.write_list("deny.txt", &many(CLIENT));
    site.config["deny_file"] = json!("deny.txt");
    site.write();
    let mut daemon = site.spawn(&[], &["lb"]);
    daemon.wait_for_log("replace the lookup tables", 1);
    daemon.end(Signal::SIGKILL);
    let daemon = site.start(&["lb"]);
    assert_eq!(site.fate(CLIENT, "203.0.113.10:80"), "acl_denied", "{}", daemon.log());
    daemon.end(Signal::SIGTERM);
    site.down();
    assert_eq!(world(), before);
}

pub(crate) fn the_routes_of_one_family_are_followed_when_the_other_has_lost_its_source() {
    let mut site = Site::new();
    veth("eth1", "far1");
    run("ip -6 addr add 2001:db8::1/64 dev eth0 nodad");
    site.config["underlay"]["v6"] = json!("2001:db8::1");
    site.config["backends"][0]["address"] = json!({ "v4": "10.0.1.1", "v6": "2001:db8::11" });
    site.write();
    let mut daemon = site.start(&["lb"]);
    run("ip -6 addr del 2001:db8::1/64 dev eth0");
    daemon.wait_for_log("2001:db8::1 is not an address of this host", 1);
    run("ip route replace 10.0.1.1/32 dev eth1");
    let hop = |address: &str| site.status()["backends"][0]["next_hops"][address].clone();
    let eth1 = nix::net::if_::if_nametoindex("eth1").unwrap();
    wait_until("the route is followed", || hop("10.0.1.1")[0] == eth1);
    assert_eq!(hop("2001:db8::11"), Value::Null);
    run("ip -6 addr add 2001:db8::1/64 dev eth0 nodad");
    wait_until("the other family is back", || hop("2001:db8::11") != Value::Null);
}
