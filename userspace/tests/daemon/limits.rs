//! Changes of the limits under traffic, and kills of the daemon during them.

use std::fs;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::fixture::{
    DaemonFixture, DaemonProcess, PINS, assert_fails, attach_foreign_filter, host_state, pins,
    tc_filter, wait_until,
};
use crate::ptrace::kill_before;
use crate::support::{add_address, run};
use crate::traffic::TrafficClient;

const FILTER: &str = "sluice_lb:edge";

/// A fixture with a tracked service.
fn tracked_fixture() -> DaemonFixture {
    let mut fixture = DaemonFixture::new();
    fixture.config["services"][0]["tracking"] = json!("always");
    fixture.write();
    fixture
}

fn larger_limits() -> Value {
    json!({ "services": 9, "backends": 100, "vips": 30, "connections": 4096 })
}

/// The status of a map.
pub(crate) fn map_status<'a>(status: &'a Value, name: &str) -> &'a Value {
    let maps = status["memory"]["maps"].as_array().unwrap();
    maps.iter().find(|map| map["name"] == name).unwrap_or_else(|| panic!("no {name} in {status}"))
}

/// The names of the pin directories.
fn pin_directories() -> Vec<String> {
    let version = fs::read_dir(PINS).unwrap().next().unwrap().unwrap().path();
    let mut names: Vec<_> = fs::read_dir(version)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Checks that all maps have the sizes of [`larger_limits`] and that no pin directory of old maps
/// is left.
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
        assert_eq!(map_status(status, name)["capacity"], capacity, "{name}: {status}");
    }
    assert_eq!(pin_directories(), ["lb"]);
}

