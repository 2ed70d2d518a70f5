//! Source ACLs and rate limits of a running balancer: from the files to the verdicts of packets.

use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::fixture::{DaemonFixture, assert_fails, host_state, wait_until};
use crate::wire;

/// Limit for reading the long file, on a busy machine.
const READ_TIMEOUT: Duration = Duration::from_secs(300);

const CLIENT: &str = "198.51.100.7";
const OTHER: &str = "198.51.100.8";

impl DaemonFixture {
    pub(crate) fn write_file(&self, name: &str, text: &str) {
        fs::write(self.directory().join(name), text).unwrap();
    }

    /// Sends a segment from a client to a VIP; returns the name of the counter that it increments.
    #[track_caller]
    pub(crate) fn outcome(&self, client: &str, vip: &str) -> String {
        let counted = || {
            let lb = self.json("counters")["lb"].clone();
            let services = lb["services"]
                .as_object()
                .unwrap()
                .iter()
                .map(|(name, c)| (name.clone(), c["packets"].as_u64()));
            let reasons = lb["reasons"]
                .as_object()
                .unwrap()
                .iter()
                .map(|(name, c)| (name.clone(), c.as_u64()));
            // Other reasons may count packets of the host itself.
            let policy_reasons = reasons.filter(|(name, _)| {
                ["acl_denied", "acl_not_allowed", "rate_limited_service", "rate_limited_source"]
                    .contains(&name.as_str())
            });
            services.chain(policy_reasons).collect::<std::collections::BTreeMap<_, _>>()
        };
        let before = counted();
        wire::send_segment("far", "eth0", client.parse().unwrap(), vip.parse().unwrap());
        let mut changed = Vec::new();
        wait_until("the packet is counted", || {
            let after = counted();
            changed = after
                .into_iter()
                .filter(|(name, count)| {
                    before.get(name).copied().flatten().unwrap_or(0) != count.unwrap()
                })
                .collect();
            !changed.is_empty()
        });
        assert_eq!(changed.len(), 1, "{changed:?}");
        changed.remove(0).0
    }
}

/// A long ACL file with a client's address at its end: reading it takes much longer than a drain.
pub(crate) fn long_acl(client: &str) -> String {
    let mut text = String::new();
    for number in 0..1_000_000u32 {
        // Scattered addresses in no order.
        let address = Ipv4Addr::from(number.wrapping_mul(2_654_435_761) & 0x7fff_ffff);
        let _ = writeln!(text, "{address}");
    }
    text + client
}

pub(crate) fn acls_apply_from_the_start_and_follow_their_files() {
    let mut fixture = DaemonFixture::new();
    let before = host_state();
    fixture.write_file("deny.txt", &format!("# the scanners\n{CLIENT}\n"));
    fixture.config["deny_file"] = json!("deny.txt");
    fixture.write();
    let mut daemon = fixture.start(&["lb"]);
    assert_eq!(fixture.outcome(CLIENT, "203.0.113.10:80"), "acl_denied");
    assert_eq!(fixture.outcome(OTHER, "203.0.113.10:80"), "web");

    // A small change is made in place.
    fixture.write_file("deny.txt", &format!("{OTHER}\n"));
    daemon.reload();
    daemon.wait_for_log("changed=2 prefixes=1", 1);
    assert_eq!(
        (fixture.outcome(CLIENT, "203.0.113.10:80"), fixture.outcome(OTHER, "203.0.113.10:80")),
        ("web".into(), "acl_denied".into())
    );

    // A service gets its own ACL, and the global one is emptied.
    fixture.write_file("allow.txt", &format!("{OTHER}\n"));
    fixture.write_file("deny.txt", "");
    fixture.config["services"][0]["allow_file"] = json!("allow.txt");
    fixture.write();
    daemon.reload();
    daemon.wait_for_log("source ACL in force scope=service web", 1);
    assert_eq!(fixture.outcome(CLIENT, "203.0.113.10:80"), "acl_not_allowed");
    assert_eq!(fixture.outcome(OTHER, "203.0.113.10:80"), "web");

    // They stay in effect after SIGKILL, and the next daemon adopts them.
    daemon.end(Signal::SIGKILL);
    assert_eq!(fixture.outcome(CLIENT, "203.0.113.10:80"), "acl_not_allowed");
    let mut daemon = fixture.start(&["lb"]);
    assert_eq!(fixture.outcome(CLIENT, "203.0.113.10:80"), "acl_not_allowed");
    daemon.wait_for_log("source ACL in force scope=service web", 1);

    // Without ACLs in the configuration every client is allowed.
    fixture.config["services"][0].as_object_mut().unwrap().remove("allow_file");
    fixture.config.as_object_mut().unwrap().remove("deny_file");
    fixture.write();
    daemon.reload();
    assert_eq!(
        (fixture.outcome(CLIENT, "203.0.113.10:80"), fixture.outcome(OTHER, "203.0.113.10:80")),
        ("web".into(), "web".into())
    );
    daemon.end(Signal::SIGTERM);
    fixture.down();
    assert_eq!(host_state(), before);
}

