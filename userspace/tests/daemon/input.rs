//! Invalid input: one error line, the exit code, and no change of the host.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Value, json};

use crate::fixture::{
    DaemonFixture, PINS, STATE, assert_fails, attach_foreign_filter, host_state, tc_filter,
    unmount_bpffs,
};

const LB: [&str; 4] = ["lb", "--config", "edge.json", "--no-wait"];

/// A change that makes a valid configuration invalid.
type Mutation = fn(&mut Value);

pub(crate) fn bad_input_is_one_error_line_with_exit_code_2_and_changes_nothing() {
    let fixture = DaemonFixture::new();
    let cases: [(Mutation, &[&str]); 14] = [
        (
            |c| c["interfaces"] = json!(["eth7"]),
            &["edge.json: interfaces[0]: there is no interface eth7", "eth0"],
        ),
        (
            |c| c["interfaces"] = json!(["eth0", "lo"]),
            &["edge.json: interfaces[1]: the interface lo has no Ethernet header"],
        ),
        (
            |c| c["underlay"]["v4"] = json!("10.9.9.9"),
            &["edge.json: underlay.v4: 10.9.9.9 is not an address of this host"],
        ),
        (|c| c["version"] = json!(2), &["edge.json", "version"]),
        (|c| c["colour"] = json!("red"), &["edge.json", "colour"]),
        (|c| c["backends"][1]["name"] = json!("a"), &["backends[1].name"]),
        (|c| c["backends"][1]["address"] = json!("10.0.1.1"), &["backends[1].address"]),
        (
            |c| c["services"][0]["backends"][0]["weight"] = json!(-1),
            &["services[0].backends[0].weight"],
        ),
        (|c| c["services"][0]["table_size"] = json!(252), &["services[0].table_size", "prime"]),
        (
            |c| c["services"][0]["vips"][0] = json!("10.0.0.0/8:80/tcp"),
            &["services[0].vips[0]", "10.0.0.0/8 contains"],
        ),
        (|c| c["limits"]["backends"] = json!(1), &["limits.backends"]),
        (|c| c["limits"]["vips"] = json!(1), &["limits.vips"]),
        (
            |c| c["addresses"] = json!([{ "address": "203.0.113.99" }]),
            &["addresses[0].address", "no VIP has"],
        ),
        (|c| c["hash_key_file"] = json!("none.key"), &["none.key", "sluice key new"]),
    ];
    let before = host_state();
    for (mutate, words) in cases {
        let mut config = fixture.config.clone();
        mutate(&mut config);
        fixture.write_text(&config.to_string());
        let output = fixture.sluice(&LB);
        assert_fails(&output, 2, words);
        assert_eq!(output.stderr.iter().filter(|byte| **byte == b'\n').count(), 1, "{output:?}");
        assert_eq!(host_state(), before, "{config}");
    }
    fixture.write_text("{ \"version\": 1, ");
    assert_fails(&fixture.sluice(&LB), 2, &["edge.json"]);
    fixture.write();
    let other = [&LB[..], &["--interface", "eth9"]].concat();
    assert_fails(&fixture.sluice(&other), 2, &["error: --interface: there is no interface eth9"]);
    let named = ["backend", "--config", "edge.json", "--no-wait", "--name", "b"];
    let missing = "edge.json: backends[1].address: 10.0.1.2 is not an address of this host";
    assert_fails(&fixture.sluice(&named), 2, &[missing]);
    let key = fixture.directory().join("hash.key");
    for public in ["00000000000000000000000000000000", "000102030405060708090a0b0c0d0e0f"] {
        fs::write(&key, format!("{public}\n")).unwrap();
        assert_fails(&fixture.sluice(&LB), 2, &["hash.key", "publicly known", "sluice key new"]);
    }
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    assert_fails(&fixture.sluice(&LB), 2, &["chmod 600"]);
    assert_fails(
        &fixture.sluice(&["backend", "--config", "edge.json", "--no-wait"]),
        2,
        &["no backend has an address of this host"],
    );
    assert_fails(
        &fixture.sluice(&["backend", "--config", "edge.json", "--name", "z"]),
        2,
        &["no backend \"z\""],
    );
    assert_eq!(host_state(), before);
}

