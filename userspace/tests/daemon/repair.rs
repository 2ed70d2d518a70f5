//! Host state that other programs change under a daemon is restored.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::fixture::{DaemonFixture, DaemonProcess, PINS, host_state, tc_filter, wait_until};
use crate::support::{add_address, run, set_sysctl, sysctl, veth};

/// Far above the time of a repair, and below the period of the daemon's refresh. Not checked on
/// emulated machines (`SLUICE_EMULATED`).
const LIMIT: Duration = Duration::from_secs(10);

/// Above the time in which the daemon gathers notifications.
const SETTLED: Duration = Duration::from_secs(1);

/// Makes a change of the host, and waits until the daemon has restored the state and logged it.
/// Returns the time that this takes.
#[track_caller]
pub(crate) fn restored(
    daemon: &mut DaemonProcess,
    state: &str,
    change: impl FnOnce(),
    is_restored: impl FnMut() -> bool,
) -> Duration {
    // The daemon also looks at the host after notifications of its own changes, such as those of
    // the repair before.
    std::thread::sleep(SETTLED);
    let line = format!("restored host state state={state}");
    let before = daemon.log_count(&line);
    let start = Instant::now();
    change();
    daemon.wait_for_log(&line, before + 1);
    wait_until(state, is_restored);
    assert_within_limit(start, state)
}

#[track_caller]
fn assert_within_limit(start: Instant, what: &str) -> Duration {
    let taken = start.elapsed();
    println!("{what}: restored after {taken:.1?}");
    let emulated = std::env::var_os("SLUICE_EMULATED").is_some();
    assert!(emulated || taken < LIMIT, "{what}: {taken:.1?}");
    taken
}

/// Whether a VIP is local.
fn is_local(vip: &str) -> bool {
    run(&format!("ip route get {vip}")).starts_with("local ")
}

pub(crate) fn a_backend_restores_what_other_programs_change() {
    let mut fixture = DaemonFixture::new();
    add_address("10.0.1.1/16", "eth0");
    add_address("203.0.113.11/32", "lo");
    set_sysctl("all", "rp_filter", "0");
    set_sysctl("eth0", "rp_filter", "1");
    fixture.config["services"][0]["vips"] =
        json!(["203.0.113.10:80/tcp", "203.0.113.11:53/udp", "203.0.114.0/24:80/tcp"]);
    fixture.write();
    let before = host_state();
    let mut daemon = fixture.start(&["backend"]);
    let filters =
        || ["ingress", "egress"].map(|side| run(&format!("tc filter show dev eth0 {side}")));
    let with = filters();
    let by_program = !tc_filter("eth0", "sluice_backend:edge").is_empty();

    // An address of Sluice, one that existed before, and a prefix.
    for vip in ["203.0.113.10", "203.0.113.11"] {
        restored(
            &mut daemon,
            &format!("added VIP address {vip} to lo"),
            || drop(run(&format!("ip addr del {vip}/32 dev lo"))),
            || is_local(vip),
        );
    }
    restored(
        &mut daemon,
        "made VIP prefix 203.0.114.0/24 local",
        || drop(run("ip route del local 203.0.114.0/24 dev lo table local")),
        || is_local("203.0.114.7"),
    );
    for (setting, value, wanted) in
        [("arp_ignore", "0", "1"), ("arp_announce", "0", "2"), ("rp_filter", "1", "2")]
    {
        // With a tunnel device, packets do not arrive on the interface itself.
        if setting == "rp_filter" && !by_program {
            continue;
        }
        restored(
            &mut daemon,
            &format!("set net/ipv4/conf/eth0/{setting} to {wanted}"),
            || set_sysctl("eth0", setting, value),
            || sysctl("eth0", setting) == wanted,
        );
    }
    restored(
        &mut daemon,
        "filter sluice_clamp:edge at TC egress",
        || drop(run("tc qdisc del dev eth0 clsact")),
        || filters() == with,
    );
    // One repair each, and no more: the last line has the total.
    let expected = if by_program { 8 } else { 6 };
    assert_eq!(daemon.log_count("restored host state"), expected, "{}", daemon.log());
    assert_eq!(daemon.log_count(&format!("repairs={expected}")), 1, "{}", daemon.log());

    // The interface disappears, and comes back without any of its settings.
    run("ip link del eth0");
    daemon.wait_for_log("cannot restore host state", 1);
    restored(
        &mut daemon,
        "added VIP address 203.0.113.10 to lo",
        || drop(run("ip addr del 203.0.113.10/32 dev lo")),
        || is_local("203.0.113.10"),
    );
    restored(
        &mut daemon,
        "set net/ipv4/conf/eth0/arp_ignore to 1",
        || {
            veth("eth0", "far");
            add_address("10.0.0.1/16", "eth0");
            add_address("10.0.1.1/16", "eth0");
        },
        || by_program != tc_filter("eth0", "sluice_backend:edge").is_empty(),
    );
    daemon.wait_for_log("host state restored after an error", 1);
    set_sysctl("eth0", "rp_filter", "1");

    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
    fixture.down();
    // The interface is another one.
    let lines = |state: &str| {
        let lines = state.lines().filter(|line| line.contains("203.0.11")).map(str::to_owned);
        lines.collect::<Vec<_>>()
    };
    // This address was there before, and belongs to Sluice since it was added again.
    run("ip addr add 203.0.113.11/32 dev lo");
    assert_eq!(lines(&host_state()), lines(&before));
}

