//! `sluice status` when something is wrong.
#![expect(unsafe_code, reason = "calls bpf(2)")]

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::process::Output;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sluice::kernel::netlink::{Attached, Direction, Netlink};

use crate::fixture::{
    DaemonFixture, DaemonProcess, STATE, assert_fails, attach_filter, block_on, tc_filter,
    wait_until,
};
use crate::support::{ProgramType, add_address, load_program, program, run, spec, veth};

/// The document of a failing or succeeding `sluice status --json`.
fn document(fixture: &DaemonFixture) -> (Option<i32>, Value) {
    let Output { status, stdout, .. } = fixture.sluice(&["status", "--json"]);
    (status.code(), serde_json::from_slice(&stdout).unwrap())
}

fn text(fixture: &DaemonFixture) -> String {
    String::from_utf8(fixture.sluice(&["status"]).stdout).unwrap()
}

pub(crate) fn status_fails_where_nothing_is_attached() {
    let mut fixture = DaemonFixture::new();
    veth("eth1", "far1");
    fixture.config["interfaces"] = json!(["eth0", "eth1"]);
    fixture.write();
    let daemon = fixture.start(&["lb"]);
    let (code, status) = document(&fixture);
    assert_eq!((code, &status["lb"]["forwarding"]), (Some(0), &json!(true)), "{status}");
    let lines = text(&fixture);
    assert!(lines.contains("balancer: forwarding on eth0, eth1\n"), "{lines}");

    // An interface is gone: the daemon's configuration names it.
    run("ip link del eth1");
    let (code, status) = document(&fixture);
    assert_eq!((code, &status["lb"]["forwarding"]), (Some(1), &json!(false)), "{status}");
    assert_eq!(status["lb"]["interfaces"][1]["state"], json!("missing"), "{status}");
    let failure = fixture.sluice(&["status"]);
    assert_fails(&failure, 1, &["does not forward on eth1 (the interface does not exist)"]);

    // Without a daemon, nothing attaches the filter again.
    assert_eq!(daemon.end(Signal::SIGKILL), None);
    let lines = text(&fixture);
    assert!(lines.contains("daemon: none runs"), "{lines}");
    assert!(lines.contains("NOT forwarding on eth1 (the interface does not exist)"), "{lines}");
    run("tc filter del dev eth0 ingress pref 100");
    let failure = fixture.sluice(&["status"]);
    let missing = "eth0 (the program is not attached), eth1 (the interface does not exist)";
    assert_fails(&failure, 1, &[missing]);
}

pub(crate) fn status_fails_where_a_backend_does_not_decapsulate() {
    let fixture = DaemonFixture::new();
    add_address("10.0.1.1/16", "eth0");
    let daemon = fixture.start(&["backend"]);
    let (code, status) = document(&fixture);
    assert_eq!((code, &status["backend"]["decapsulating"]), (Some(0), &json!(true)), "{status}");
    let by_program = status["backend"]["program"] == json!(true);
    assert!(text(&fixture).contains("backend: decapsulating, by the "));
    assert_eq!(daemon.end(Signal::SIGKILL), None);
    let devices = status["backend"]["devices"].as_array().unwrap().clone();
    run("tc qdisc del dev eth0 clsact");
    for device in &devices {
        run(&format!("ip link set {} down", device["name"].as_str().unwrap()));
    }
    let (code, status) = document(&fixture);
    assert_eq!((code, &status["backend"]["decapsulating"]), (Some(1), &json!(false)), "{status}");
    let why = match by_program {
        true => " on eth0 (the program is not attached)",
        false => ": the tunnel device sluice4 is down",
    };
    let lines = text(&fixture);
    assert!(lines.contains(&format!("backend: NOT decapsulating{why}\n")), "{lines}");
    let failure = format!("the backend does not decapsulate{why}");
    assert_fails(&fixture.sluice(&["status"]), 1, &[&failure]);
    assert_ne!(by_program, !devices.is_empty(), "{status}");
}

