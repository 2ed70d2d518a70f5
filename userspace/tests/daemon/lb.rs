//! The running balancer: status and counters, reloads, route changes, and foreign changes of its
//! interfaces.

use std::os::fd::AsFd as _;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sluice::kernel::netlink::{Direction, Netlink};

use crate::fixture::{DaemonFixture, block_on, host_state, pins, tc_filter, wait_until};
use crate::support::{add_address, program, run, spec, veth};

const FILTER: &str = "sluice_lb:edge";

fn slots(status: &Value, service: usize) -> Value {
    status["services"][service]["slots"].clone()
}

pub(crate) fn status_and_counters_show_the_configured_state() {
    let fixture = DaemonFixture::new();
    let daemon = fixture.start(&["lb"]);
    let status = fixture.status();
    assert_eq!(
        (&status["daemon"]["process"], &status["changing"]),
        (&json!(daemon.id()), &json!(false))
    );
    let web = &status["services"][0];
    assert_eq!(
        (&web["name"], &web["generation"], &web["table_size"]),
        (&json!("web"), &json!(1), &json!(251))
    );
    assert_eq!(web["vips"], json!(["203.0.113.10:80/tcp", "203.0.113.11:53/udp"]));
    let (a, b) = (web["slots"]["a"].as_u64().unwrap(), web["slots"]["b"].as_u64().unwrap());
    assert_eq!(a + b, 251);
    assert!((167..=168).contains(&a), "two thirds of 251, within one slot: {a}");
    assert_eq!(
        status["backends"][0]["next_hops"]["10.0.1.1"],
        json!({ "interface": "eth0", "mtu": 1500, "up": true })
    );
    let counters = fixture.json("counters");
    assert_eq!(
        counters["lb"]["services"]["web"],
        json!({ "packets": 0, "bytes": 0, "new_connections": 0, "drops": {} })
    );
    assert_eq!(
        counters["lb"]["backends"]["b"],
        json!({ "packets": 0, "bytes": 0, "new_connections": 0 })
    );
    for command in ["status", "counters"] {
        let output = fixture.sluice(&[command]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && text.contains("web") && text.contains("edge"), "{text}");
        let digest = web["table_digest"].as_str().unwrap();
        assert_eq!((digest.len(), text.contains(digest)), (16, command == "status"), "{text}");
    }
}

pub(crate) fn a_reload_applies_only_the_differences() {
    let mut fixture = DaemonFixture::new();
    let before = host_state();
    let mut daemon = fixture.start(&["lb"]);
    let (first, maps) = (fixture.status(), pins());
    let filter = tc_filter("eth0", FILTER);

    // Without a difference a reload does nothing and repeats no warning.
    daemon.reload();
    assert_eq!(fixture.status()["services"], first["services"]);
    assert_eq!(
        (daemon.log_count("at TC ingress"), daemon.log_count("replace the lookup tables")),
        (1, 1),
        "{}",
        daemon.log()
    );
    assert_eq!(
        daemon.log_count("backend addresses 10.0.1.1, 10.0.1.2: the MTU of the path is 1500"),
        1,
        "once for both backends: {}",
        daemon.log()
    );

    // A backend is added, another is drained.
    fixture.config["backends"][1]["draining"] = json!(true);
    fixture.config["backends"]
        .as_array_mut()
        .unwrap()
        .push(json!({ "name": "c", "address": "10.0.1.3" }));
    fixture.config["services"][0]["backends"]
        .as_array_mut()
        .unwrap()
        .push(json!({ "name": "c", "weight": 1 }));
    fixture.write();
    daemon.reload();
    let status = fixture.status();
    assert_eq!(status["services"][0]["generation"], 2);
    assert_eq!(status["backends"][1]["draining"], true);
    assert!(
        slots(&status, 0)["b"].is_null() && slots(&status, 0)["c"].as_u64().unwrap() > 60,
        "{status}"
    );

    // A VIP is removed, another one moves to a new service.
    fixture.config["services"][0]["vips"] = json!(["203.0.113.10:443/tcp"]);
    fixture.config["services"].as_array_mut().unwrap().push(json!({
        "name": "dns", "vips": ["203.0.113.11:53/udp"], "table_size": 251, "backends": [{ "name": "c" }]
    }));
    fixture.write();
    daemon.reload();
    let status = fixture.status();
    assert_eq!(status["services"][1]["vips"], json!(["203.0.113.10:443/tcp"]));
    assert_eq!(
        (&status["services"][0]["vips"], slots(&status, 0)),
        (&json!(["203.0.113.11:53/udp"]), json!({"c": 251}))
    );

    // Another underlay address needs another program; the maps are kept.
    assert_eq!(tc_filter("eth0", FILTER), filter);
    add_address("10.0.0.9/16", "eth0");
    fixture.config["underlay"]["v4"] = json!("10.0.0.9");
    fixture.write();
    daemon.reload();
    assert_ne!(tc_filter("eth0", FILTER), filter);
    assert_eq!((daemon.log_count("program replaced"), pins()), (1, maps));

    // Another interface: the filter is attached there and detached from the old one.
    veth("eth1", "far1");
    fixture.config["interfaces"] = json!(["eth1"]);
    fixture.write();
    daemon.reload();
    assert_eq!(tc_filter("eth0", FILTER), "");
    assert_ne!(tc_filter("eth1", FILTER), "");
    run("ip addr del 10.0.0.9/16 dev eth0");
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
    run("ip link del eth1");
    fixture.down();
    assert_eq!(host_state(), before);
}

