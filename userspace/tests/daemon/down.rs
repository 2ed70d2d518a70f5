//! `sluice down` without a whole journal, and from another namespace.

use std::fs;

use libtest_mimic::Completion;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::fixture::{DaemonFixture, PINS, STATE, assert_fails, host_state, tc_filter};
use crate::named_namespace::NamedNamespace;
use crate::support::{add_address, run, set_sysctl, snapshot, sysctl, veth};

const FILTER: &str = "sluice_lb:edge";

/// The error of `sluice down` about a role's journal, and its report.
#[track_caller]
fn failing_down(fixture: &DaemonFixture, words: &[&str]) -> String {
    let output = fixture.sluice(&["down"]);
    assert_fails(&output, 1, words);
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn lines_of_the_journal_that_cannot_be_read_are_named() {
    let fixture = DaemonFixture::new();
    add_address("10.0.1.1/16", "eth0");
    let before = host_state();
    let journal = format!("{STATE}/backend.journal");
    // Not JSON, an unknown change, and a change that Sluice never makes.
    for bad in [
        "{\"did\":{\"addr",
        "{\"did\":{\"flood\":{}}}",
        "{\"did\":{\"sysctl\":{\"key\":\"kernel/core_pattern\",\"old\":\"1\",\"new\":\"2\"}}}",
    ] {
        fixture.start(&["backend"]).end(Signal::SIGTERM);
        let text = fs::read_to_string(&journal).unwrap();
        let mut lines: Vec<_> = text.lines().collect();
        lines.insert(3, bad);
        fs::write(&journal, lines.join("\n") + "\n").unwrap();
        // A daemon starts only with a journal that it can read.
        let started = fixture.sluice(&["backend", "--config", "edge.json"]);
        assert_fails(&started, 1, &["backend.journal:4: ", "`sluice down`"]);
        // All other lines are undone, and a second call has the same error.
        for _ in 0..2 {
            let report = failing_down(&fixture, &["backend.journal:4: ", "remove the file"]);
            assert!(!report.contains("removed"), "{report}");
            let mut left = host_state();
            // Journal, lock and control socket stay.
            let files = ["journal", "lock", "sock"].map(|kind| format!("{STATE}/backend.{kind}"));
            for path in files.iter().map(String::as_str).chain(["/run/sluice", STATE]) {
                left = left.replace(&format!("{path}\n"), "");
            }
            assert_eq!(left, before, "{bad}");
        }
        fs::remove_file(&journal).unwrap();
        fixture.down();
        assert_eq!(host_state(), before);
    }
}

pub(crate) fn down_in_another_network_namespace_is_refused() {
    let other = NamedNamespace::new("sluice-lb");
    let fixture = DaemonFixture::inside(&other);
    let enter = other.nsenter();
    let enter: Vec<_> = enter.split(' ').collect();
    let state = || {
        fixture.command(&[&enter[..], &["tc", "filter", "show", "dev", "eth0", "ingress"]].concat())
    };
    let daemon = fixture.start_wrapped(&enter, &["lb"]);
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
    let (before, attached) = (host_state(), state().stdout);
    assert!(String::from_utf8_lossy(&attached).contains(FILTER));
    let remedy = format!("`{} sluice down --instance edge`", other.nsenter());
    let report = failing_down(&fixture, &["another network namespace", &remedy]);
    assert_eq!(report, "");
    // Nor does a daemon take over the journal.
    let (words, args) = (["another network namespace", &remedy], ["lb", "--config", "edge.json"]);
    veth("eth0", "far");
    add_address("10.0.0.1/16", "eth0");
    assert_fails(&fixture.sluice(&args), 1, &words);
    assert_eq!(tc_filter("eth0", FILTER), "");
    run("ip link del eth0");
    assert_eq!(host_state(), before);
    assert_eq!(state().stdout, attached);
    let output = fixture.wrapped(&enter, &["down"]);
    assert!(output.status.success(), "{output:?}");
    let report = String::from_utf8_lossy(&output.stdout);
    assert!(report.contains("undone: filter") && report.contains("undone: clsact"), "{report}");
    assert!(state().stdout.is_empty());
    assert!(!fs::exists(PINS).unwrap() && !fs::exists(STATE).unwrap());
}

pub(crate) fn changes_of_a_deleted_network_namespace_are_left() {
    let other = NamedNamespace::new("sluice-lb");
    let fixture = DaemonFixture::inside(&other);
    let enter = other.nsenter();
    let daemon = fixture.start_wrapped(&enter.split(' ').collect::<Vec<_>>(), &["lb"]);
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
    drop(other);
    let words = ["another network namespace", "remove the file", "lb.journal"];
    failing_down(&fixture, &words);
    // As a container that is started again has another namespace.
    veth("eth0", "far");
    add_address("10.0.0.1/16", "eth0");
    let before = snapshot();
    let mut daemon = fixture.start(&["lb"]);
    daemon.wait_for_log("the network namespace of the journal does not exist any more", 1);
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
    fixture.down();
    assert_eq!(snapshot(), before);
    assert!(!fs::exists(STATE).unwrap());
}

/// Starts both roles, and ends them.
fn leave_both_roles(fixture: &DaemonFixture) {
    for role in ["lb", "backend"] {
        assert_eq!(fixture.start(&[role]).end(Signal::SIGTERM), Some(0));
    }
}

fn lose_journals() {
    fs::remove_dir_all("/run/sluice").unwrap();
}

pub(crate) fn down_finds_changes_without_a_journal() {
    let mut fixture = DaemonFixture::new();
    add_address("10.0.1.1/16", "eth0");
    let vips = ["203.0.113.10:80/tcp", "198.18.4.0/24:80/tcp", "[2001:db8:5::1]:80/tcp"];
    fixture.config["services"][0]["vips"] = json!(vips);
    fixture.write();
    let names = ["arp_ignore", "arp_announce", "rp_filter"];
    let values = || names.map(|name| (name, sysctl("eth0", name)));
    let (before, values_before) = (host_state(), values());
    leave_both_roles(&fixture);
    let settings = values();
    lose_journals();
    let report = fixture.down();
    for line in [
        "lb: detached and removed",
        "undone: filter sluice_lb:edge on eth0 ingress, priority 100",
        "backend: detached and removed",
        "undone: filter sluice_clamp:edge on eth0 egress, priority 101",
        "undone: address 203.0.113.10/32 on lo",
        "undone: address 2001:db8:5::1/128 on lo",
        "undone: local route to 198.18.4.0/24",
        "not known: net/ipv4/conf/eth0/arp_ignore is 1: ",
        "not known: net/ipv4/conf/eth0/arp_announce is 2: ",
        "not known: the clsact qdisc on eth0 has no filters: ",
        "`tc qdisc del dev eth0 clsact`",
    ] {
        assert_eq!(report.matches(line).count(), 1, "{line:?} is not in: {report}");
    }
    // It makes the changes of the report, and no others.
    assert_eq!(values(), settings);
    for (setting, value) in values_before {
        set_sysctl("eth0", setting, &value);
    }
    run("tc qdisc del dev eth0 clsact");
    assert_eq!(host_state(), before);
    assert!(fixture.down().contains("nothing to do"));
}

pub(crate) fn down_without_a_journal_and_pins_names_the_unknown_changes() {
    let fixture = DaemonFixture::new();
    add_address("10.0.1.1/16", "eth0");
    leave_both_roles(&fixture);
    lose_journals();
    fs::remove_dir_all(PINS).unwrap();
    let report = fixture.down();
    for line in [
        "undone: filter sluice_lb:edge on eth0 ingress, priority 100",
        "undone: filter sluice_backend:edge on eth0 ingress, priority 101",
        "not known: VIP addresses on lo and local routes: no pinned map lists those of this instance",
        "`ip address show lo`",
    ] {
        assert_eq!(report.matches(line).count(), 1, "{line:?} is not in: {report}");
    }
    assert!(!report.contains("undone: address"), "{report}");
}

pub(crate) fn down_without_a_journal_leaves_what_another_instance_uses() {
    let fixture = DaemonFixture::new();
    add_address("10.0.1.1/16", "eth0");
    let mut second = fixture.beside("two");
    second.config["services"][0]["vips"] = json!(["203.0.113.10:443/tcp", "203.0.114.1:80/tcp"]);
    second.config["priority"] = json!({ "lb": 110 });
    second.write();
    for instance in [&fixture, &second] {
        assert_eq!(instance.start(&["backend"]).end(Signal::SIGTERM), Some(0));
    }
    lose_journals();
    let report = fixture.down();
    assert!(report.contains("undone: address 203.0.113.11/32 on lo"), "{report}");
    let left = "left alone: address 203.0.113.10/32 on lo: the instance two uses it, too";
    assert!(report.contains(left), "{report}");
    assert!(!report.contains("clsact"), "the qdisc has filters: {report}");
    assert!(second.json("status")["backend"].is_object());
    let report = second.down();
    for undone in ["address 203.0.113.10/32 on lo", "address 203.0.114.1/32 on lo"] {
        assert!(report.contains(&format!("undone: {undone}")), "{report}");
    }
    assert!(report.contains("the clsact qdisc on eth0 has no filters"), "{report}");
}

pub(crate) fn a_daemon_without_its_lock_file_still_runs() {
    let fixture = DaemonFixture::new();
    let before = host_state();
    let daemon = fixture.start(&["lb", "--ephemeral"]);
    lose_journals();
    let (with, process) = (host_state(), daemon.id().to_string());
    assert_fails(&fixture.sluice(&["down"]), 1, &["still runs", &process, "end it first"]);
    assert_eq!(host_state(), with);
    let started = fixture.sluice(&["lb", "--config", "edge.json"]);
    assert_fails(&started, 1, &["already runs", &process]);
    let words = ["without its control socket", &format!("`kill -HUP {process}`")];
    assert_fails(&fixture.sluice(&["reload"]), 1, &words);
    let status = fixture.status();
    assert_eq!(status["daemon"]["process"], json!(daemon.id()));
    // At its end it restores the host by name.
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
    run("tc qdisc del dev eth0 clsact");
    let _ = fs::remove_dir_all("/run/sluice");
    assert_eq!(host_state(), before);
}

pub(crate) fn maps_in_use_elsewhere_are_kept() {
    let other = NamedNamespace::new("sluice-lb");
    let fixture = DaemonFixture::inside(&other);
    let enter = other.nsenter();
    let enter: Vec<_> = enter.split(' ').collect();
    assert_eq!(fixture.start_wrapped(&enter, &["lb"]).end(Signal::SIGTERM), Some(0));
    lose_journals();
    let words = ["programs that use the maps are still loaded", "another network namespace"];
    let report = failing_down(&fixture, &words);
    assert!(report.contains("lb: undone in part"), "{report}");
    assert!(fixture.sluice(&["counters"]).status.success(), "the maps are still pinned");
    let output = fixture.wrapped(&enter, &["down"]);
    assert!(output.status.success(), "{output:?}");
    assert!(!fs::exists(PINS).unwrap() && !fs::exists(STATE).unwrap());
}

pub(crate) fn down_finds_tunnel_devices_without_a_journal() -> Completion {
    let mut fixture = DaemonFixture::new();
    add_address("10.0.1.1/16", "eth0");
    // Neither a filter nor a pin.
    fixture.config["clamp_mss"] = json!(false);
    fixture.write();
    let other = fixture.beside("two");
    let before = host_state();
    let daemon = fixture.start(&["backend"]);
    let by_program = daemon.log_count("by=BPF program") == 1;
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
    if by_program {
        fixture.down();
        return Completion::ignored_with("this kernel has no ipip devices");
    }
    // Another instance without a journal does not take the devices of this one.
    assert!(other.down().contains("nothing to do"));
    lose_journals();
    let report = fixture.down();
    for line in ["undone: ipip device sluice4 for 10.0.1.1", "not known: VIP addresses on lo"] {
        assert!(report.contains(line), "{line:?} is not in: {report}");
    }
    for address in ["203.0.113.10", "203.0.113.11"] {
        run(&format!("ip addr del {address}/32 dev lo"));
    }
    set_sysctl("eth0", "arp_ignore", "0");
    set_sysctl("eth0", "arp_announce", "0");
    assert_eq!(host_state(), before);
    Completion::Completed
}
