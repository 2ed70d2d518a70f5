//! Memory and time of large instances.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::fixture::{DaemonFixture, DaemonProcess, host_state, pins};
use crate::limits::map_status;
use crate::support::run;
use crate::traffic::TrafficClient;

const MIB: u64 = 1 << 20;

/// Memory of all maps according to `status`, converted to this number of CPUs.
fn memory_bytes(status: &Value, cpus: u64) -> u64 {
    let number = |value: &Value| value.as_u64().unwrap();
    let memory = &status["memory"];
    let maps = memory["maps"].as_array().unwrap();
    let total: u64 = maps.iter().map(|map| number(&map["bytes"])).sum();
    assert_eq!(total, number(&memory["bytes"]));
    let possible = std::fs::read_to_string("/sys/devices/system/cpu/possible").unwrap();
    let here = possible.trim().rsplit(['-', ',']).next().unwrap().parse::<u64>().unwrap() + 1;
    let each = number(&memory["bytes_per_cpu"]);
    assert!(each > 0 && total > each * here, "{status}");
    total - each * here + each * cpus
}

pub(crate) fn ten_large_tables_and_default_limits_take_less_than_32_mib() {
    let mut fixture = DaemonFixture::new();
    fixture.config.as_object_mut().unwrap().remove("limits");
    fixture.config["services"] = (0..10)
        .map(|number| {
            json!({ "name": format!("web-{number}"), "vips": [format!("203.0.113.10:{}/tcp", 80 + number)],
                    "table_size": 65537, "backends": [{ "name": "a" }, { "name": "b" }] })
        })
        .collect();
    fixture.write();
    let _daemon = fixture.start(&["lb"]);
    let status = fixture.status();
    let (two, many) = (memory_bytes(&status, 2), memory_bytes(&status, 128));
    println!("ten services at 65,537 slots: {two} bytes on 2 CPUs, {many} on 128");
    assert!(two < 32 * MIB, "{two} bytes: {status}");
    assert!(many < 64 * MIB, "{many} bytes: {status}");
    // The sum is complete: each slot of a table has 4 bytes, a backend's counters have three words
    // per CPU.
    let tables = map_status(&status, "TABLES");
    assert_eq!(tables["entries"], 10);
    assert!(tables["bytes"].as_u64().unwrap() > 10 * 65_537 * 4, "{tables}");
    assert_eq!(map_status(&status, "BACKEND_COUNTERS")["bytes_per_cpu"], 24 * 4_097);
    // From Linux 5.11 to 6.3 the kernel reports the size of values only.
    let least = if ((5, 11)..(6, 4)).contains(&release()) { 65_536 * 8 - 1 } else { 65_536 * 48 };
    assert!(map_status(&status, "CONNECTIONS")["bytes"].as_u64().unwrap() > least, "{status}");
    let text = String::from_utf8(fixture.sluice(&["status"]).stdout).unwrap();
    for words in ["bytes locked", "of them per CPU", "in all"] {
        assert!(text.contains(words), "{words:?} is not in:\n{text}");
    }
    // The status lists every pinned map.
    let shown = status["memory"]["maps"].as_array().unwrap();
    let mut names: Vec<_> =
        shown.iter().map(|map| map["name"].as_str().unwrap().to_owned()).collect();
    names.sort();
    let pinned: Vec<_> = pins().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, pinned);
    assert!(names.iter().all(|name| text.contains(name.as_str())), "{text}");
    // A trie allocates memory per entry, all other maps by capacity. Before Linux 6.4 the kernel
    // reports a trie by capacity, too.
    let none: Vec<_> =
        shown.iter().filter(|map| map["bytes"] == 0).map(|map| &map["name"]).collect();
    let expected: &[&str] = if release() >= (6, 4) { &["VIP_PREFIXES", "ROUTES"] } else { &[] };
    assert_eq!(none, expected);
    let each = shown.iter().filter_map(|map| map["bytes_per_cpu"].as_u64()).sum::<u64>();
    assert_eq!(status["memory"]["bytes_per_cpu"], each);
}