pub(crate) fn limits_change_under_traffic_without_loss() {
    let mut fixture = tracked_fixture();
    let before = host_state();
    let mut daemon = fixture.start(&["lb"]);
    let first = fixture.status();
    let mut client = TrafficClient::new(600);
    client.send(1200);
    client.assert_all_counted();
    assert_eq!(map_status(&fixture.status(), "CONNECTIONS")["entries"], 600);

    // Larger twice and smaller once, under traffic.
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
        for same in ["services", "backends"] {
            assert_eq!(status[same], first[same]);
        }
        assert_eq!(status["daemon"]["process"], first["daemon"]["process"]);
        assert_eq!(map_status(&status, "CONNECTIONS")["entries"], 600, "every flow is kept");
        assert_eq!(pin_directories(), ["lb"]);
    }
    assert_larger(&fixture.status());
    assert_eq!(fixture.json("counters")["lb"]["services"]["web"]["packets"], client.sent());
    let backends = fixture.json("counters")["lb"]["backends"].clone();
    assert_eq!(
        backends["a"]["packets"].as_u64().unwrap() + backends["b"]["packets"].as_u64().unwrap(),
        client.sent()
    );

    // New services fit, and their counters start at zero.
    fixture.config["services"].as_array_mut().unwrap().extend((0..8).map(|number| {
        json!({ "name": format!("more-{number}"), "vips": [format!("203.0.113.20:{}/tcp", 80 + number)],
                "table_size": 251, "backends": [{ "name": "a" }] })
    }));
    fixture.write();
    daemon.reload();
    assert_eq!(fixture.status()["services"].as_array().unwrap().len(), 9);
    assert_eq!(fixture.json("counters")["lb"]["services"]["more-7"]["packets"], 0);

    // A new daemon adopts the maps.
    let maps = pins();
    assert_eq!(daemon.end(Signal::SIGKILL), None);
    let daemon = fixture.start(&["lb"]);
    assert_eq!((pins(), daemon.log_count("maps resized")), (maps, 0));
    daemon.end(Signal::SIGTERM);
    client.send(10);
    client.assert_all_counted();

    // A start with other limits replaces maps in the same way.
    fixture.config["limits"]["vips"] = json!(1000);
    fixture.write();
    let traffic = client.start_background();
    let daemon = fixture.start(&["lb"]);
    client = traffic.stop();
    client.assert_all_counted();
    assert_eq!(
        (
            daemon.log_count("maps resized"),
            map_status(&fixture.status(), "VIPS")["capacity"].as_u64()
        ),
        (1, Some(1000))
    );
    assert_eq!(map_status(&fixture.status(), "CONNECTIONS")["entries"], 600);
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
    // The pins are new, the map of an unchanged size is the same.
    let status = fixture.status();
    assert_eq!(
        (
            map_status(&status, "VIPS")["capacity"].as_u64(),
            map_status(&status, "BACKENDS")["capacity"].as_u64()
        ),
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

pub(crate) fn counts_of_replaced_maps_are_pinned_again() {
    let fixture = tracked_fixture();
    let mut daemon = fixture.start(&["lb"]);
    let mut client = TrafficClient::new(10);
    client.send(100);
    let counted = || fixture.json("counters")["lb"]["services"]["web"]["packets"].as_u64().unwrap();
    let mut larger = fixture.config.clone();
    larger["limits"] = larger_limits();
    fixture.write_text(&larger.to_string());
    daemon.reload();
    for restarted in [false, true] {
        if restarted {
            daemon.end(Signal::SIGTERM);
            daemon = fixture.start(&["lb"]);
        }
        assert_eq!(counted(), 100);
        fs::remove_dir_all(PINS).unwrap();
        daemon.reload();
        assert_eq!(counted(), 100, "restarted: {restarted}");
    }
}

/// Applies ten backends, of which eight are removed again.
fn use_ten_backends(fixture: &mut DaemonFixture, daemon: &mut DaemonProcess) {
    let two = fixture.config["backends"].clone();
    fixture.config["backends"].as_array_mut().unwrap().extend((3..=10).map(
        |number| json!({ "name": format!("b{number}"), "address": format!("10.0.1.{number}") }),
    ));
    fixture.write();
    daemon.reload();
    fixture.config["backends"] = two;
    fixture.write();
    daemon.reload();
}

/// An interface where the program cannot be attached keeps a resize from its end.
pub(crate) fn a_refused_reload_during_an_unfinished_resize_takes_nothing() {
    let mut fixture = DaemonFixture::new();
    let mut daemon = fixture.start(&["lb"]);
    use_ten_backends(&mut fixture, &mut daemon);
    let foreign = attach_foreign_filter("eth1", "far1");
    fixture.config["interfaces"] = json!(["eth0", "eth1"]);
    fixture.config["limits"] = larger_limits();
    fixture.write();
    daemon.reload();
    daemon.wait_for_log("reload failed; changes logged above were applied", 1);
    assert_eq!(pin_directories().len(), 2, "the old maps and the new ones");

    // More maps cannot be replaced before the end of the first resize.
    fixture.config["interfaces"] = json!(["eth0"]);
    fixture.config["limits"]["backends"] = json!(9);
    fixture.write();
    daemon.reload();
    daemon.wait_for_log("reload failed; nothing was changed", 1);
    // It fails, because the program is not attached to both.
    let status = fixture.sluice(&["status", "--json"]);
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["lb"]["interfaces"].as_array().unwrap().len(), 2, "{status}");
    assert_eq!(pin_directories().len(), 2);

    // Without the interface, the resize ends.
    fixture.config["limits"] = larger_limits();
    fixture.write();
    daemon.reload();
    assert_eq!(daemon.log_count("maps resized"), 1, "{}", daemon.log());
    assert_larger(&fixture.status());

    // And so it does where the interface becomes free.
    fixture.config["interfaces"] = json!(["eth0", "eth1"]);
    fixture.config["limits"]["vips"] = json!(31);
    fixture.write();
    daemon.reload();
    fixture.config["interfaces"] = json!(["eth0"]);
    fixture.config["limits"]["backends"] = json!(9);
    fixture.write();
    daemon.reload();
    daemon.wait_for_log("reload failed; nothing was changed", 2);
    foreign.remove();
    wait_until("the resize ends", || daemon.log_count("maps resized") == 2);
    assert_ne!(tc_filter("eth1", FILTER), "");
    assert_eq!(pin_directories(), ["lb"]);
}