pub(crate) fn status_fails_where_an_interface_is_down() {
    let mut fixture = DaemonFixture::new();
    veth("eth1", "far1");
    fixture.config["interfaces"] = json!(["eth0", "eth1"]);
    fixture.write();
    let daemon = fixture.start(&["lb"]);
    for (command, state, why) in [
        ("ip link set far1 down", "no_carrier", "eth1 (the interface has no carrier)"),
        ("ip link set eth1 down", "down", "eth1 (the interface is down)"),
    ] {
        run(command);
        let (code, status) = document(&fixture);
        assert_eq!((code, &status["lb"]["forwarding"]), (Some(1), &json!(false)), "{status}");
        assert_eq!(status["lb"]["interfaces"][1]["state"], json!(state), "{status}");
        assert!(text(&fixture).contains(&format!("balancer: NOT forwarding on {why}\n")));
        assert_fails(&fixture.sluice(&["status"]), 1, &[why]);
    }
    run("ip link set far1 up");
    run("ip link set eth1 up");
    wait_until("the interfaces are up", || document(&fixture).0 == Some(0));
    // Without a daemon the interfaces are those of the journal.
    assert_eq!(daemon.end(Signal::SIGKILL), None);
    run("ip link set far1 down");
    assert_fails(&fixture.sluice(&["status"]), 1, &["eth1 (the interface has no carrier)"]);
}

pub(crate) fn status_fails_where_a_service_has_no_route() {
    let fixture = DaemonFixture::new();
    let mut daemon = fixture.start(&["lb"]);
    let no_route = "there is no route: packets for the backend are dropped (no_route)";
    let some = "some packets are dropped, because there is no route to backends, or its interface \
                is down: service web (33.5 % of its slots)";
    run("ip route add blackhole 10.0.1.2");
    daemon.wait_for_log(&format!("backend address 10.0.1.2: {no_route}"), 1);
    let lines = text(&fixture);
    assert!(lines.contains("balancer: forwarding on eth0, with problems\n"), "{lines}");
    assert!(lines.contains(&format!("problem: {some}\n")), "{lines}");
    assert!(lines.contains(&format!("problem: backend address 10.0.1.2: {no_route}")), "{lines}");
    let failure = "the balancer forwards with problems: some packets are dropped";
    assert_fails(&fixture.sluice(&["status"]), 1, &[failure, "(and 1 more)"]);
    let (_, status) = document(&fixture);
    assert_eq!(status["lb"]["forwarding"], json!(true), "{status}");
    assert_eq!(status["lb"]["notices"], json!([{ "severity": "problem", "text": some }]));

    run("ip route add blackhole 10.0.1.1");
    daemon.wait_for_log(&format!("backend addresses 10.0.1.1, 10.0.1.2: {no_route}"), 1);
    // The maps show it without a daemon.
    assert_eq!(daemon.end(Signal::SIGKILL), None);
    let (code, status) = document(&fixture);
    assert_eq!((code, &status["lb"]["forwarding"]), (Some(1), &json!(false)), "{status}");
    let failure = "the balancer does not forward: all packets are dropped";
    assert_fails(&fixture.sluice(&["status"]), 1, &[failure, ": service web"]);
}

pub(crate) fn status_fails_where_a_filter_runs_another_program() {
    let fixture = DaemonFixture::new();
    assert_eq!(fixture.start(&["lb"]).end(Signal::SIGKILL), None);
    let (program, id) = program();
    block_on(async {
        let netlink = Netlink::connect().unwrap();
        let index = netlink.interface("eth0").await.unwrap().index;
        let ours = spec("sluice_lb:edge", 100);
        let put = netlink.put_filter(index, Direction::Ingress, &ours, program.as_fd()).await;
        assert_eq!(put.unwrap(), Attached::Replaced);
    });
    let why = format!("does not forward on eth0 (its filter runs another program, ID {id})");
    assert_fails(&fixture.sluice(&["status"]), 1, &[&why]);
    let (_, status) = document(&fixture);
    assert_eq!(status["lb"]["interfaces"][0]["foreign_program_id"], json!(id), "{status}");
    // A daemon replaces it.
    let _daemon = fixture.start(&["lb"]);
    assert_eq!(document(&fixture).0, Some(0));
}