pub(crate) fn counters_of_256_large_tables_are_read_in_50_ms() {
    /// `counters` does not copy the 67 MB of slots. Not checked on an emulated machine
    /// (`SLUICE_EMULATED`).
    const LIMIT: Duration = Duration::from_millis(50);
    const SERVICES: usize = 256;

    let mut fixture = DaemonFixture::new();
    fixture.config["limits"] =
        json!({ "services": SERVICES, "backends": 16, "vips": SERVICES, "connections": 1024 });
    fixture.config["services"] = (0..SERVICES)
        .map(|number| {
            json!({ "name": format!("web-{number}"),
                    "vips": [format!("203.0.113.10:{}/tcp", 1000 + number)],
                    "table_size": 65537, "backends": [{ "name": "a" }, { "name": "b" }] })
        })
        .collect();
    fixture.write();
    let daemon = fixture.start(&["lb"]);
    let table_bytes = map_status(&fixture.status(), "TABLES")["bytes"].as_u64().unwrap();
    assert!(table_bytes > 256 * 65_537 * 4, "{table_bytes}");
    // The best of several runs, because other tests run at the same time.
    let mut best = Duration::MAX;
    for _ in 0..10 {
        let start = Instant::now();
        let counters = fixture.json("counters");
        best = best.min(start.elapsed());
        assert_eq!(counters["lb"]["services"].as_object().unwrap().len(), SERVICES);
    }
    println!("counters of {SERVICES} services of 65,537 slots: {best:.1?}");
    let emulated = std::env::var_os("SLUICE_EMULATED").is_some();
    assert!(emulated || best < LIMIT, "{best:?}");
    daemon.end(Signal::SIGTERM);
}