pub(crate) fn a_limit_below_the_highest_used_index_is_refused() {
    let mut fixture = tracked_fixture();
    let mut daemon = fixture.start(&["lb"]);
    use_ten_backends(&mut fixture, &mut daemon);
    let (maps, status) = (pins(), fixture.status());
    let mut client = TrafficClient::new(1100);
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
        assert_eq!(pin_directories(), ["lb"]);
        fixture.config["limits"][limit] = old;
    }
    assert!(
        daemon.log_count("`sluice down`") == 1,
        "the log contains the remedy: {}",
        daemon.log()
    );
    // The highest used index is allowed.
    fixture.config["limits"]["backends"] = json!(10);
    fixture.write();
    daemon.reload();
    assert_eq!(map_status(&fixture.status(), "BACKENDS")["capacity"], 11);
    // A refused start changes neither maps nor filter.
    fixture.config["limits"]["backends"] = json!(9);
    fixture.write();
    daemon.end(Signal::SIGTERM);
    let (maps, filter) = (pins(), tc_filter("eth0", FILTER));
    assert_fails(
        &fixture.sluice(&["lb", "--config", "edge.json"]),
        2,
        &["limits.backends cannot shrink to 9", "smallest possible value is 10", "sluice down"],
    );
    assert_eq!((pins(), tc_filter("eth0", FILTER)), (maps, filter));
}

/// Kills the daemon before each change of the host while it replaces the maps; of equal changes in
/// a row, before the first and the last.
pub(crate) fn killing_the_daemon_during_a_replacement_loses_nothing() {
    let mut fixture = tracked_fixture();
    let clean = host_state();
    let mut changes = Vec::new();
    let whole = replace_and_kill(&mut fixture, usize::MAX, |change| changes.push(change));
    assert_eq!(whole, None, "the first daemon is not killed");
    fixture.down();
    assert_eq!(host_state(), clean);
    for kind in ["rename", "pin", "mkdir", "unlink", "netlink", "write"] {
        assert!(changes.contains(&kind), "no {kind} in {changes:?}");
    }
    let edge = |number: &usize| {
        let same = |other: Option<usize>| {
            other.and_then(|other| changes.get(other)) == changes.get(*number)
        };
        !same(number.checked_sub(1)) || !same(Some(number + 1))
    };
    for number in (0..changes.len()).filter(edge) {
        replace_and_kill(&mut fixture, number, |_| {});
        fixture.down();
        assert_eq!(host_state(), clean, "killed before change {number} of {changes:?}");
    }
}

/// Starts a daemon, makes it replace the maps, and kills it before its change number `number`;
/// returns the kind of that change, if there is one.
fn replace_and_kill(
    fixture: &mut DaemonFixture,
    number: usize,
    mut record: impl FnMut(&'static str),
) -> Option<&'static str> {
    fixture.config["limits"] =
        json!({ "services": 4, "backends": 16, "vips": 8, "connections": 1024 });
    fixture.write();
    let daemon = fixture.start(&["lb"]);
    let status = fixture.status();
    // Every packet is the first one of its flow.
    let mut client = TrafficClient::new(1000);
    client.send(64);
    client.assert_all_counted();
    fixture.config["limits"] = larger_limits();
    fixture.write();
    let killed = kill_before(&daemon, Signal::SIGHUP, number, |change| {
        client.send(1);
        record(change);
    });
    drop(daemon);
    let at = format!("killed before change {number}, {killed:?}");
    // Packets are forwarded and counted, and the state is complete.
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
            map_status(&now, "CONNECTIONS")["entries"],
            client.sent(),
            "flows of packets between the changes are kept"
        );
    }
    if number.is_multiple_of(2) {
        // The next daemon completes the replacement.
        let daemon = fixture.start(&["lb"]);
        client.assert_all_counted();
        let now = fixture.status();
        assert_larger(&now);
        assert_eq!(map_status(&now, "CONNECTIONS")["entries"], client.sent(), "{at}");
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
    let mut fixture = DaemonFixture::new();
    add_address("10.0.1.1/16", "eth0");
    let before = host_state();
    let mut daemon = fixture.start(&["backend"]);
    if daemon.log_count("by=BPF program") == 0 {
        // Tunnel devices have no maps.
        return;
    }
    let capacity = |fixture: &DaemonFixture| {
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