pub(crate) fn a_bad_acl_file_fails_a_start_and_keeps_the_acl_on_reload() {
    let mut fixture = DaemonFixture::new();
    let before = host_state();
    fixture.config["services"][0]["deny_file"] = json!("deny.txt");
    fixture.write();
    let start = |fixture: &DaemonFixture, words: &[&str]| {
        assert_fails(&fixture.sluice(&["lb", "--config", "edge.json"]), 2, words)
    };
    start(&fixture, &["deny.txt: cannot read it"]);
    fixture.write_file("deny.txt", &format!("{CLIENT}\nexample.net\n"));
    start(&fixture, &["deny.txt:2: \"example.net\" is neither a prefix nor an address"]);
    assert_fails(&fixture.sluice(&["check", "edge.json"]), 2, &["deny.txt:2: "]);
    assert_eq!(host_state(), before);

    fixture.write_file("deny.txt", CLIENT);
    let mut daemon = fixture.start(&["lb"]);
    assert_eq!(fixture.outcome(CLIENT, "203.0.113.10:80"), "acl_denied");
    fixture.write_file("deny.txt", &format!("{OTHER}\n{CLIENT}/0\n"));
    daemon.reload();
    daemon.wait_for_log("cannot load source ACL", 1);
    assert_eq!(
        daemon.log_count("deny.txt:2: 198.51.100.7/0 has bits beyond its prefix; write 0.0.0.0/0"),
        1,
        "{}",
        daemon.log()
    );
    assert_eq!(
        (fixture.outcome(CLIENT, "203.0.113.10:80"), fixture.outcome(OTHER, "203.0.113.10:80")),
        ("acl_denied".into(), "web".into())
    );
}

pub(crate) fn a_drain_takes_effect_while_a_million_prefixes_are_read() {
    let mut fixture = DaemonFixture::new();
    let mut daemon = fixture.start(&["lb"]);
    assert_eq!(fixture.outcome(CLIENT, "203.0.113.10:80"), "web");
    // The old service gets a long ACL that denies the client, a new one a short ACL that allows it.
    fixture.write_file("many.txt", &long_acl(CLIENT));
    fixture.write_file("few.txt", CLIENT);
    fixture.config["services"][0]["deny_file"] = json!("many.txt");
    fixture.config["services"].as_array_mut().unwrap().push(json!({
        "name": "new", "vips": ["203.0.113.12:80/tcp"], "table_size": 251, "allow_file": "few.txt", "backends": [{ "name": "a" }]
    }));
    fixture.write();
    daemon.reload();
    let in_force = "source ACL in force";
    assert_eq!(daemon.log_count(in_force), 0, "{}", daemon.log());

    // Meanwhile a backend is drained. The old service forwards without its ACL, the new one drops.
    fixture.config["backends"][1]["draining"] = json!(true);
    fixture.write();
    daemon.reload();
    let status = fixture.status();
    let outcomes =
        [fixture.outcome(CLIENT, "203.0.113.10:80"), fixture.outcome(CLIENT, "203.0.113.12:80")];
    assert_eq!(
        daemon.log_count(in_force),
        0,
        "the ACLs were read before the drain: {}",
        daemon.log()
    );
    assert!(status["services"][0]["slots"]["b"].is_null(), "{status}");
    assert_eq!(outcomes, ["web", "acl_not_allowed"]);

    // The reload of the drain does not read the files again.
    let deadline = Instant::now() + READ_TIMEOUT;
    while daemon.log_count(in_force) < 2 {
        assert!(Instant::now() < deadline, "{}", daemon.log());
        thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(
        [fixture.outcome(CLIENT, "203.0.113.10:80"), fixture.outcome(CLIENT, "203.0.113.12:80")],
        ["acl_denied", "new"]
    );
    assert!(fixture.status()["services"][0]["slots"]["b"].is_null());
    println!(
        "{}",
        daemon
            .log()
            .lines()
            .filter(|line| line.contains("prefixes"))
            .collect::<Vec<_>>()
            .join("\n")
    );
}

pub(crate) fn rates_follow_the_configuration() {
    let mut fixture = DaemonFixture::new();
    let mut daemon = fixture.start(&["lb"]);
    for _ in 0..3 {
        assert_eq!(fixture.outcome(CLIENT, "203.0.113.10:80"), "web");
    }
    // A burst of 2, then 1 per second: 40 packets at once exceed it.
    fixture.config["services"][0]["rate"] =
        json!({ "source_packets": { "per_second": 1, "burst": 2 } });
    fixture.write();
    daemon.reload();
    let burst = |client| {
        let frame = wire::segment("eth0", client, "203.0.113.10:80".parse().unwrap());
        for _ in 0..40 {
            wire::send_frame("far", &frame);
        }
    };
    let limited = |fixture: &DaemonFixture| {
        fixture.json("counters")["lb"]["reasons"]["rate_limited_source"].as_u64().unwrap_or(0)
    };
    burst(CLIENT.parse().unwrap());
    wait_until("packets beyond the rate are dropped", || limited(&fixture) > 0);
    assert_eq!(fixture.outcome(OTHER, "203.0.113.10:80"), "web");
    // A new rate starts with full buckets.
    let source = |per_second, burst| json!({ "source_packets": { "per_second": per_second, "burst": burst } });
    fixture.config["services"][0]["rate"] = source(1, 20);
    fixture.write();
    daemon.reload();
    let before = limited(&fixture);
    burst(CLIENT.parse().unwrap());
    wait_until("packets beyond that rate are dropped", || limited(&fixture) > before);
    fixture.config["services"][0]["rate"] = source(10, 10);
    fixture.write();
    daemon.reload();
    assert_eq!(fixture.outcome(CLIENT, "203.0.113.10:80"), "web");
    // Without a rate in the configuration nothing is limited.
    fixture.config["services"][0].as_object_mut().unwrap().remove("rate");
    fixture.write();
    daemon.reload();
    let before = limited(&fixture);
    burst(CLIENT.parse().unwrap());
    assert_eq!(fixture.outcome(CLIENT, "203.0.113.10:80"), "web");
    assert_eq!(limited(&fixture), before);
}