pub(crate) fn a_bad_reload_changes_nothing() {
    let fixture = DaemonFixture::new();
    let mut daemon = fixture.start(&["lb"]);
    let (before, status) = (host_state(), fixture.applied_status());
    let spoilt: [(&str, Value); 6] = [
        ("interfaces", json!(["eth7"])),
        ("underlay", json!({ "v4": "10.9.9.9" })),
        ("instance", json!("other")),
        ("limits", json!({ "services": 0, "backends": 16, "vips": 8, "connections": 1024 })),
        ("hash_key_file", json!("none.key")),
        ("services", json!([{ "name": "web" }])),
    ];
    for (number, (place, value)) in spoilt.into_iter().enumerate() {
        let mut config = fixture.config.clone();
        config[place] = value;
        fixture.write_text(&config.to_string());
        daemon.reload();
        assert_eq!(daemon.log_count("reload failed"), number + 1, "{place}: {}", daemon.log());
        assert_eq!(
            (host_state(), fixture.applied_status()),
            (before.clone(), status.clone()),
            "{place}"
        );
    }
    // Quarantined indexes leave no free ones: the whole reload fails, and the configuration stays.
    let mut config = fixture.config.clone();
    let backends: Vec<_> = (1..=15)
        .map(|i| json!({ "name": format!("n{i}"), "address": format!("10.0.2.{i}") }))
        .collect();
    config["backends"] = json!(backends);
    config["services"][0]["backends"] = json!([{ "name": "n1" }]);
    fixture.write_text(&config.to_string());
    daemon.reload();
    assert_eq!(
        (daemon.log_count("raise limits.backends"), fixture.applied_status()),
        (1, status),
        "{}",
        daemon.log()
    );
    fixture.write();
    daemon.reload();
    assert_eq!(daemon.log_count("ready: "), 2, "{}", daemon.log());
}

pub(crate) fn foreign_filters_are_never_removed() {
    let fixture = DaemonFixture::new();
    run("tc qdisc add dev eth0 clsact");
    let (program, _) = program();
    block_on(async {
        let netlink = Netlink::connect().unwrap();
        let index = netlink.interface("eth0").await.unwrap().index;
        for (direction, priority) in
            [(Direction::Ingress, 5), (Direction::Ingress, 200), (Direction::Egress, 100)]
        {
            netlink
                .put_filter(index, direction, &spec("foreign", priority), program.as_fd())
                .await
                .unwrap();
        }
    });
    let before = host_state();
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let mut daemon = fixture.start(&["lb"]);
        daemon.reload();
        daemon.end(signal);
        fixture.down();
        assert_eq!(host_state(), before, "{signal}");
    }
    // The daemon's clsact qdisc is kept if a foreign filter uses it.
    run("tc qdisc del dev eth0 clsact");
    let daemon = fixture.start(&["lb"]);
    block_on(async {
        let netlink = Netlink::connect().unwrap();
        let index = netlink.interface("eth0").await.unwrap().index;
        netlink
            .put_filter(index, Direction::Ingress, &spec("foreign", 5), program.as_fd())
            .await
            .unwrap();
    });
    daemon.end(Signal::SIGTERM);
    assert!(fixture.down().contains("left alone: clsact"));
    assert_ne!(tc_filter("eth0", "foreign"), "");
    assert_eq!(tc_filter("eth0", FILTER), "");
}

