//! The lifecycle of a daemon: SIGTERM, SIGKILL, `--ephemeral`, restarts, `down`.

use std::fs;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;
use serde_json::json;
use sluice::kernel::netlink::{Direction, Netlink};

use crate::fixture::{
    DaemonFixture, PINS, STATE, assert_fails, host_state, pins, tc_filter, wait_until,
};
use crate::support::run;

const FILTER: &str = "sluice_lb:edge";

pub(crate) fn down_restores_the_host_after_sigterm_and_sigkill() {
    let fixture = DaemonFixture::new();
    let before = host_state();
    for (signal, code) in
        [(Signal::SIGTERM, Some(0)), (Signal::SIGINT, Some(0)), (Signal::SIGKILL, None)]
    {
        let daemon = fixture.start(&["lb"]);
        let (filter, status) = (tc_filter("eth0", FILTER), fixture.status());
        assert!(filter.contains("direct-action"), "{filter}");
        assert_eq!(daemon.end(signal), code, "{signal}");
        assert_eq!(tc_filter("eth0", FILTER), filter, "{signal}: the filter stays");
        let after = fixture.status();
        assert_eq!(
            (&after["daemon"], &after["services"]),
            (&json!(null), &status["services"]),
            "{signal}"
        );
        let report = fixture.down();
        assert!(
            report.contains("undone: filter sluice_lb:edge") && report.contains("undone: clsact"),
            "{report}"
        );
        assert_eq!(host_state(), before, "{signal}");
        assert!(fixture.down().contains("nothing to do"));
    }
}

pub(crate) fn an_ephemeral_daemon_restores_the_host() {
    let fixture = DaemonFixture::new();
    let before = host_state();
    let daemon = fixture.start(&["lb", "--ephemeral"]);
    assert_ne!(tc_filter("eth0", FILTER), "");
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
    assert_eq!(host_state(), before);
}

pub(crate) fn a_first_start_without_a_control_socket_leaves_nothing_behind() {
    let fixture = DaemonFixture::new();
    let socket = format!("{STATE}/lb.sock");
    fs::create_dir_all(&socket).unwrap();
    for directory in ["/run/sluice", STATE, &socket] {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).unwrap();
    }
    let before = host_state();
    let output = fixture.sluice(&["lb", "--config", "edge.json"]);
    assert_fails(&output, 1, &["cannot listen on the control socket", &socket]);
    assert_eq!(host_state(), before);
}

pub(crate) fn a_log_that_takes_no_writes_does_not_end_the_daemon() {
    let mut fixture = DaemonFixture::new();
    let (reader, closed_pipe) = std::io::pipe().unwrap();
    drop(reader);
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    // A reader that hangs.
    let (_reader, full_pipe) = std::io::pipe().unwrap();
    let set_flags = |flags| fcntl(&full_pipe, FcntlArg::F_SETFL(flags)).unwrap();
    set_flags(OFlag::O_NONBLOCK);
    while (&full_pipe).write(&[b'x'; 4_096]).is_ok() {}
    set_flags(OFlag::empty());
    let outputs: [OwnedFd; 3] = [full.into(), closed_pipe.into(), full_pipe.into()];
    for (weight, output) in (7..).zip(outputs) {
        // An error is reported by the exit code alone.
        let failing = fixture.spawn_without_log(&["backend"], output.try_clone().unwrap());
        assert_eq!(failing.wait(), Some(2));
        let daemon = fixture.spawn_without_log(&["lb"], output);
        wait_until("the daemon is ready", || {
            let shown = fixture.sluice(&["status", "--json"]);
            shown.status.success() && fixture.status()["daemon"]["process"] == daemon.id()
        });
        let before = fixture.status()["config_digest"].clone();
        fixture.config["services"][0]["backends"][0]["weight"] = json!(weight);
        fixture.write();
        daemon.signal(Signal::SIGHUP);
        wait_until("the reload has ended", || fixture.status()["config_digest"] != before);
        assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
    }
}

pub(crate) fn down_is_refused_while_the_daemon_runs() {
    let fixture = DaemonFixture::new();
    let daemon = fixture.start(&["lb"]);
    let before = host_state();
    assert_fails(
        &fixture.sluice(&["down"]),
        1,
        &["still runs", &daemon.id().to_string(), "end it first"],
    );
    assert_eq!(host_state(), before);
}

