//! Limits that change while packets flow, and daemons that die over it.

use std::fs;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::site::{PINS, Site, fails, our_filter, pins, wait_until, world};
use crate::steps::kill_before;
use crate::support::{add_address, run};
use crate::traffic::Client;

const FILTER: &str = "sluice_lb:edge";

/// A site whose service tracks its flows.
fn site() -> Site {
    let mut site = Site::new();
    site.config["services"][0]["tracking"] = json!("always");
    site.write();
    site
}

fn larger() -> Value {
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
fn is_larger(status: &Value) {
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

pub(crate) fn limits_change_under_traffic_and_nothing_is_lost() {
    let mut site = site();
    let before = world();
    let mut daemon = site.start(&["lb"]);
    let first = site.status();
    let mut client = Client::new(600);
    client.send(1200);
    client.all_counted();
    assert_eq!(map(&site.status(), "CONNECTIONS")["entries"], 600);

    // Twice larger and once smaller again, with packets all the while.
    for (round, limits) in [
        larger(),
        json!({ "services": 4096, "backends": 65535, "vips": 300, "connections": 8192 }),
        json!({ "services": 9, "backends": 100, "vips": 30, "connections": 4096 }),
    ]
    .into_iter()
    .enumerate()
    {
        let traffic = client.in_background();
        let begun = traffic.sent();
        wait_until("packets are sent", || traffic.sent() > begun);
        site.config["limits"] = limits;
        site.write();
        daemon.reload();
        assert_eq!(daemon.said("maps resized"), round + 1, "{}", daemon.log());
        client = traffic.stop();
        client.all_counted();
        let status = site.status();
        for same in ["services", "backends", "daemon"] {
            assert_eq!(status[same], first[same]);
        }
        assert_eq!(map(&status, "CONNECTIONS")["entries"], 600, "every flow is remembered");
        assert_eq!(sets(), ["lb"]);
    }
    is_larger(&site.status());
    assert_eq!(site.json("counters")["lb"]["services"]["web"]["packets"], client.sent());
    let backends = site.json("counters")["lb"]["backends"].clone();
    assert_eq!(
        backends["a"]["packets"].as_u64().unwrap() + backends["b"]["packets"].as_u64().unwrap(),
        client.sent()
    );

    // There is room for more, and what is new starts at zero.
    site.config["services"].as_array_mut().unwrap().extend((0..8).map(|number| {
        json!({ "name": format!("more-{number}"), "vips": [format!("203.0.113.20:{}/tcp", 80 + number)],
                "table_size": 251, "backends": [{ "name": "a" }] })
    }));
    site.write();
    daemon.reload();
    assert_eq!(site.status()["services"].as_array().unwrap().len(), 9);
    assert_eq!(site.json("counters")["lb"]["services"]["more-7"]["packets"], 0);

    // A daemon that starts again adopts what is there.
    let maps = pins();
    assert_eq!(daemon.end(Signal::SIGKILL), None);
    let daemon = site.start(&["lb"]);
    assert_eq!((pins(), daemon.said("maps resized")), (maps, 0));
    daemon.end(Signal::SIGTERM);
    client.send(10);
    client.all_counted();

    // Other limits at the next start: the same.
    site.config["limits"]["vips"] = json!(1000);
    site.write();
    let traffic = client.in_background();
    let daemon = site.start(&["lb"]);
    client = traffic.stop();
    client.all_counted();
    assert_eq!(
        (daemon.said("maps resized"), map(&site.status(), "VIPS")["capacity"].as_u64()),
        (1, Some(1000))
    );
    assert_eq!(map(&site.status(), "CONNECTIONS")["entries"], 600);
    daemon.end(Signal::SIGTERM);
    site.down();
    assert_eq!(world(), before);
}

pub(crate) fn only_maps_that_change_their_size_are_replaced() {
    let mut site = site();
    let mut daemon = site.start(&["lb"]);
    let before = pins();
    site.config["limits"]["vips"] = json!(9);
    site.write();
    daemon.reload();
    // A pin is new, the map behind it is the same: the kernel's numbers tell.
    let status = site.status();
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

pub(crate) fn a_limit_below_what_is_or_was_in_use_is_refused() {
    let mut site = site();
    let mut daemon = site.start(&["lb"]);
    // Ten backends, of which eight go again.
    let two = site.config["backends"].clone();
    site.config["backends"].as_array_mut().unwrap().extend((3..=10).map(
        |number| json!({ "name": format!("b{number}"), "address": format!("10.0.1.{number}") }),
    ));
    site.write();
    daemon.reload();
    site.config["backends"] = two;
    site.write();
    daemon.reload();
    let (maps, status) = (pins(), site.status());
    let mut client = Client::new(1100);
    client.send(1100);

    for (limit, value, words) in [
        ("backends", 9, "limits.backends cannot shrink to 9: the map"),
        ("vips", 1, "limits.vips"),
        ("services", 0, "limits.services"),
    ] {
        let old = site.config["limits"][limit].clone();
        site.config["limits"][limit] = json!(value);
        site.write();
        let refused = daemon.said("reload failed");
        daemon.reload();
        assert_eq!(
            (daemon.said("reload failed"), daemon.said(words)),
            (refused + 1, 1),
            "{}",
            daemon.log()
        );
        assert_eq!((pins(), &site.status()["services"]), (maps.clone(), &status["services"]));
        assert_eq!(sets(), ["lb"]);
        site.config["limits"][limit] = old;
    }
    assert!(daemon.said("`sluice down`") == 1, "the remedy is told: {}", daemon.log());
    // Down to what was in use it may.
    site.config["limits"]["backends"] = json!(10);
    site.write();
    daemon.reload();
    assert_eq!(map(&site.status(), "BACKENDS")["capacity"], 11);
    // A start that is refused touches nothing either, and packets flow on.
    site.config["limits"]["backends"] = json!(9);
    site.write();
    daemon.end(Signal::SIGTERM);
    let (maps, filter) = (pins(), our_filter("eth0", FILTER));
    fails(
        &site.sluice(&["lb", "--config", "edge.json"]),
        2,
        &["limits.backends cannot shrink to 9", "sluice down"],
    );
    assert_eq!((pins(), our_filter("eth0", FILTER)), (maps, filter));
}

/// Kills the daemon before what it does to the host while it replaces the maps: of equal things in
/// a row, before the first and the last.
pub(crate) fn a_death_at_any_moment_of_a_replacement_loses_nothing() {
    let mut site = site();
    let clean = world();
    let mut steps = Vec::new();
    let whole = replace_and_die(&mut site, usize::MAX, |step| steps.push(step));
    assert_eq!(whole, None, "the first one lives");
    site.down();
    assert_eq!(world(), clean);
    for what in ["rename", "pin", "mkdir", "unlink", "netlink", "write"] {
        assert!(steps.contains(&what), "no {what} among {steps:?}");
    }
    let edge = |number: &usize| {
        let same =
            |other: Option<usize>| other.and_then(|other| steps.get(other)) == steps.get(*number);
        !same(number.checked_sub(1)) || !same(Some(number + 1))
    };
    for number in (0..steps.len()).filter(edge) {
        replace_and_die(&mut site, number, |_| {});
        site.down();
        assert_eq!(world(), clean, "killed before step {number} of {steps:?}");
    }
}

/// Starts a daemon, has it replace the maps, and kills it before one of its steps, if it has so
/// many; which that was.
fn replace_and_die(
    site: &mut Site,
    number: usize,
    mut step: impl FnMut(&'static str),
) -> Option<&'static str> {
    site.config["limits"] =
        json!({ "services": 4, "backends": 16, "vips": 8, "connections": 1024 });
    site.write();
    let daemon = site.start(&["lb"]);
    let status = site.status();
    // Every packet is the first of its flow.
    let mut client = Client::new(1000);
    client.send(64);
    client.all_counted();
    site.config["limits"] = larger();
    site.write();
    let killed = kill_before(&daemon, Signal::SIGHUP, number, |told| {
        client.send(1);
        step(told);
    });
    drop(daemon);
    let at = format!("killed before step {number}, {killed:?}");
    // Packets flow, are counted, and what is there is whole.
    client.send(64);
    client.all_counted();
    assert!(our_filter("eth0", FILTER).contains("direct-action"), "{at}");
    let now = site.status();
    assert_eq!(
        (&now["services"], &now["backends"]),
        (&status["services"], &status["backends"]),
        "{at}"
    );
    if killed.is_none() {
        is_larger(&now);
        assert_eq!(
            map(&now, "CONNECTIONS")["entries"],
            client.sent(),
            "flows of packets between the steps are kept"
        );
    }
    if number.is_multiple_of(2) {
        // The next daemon completes it.
        let daemon = site.start(&["lb"]);
        client.all_counted();
        let now = site.status();
        is_larger(&now);
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
    let mut site = Site::new();
    add_address("10.0.1.1/16", "eth0");
    let before = world();
    let mut daemon = site.start(&["backend"]);
    if daemon.said("decapsulated by: BPF program") == 0 {
        // Tunnel devices have no maps.
        return;
    }
    let capacity = |site: &Site| {
        let status = site.json("status");
        let maps = status["backend"]["memory"]["maps"].as_array().unwrap().clone();
        maps.iter().find(|map| map["name"] == "VIP_PREFIXES").unwrap()["capacity"].clone()
    };
    assert_eq!(capacity(&site), 8);
    site.config["limits"]["vips"] = json!(20);
    site.config["services"][0]["vips"] =
        (10..30).map(|last| json!(format!("203.0.113.{last}:80/tcp"))).collect();
    site.write();
    daemon.reload();
    assert_eq!((capacity(&site), daemon.said("reload failed")), (json!(20), 0), "{}", daemon.log());
    daemon.end(Signal::SIGKILL);
    site.config["limits"]["vips"] = json!(40);
    site.write();
    let daemon = site.start(&["backend"]);
    assert_eq!(capacity(&site), 40);
    assert!(our_filter("eth0", "sluice_backend:edge").contains("direct-action"));
    daemon.end(Signal::SIGTERM);
    site.down();
    run("ip -o link show dev eth0");
    assert_eq!(world(), before);
}