pub(crate) fn status_names_changes_of_a_backend_that_are_undone() {
    let mut fixture = DaemonFixture::new();
    fixture.config["services"][0]["vips"] =
        json!(["203.0.113.10:80/tcp", "203.0.113.11:53/udp", "198.51.100.0/24:80/tcp"]);
    fixture.write();
    add_address("10.0.1.1/16", "eth0");
    assert_eq!(fixture.start(&["backend"]).end(Signal::SIGKILL), None);
    assert_eq!(document(&fixture).0, Some(0));
    run("ip addr del 203.0.113.11/32 dev lo");
    run("ip route del local 198.51.100.0/24 dev lo table local");
    run("sysctl -qw net.ipv4.conf.eth0.arp_ignore=0");
    run("tc filter del dev eth0 egress");
    let lines = text(&fixture);
    let missing = "missing, so that packets to VIPs are lost: address 203.0.113.11/32 on lo, local \
                   route to 198.51.100.0/24; a daemon restores it, start one if none runs";
    assert!(lines.contains(&format!("problem: {missing}\n")), "{lines}");
    assert!(lines.contains(", with problems\n"), "{lines}");
    let undone = "warning: undone by another program: filter sluice_clamp:edge on eth0 egress";
    assert!(lines.contains(undone), "{lines}");
    assert!(lines.contains("net/ipv4/conf/eth0/arp_ignore is 0 again"), "{lines}");
    let failure = format!("the backend decapsulates with problems: {missing}");
    assert_fails(&fixture.sluice(&["status"]), 1, &[&failure]);
    let _daemon = fixture.start(&["backend"]);
    let (code, status) = document(&fixture);
    assert_eq!((code, &status["backend"]["notices"]), (Some(0), &json!([])), "{status}");
}

pub(crate) fn status_shows_whether_the_file_is_in_force() {
    let fixture = DaemonFixture::new();
    let mut daemon = fixture.start(&["lb"]);
    let daemon_status = || fixture.status()["daemon"].clone();
    assert_eq!(daemon_status()["config_file"], json!("in_force"));
    assert_eq!(daemon_status()["last_reload"], Value::Null);

    assert!(text(&fixture).contains("edge.json, in force\n"), "{}", text(&fixture));

    let text_before = fixture.config.to_string();
    fixture.write_text(&format!("{text_before}\n"));
    assert_eq!(daemon_status()["config_file"], json!("changed"));
    assert!(text(&fixture).contains("changed since it was applied; `sluice reload` applies it"));
    daemon.reload();
    assert_eq!(daemon_status()["config_file"], json!("in_force"));
    assert_eq!(daemon_status()["last_reload"]["outcome"], json!("applied"));

    fixture.write_text("{}");
    daemon.reload();
    let refused = daemon_status();
    let reason = refused["last_reload"]["outcome"]["refused"].as_str().unwrap();
    assert!(reason.contains("edge.json"), "{refused}");
    assert_eq!(refused["config_file"], json!("refused"));
    let lines = text(&fixture);
    assert!(lines.contains("refused, nothing was changed"), "{lines}");
    assert!(lines.contains("changed since it was applied, and refused by the last"), "{lines}");
    // Refused by a check of the host, and edited after it was refused.
    let mut config = fixture.config.clone();
    config["interfaces"] = json!(["eth0", "eth7"]);
    fixture.write_text(&config.to_string());
    assert_eq!(daemon_status()["config_file"], json!("changed"));
    daemon.reload();
    assert_eq!(daemon_status()["config_file"], json!("refused"));

    std::fs::remove_file(fixture.directory().join("edge.json")).unwrap();
    let unreadable = daemon_status();
    assert!(unreadable["config_file"]["unreadable"].is_string(), "{unreadable}");
}

pub(crate) fn status_shows_a_daemon_that_hangs() {
    let fixture = DaemonFixture::new();
    let daemon = fixture.start(&["lb"]);
    daemon.signal(Signal::SIGSTOP);
    let (status, text) = (fixture.status(), text(&fixture));
    daemon.signal(Signal::SIGCONT);
    assert_eq!(status["daemon"]["process"], json!(daemon.id()));
    assert!(text.contains("warning: the `sluice lb` daemon did not respond within 5 s"), "{text}");
    let error = status["daemon"]["error"].as_str().unwrap();
    assert!(error.contains("did not respond within 5 s"), "{status}");
    assert_eq!(status["forwarding"], json!(true), "packets need no daemon");
}