pub(crate) fn down_removes_the_remains_of_every_crash() {
    let fixture = DaemonFixture::new();
    let before = host_state();
    // The remains of a crash at each point of a start or of `down`: lock, journal, directories,
    // some maps.
    let remains: [fn(); 6] = [
        || fs::write(format!("{STATE}/lb.lock"), "1\n").unwrap(),
        || fs::write(format!("{STATE}/lb.lock"), "").unwrap(),
        || fs::write(format!("{STATE}/lb.journal"), "").unwrap(),
        || fs::write(format!("{STATE}/lb.journal"), "{\"version\":1}\n{\"did\":{\"cls").unwrap(),
        || fs::create_dir_all(format!("{PINS}/1/lb")).unwrap(),
        || {
            fs::create_dir_all(format!("{PINS}/1/lb")).unwrap();
            fs::write(format!("{STATE}/lb.lock"), "1\n").unwrap();
        },
    ];
    for (number, remain) in remains.iter().enumerate() {
        fs::create_dir_all(STATE).unwrap();
        remain();
        fixture.down();
        let _ = fs::remove_dir(STATE).and_then(|()| fs::remove_dir("/run/sluice"));
        assert_eq!(host_state(), before, "case {number}");
    }
    // A crash of `down` after the removal of the journal, the filter and some pins.
    assert_eq!(fixture.start(&["lb"]).end(Signal::SIGKILL), None);
    run("tc qdisc del dev eth0 clsact");
    fs::remove_file(format!("{STATE}/lb.journal")).unwrap();
    for name in ["VIPS", "TABLES", "CONNECTIONS"] {
        fs::remove_file(format!("{}/{name}", directory())).unwrap();
    }
    fixture.down();
    assert_eq!(host_state(), before);
}

/// The directory of the balancer's pins.
fn directory() -> String {
    let version = fs::read_dir(PINS).unwrap().next().unwrap().unwrap().path();
    version.join("lb").display().to_string()
}

pub(crate) fn a_restart_adopts_all_maps_and_never_detaches() {
    let fixture = DaemonFixture::new();
    let daemon = fixture.start(&["lb"]);
    let (before, maps) = (fixture.status(), pins());
    assert_eq!(maps.len(), 27);
    // Another thread in this namespace lists the filters continuously.
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let watcher = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let netlink = Netlink::connect().unwrap();
            let index = netlink.interface("eth0").await.unwrap().index;
            let mut programs = std::collections::BTreeSet::new();
            while !stopped.load(Ordering::Relaxed) {
                let filters = netlink.filters(index, Direction::Ingress).await.unwrap();
                assert_eq!(filters.len(), 1, "{filters:?}");
                programs.insert(filters[0].program_id);
            }
            programs.len()
        })
    });
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
    let daemon = fixture.start(&["lb"]);
    assert_eq!(daemon.end(Signal::SIGKILL), None);
    let daemon = fixture.start(&["lb"]);
    stop.store(true, Ordering::Relaxed);
    let programs = watcher.join().expect("there is always one filter");
    assert!((1..=3).contains(&programs), "{programs}");
    let after = fixture.status();
    assert_eq!(pins(), maps);
    for same in ["services", "backends", "config_digest"] {
        assert_eq!(after[same], before[same]);
    }
    assert_eq!(
        (&after["daemon"]["process"], daemon.log_count("replace the lookup tables")),
        (&json!(daemon.id()), 0)
    );
}

pub(crate) fn an_incomplete_pin_directory_is_completed() {
    let fixture = DaemonFixture::new();
    let before = host_state();
    assert_eq!(fixture.start(&["lb"]).end(Signal::SIGTERM), Some(0));
    let (maps, status) = (pins(), fixture.status());
    for name in ["VIPS", "VIP_ADDRESSES", "TABLES", "INSTANCE"] {
        fs::remove_file(format!("{}/{name}", directory())).unwrap();
    }
    let _daemon = fixture.start(&["lb"]);
    let names =
        |pins: &[(String, u64)]| pins.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&pins()), names(&maps));
    let kept = |name: &str| {
        maps.iter().find(|(map, _)| map == name).is_some_and(|pin| pins().contains(pin))
    };
    assert!(kept("BACKENDS") && kept("CONNECTIONS"));
    let after = fixture.status();
    assert_eq!(after["services"][0]["slots"], status["services"][0]["slots"]);
    assert_eq!(after["services"][0]["vips"], status["services"][0]["vips"]);
    drop(_daemon);
    fixture.down();
    assert_eq!(host_state(), before);
}
