//! `sluice reload`, and the messages to the service manager.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;

use crate::acl::long_acl;
use crate::fixture::{
    DaemonFixture, SLUICE, STATE, ServiceManager, assert_fails, host_state, wait_until,
};
use crate::support::add_address;

pub(crate) fn sluice_reload_waits_for_the_result() {
    let mut fixture = DaemonFixture::new();
    assert_fails(&fixture.sluice(&["reload"]), 1, &["no daemon", "\"edge\"", "sluice lb"]);
    let daemon = fixture.start(&["lb"]);

    fixture.config["backends"][1]["draining"] = json!(true);
    fixture.write();
    let output = fixture.sluice(&["reload"]);
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("lb: the configuration is in force"));
    let status = fixture.applied_status();
    assert_eq!(status["backends"][1]["draining"], json!(true), "{status}");

    let (before, log) = (host_state(), daemon.log());
    fixture.write_text("{\"version\": 1");
    let output = fixture.sluice(&["reload"]);
    assert_fails(&output, 2, &["lb: reload refused, nothing was changed", "edge.json"]);
    assert_eq!((host_state(), fixture.applied_status()), (before, status));
    assert_eq!(daemon.log()[log.len()..].matches("reload failed").count(), 1, "{}", daemon.log());

    assert_eq!(daemon.end(Signal::SIGKILL), None);
    assert_fails(&fixture.sluice(&["reload"]), 1, &["no daemon"]);
}

