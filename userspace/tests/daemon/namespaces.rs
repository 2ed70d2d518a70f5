//! An instance in another network namespace, or with pins in another mount namespace.

use std::fs;

use nix::sys::signal::Signal;

use crate::fixture::{DaemonFixture, STATE, assert_fails};
use crate::named_namespace::NamedNamespace;

/// The warning about pins that only the daemon sees.
const PRIVATE: &str = "the BPF file system is mounted only in this mount namespace";

pub(crate) fn pins_in_another_mount_namespace_are_named() {
    let other = NamedNamespace::new("sluice-lb");
    let fixture = DaemonFixture::inside(&other);
    let daemon = fixture.start_wrapped(&["ip", "netns", "exec", "sluice-lb"], &["lb"]);
    assert_eq!(daemon.log_count(PRIVATE), 1, "{}", daemon.log());
    let process = daemon.id().to_string();
    let enter = ["nsenter", "--target", &process, "--mount", "--net"];
    let remedy = format!("`{} sluice status --instance edge`", enter.join(" "));
    for command in ["status", "counters", "capture"] {
        let output = fixture.sluice(&[command]);
        assert_fails(&output, 1, &["another mount namespace", &process, &remedy]);
    }
    let output = fixture.wrapped(&enter, &["status"]);
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && shown.contains("forwarding on eth0"), "{output:?}");
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
    // The pins ended with the mount namespace.
    for command in ["status", "counters", "capture"] {
        let words = ["has no pins here", "no daemon runs", "`sluice down --instance edge`"];
        assert_fails(&fixture.sluice(&[command]), 1, &words);
    }
    let enter = other.nsenter();
    let enter: Vec<_> = enter.split(' ').collect();
    assert!(fixture.wrapped(&enter, &["down"]).status.success());
    assert!(!fs::exists(STATE).unwrap());
}

pub(crate) fn status_in_another_network_namespace_names_the_way_there() {
    let other = NamedNamespace::new("sluice-lb");
    let fixture = DaemonFixture::inside(&other);
    let enter = other.nsenter();
    let words: Vec<_> = enter.split(' ').collect();
    let _daemon = fixture.start_wrapped(&words, &["lb"]);
    let remedy = format!("`{enter} sluice status --instance edge`");
    assert_fails(&fixture.sluice(&["status"]), 1, &["another network namespace", &remedy]);
    assert!(fixture.wrapped(&words, &["status"]).status.success());
    assert!(fixture.sluice(&["counters"]).status.success());
}

pub(crate) fn pins_that_the_first_process_sees_are_not_private() {
    let fixture = DaemonFixture::new();
    // The daemon is the first process of its PID namespace.
    let wrapper = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
    let daemon = fixture.start_wrapped(&wrapper, &["lb"]);
    assert_eq!(daemon.log_count(PRIVATE), 0, "{}", daemon.log());
}