pub(crate) fn a_route_change_updates_the_next_hops() {
    let fixture = DaemonFixture::new();
    let daemon = fixture.start(&["lb"]);
    let hop = |backend: usize, address: &str| {
        fixture.failing_status()["lb"]["backends"][backend]["next_hops"][address].clone()
    };
    run("ip link set eth0 mtu 1600");
    wait_until("the next hop has the MTU of the interface", || {
        hop(0, "10.0.1.1") == json!({ "interface": "eth0", "mtu": 1600, "up": true })
    });
    run("ip route add 10.0.1.2/32 dev eth0 mtu 1400");
    wait_until("the next hop has the MTU of the route", || {
        hop(1, "10.0.1.2") == json!({ "interface": "eth0", "mtu": 1400, "up": true })
    });
    veth("eth1", "far1");
    run("ip route replace 10.0.1.2/32 dev eth1");
    wait_until("the next hop has the new interface", || hop(1, "10.0.1.2")["interface"] == "eth1");
    run("ip route replace 10.0.1.2/32 via 10.0.0.9 dev eth0");
    wait_until("the next hop has a gateway", || hop(1, "10.0.1.2")["gateway"] == "10.0.0.9");
    let text = String::from_utf8(fixture.sluice(&["status"]).stdout).unwrap();
    assert!(text.contains("10.0.1.2 (via 10.0.0.9 on eth0, MTU 1600)"), "{text}");
    // Routes may depend on the source.
    run("ip route replace 10.0.1.2/32 dev eth0");
    wait_until("it is on the link", || hop(1, "10.0.1.2")["gateway"].is_null());
    run("ip route add 10.0.1.2/32 via 10.0.0.8 dev eth0 table 7");
    run("ip rule add from 10.0.0.1 to 10.0.1.2 table 7");
    wait_until("the next hop has another gateway", || hop(1, "10.0.1.2")["gateway"] == "10.0.0.8");
    run("ip rule del from 10.0.0.1 to 10.0.1.2 table 7");
    run("ip route replace unreachable 10.0.1.2/32");
    wait_until("the next hop is removed", || hop(1, "10.0.1.2").is_null());
    assert_eq!(
        daemon.log_count("backend address 10.0.1.2: there is no route"),
        1,
        "{}",
        daemon.log()
    );
    assert_eq!(
        hop(0, "10.0.1.1"),
        json!({ "interface": "eth0", "mtu": 1600, "up": true }),
        "the next hop of the other backend is unchanged"
    );
}

pub(crate) fn a_lost_filter_is_attached_again() {
    let fixture = DaemonFixture::new();
    let before = host_state();
    let mut daemon = fixture.start(&["lb"]);
    let filter = tc_filter("eth0", FILTER);
    run("tc filter del dev eth0 ingress pref 100");
    daemon.wait_for_log("restored host state state=filter sluice_lb:edge", 1);
    assert_eq!(tc_filter("eth0", FILTER), filter);
    run("tc qdisc del dev eth0 clsact");
    daemon.wait_for_log("restored host state state=filter sluice_lb:edge", 2);
    assert_eq!(tc_filter("eth0", FILTER), filter);
    daemon.end(Signal::SIGTERM);
    fixture.down();
    assert_eq!(host_state(), before);
}

pub(crate) fn a_deleted_interface_is_attached_again_or_ignored() {
    let mut fixture = DaemonFixture::new();
    let before = host_state();
    let add = || {
        veth("eth1", "far1");
    };
    add();
    fixture.config["interfaces"] = json!(["eth0", "eth1"]);
    fixture.write();
    let mut daemon = fixture.start(&["lb"]);
    run("ip link del eth1");
    daemon.wait_for_log("cannot attach to eth1", 1);
    add();
    daemon.wait_for_log("program attached after an error target=eth1", 1);
    assert_ne!(tc_filter("eth1", FILTER), "");
    assert_eq!(daemon.log_count("cannot attach to eth1"), 1, "{}", daemon.log());
    // Deleted and removed from the configuration: a reload and a restart succeed.
    run("ip link del eth1");
    fixture.config["interfaces"] = json!(["eth0"]);
    fixture.write();
    daemon.reload();
    assert_eq!(daemon.log_count("reload failed"), 0, "{}", daemon.log());
    daemon.end(Signal::SIGKILL);
    fixture.start(&["lb"]).end(Signal::SIGTERM);
    let report = fixture.down();
    assert!(!report.contains("eth1"), "{report}");
    assert_eq!(host_state(), before);
}
