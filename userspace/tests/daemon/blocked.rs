//! A daemon whose requests the kernel does not answer, or whose thread the kernel blocks.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::fixture::{DaemonFixture, ServiceManager};
use crate::ptrace::StoppedCore;
#[cfg(target_arch = "x86_64")]
use crate::support::{add_address, run};

/// Loses the requests of a daemon that gets work and then SIGTERM.
#[cfg(target_arch = "x86_64")]
fn assert_ends(fixture: &DaemonFixture, role: &str, work: impl FnOnce(u32)) {
    let daemon = fixture.start(&[role]);
    let mut stop = Instant::now();
    crate::ptrace::lose_requests(
        &daemon,
        || work(daemon.id()),
        || {
            daemon.signal(Signal::SIGTERM);
            stop = Instant::now();
        },
    );
    assert_eq!(daemon.wait(), Some(0));
    // One request may take 30 s.
    assert!(stop.elapsed() < Duration::from_secs(20), "{role}: {:?}", stop.elapsed());
}

#[cfg(target_arch = "x86_64")]
pub(crate) fn a_stop_does_not_wait_for_requests_without_an_answer() {
    let fixture = DaemonFixture::new();
    add_address("10.0.1.1/16", "eth0");
    assert_ends(&fixture, "lb", |daemon| drop(run(&format!("kill -HUP {daemon}"))));
    assert_ends(&fixture, "backend", |_| drop(run("ip link set eth0 mtu 1400")));
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn a_stop_does_not_wait_for_requests_without_an_answer() -> libtest_mimic::Completion {
    libtest_mimic::Completion::ignored_with("the test sets registers of x86-64 by ptrace(2)")
}

/// The service manager's watchdog must not end a daemon that waits for the RTNL lock, but one that
/// hangs.
pub(crate) fn signs_of_life_last_as_long_as_a_request_may() {
    let fixture = DaemonFixture::new();
    let manager = ServiceManager::new(&fixture);
    let socket = manager.variable();
    let daemon = fixture.start_wrapped(&["env", &socket, "WATCHDOG_USEC=400000"], &["lb"]);
    // The number of signs of life in a time.
    let signs = |seconds| {
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut signs = 0;
        while Instant::now() < end {
            let message = manager.receive_within(Duration::from_millis(100));
            signs += usize::from(message.is_some_and(|message| message.trim() == "WATCHDOG=1"));
        }
        signs
    };
    let stopped = StoppedCore::new(&daemon);
    assert!(signs(30) > 30);
    signs(20);
    assert_eq!(signs(3), 0);
    drop(stopped);
    assert!(signs(10) > 0);
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
}
