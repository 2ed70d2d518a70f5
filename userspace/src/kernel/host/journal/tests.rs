use std::net::IpAddr;
use std::path::PathBuf;

use super::*;
use crate::kernel::host::sysctl::Sysctl;
use crate::kernel::netlink::{Direction, TunnelKind};

fn address(last: u8) -> Change {
    Change::Address {
        interface: "lo".into(),
        index: 1,
        address: IpAddr::from([192, 0, 2, last]),
        prefix_len: 32,
    }
}

fn setting(old: &str, new: &str) -> Change {
    let key = Sysctl::ipv4_interface("eth0.100", "arp_ignore").unwrap();
    Change::Sysctl { key, old: old.into(), new: new.into() }
}

fn base() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn open(base: &tempfile::TempDir) -> Journal {
    Journal::open(base.path(), "edge", Role::Backend).unwrap()
}

/// The line of the network namespace.
fn namespace_line() -> String {
    let line = Line::NetworkNamespace(NetworkNamespace::current().unwrap());
    serde_json::to_string(&line).unwrap()
}

fn text(base: &tempfile::TempDir) -> String {
    fs::read_to_string(Journal::path_of(base.path(), "edge", Role::Backend)).unwrap()
}

#[test]
fn a_recorded_change_survives_a_crash() {
    let base = base();
    let changes = [
        Change::Clsact { interface: "eth0".into(), index: 2 },
        Change::Filter {
            interface: "eth0".into(),
            index: 2,
            direction: Direction::Egress,
            name: "sluice/edge/lb".into(),
            priority: 10,
        },
        Change::XdpLink {
            interface: "eth0".into(),
            index: 2,
            pin: "/sys/fs/bpf/sluice/edge/links/lb/xdp-2".into(),
        },
        Change::CgroupLink {
            cgroup: "/sys/fs/cgroup/system.slice".into(),
            id: 77,
            pin: "/sys/fs/bpf/sluice/edge/links/node/cgroup-10-77".into(),
        },
        address(1),
        Change::Link {
            name: "sluice4".into(),
            kind: TunnelKind::Ipip,
            local: "192.0.2.9".parse().unwrap(),
        },
        setting("0", "1"),
    ];
    let mut journal = open(&base);
    for change in &changes {
        journal.record(change.clone()).unwrap();
    }
    // No destructor runs in a crash.
    std::mem::forget(journal);
    assert_eq!(open(&base).changes(), changes);
}

#[test]
fn recording_a_change_again_writes_nothing() {
    let base = base();
    let mut journal = open(&base);
    journal.record(address(1)).unwrap();
    let once = text(&base);
    journal.record(address(1)).unwrap();
    assert_eq!(text(&base), once);
    assert_eq!(open(&base).changes(), [address(1)]);
}

#[test]
fn a_sysctl_keeps_its_first_old_value_and_its_last_new_one() {
    let base = base();
    let mut journal = open(&base);
    journal.record(setting("0", "1")).unwrap();
    journal.record(setting("1", "2")).unwrap();
    assert_eq!(journal.changes(), [setting("0", "2")]);
    assert_eq!(open(&base).changes(), [setting("0", "2")]);
}

#[test]
fn an_undone_change_is_dropped() {
    let base = base();
    let mut journal = open(&base);
    journal.record(address(1)).unwrap();
    journal.record(setting("0", "1")).unwrap();
    journal.forget(&address(1)).unwrap();
    journal.forget(&address(2)).unwrap();
    assert_eq!(open(&base).changes(), [setting("0", "1")]);
    // The next record takes the value found then as old value.
    journal.forget(&setting("?", "?")).unwrap();
    journal.record(setting("2", "1")).unwrap();
    assert_eq!(open(&base).changes(), [setting("2", "1")]);
}