/// Without its files, no command finds the daemon, and a second one could start.
pub(crate) fn a_daemon_without_its_state_directory_ends() {
    let fixture = DaemonFixture::new();
    for removed in [STATE.to_owned(), format!("{STATE}/lb.lock"), format!("{STATE}/lb.sock")] {
        let mut daemon = fixture.start(&["lb"]);
        let filter = tc_filter("eth0", "sluice_lb:edge");
        run(&format!("rm -r {removed}"));
        daemon.wait_for_log("was removed or replaced while the daemon runs", 1);
        assert_eq!(daemon.wait(), Some(1), "{removed}");
        assert_eq!(tc_filter("eth0", "sluice_lb:edge"), filter, "{removed}");
        let next = fixture.start(&["lb"]);
        assert_eq!(fixture.status()["daemon"]["process"], json!(next.id()), "{removed}");
        assert_eq!(next.end(Signal::SIGTERM), Some(0));
    }
    fixture.down();
}

pub(crate) fn programs_that_run_first_are_logged_and_shown() {
    /// `BPF_XDP` and `BPF_TCX_INGRESS` of the kernel's `enum bpf_attach_type`.
    const XDP: u32 = 37;
    const TCX_INGRESS: u32 = 46;
    /// `XDP_FLAGS_SKB_MODE`.
    const XDP_GENERIC: u32 = 2;

    let fixture = DaemonFixture::new();
    let mut daemon = fixture.start(&["lb"]);
    let predecessors = || fixture.status()["interfaces"][0]["predecessors"].clone();
    assert_eq!(predecessors(), json!([]));

    let first = attach_filter("eth0", 7);
    expect(&mut daemon, "the TC filter foreign (priority 7, program ID ");
    let found = predecessors();
    assert_eq!(found[0]["priority"], json!(7), "{found}");
    assert!(text(&fixture).contains("warning: on eth0, the TC filter foreign (priority 7"));
    // A filter that runs later is of no interest.
    let _later = attach_filter("eth0", 200);
    assert_eq!(predecessors(), found);
    first.remove();
    expect(&mut daemon, "no longer runs before Sluice");

    // Notifications are faster than the inspection of every 3 s, which would take 3 s each time.
    let start = Instant::now();
    for round in 2..5 {
        let first = attach_filter("eth0", 7);
        daemon.wait_for_log("the TC filter foreign (priority 7, program ID ", 2 * round - 1);
        first.remove();
        daemon.wait_for_log("no longer runs before Sluice", round);
    }
    let emulated = std::env::var_os("SLUICE_EMULATED").is_some();
    assert!(emulated || start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());

    // The kernel sends no netlink message about links.
    let (xdp, id) = load_program(ProgramType::Xdp);
    let link = attach_link(xdp.as_fd(), "eth0", XDP, XDP_GENERIC).unwrap();
    expect(&mut daemon, &format!("the XDP program other (program ID {id}) runs before Sluice"));
    let found = predecessors();
    assert_eq!(
        (&found[0]["hook"], &found[0]["name"], &found[0]["program_id"]),
        (&json!("xdp"), &json!("other"), &json!(id)),
        "{found}"
    );
    drop(link);
    expect(&mut daemon, &format!("(program ID {id}) no longer runs before Sluice"));

    let (tcx, id) = program();
    match attach_link(tcx.as_fd(), "eth0", TCX_INGRESS, 0) {
        // Before Linux 6.6.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return,
        link => {
            let _link = link.unwrap();
            expect(&mut daemon, &format!("(program ID {id}) runs before Sluice"));
            let found = predecessors();
            assert_eq!((&found[0]["hook"], &found[0]["program_id"]), (&json!("tcx"), &json!(id)));
        }
    }
    wait_until("it is gone", || predecessors() == json!([]));
}

fn expect(daemon: &mut DaemonProcess, words: &str) {
    daemon.wait_for_log(words, 1);
}

/// Attaches a program to an interface by a link, which is detached when its descriptor is dropped.
fn attach_link(
    program: BorrowedFd<'_>,
    interface: &str,
    attach_type: u32,
    flags: u32,
) -> io::Result<OwnedFd> {
    const BPF_LINK_CREATE: libc::c_long = 28;

    let mut attributes = [0_u32; 16];
    attributes[0] = program.as_raw_fd() as u32;
    attributes[1] = nix::net::if_::if_nametoindex(interface)?;
    (attributes[2], attributes[3]) = (attach_type, flags);
    // SAFETY: the attributes are those of BPF_LINK_CREATE, and outlive the call.
    let link = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_LINK_CREATE, &raw mut attributes, size_of_val(&attributes))
    };
    if link < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel returned a new descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(link as i32) })
}
