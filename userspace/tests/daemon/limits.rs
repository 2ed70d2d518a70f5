//! Limits that change while packets flow, and daemons that die over it.

use std::fs;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::fixture::{HostFixture, PINS, assert_fails, host_state, pins, tc_filter, wait_until};
use crate::ptrace::kill_before;
use crate::support::{add_address, run};
use crate::traffic::Client;

const FILTER: &str = "sluice_lb:edge";

/// A fixture whose service tracks its flows.
fn tracked_fixture() -> HostFixture {
    let mut fixture = HostFixture::new();
    fixture.config["services"][0]["tracking"] = json!("always");
    fixture.write();
    fixture
}

fn larger_limits() -> Value {
    json!({ "services": 9, "backends": 100, "vips": 30, "connections": 4096 })
}

/// What `status` says of a map.
pub(crate) fn map<'a>(status: &'a Value, name: &str) -> &'a Value {
    let maps = status["memory"]["maps"].as_array().unwrap();
    maps.iter().find(|map| map["name"] == name).unwrap_or_else(|| panic!("no {name} in {status}"))
}

/// The directories of pins.
fn sets() -> Vec<String> {
    let version = fs::read_dir(PINS).unwrap().next().unwrap().unwrap().path();
    let mut names: Vec<_> = fs::read_dir(version)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Checks that all of the maps have the sizes of [`larger`], and that nothing is left of the ones
/// before them.
#[track_caller]
fn assert_larger(status: &Value) {
    for (name, capacity) in [
        ("VIPS", 30),
        ("TABLES", 10),
        ("BACKENDS", 101),
        ("NEXT_HOPS", 202),
        ("CONNECTIONS", 4096),
        ("INSTANCE", 1),
    ] {
        assert_eq!(map(status, name)["capacity"], capacity, "{name}: {status}");
    }
    assert_eq!(sets(), ["lb"]);
}

pub(crate) fn limits_change_under_traffic_without_loss() {
    let mut fixture = tracked_fixture();
    let before = host_state();
    let mut daemon = fixture.start(&["lb"]);
    let first = fixture.status();
    let mut client = Client::new(600);
    client.send(1200);
    client.assert_all_counted();
    assert_eq!(map(&fixture.status(), "CONNECTIONS")["entries"], 600);

    // Twice larger and once smaller again, with packets all the while.
    for (round, limits) in [
        larger_limits(),
        json!({ "services": 4096, "backends": 65535, "vips": 300, "connections": 8192 }),
        json!({ "services": 9, "backends": 100, "vips": 30, "connections": 4096 }),
    ]
    .into_iter()
    .enumerate()
    {
        let traffic = client.start_background();
        let begun = traffic.sent();
        wait_until("packets are sent", || traffic.sent() > begun);
        fixture.config["limits"] = limits;
        fixture.write();
        daemon.reload();
        assert_eq!(daemon.log_count("maps resized"), round + 1, "{}", daemon.log());
        client = traffic.stop();
        client.assert_all_counted();
        let status = fixture.status();
        for same in ["services", "backends", "daemon"] {
            assert_eq!(status[same], first[same]);
        }
        assert_eq!(map(&status, "CONNECTIONS")["entries"], 600, "every flow is remembered");
        assert_eq!(sets(), ["lb"]);
    }
    assert_larger(&fixture.status());
    assert_eq!(fixture.json("counters")["lb"]["services"]["web"]["packets"], client.sent());
    let backends = fixture.json("counters")["lb"]["backends"].clone();
    assert_eq!(
        backends["a"]["packets"].as_u64().unwrap() + backends["b"]["packets"].as_u64().unwrap(),
        client.sent()
    );

    // There is room for more, and what is new starts at zero.
    fixture.config["services"].as_array_mut().unwrap().extend((0..8).map(|number| {
        json!({ "name": format!("more-{number}"), "vips": [format!("203.0.113.20:{}/tcp", 80 + number)],
                "table_size": 251, "backends": [{ "name": "a" }] })
    }));
    fixture.write();
    daemon.reload();
    assert_eq!(fixture.status()["services"].as_array().unwrap().len(), 9);
    assert_eq!(fixture.json("counters")["lb"]["services"]["more-7"]["packets"], 0);

    // A daemon that starts again adopts what is there.
    let maps = pins();
    assert_eq!(daemon.end(Signal::SIGKILL), None);
    let daemon = fixture.start(&["lb"]);
    assert_eq!((pins(), daemon.log_count("maps resized")), (maps, 0));
    daemon.end(Signal::SIGTERM);
    client.send(10);
    client.assert_all_counted();

    // Other limits at the next start: the same.
    fixture.config["limits"]["vips"] = json!(1000);
    fixture.write();
    let traffic = client.start_background();
    let daemon = fixture.start(&["lb"]);
    client = traffic.stop();
    client.assert_all_counted();
    assert_eq!(
        (daemon.log_count("maps resized"), map(&fixture.status(), "VIPS")["capacity"].as_u64()),
        (1, Some(1000))
    );
    assert_eq!(map(&fixture.status(), "CONNECTIONS")["entries"], 600);
    daemon.end(Signal::SIGTERM);
    fixture.down();
    assert_eq!(host_state(), before);
}

pub(crate) fn only_maps_with_a_new_size_are_replaced() {
    let mut fixture = tracked_fixture();
    let mut daemon = fixture.start(&["lb"]);
    let before = pins();
    fixture.config["limits"]["vips"] = json!(9);
    fixture.write();
    daemon.reload();
    // A pin is new, the map behind it is the same: the kernel's numbers tell.
    let status = fixture.status();
    assert_eq!(
        (map(&status, "VIPS")["capacity"].as_u64(), map(&status, "BACKENDS")["capacity"].as_u64()),
        (Some(9), Some(17))
    );
    assert_eq!(before.len(), 27);
    let names: Vec<_> = pins().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names.len(), before.len() + 1, "{names:?}");
    assert!(names.contains(&"counted_before".to_owned()));
    let kept = status["memory"]["maps"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|map| map["name"].as_str().unwrap().contains('/'));
    assert_eq!(kept.count(), 0, "no counters were replaced: {status}");
}