#[test]
fn a_last_line_truncated_at_any_byte_loses_only_that_line() {
    let base = base();
    let mut journal = open(&base);
    journal.record(address(1)).unwrap();
    let kept = text(&base).len();
    journal.record(address(2)).unwrap();
    let path = journal.path().to_owned();
    let whole = fs::read(&path).unwrap();
    for len in kept..whole.len() {
        fs::write(&path, &whole[..len]).unwrap();
        let mut torn = open(&base);
        assert_eq!(torn.changes(), [address(1)], "cut at {len}");
        torn.record(address(3)).unwrap();
        assert_eq!(open(&base).changes(), [address(1), address(3)], "cut at {len}");
    }
    // Truncated within the first line: no change was recorded.
    for len in 0..whole.iter().position(|byte| *byte == b'\n').unwrap() {
        fs::write(&path, &whole[..len]).unwrap();
        assert_eq!(open(&base).changes(), []);
        assert_eq!(text(&base), format!("{{\"version\":2}}\n{}\n", namespace_line()));
    }
}

#[test]
fn an_invalid_complete_line_is_an_error_with_its_number() {
    let base = base();
    let path = open(&base).path().to_owned();
    fs::write(&path, "{\"version\":1}\n{\"did\":{\"flood\":{}}}\n").unwrap();
    let error = Journal::open(base.path(), "edge", Role::Backend).unwrap_err().to_string();
    assert!(error.starts_with(&format!("{}:2: ", path.display())), "{error}");
    assert!(error.contains("flood") && error.contains("remove the file"), "{error}");
    let journal = Journal::open_existing(base.path(), "edge", Role::Backend).unwrap().unwrap();
    assert_eq!(journal.problems.len(), 1);
}

#[test]
fn a_journal_of_version_1_takes_the_network_namespace_of_its_next_daemon() {
    let base = base();
    let path = open(&base).path().to_owned();
    let did = serde_json::to_string(&Line::Did(address(1))).unwrap();
    fs::write(&path, format!("{{\"version\":1}}\n{did}\n")).unwrap();
    for _ in 0..2 {
        assert_eq!(open(&base).changes(), [address(1)]);
        assert_eq!(text(&base), format!("{{\"version\":1}}\n{did}\n{}\n", namespace_line()));
    }
}

#[test]
fn changes_of_a_network_namespace_that_is_gone_are_forgotten_by_a_daemon_only() {
    let base = base();
    let mut journal = open(&base);
    journal.record(address(1)).unwrap();
    // The number of no namespace.
    let gone = text(&base).replace(&namespace_line(), "{\"network_namespace\":1}");
    fs::write(journal.path(), &gone).unwrap();
    let error = Journal::open_existing(base.path(), "edge", Role::Backend).unwrap_err();
    assert!(matches!(error, JournalError::Elsewhere { command: None, .. }), "{error}");
    assert_eq!(text(&base), gone);
    assert_eq!(open(&base).changes(), []);
    assert!(Journal::open_existing(base.path(), "edge", Role::Backend).is_ok());
}

#[test]
fn a_journal_of_another_version_is_refused_and_left_unchanged() {
    let base = base();
    let path = open(&base).path().to_owned();
    for (content, found) in [
        ("{\"version\":3}\n{\"future\":1}\n", 3),
        ("{\"did\":{\"clsact\":{\"interface\":\"a\",\"index\":1}}}\n", 0),
    ] {
        fs::write(&path, content).unwrap();
        let error = Journal::open(base.path(), "edge", Role::Backend).unwrap_err();
        assert!(
            matches!(error, JournalError::Version { found: version, .. } if version == found),
            "{error}"
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), content);
    }
}

#[test]
fn roles_and_instances_have_journals_of_their_own() {
    let base = base();
    open(&base).record(address(1)).unwrap();
    assert_eq!(Journal::open(base.path(), "edge", Role::Lb).unwrap().changes(), []);
    assert_eq!(Journal::open(base.path(), "other", Role::Backend).unwrap().changes(), []);
}

#[test]
fn open_existing_does_not_create_a_journal() {
    let base = base();
    assert!(Journal::open_existing(base.path(), "edge", Role::Backend).unwrap().is_none());
    assert!(!base.path().join("edge").exists());
    open(&base).record(address(1)).unwrap();
    let found = Journal::open_existing(base.path(), "edge", Role::Backend).unwrap().unwrap();
    assert_eq!(found.changes(), [address(1)]);
}