pub(crate) fn sluice_reload_waits_for_source_acls() {
    const DENIED: &str = "198.51.100.7";
    const VIP: &str = "203.0.113.10:80";

    let mut fixture = DaemonFixture::new();
    fixture.config["deny_file"] = json!("deny.txt");
    fixture.write_file("deny.txt", "");
    fixture.write();
    let _daemon = fixture.start(&["lb"]);
    fixture.write_file("deny.txt", &long_acl(DENIED));
    let output = fixture.sluice(&["reload", "--timeout", "300"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(fixture.outcome(DENIED, VIP), "acl_denied");

    fixture.write_file("deny.txt", "198.51.100.0/99\n");
    let stale = "except for source ACLs, whose earlier versions stay";
    assert_fails(&fixture.sluice(&["reload"]), 1, &["lb: ", stale, "deny.txt:1"]);
    let status = fixture.failing_status()["lb"]["daemon"]["last_reload"]["outcome"].clone();
    assert!(status["stale"].as_str().unwrap().contains("deny.txt:1"), "{status}");
    assert_fails(&fixture.sluice(&["status"]), 1, &["with problems", "older than its files"]);
    assert_eq!(fixture.outcome(DENIED, VIP), "acl_denied");

    fixture.write_file("deny.txt", "");
    assert!(fixture.sluice(&["reload"]).status.success());
    assert_eq!(fixture.outcome(DENIED, VIP), "web");
    assert!(fixture.sluice(&["status"]).status.success());
}

pub(crate) fn sluice_reload_reaches_the_daemon_of_one_role() {
    let fixture = DaemonFixture::new();
    let lb = fixture.start(&["lb"]);
    let missing = fixture.sluice(&["reload", "--role", "backend"]);
    assert_fails(&missing, 1, &["no daemon", "start `sluice backend`"]);
    add_address("10.0.1.1/16", "eth0");
    let backend = fixture.start(&["backend"]);
    let reloads = || (lb.log_count("ready: "), backend.log_count("ready: "));
    for (arguments, expected) in [
        (&["reload", "--role", "lb"][..], (2, 1)),
        (&["reload", "--role", "backend"], (2, 2)),
        (&["reload"], (3, 3)),
    ] {
        let output = fixture.sluice(arguments);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(reloads(), expected, "{arguments:?}");
    }
    assert_eq!(fixture.sluice(&["reload", "--role", "both"]).status.code(), Some(2));
}

pub(crate) fn sluice_reload_needs_root() {
    let fixture = DaemonFixture::new();
    let _daemon = fixture.start(&["lb"]);
    let nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
    // The binary may be where only root can read it.
    let binary = "/run/sluice-for-all";
    std::fs::copy(SLUICE.as_str(), binary).unwrap();
    let output = fixture.command(&[&nobody[..], &[binary, "reload"]].concat());
    assert_fails(&output, 1, &["lb.sock as this user; run it as root: Permission denied"]);
}

/// Each reload takes a while; those that wait share one.
pub(crate) fn parallel_reloads_share_a_reload() {
    const CLIENTS: usize = 60;

    let fixture = DaemonFixture::new();
    let daemon = fixture.start(&["lb"]);
    let connect = |_| {
        let mut client = UnixStream::connect(format!("{STATE}/lb.sock")).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        client.write_all(b"\"reload\"\n").unwrap();
        client
    };
    let clients: Vec<_> = (0..CLIENTS).map(connect).collect();
    for mut client in clients {
        let mut response = String::new();
        client.read_to_string(&mut response).unwrap();
        assert_eq!(response, "{\"reload\":\"applied\"}\n");
    }
    let reloads = daemon.log_count("ready: ") - 1;
    assert!(reloads <= CLIENTS / 4, "{reloads} reloads");
}

/// A hanging daemon: the client gives up after its timeout.
pub(crate) fn sluice_reload_has_a_timeout() {
    let fixture = DaemonFixture::new();
    let daemon = fixture.start(&["lb"]);
    daemon.signal(Signal::SIGSTOP);
    let output = fixture.sluice(&["reload", "--timeout", "1"]);
    assert_fails(&output, 1, &["did not respond within 1 s"]);
    daemon.signal(Signal::SIGCONT);
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
}

/// The log is a stream to the journal: lines start with their severity.
pub(crate) fn the_journal_receives_severities() {
    let fixture = DaemonFixture::new();
    // The log file is opened before the daemon runs, so a shell finds out what it is.
    let script = "JOURNAL_STREAM=$(stat -Lc %d:%i /dev/stderr) exec \"$@\"";
    let mut daemon = fixture.start_wrapped(&["sh", "-c", script, "sh"], &["lb"]);
    fixture.write_text("{}");
    daemon.reload();
    let log = daemon.log();
    assert!(log.lines().any(|line| line.starts_with("<6>ready: forwarding")), "{log}");
    assert!(log.lines().any(|line| line.starts_with("<4>reload failed")), "{log}");
    assert!(log.lines().all(|line| line.starts_with('<')), "{log}");
    // The error of a command, too.
    let output = fixture.wrapped(&["sh", "-c", script, "sh"], &["status", "--instance", "none"]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.starts_with("<3>sluice: error: the instance"), "{error}");
}

pub(crate) fn the_service_manager_receives_the_state_and_signs_of_life() {
    let fixture = DaemonFixture::new();
    let manager = ServiceManager::new(&fixture);
    let receive = || manager.receive();
    // Other than signs of life, which come at any time.
    let message = || loop {
        match receive() {
            text if text.trim() == "WATCHDOG=1" => {}
            text => break text,
        }
    };
    let socket = manager.variable();
    let daemon = fixture.start_wrapped(&["env", &socket, "WATCHDOG_USEC=400000"], &["lb"]);
    assert_eq!(message(), "READY=1\nSTATUS=running\n");
    wait_until("a sign of life arrives", || receive().trim() == "WATCHDOG=1");

    fixture.write_text("{}");
    daemon.signal(Signal::SIGHUP);
    let start = message();
    assert!(start.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{start}");
    let end = message();
    assert!(end.starts_with("READY=1\nSTATUS=running; the last reload was refused"), "{end}");

    fixture.write();
    assert!(fixture.sluice(&["reload"]).status.success());
    assert!(message().starts_with("RELOADING=1\n"));
    assert_eq!(message(), "READY=1\nSTATUS=running\n");
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
    assert_eq!(message().trim(), "STOPPING=1");
}

/// A socket without a reader takes a few messages only (`net.unix.max_dgram_qlen`).
pub(crate) fn a_service_manager_that_hangs_does_not_stop_the_daemon() {
    let fixture = DaemonFixture::new();
    let manager = ServiceManager::new(&fixture);
    let variable = manager.variable();
    let daemon = fixture.start_wrapped(&["env", &variable], &["lb"]);
    for _ in 0..60 {
        let output = fixture.sluice(&["reload", "--timeout", "60"]);
        assert!(output.status.success(), "{output:?}");
    }
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
}

pub(crate) fn reloads_of_clients_that_left_are_dropped() {
    const REQUESTS: usize = 300;

    let fixture = DaemonFixture::new();
    let daemon = fixture.start(&["lb"]);
    for _ in 0..REQUESTS {
        let mut client = UnixStream::connect(format!("{STATE}/lb.sock")).unwrap();
        client.write_all(b"\"reload\"\n").unwrap();
    }
    let output = fixture.sluice(&["reload", "--timeout", "60"]);
    assert!(output.status.success(), "{output:?}");
    let reloads = daemon.log_count("ready: ");
    assert!(reloads < REQUESTS / 2, "{reloads} reloads");
}
