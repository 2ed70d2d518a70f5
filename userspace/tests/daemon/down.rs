//! `sluice down` without a whole journal, and from another namespace.

use std::fs;

use nix::sys::signal::Signal;

use crate::fixture::{DaemonFixture, PINS, STATE, assert_fails, host_state, tc_filter};
use crate::namespaces::NamedNamespace;
use crate::support::{add_address, run};

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
            for path in ["/run/sluice", STATE, &journal, &format!("{STATE}/backend.lock")] {
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
    crate::support::veth("eth0", "far");
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
    crate::support::veth("eth0", "far");
    add_address("10.0.0.1/16", "eth0");
    let before = crate::support::snapshot();
    let mut daemon = fixture.start(&["lb"]);
    daemon.wait_for_log("the network namespace of the journal does not exist any more", 1);
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
    fixture.down();
    assert_eq!(crate::support::snapshot(), before);
    assert!(!fs::exists(STATE).unwrap());
}
