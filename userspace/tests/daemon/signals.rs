//! Signals at any time: during a start, and while programs are loaded.

use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;

use crate::fixture::{DaemonFixture, wait_until};

pub(crate) fn a_signal_before_the_configuration_is_read_is_a_reload() {
    let fixture = DaemonFixture::new();
    for role in ["lb", "backend"] {
        crate::support::try_run("ip addr add 10.0.1.1/16 dev eth0");
        let mut daemon = fixture.spawn_stopped(&[role]);
        crate::ptrace::before_open(&daemon, "edge.json", || daemon.signal(Signal::SIGHUP));
        daemon.wait_for_log("ready: ", 2);
        assert_eq!(daemon.end(Signal::SIGTERM), Some(0), "{role}");
    }
}

pub(crate) fn signals_during_the_load_of_a_program_refuse_no_reload() {
    const ROUNDS: u64 = 30;

    let mut fixture = DaemonFixture::new();
    let daemon = fixture.start(&["lb"]);
    for round in 0..ROUNDS {
        // With and without rate limits the program differs.
        let service = fixture.config["services"][0].as_object_mut().unwrap();
        match round % 2 {
            0 => drop(service.insert("rate".to_owned(), json!({ "source_packets": 1000 }))),
            _ => drop(service.remove("rate")),
        }
        // Atomically, because the daemon may be reading it.
        let next = fixture.directory().join("next.json");
        std::fs::write(&next, fixture.config.to_string()).unwrap();
        std::fs::rename(next, fixture.directory().join("edge.json")).unwrap();
        let before = daemon.log_count("ready: ");
        for pause in [round * 2, 40, 0] {
            daemon.signal(Signal::SIGHUP);
            thread::sleep(Duration::from_millis(pause));
        }
        wait_until("a reload ends", || {
            daemon.log_count("ready: ") > before || daemon.log_count(" failed") > 0
        });
    }
    assert_eq!(daemon.log_count(" failed"), 0, "{}", daemon.log());
    assert!(daemon.log_count("program replaced") >= ROUNDS as usize / 2, "{}", daemon.log());
}

#[cfg(target_arch = "x86_64")]
pub(crate) fn an_interrupted_load_of_a_program_is_repeated() {
    use crate::ptrace::{FailingCall, fail_calls};

    let mut fixture = DaemonFixture::new();
    let mut daemon = fixture.start(&["lb"]);
    fixture.config["services"][0]["rate"] = json!({ "source_packets": 1000 });
    fixture.write();
    let reload = || daemon.signal(Signal::SIGHUP);
    assert!(fail_calls(&daemon, reload, FailingCall::LoadProgram, 0, 6, libc::EAGAIN));
    daemon.wait_for_log("ready: ", 2);
    assert_eq!(daemon.log_count(" failed"), 0, "{}", daemon.log());
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn an_interrupted_load_of_a_program_is_repeated() -> libtest_mimic::Completion {
    libtest_mimic::Completion::ignored_with("the test sets registers of x86-64 by ptrace(2)")
}