pub(crate) fn a_limit_below_the_highest_used_index_is_refused() {
    let mut fixture = tracked_fixture();
    let mut daemon = fixture.start(&["lb"]);
    // Ten backends, of which eight go again.
    let two = fixture.config["backends"].clone();
    fixture.config["backends"].as_array_mut().unwrap().extend((3..=10).map(
        |number| json!({ "name": format!("b{number}"), "address": format!("10.0.1.{number}") }),
    ));
    fixture.write();
    daemon.reload();
    fixture.config["backends"] = two;
    fixture.write();
    daemon.reload();
    let (maps, status) = (pins(), fixture.status());
    let mut client = Client::new(1100);
    client.send(1100);

    for (limit, value, words) in [
        ("backends", 9, "limits.backends cannot shrink to 9: the map"),
        ("vips", 1, "limits.vips"),
        ("services", 0, "limits.services"),
    ] {
        let old = fixture.config["limits"][limit].clone();
        fixture.config["limits"][limit] = json!(value);
        fixture.write();
        let refused = daemon.log_count("reload failed");
        daemon.reload();
        assert_eq!(
            (daemon.log_count("reload failed"), daemon.log_count(words)),
            (refused + 1, 1),
            "{}",
            daemon.log()
        );
        assert_eq!((pins(), &fixture.status()["services"]), (maps.clone(), &status["services"]));
        assert_eq!(sets(), ["lb"]);
        fixture.config["limits"][limit] = old;
    }
    assert!(daemon.log_count("`sluice down`") == 1, "the remedy is told: {}", daemon.log());
    // Down to what was in use it may.
    fixture.config["limits"]["backends"] = json!(10);
    fixture.write();
    daemon.reload();
    assert_eq!(map(&fixture.status(), "BACKENDS")["capacity"], 11);
    // A start that is refused touches nothing either, and packets flow on.
    fixture.config["limits"]["backends"] = json!(9);
    fixture.write();
    daemon.end(Signal::SIGTERM);
    let (maps, filter) = (pins(), tc_filter("eth0", FILTER));
    assert_fails(
        &fixture.sluice(&["lb", "--config", "edge.json"]),
        2,
        &["limits.backends cannot shrink to 9", "sluice down"],
    );
    assert_eq!((pins(), tc_filter("eth0", FILTER)), (maps, filter));
}

