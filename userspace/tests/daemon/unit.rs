//! The documented systemd unit.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use libtest_mimic::Completion;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::fixture::{DaemonFixture, SLUICE, tc_filter, wait_until};
use crate::support::{add_address, run, try_run, veth};

const OPERATIONS: &str = include_str!("../../../docs/operations.md");
const SYSTEMD: &str = "/lib/systemd/systemd";
const UNIT: &str = "sluice-lb.service";

/// The unit in the documentation.
fn documented() -> &'static str {
    OPERATIONS.split("```ini\n").nth(1).expect("a unit").split("```").next().unwrap()
}

pub(crate) fn the_documented_unit_tries_for_ever() {
    let lines = documented().lines().filter(|line| !line.starts_with('#'));
    let settings: BTreeMap<_, _> = lines.filter_map(|line| line.split_once('=')).collect();
    let seconds = |name: &str| settings[name].parse::<u64>().unwrap();
    assert_eq!((settings["Restart"], seconds("StartLimitIntervalSec")), ("always", 0));
    assert!((1..=10).contains(&seconds("RestartSec")));
    let help = Command::new(SLUICE.as_str()).args(["lb", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let wait = help.split("--wait <S>").nth(1).and_then(|rest| rest.split("[default: ").nth(1));
    let wait: u64 = wait.unwrap().split(']').next().unwrap().parse().unwrap();
    // The start itself takes seconds in the largest configuration.
    assert!(seconds("TimeoutStartSec") >= wait + 60, "{wait}");
}

/// A systemd that runs as the first process of its own namespaces, on the network and the mounts of
/// the test, with no units but these.
struct Systemd {
    process: Child,
    cgroup: PathBuf,
    log: PathBuf,
}

impl Systemd {
    fn boot(directory: &Path, unit: &str) -> Result<Self, String> {
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let root = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let root = root.into_iter().find(|fields| fields[2] == "cgroup2").map(|fields| fields[1]);
        let root = root.ok_or("no cgroup2 file system is mounted")?;
        let cgroup = Path::new(root).join(format!("sluice-unit-test-{}", std::process::id()));
        fs::create_dir(&cgroup).map_err(|error| format!("{}: {error}", cgroup.display()))?;
        let units = directory.join("units");
        fs::create_dir(&units).unwrap();
        for target in ["sysinit", "basic", "shutdown", "network-online", "multi-user"] {
            let text = "[Unit]\nDescription=Empty\nDefaultDependencies=no\n";
            fs::write(units.join(format!("{target}.target")), text).unwrap();
        }
        fs::write(units.join(UNIT), unit).unwrap();
        let script = format!(
            "echo $$ > {cgroup}/cgroup.procs && exec unshare --fork --pid --mount --uts --ipc --cgroup \
             --kill-child --mount-proc sh -c 'mount -t cgroup2 none /sys/fs/cgroup && \
             exec {SYSTEMD} --system --unit={UNIT} --show-status=no'",
            cgroup = cgroup.display(),
        );
        let log = directory.join("systemd.log");
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "sh", "-c", &script])
            .env("container", "sluice-test")
            .env("SYSTEMD_UNIT_PATH", &units)
            .env("SYSTEMD_LOG_TARGET", "console")
            .stdin(Stdio::null())
            .stdout(fs::File::create(&log).unwrap())
            .stderr(fs::File::create(directory.join("systemd.err")).unwrap())
            .process_group(0);
        let process = command.spawn().map_err(|error| error.to_string())?;
        Ok(Self { process, cgroup, log })
    }

    /// Runs `systemctl` inside; returns whether it succeeded, and its output.
    fn control(&self, command: &str) -> (bool, String) {
        let id = self.process.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"));
        let first = children.unwrap_or_default().split(' ').next().unwrap_or_default().to_owned();
        try_run(&format!("nsenter --target {first} --pid --mount systemctl {command} {UNIT}"))
    }

    fn property(&self, name: &str) -> String {
        self.control(&format!("show --value --property {name}")).1.trim().to_owned()
    }

    fn is_running(&mut self) -> bool {
        self.process.try_wait().unwrap().is_none()
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(-(self.process.id() as i32)), Signal::SIGKILL);
        let _ = self.process.wait();
        // The first process of the namespace ends the others; their groups are removed then.
        for _ in 0..200 {
            let _ = fs::write(self.cgroup.join("cgroup.kill"), "1");
            remove_groups(&self.cgroup);
            if !self.cgroup.exists() {
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Removes a group and those below it, the lowest first.
fn remove_groups(cgroup: &Path) {
    try_run(&format!("find {} -depth -type d -exec rmdir {{}} ;", cgroup.display()));
}

pub(crate) fn the_documented_unit_survives_a_slow_boot_and_a_bad_file() -> Completion {
    if !Path::new(SYSTEMD).exists() {
        return Completion::ignored_with("there is no systemd on this machine");
    }
    let fixture = DaemonFixture::new();
    run("ip link del eth0");
    fixture.write_text("{");
    let directory = fixture.directory();
    let unit = documented()
        .replace("/usr/local/bin/sluice", &SLUICE)
        .replace("/etc/sluice/edge.json", &directory.join("edge.json").display().to_string());
    let mut systemd = match Systemd::boot(directory, &unit) {
        Ok(systemd) => systemd,
        Err(reason) => return Completion::ignored_with(reason),
    };
    let mut tried = false;
    wait_until("systemd has started the unit, or ended", || {
        tried = systemd.property("ExecMainStatus") == "2";
        tried || !systemd.is_running()
    });
    if !tried {
        let log = fs::read_to_string(&systemd.log).unwrap();
        return Completion::ignored_with(format!("systemd does not run here: {log}"));
    }
    // The file is mended, and the interface appears 3 s after the next start.
    fixture.write();
    wait_until("the unit waits", || {
        systemd.property("StatusText").starts_with("waiting for interface eth0")
    });
    assert_eq!(systemd.property("ActiveState"), "activating");
    thread::sleep(Duration::from_secs(3));
    veth("eth0", "far");
    add_address("10.0.0.1/16", "eth0");
    wait_until("the unit is active", || systemd.property("ActiveState") == "active");
    assert_ne!(tc_filter("eth0", "sluice_lb:edge"), "");

    // Everything disappears, and the daemon is killed.
    run("ip link del eth0");
    let restarts = systemd.property("NRestarts");
    assert!(systemd.control("kill --signal KILL").0);
    wait_until("the unit is active again", || {
        systemd.property("NRestarts") != restarts && systemd.property("ActiveState") == "active"
    });
    veth("eth0", "far");
    add_address("10.0.0.1/16", "eth0");
    wait_until("the filter is attached", || !tc_filter("eth0", "sluice_lb:edge").is_empty());
    let mut config = fixture.config.clone();
    config["backends"][1]["draining"] = json!(true);
    fixture.write_text(&config.to_string());
    assert_eq!(systemd.control("reload"), (true, String::new()));
    assert_eq!(fixture.status()["backends"][1]["draining"], json!(true));
    Completion::Completed
}