/// Major and minor version of the kernel.
fn release() -> (u32, u32) {
    let system = nix::sys::utsname::uname().unwrap();
    let release = system.release().to_string_lossy().into_owned();
    let mut numbers = release.split('.').map(|number| number.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// Services of the largest instance.
const SERVICES: usize = 4_096;

/// Backends, VIPs per service, and flows of the largest instance: the maximum with `SLUICE_LARGEST`
/// (`make test-largest`), else fewer, because unoptimised code needs long for 65,535 route lookups.
fn numbers() -> (usize, usize, u64) {
    match std::env::var_os("SLUICE_LARGEST") {
        Some(_) => (65_535, 16, 1_000_000),
        None => (3_000, 1, 50_000),
    }
}

/// The largest configuration that limits allow, with a connection table of one million flows
/// instead of sixteen.
fn largest(fixture: &mut DaemonFixture, backends: usize, vips: usize) {
    const OF_ONE: usize = 1_024;
    let name = |number: usize| json!({ "name": format!("b{number}") });
    fixture.config["limits"] =
        json!({ "services": SERVICES, "backends": 65_535, "vips": 65_536, "connections": 1 << 20 });
    fixture.config["backends"] = (0..backends)
        .map(|number| {
            json!({ "name": format!("b{number}"), "address": format!("10.1.{}.{}", number / 256, number % 256) })
        })
        .collect();
    let mut services = vec![json!({
        "name": "web", "vips": ["203.0.113.10:80/tcp", "203.0.113.11:53/udp"], "tracking": "always",
        "backends": (0..OF_ONE).map(name).collect::<Vec<_>>()
    })];
    // Sixteen backends per service, so that every backend is used.
    services.extend((1..SERVICES).map(|number| {
        let vips: Vec<_> =
            (0..vips).map(|vip| format!("198.18.{}.{}:{}/tcp", number / 256, number % 256, 1000 + vip)).collect();
        let backends: Vec<_> = (0..16).map(|backend| name((number * 16 + backend) % backends)).collect();
        json!({ "name": format!("s{number}"), "vips": vips, "table_size": 251, "backends": backends })
    }));
    fixture.config["services"] = services.into();
    fixture.write();
}

/// Time of the first log line with this text, in seconds of the day.
fn log_time(daemon: &DaemonProcess, words: &str) -> f64 {
    let log = daemon.log();
    let line = log
        .lines()
        .find(|line| line.contains(words))
        .unwrap_or_else(|| panic!("no {words:?} in {log}"));
    let time = line.split('T').nth(1).unwrap().split('Z').next().unwrap();
    time.split(':').fold(0.0, |sum, part| sum * 60.0 + part.parse::<f64>().unwrap())
}

pub(crate) fn the_largest_instance_is_applied_in_seconds() {
    /// Well above the measured time, and well below that of one system call per entry: 4,096 tables
    /// alone would take half a minute. Not checked on emulated machines (`SLUICE_EMULATED`).
    const SECONDS: f64 = 15.0;

    let mut fixture = DaemonFixture::new();
    // The backends do not exist: packets would wait for address resolution and block their sender.
    run("ip link set eth0 arp off");
    let before = host_state();
    run("ip route add 10.1.0.0/16 dev eth0");
    let (backends, vips, sent) = numbers();
    largest(&mut fixture, backends, vips);
    let timed = |what: &str, action: &mut dyn FnMut()| {
        let start = Instant::now();
        action();
        println!("{what}: {:.1} s", start.elapsed().as_secs_f64());
    };
    let mut daemon = None;
    timed(&format!("4,096 services, {backends} backends: start"), &mut || {
        daemon = Some(fixture.start(&["lb"]))
    });
    let mut daemon = daemon.unwrap();
    // The times may be before and after midnight.
    let applied =
        (log_time(&daemon, "ready: ") - log_time(&daemon, "add backends")).rem_euclid(86_400.0);
    println!("of it for writing maps: {applied:.1} s");
    let emulated = std::env::var_os("SLUICE_EMULATED").is_some();
    assert!(emulated || applied < SECONDS, "{applied}: {}", daemon.log());
    let mut status = Value::Null;
    timed("status", &mut || status = fixture.status());
    assert_eq!(status["services"].as_array().unwrap().len(), 4_096);
    assert_eq!(status["backends"].as_array().unwrap().len(), backends);
    assert_eq!(map_status(&status, "VIPS")["entries"], 4_095 * vips + 2);
    assert_eq!(map_status(&status, "BACKENDS")["capacity"], 65_536);
    println!("memory: {} bytes on 2 CPUs", memory_bytes(&status, 2));

    let mut client = TrafficClient::new(sent);
    timed(&format!("{sent} flows sent"), &mut || client.send(sent));
    client.assert_all_counted();
    let flows = |status: &Value| map_status(status, "CONNECTIONS")["entries"].as_u64().unwrap();
    let tracked = flows(&fixture.status());
    assert!(tracked > sent / 100 * 99, "{tracked} flows are tracked");

    // A change of one table, then a larger connection table for a million flows. (Under traffic:
    // `growth`.)
    fixture.config["services"][0]["backends"][0]["weight"] = json!(1);
    fixture.write();
    timed("reload that changes one table", &mut || daemon.reload());
    assert_eq!(daemon.log_count("reload failed"), 0);
    fixture.config["limits"]["connections"] = json!(2 << 20);
    fixture.write();
    timed("reload that doubles the connection table", &mut || daemon.reload());
    assert_eq!(daemon.log_count("maps resized"), 1, "{}", daemon.log());
    let status = fixture.status();
    assert_eq!(
        (flows(&status), &map_status(&status, "CONNECTIONS")["capacity"]),
        (tracked, &json!(2 << 20))
    );
    client.assert_all_counted();

    daemon.end(Signal::SIGTERM);
    timed("down", &mut || drop(fixture.down()));
    run("ip route del 10.1.0.0/16 dev eth0");
    assert_eq!(host_state(), before);
}