#[test]
fn removing_a_journal_removes_its_directory_only_if_empty() {
    let base = base();
    open(&base).remove().unwrap();
    assert!(!base.path().join("edge").exists());
    let journal = open(&base);
    fs::write(base.path().join("edge/lock"), "").unwrap();
    journal.remove().unwrap();
    assert!(base.path().join("edge/lock").exists());
}

#[test]
fn a_change_whose_line_cannot_be_written_is_not_recorded() {
    let base = base();
    let mut journal = open(&base);
    journal.record(address(1)).unwrap();
    // A descriptor that refuses writes, like a full disk.
    journal.file = File::open(journal.path()).unwrap();
    assert!(matches!(journal.record(address(2)), Err(JournalError::Io { doing: "write", .. })));
    assert!(matches!(journal.record(setting("0", "1")), Err(JournalError::Io { .. })));
    assert_eq!(journal.changes(), [address(1)]);
    assert_eq!(open(&base).changes(), [address(1)]);
}

/// The error of a journal that lists a change.
fn refusal(change: &Change) -> Option<String> {
    let base = base();
    let mut journal = open(&base);
    journal.append(&[Line::Did(change.clone())]).unwrap();
    drop(journal);
    match Journal::open(base.path(), "edge", Role::Backend) {
        Ok(_) => None,
        Err(error @ JournalError::Foreign { line: 3, .. }) => Some(error.to_string()),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_change_that_sluice_never_makes_is_refused() {
    let pins = |pin: &str| {
        let (interface, pin) = ("eth0".to_owned(), PathBuf::from(pin));
        let cgroup = PathBuf::from("/sys/fs/cgroup/a");
        [
            Change::XdpLink { interface, index: 2, pin: pin.clone() },
            Change::CgroupLink { cgroup, id: 7, pin },
        ]
    };
    let sysctl = |path: &str, old: &str| Change::Sysctl {
        key: Sysctl::new(path.split('/')).unwrap(),
        old: old.to_owned(),
        new: "1".to_owned(),
    };
    let filter = |name: &str| Change::Filter {
        interface: "eth0".to_owned(),
        index: 2,
        direction: Direction::Ingress,
        name: name.to_owned(),
        priority: 1,
    };
    let foreign: Vec<Change> = [
        "/etc/xdp-2",
        "/sys/fs/bpf/other/edge/links/xdp-2",
        "/sys/fs/bpf/sluice/other/links/xdp-2",
        "/sys/fs/bpf/sluice/edge/links/xdp-3",
        "/sys/fs/bpf/sluice/edge/../../cilium/xdp-2",
        "/sys/fs/bpf/sluice/edge/links/cgroup-10-8",
        "/sys/fs/bpf/sluice/edge/links/cgroup-x-7",
        "sluice/edge/xdp-2",
    ]
    .into_iter()
    .flat_map(pins)
    .chain([
        sysctl("kernel/core_pattern", "0"),
        sysctl("net/ipv4/ip_forward", "0"),
        sysctl("net/ipv4/conf/eth0/forwarding", "0"),
        sysctl("net/ipv4/conf/eth0/arp_ignore", "|/tmp/x"),
        filter("cilium"),
        Change::Link {
            name: "eth0".to_owned(),
            kind: TunnelKind::Ipip,
            local: "192.0.2.9".parse().unwrap(),
        },
        Change::Address {
            interface: "eth0".to_owned(),
            index: 2,
            address: "192.0.2.9".parse().unwrap(),
            prefix_len: 24,
        },
    ])
    .collect();
    for change in foreign {
        let error = refusal(&change).unwrap_or_else(|| panic!("{change:?} is accepted"));
        assert!(error.contains("never records") && error.contains("remove the file"), "{error}");
    }
    assert_eq!(refusal(&filter("sluice_lb:edge")), None);
}
