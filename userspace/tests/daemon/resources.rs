//! Limits of descriptors and threads.

use std::fs;
use std::path::{Path, PathBuf};

use libtest_mimic::Completion;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::fixture::{DaemonFixture, assert_fails, host_state};

const LB: [&str; 3] = ["lb", "--config", "edge.json"];

/// The soft and the hard limit of descriptors of a process.
fn descriptor_limits(process: u32) -> [u64; 2] {
    let limits = fs::read_to_string(format!("/proc/{process}/limits")).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let numbers: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    [numbers[0], numbers[1]]
}

pub(crate) fn the_limit_of_descriptors_is_raised_or_too_low() {
    let fixture = DaemonFixture::new();
    let before = host_state();
    // Fewer than a start needs, and fewer than a resize needs.
    for hard in [16, 70, 500] {
        let limit = format!("--nofile=16:{hard}");
        let output = fixture.wrapped(&["prlimit", &limit], &LB);
        assert_fails(&output, 1, &[&format!("limit of open files is {hard}"), "LimitNOFILE"]);
        assert_eq!(host_state(), before, "{hard} descriptors");
    }
    let daemon = fixture.start_wrapped(&["prlimit", "--nofile=16:1024"], &["lb"]);
    assert_eq!(descriptor_limits(daemon.id()), [1_024; 2]);
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
    for command in ["status", "counters", "down"] {
        let output = fixture.wrapped(&["prlimit", "--nofile=16:1024"], &[command]);
        assert!(output.status.success(), "{output:?}");
    }
}

/// A cgroup with a limit of tasks, removed when dropped.
struct LimitedTasks(PathBuf);

impl LimitedTasks {
    /// `None` if this host has no mounted controller of tasks.
    fn new(tasks: u32) -> Option<Self> {
        for root in ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"] {
            let path = Path::new(root).join(format!("sluice-test-{}", std::process::id()));
            if fs::create_dir(&path).is_err() {
                continue;
            }
            let group = Self(path);
            if fs::write(group.0.join("pids.max"), tasks.to_string()).is_ok() {
                return Some(group);
            }
        }
        None
    }

    /// A shell command that executes its arguments in the cgroup.
    fn wrapper(&self) -> String {
        format!("echo $$ > {}/cgroup.procs; exec \"$@\"", self.0.display())
    }
}

impl Drop for LimitedTasks {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

pub(crate) fn a_start_without_threads_fails_and_is_undone() -> Completion {
    let mut fixture = DaemonFixture::new();
    fixture.config["services"][0]["deny_file"] = json!("deny.txt");
    fixture.write();
    fs::write(fixture.directory().join("deny.txt"), "192.0.2.0/24\n").unwrap();
    let before = host_state();
    // The log has a thread. The files are read on a thread each; source ACLs are loaded on one,
    // which reads on another.
    for tasks in [1, 2, 3] {
        let Some(group) = LimitedTasks::new(tasks) else {
            return Completion::ignored_with("this host has no cgroup controller of tasks");
        };
        // `timeout` and the shell are tasks, too, so that only the daemon enters the cgroup.
        let output = fixture.wrapped(&["sh", "-c", &group.wrapper(), "sh"], &LB);
        // The kernel may count a thread that has just ended, so that already a file cannot be read.
        let code = if output.status.code() == Some(2) && tasks > 1 { 2 } else { 1 };
        assert_fails(&output, code, &["cannot create a thread"]);
        assert_eq!(host_state(), before, "{tasks} tasks");
    }
    Completion::Completed
}