pub(crate) fn the_mss_is_clamped_on_the_interface_of_a_new_default_route() {
    let fixture = DaemonFixture::new();
    add_address("10.0.1.1/16", "eth0");
    veth("eth1", "far1");
    let mut daemon = fixture.start(&["backend"]);
    let filters = || run("tc filter show dev eth1 egress");
    assert_eq!(filters(), "");
    run("ip route add default dev eth1");
    daemon.wait_for_log("program attached target=eth1", 1);
    assert!(filters().contains("sluice_clamp:edge"));
    // It stays while the route is missing, and until a reload.
    run("ip route del default dev eth1");
    run("ip link set eth0 mtu 1400");
    daemon.wait_for_log("MSS is clamped family=IPv4 mss=1340", 1);
    assert!(filters().contains("sluice_clamp:edge"));
    daemon.reload();
    assert_eq!(filters(), "");
}

pub(crate) fn removed_pins_are_made_again() {
    let mut fixture = DaemonFixture::new();
    add_address("10.0.1.1/16", "eth0");
    let before = host_state();
    for (role, filter) in [("lb", "sluice_lb:edge"), ("backend", "sluice_backend:edge")] {
        let mut daemon = fixture.start(&[role]);
        let (names, with) = (host_state(), tc_filter("eth0", filter));
        restored(&mut daemon, "", || fs::remove_dir_all(PINS).unwrap(), || host_state() == names);
        // A reload need not wait for the next inspection, and another program is not needed.
        fs::remove_dir_all(PINS).unwrap();
        let vips = fixture.config["services"][0]["vips"].clone();
        fixture.config["services"][0]["vips"] = json!(["203.0.113.10:80/tcp"]);
        fixture.write();
        daemon.reload();
        assert_eq!(daemon.log_count("failed"), 0, "{role}: {}", daemon.log());
        assert_eq!(tc_filter("eth0", filter), with);
        fixture.config["services"][0]["vips"] = vips;
        fixture.write();
        daemon.reload();
        assert_eq!(host_state(), names, "{role}");
        // A balancer cannot send to the backend on its own host.
        let status = fixture.failing_status()[role]["daemon"].clone();
        assert_eq!(
            (&status["process"], &status["repairs"]),
            (&json!(daemon.id()), &json!(daemon.log_count("restored host state"))),
            "{status}"
        );
        assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
        fixture.down();
    }
    assert_eq!(host_state(), before);
    // On another file system nothing can be pinned.
    let daemon = fixture.start(&["lb"]);
    run("mount -t tmpfs tmpfs /sys/fs/bpf");
    assert_eq!(daemon.wait(), Some(1));
}

/// Makes one netlink request of a daemon fail; returns false if it sends fewer.
#[cfg(target_arch = "x86_64")]
fn fail_request(daemon: &DaemonProcess, work: impl FnOnce(), request: usize) -> bool {
    use crate::ptrace::{FailingCall, fail_calls};

    fail_calls(daemon, work, FailingCall::Netlink, request, 1, libc::ENOBUFS)
}

/// Any netlink request of a reload may fail with `ENOBUFS`: the daemon opens another connection and
/// applies the reload nevertheless.
#[cfg(target_arch = "x86_64")]
pub(crate) fn a_lost_netlink_connection_is_replaced() {
    let mut fixture = DaemonFixture::new();
    let before = host_state();
    let mut daemon = fixture.start(&["lb"]);
    veth("eth1", "far1");
    // With a qdisc, a failed change causes no notification that would lead to another attempt.
    run("tc qdisc add dev eth1 clsact");
    let mut request = 0;
    loop {
        // Each reload attaches to another interface, or detaches from it.
        let interfaces = [json!(["eth0", "eth1"]), json!(["eth0"])][request % 2].clone();
        fixture.config["interfaces"] = interfaces;
        fixture.write();
        let ended = |daemon: &DaemonProcess| {
            daemon.log_count("ready: ") + daemon.log_count("completed the change that had failed")
        };
        let before_reload = ended(&daemon);
        // Notifications of the reload before do not lead to another attempt, either.
        std::thread::sleep(SETTLED / 2);
        let lost = daemon.log_count("netlink connection lost, opened another one");
        if !fail_request(&daemon, || daemon.signal(Signal::SIGHUP), request) {
            break;
        }
        daemon.wait_for_log("netlink connection lost, opened another one", lost + 1);
        let is_attached = || !tc_filter("eth1", "sluice_lb:edge").is_empty();
        let start = Instant::now();
        wait_until("the reload is applied", || is_attached() == (request % 2 == 0));
        wait_until("the reload ends", || ended(&daemon) > before_reload);
        assert_within_limit(start, "the reload after a failed request");
        request += 1;
    }
    println!("a reload sends {request} netlink requests");
    assert!(request > 10, "{request}");
    // Notifications are still received.
    restored(
        &mut daemon,
        "filter sluice_lb:edge at TC ingress",
        || drop(run("tc qdisc del dev eth0 clsact")),
        || !tc_filter("eth0", "sluice_lb:edge").is_empty(),
    );
    // Without a free descriptor there is no other connection: the daemon ends.
    run(&format!("prlimit --pid {} --nofile=3:3", daemon.id()));
    assert!(fail_request(&daemon, || drop(run("ip link set eth1 mtu 1400")), 0));
    assert_eq!(daemon.wait(), Some(1));
    fixture.down();
    run("ip link del eth1");
    assert_eq!(host_state(), before);
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn a_lost_netlink_connection_is_replaced() -> libtest_mimic::Completion {
    libtest_mimic::Completion::ignored_with("the test sets registers of x86-64 by ptrace(2)")
}