/// Kills the daemon before what it does to the host while it replaces the maps: of equal things in
/// a row, before the first and the last.
pub(crate) fn killing_the_daemon_during_a_replacement_loses_nothing() {
    let mut fixture = tracked_fixture();
    let clean = host_state();
    let mut steps = Vec::new();
    let whole = replace_and_kill(&mut fixture, usize::MAX, |step| steps.push(step));
    assert_eq!(whole, None, "the first one lives");
    fixture.down();
    assert_eq!(host_state(), clean);
    for what in ["rename", "pin", "mkdir", "unlink", "netlink", "write"] {
        assert!(steps.contains(&what), "no {what} among {steps:?}");
    }
    let edge = |number: &usize| {
        let same =
            |other: Option<usize>| other.and_then(|other| steps.get(other)) == steps.get(*number);
        !same(number.checked_sub(1)) || !same(Some(number + 1))
    };
    for number in (0..steps.len()).filter(edge) {
        replace_and_kill(&mut fixture, number, |_| {});
        fixture.down();
        assert_eq!(host_state(), clean, "killed before step {number} of {steps:?}");
    }
}

/// Starts a daemon, has it replace the maps, and kills it before one of its steps, if it has so
/// many; which that was.
fn replace_and_kill(
    fixture: &mut HostFixture,
    number: usize,
    mut step: impl FnMut(&'static str),
) -> Option<&'static str> {
    fixture.config["limits"] =
        json!({ "services": 4, "backends": 16, "vips": 8, "connections": 1024 });
    fixture.write();
    let daemon = fixture.start(&["lb"]);
    let status = fixture.status();
    // Every packet is the first of its flow.
    let mut client = Client::new(1000);
    client.send(64);
    client.assert_all_counted();
    fixture.config["limits"] = larger_limits();
    fixture.write();
    let killed = kill_before(&daemon, Signal::SIGHUP, number, |told| {
        client.send(1);
        step(told);
    });
    drop(daemon);
    let at = format!("killed before step {number}, {killed:?}");
    // Packets flow, are counted, and what is there is whole.
    client.send(64);
    client.assert_all_counted();
    assert!(tc_filter("eth0", FILTER).contains("direct-action"), "{at}");
    let now = fixture.status();
    assert_eq!(
        (&now["services"], &now["backends"]),
        (&status["services"], &status["backends"]),
        "{at}"
    );
    if killed.is_none() {
        assert_larger(&now);
        assert_eq!(
            map(&now, "CONNECTIONS")["entries"],
            client.sent(),
            "flows of packets between the steps are kept"
        );
    }
    if number.is_multiple_of(2) {
        // The next daemon completes it.
        let daemon = fixture.start(&["lb"]);
        client.assert_all_counted();
        let now = fixture.status();
        assert_larger(&now);
        assert_eq!(map(&now, "CONNECTIONS")["entries"], client.sent(), "{at}");
        assert_eq!(
            (&now["services"], &now["backends"]),
            (&status["services"], &status["backends"]),
            "{at}"
        );
        daemon.end(Signal::SIGTERM);
    }
    killed
}

pub(crate) fn a_backends_maps_grow_with_the_limits() {
    let mut fixture = HostFixture::new();
    add_address("10.0.1.1/16", "eth0");
    let before = host_state();
    let mut daemon = fixture.start(&["backend"]);
    if daemon.log_count("decapsulated by: BPF program") == 0 {
        // Tunnel devices have no maps.
        return;
    }
    let capacity = |fixture: &HostFixture| {
        let status = fixture.json("status");
        let maps = status["backend"]["memory"]["maps"].as_array().unwrap().clone();
        maps.iter().find(|map| map["name"] == "VIP_PREFIXES").unwrap()["capacity"].clone()
    };
    assert_eq!(capacity(&fixture), 8);
    fixture.config["limits"]["vips"] = json!(20);
    fixture.config["services"][0]["vips"] =
        (10..30).map(|last| json!(format!("203.0.113.{last}:80/tcp"))).collect();
    fixture.write();
    daemon.reload();
    assert_eq!(
        (capacity(&fixture), daemon.log_count("reload failed")),
        (json!(20), 0),
        "{}",
        daemon.log()
    );
    daemon.end(Signal::SIGKILL);
    fixture.config["limits"]["vips"] = json!(40);
    fixture.write();
    let daemon = fixture.start(&["backend"]);
    assert_eq!(capacity(&fixture), 40);
    assert!(tc_filter("eth0", "sluice_backend:edge").contains("direct-action"));
    daemon.end(Signal::SIGTERM);
    fixture.down();
    run("ip -o link show dev eth0");
    assert_eq!(host_state(), before);
}