pub(crate) fn the_error_about_a_missing_capability_contains_its_name() {
    let fixture = DaemonFixture::new();
    let before = host_state();
    for (capability, name) in [("net_admin", "CAP_NET_ADMIN"), ("sys_admin", "CAP_SYS_ADMIN")] {
        let bounding = format!("--bounding-set=-{capability}");
        let inherited = format!("--inh-caps=-{capability}");
        for args in [&LB[..], &["backend", "--config", "edge.json", "--name", "a"], &["down"]] {
            let output = fixture.wrapped(&["setpriv", &bounding, &inherited], args);
            assert_fails(&output, 1, &[name, "root"]);
        }
        assert_eq!(host_state(), before);
    }
    let output = fixture
        .wrapped(&["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"], &["status"]);
    assert_fails(&output, 1, &["CAP_SYS_ADMIN"]);
}

pub(crate) fn a_second_daemon_is_refused_and_changes_nothing() {
    let fixture = DaemonFixture::new();
    let daemon = fixture.start(&["lb"]);
    let before = host_state();
    let process = daemon.id().to_string();
    assert_fails(&fixture.sluice(&LB), 1, &["already runs", "\"edge\"", &process]);
    assert_eq!(host_state(), before);
    assert_eq!(fixture.status()["daemon"]["process"], daemon.id());
}

pub(crate) fn a_failed_attachment_is_undone_on_all_interfaces() {
    let mut fixture = DaemonFixture::new();
    let _foreign = attach_foreign_filter("eth1", "far1");
    fixture.config["interfaces"] = json!(["eth0", "eth1"]);
    fixture.write();
    let before = host_state();
    // Attaching to the first interface succeeds and is undone after the second one fails.
    assert_fails(&fixture.sluice(&LB), 1, &["cannot attach to eth1", "foreign", "tc filter del"]);
    assert_eq!(host_state(), before);
}

/// Makes a directory of pins of a layout version that does not exist.
fn add_other_layout(role: &str) {
    fs::create_dir_all(format!("{PINS}/9999/{role}")).unwrap();
}

pub(crate) fn another_layout_version_is_refused_and_removed_by_down() {
    let fixture = DaemonFixture::new();
    crate::support::add_address("10.0.1.1/16", "eth0");
    let before = host_state();
    for role in ["lb", "backend"] {
        add_other_layout(role);
        let with = host_state();
        let start = [role, "--config", "edge.json"];
        for args in [&start[..], &["status"], &["status", "--json"], &["counters"], &["capture"]] {
            if (role, args[0]) == ("backend", "capture") {
                continue;
            }
            let words = [
                "another version",
                "layout 9999",
                "sluice down --instance edge",
                "counters are lost",
            ];
            assert_fails(&fixture.sluice(args), 1, &words);
            assert_eq!(host_state(), with);
        }
        // The state of the program and the daemon.
        let output = fixture.sluice(&["status"]);
        assert_fails(&output, 1, &["its program is not attached"]);
        assert_fails(&fixture.sluice(&["reload"]), 1, &["no daemon of the instance", "start"]);
        assert!(fixture.down().contains("removed"));
        assert_eq!(host_state(), before, "{role}");
    }

    // While the daemon of the other version runs.
    let daemon = fixture.start(&["lb"]);
    add_other_layout("lb");
    let with = host_state();
    let runs = format!("its daemon runs (process {})", daemon.id());
    for args in [&["status"][..], &["status", "--json"], &["counters"]] {
        let words = ["its program is attached to eth0 and handles packets as before", &runs];
        assert_fails(&fixture.sluice(args), 1, &words);
    }
    for args in [&["lb", "--config", "edge.json"][..], &["capture"]] {
        assert_fails(&fixture.sluice(args), 1, &["another version", "end its daemon"]);
    }
    assert_fails(&fixture.sluice(&["down"]), 1, &["still runs", &daemon.id().to_string()]);
    assert_eq!(host_state(), with);
    // The way that the errors name.
    drop(daemon);
    fixture.down();
    assert_eq!(host_state(), before);
    let _daemon = fixture.start(&["lb"]);
    assert_ne!(tc_filter("eth0", "sluice_lb:edge"), "");
}

pub(crate) fn status_and_counters_change_nothing() {
    let fixture = DaemonFixture::new();
    let mounts = || fs::read_to_string("/proc/thread-self/mounts").unwrap();
    unmount_bpffs();
    let before = mounts();
    for command in ["status", "counters"] {
        assert_fails(
            &fixture.sluice(&[command]),
            1,
            &["\"edge\" is not on this host", "--instance"],
        );
    }
    assert!(fixture.down().contains("nothing to do"));
    assert_eq!(mounts(), before);
    assert!(!fs::exists(STATE).unwrap());
}
