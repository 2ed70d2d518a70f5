//! Undo of the changes in a journal, and the cases in which a change is kept.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use ipnet::IpNet;
use libtest_mimic::Completion;
use sluice::kernel::bpf::BpfLink;
use sluice::kernel::host::journal::{Change, Journal, UndoReport};
use sluice::kernel::host::sysctl::Sysctl;
use sluice::kernel::netlink::{Clsact, Direction, Netlink, TunnelKind};
use sluice::role::Role;
use sluice_datapath::Family;

use crate::links::{EGRESS, Mount, XDP_FLAGS_SKB_MODE, own_mounts};
use crate::support::{
    ProgramType, add_address, host, load_program, program, run, set_sysctl, setup, snapshot, spec,
    sysctl, try_run, veth,
};

/// Opens the journal like a new process and undoes its changes.
async fn undo(base: &Path) -> UndoReport {
    let journal = Journal::open_existing(base, "edge", Role::Backend).unwrap().expect("a journal");
    journal.undo_all(&Netlink::connect().unwrap()).await.unwrap()
}

fn journal_is_gone(base: &Path) {
    let path = Journal::path_of(base, "edge", Role::Backend);
    assert!(!path.exists() && !path.parent().unwrap().exists(), "{} is left", path.display());
}

pub(crate) async fn undoing_a_balancer_restores_the_host() {
    veth("one", "other");
    run("tc qdisc add dev other clsact");
    let before = snapshot();
    let base = tempfile::tempdir().unwrap();
    let mut host = host(base.path());
    let (program, _) = program();
    for interface in ["one", "other"] {
        for direction in [Direction::Ingress, Direction::Egress] {
            host.attach(interface, direction, &spec("sluice/edge/lb", 10), program.as_fd())
                .await
                .unwrap();
        }
    }
    assert_ne!(snapshot(), before);
    // As after SIGKILL: only the file remains.
    std::mem::forget(host);
    let report = undo(base.path()).await;
    assert_eq!(
        (report.undone.len(), report.left.len(), report.failed.len()),
        (5, 0, 0),
        "{report}"
    );
    assert_eq!(snapshot(), before);
    journal_is_gone(base.path());
}

fn backend_host() -> ([String; 1], [std::net::IpAddr; 2], [IpNet; 5]) {
    veth("one", "other");
    add_address("192.0.2.1/24", "one");
    add_address("2001:db8::1/64", "one");
    add_address("203.0.113.30/32", "lo");
    set_sysctl("all", "rp_filter", "1");
    set_sysctl("one", "arp_announce", "1");
    let vips = [
        "203.0.113.10/32",
        "2001:db8:1::10/128",
        "203.0.113.30/32",
        "198.18.4.0/22",
        "2001:db8:5::/48",
    ];
    (
        ["one".into()],
        ["192.0.2.1", "2001:db8::1"].map(|a| a.parse().unwrap()),
        vips.map(|a| a.parse().unwrap()),
    )
}

pub(crate) async fn undoing_a_backend_restores_the_host() {
    let (interfaces, local, vips) = backend_host();
    let before = snapshot();
    let base = tempfile::tempdir().unwrap();
    let mut host = host(base.path());
    let report = host.prepare_backend(&setup(&interfaces, &local, &vips)).await.unwrap();
    assert!(report.changed.len() >= 5, "{report:?}");
    assert_ne!(snapshot(), before);
    std::mem::forget(host);
    let report = undo(base.path()).await;
    assert!(report.left.is_empty() && report.failed.is_empty(), "{report}");
    assert_eq!(snapshot(), before, "the address that was on lo before is kept");
    journal_is_gone(base.path());
}

/// Every kind of change, in order.
fn every_change(one: u32) -> Vec<Change> {
    let key = |setting| Sysctl::ipv4_interface("one", setting).unwrap();
    let address = |text: &str, prefix_len| Change::Address {
        interface: "lo".into(),
        index: 1,
        address: text.parse().unwrap(),
        prefix_len,
    };
    let filter = |direction| Change::Filter {
        interface: "one".into(),
        index: one,
        direction,
        name: "sluice/edge/backend".into(),
        priority: 10,
    };
    vec![
        Change::Sysctl { key: key("arp_ignore"), old: "0".into(), new: "1".into() },
        Change::Sysctl { key: key("arp_announce"), old: "1".into(), new: "2".into() },
        address("203.0.113.10", 32),
        address("2001:db8:1::10", 128),
        Change::Clsact { interface: "one".into(), index: one },
        filter(Direction::Ingress),
        filter(Direction::Egress),
    ]
}

async fn make(change: &Change, netlink: &Netlink) {
    match change {
        Change::Sysctl { key, new, .. } => key.write(new).unwrap(),
        Change::Address { index, address, prefix_len, .. } => {
            netlink.add_address(*index, *address, *prefix_len).await.unwrap();
        }
        Change::Clsact { index, .. } => {
            netlink.ensure_clsact(*index).await.unwrap();
        }
        Change::Filter { index, direction, name, priority, .. } => {
            netlink
                .put_filter(*index, *direction, &spec(name, *priority), program().0.as_fd())
                .await
                .unwrap();
        }
        Change::XdpLink { index, pin, .. } => {
            let (program, _) = load_program(ProgramType::Xdp);
            let link = BpfLink::attach_xdp(program.as_fd(), *index, XDP_FLAGS_SKB_MODE).unwrap();
            link.pin(pin).unwrap();
        }
        Change::CgroupLink { cgroup, pin, .. } => {
            let (program, _) = load_program(ProgramType::CgroupEgress);
            let cgroup = File::open(cgroup).unwrap();
            let link = BpfLink::attach_cgroup(program.as_fd(), cgroup.as_fd(), EGRESS).unwrap();
            link.pin(pin).unwrap();
        }
        Change::LocalRoute { prefix } => {
            let loopback = netlink.interface("lo").await.unwrap().index;
            netlink.add_local_route(loopback, *prefix).await.unwrap();
        }
        Change::Link { name, kind, local } => {
            netlink.create_tunnel(name, *kind, *local).await.unwrap();
        }
    }
}

pub(crate) async fn changes_are_undone_after_a_kill_at_any_point() {
    let (_, local, _) = backend_host();
    let netlink = Netlink::connect().unwrap();
    let one = netlink.interface("one").await.unwrap().index;
    let mut changes = every_change(one);
    let mounts = tempfile::tempdir().unwrap();
    own_mounts();
    let bpffs = Mount::new(mounts.path(), "bpf");
    let pin = bpffs.path().join(format!("sluice/edge/links/xdp-{one}"));
    changes.push(Change::XdpLink { interface: "one".into(), index: one, pin });
    for prefix in ["198.18.4.0/22", "2001:db8:5::/48"] {
        changes.push(Change::LocalRoute { prefix: prefix.parse().unwrap() });
    }
    let inner = [Family::V4, Family::V6];
    let kinds: BTreeSet<_> =
        local.iter().flat_map(|l| inner.map(|inner| (*l, TunnelKind::of(*l, inner)))).collect();
    for (local, kind) in kinds {
        if try_run(&format!("ip link add probe type {kind} local {local}")).0 {
            run("ip link del probe");
            changes.push(Change::Link { name: format!("sluice-{kind}"), kind, local });
        }
    }
    let before = snapshot();
    for made in 0..=changes.len() {
        for undone_before in 0..=1 {
            let base = tempfile::tempdir().unwrap();
            let mut journal = Journal::open(base.path(), "edge", Role::Backend).unwrap();
            for change in &changes[..made] {
                journal.record(change.clone()).unwrap();
                make(change, &netlink).await;
            }
            // Killed after the next change was recorded and before it was made.
            if let Some(next) = changes.get(made) {
                journal.record(next.clone()).unwrap();
            }
            std::mem::forget(journal);
            if undone_before == 1 && made > 0 {
                // An earlier undo was killed after it had undone the last change and before it
                // recorded that.
                let base = tempfile::tempdir().unwrap();
                let mut journal = Journal::open(base.path(), "edge", Role::Backend).unwrap();
                journal.record(changes[made - 1].clone()).unwrap();
                journal.undo_all(&netlink).await.unwrap();
            }
            let report = undo(base.path()).await;
            assert!(report.failed.is_empty(), "killed after {made}: {report}");
            assert_eq!(snapshot(), before, "killed after {made}:\n{report}");
            journal_is_gone(base.path());
        }
    }
}

pub(crate) async fn settings_that_others_changed_are_kept() {
    let (interfaces, local, vips) = backend_host();
    let base = tempfile::tempdir().unwrap();
    let mut host = host(base.path());
    host.prepare_backend(&setup(&interfaces, &local, &vips)).await.unwrap();
    std::mem::forget(host);
    set_sysctl("one", "arp_ignore", "8");
    set_sysctl("one", "arp_announce", "1");
    run("ip addr del 203.0.113.10/32 dev lo");
    let report = undo(base.path()).await;
    assert!(
        report.failed.is_empty() && (report.left.len(), report.gone.len()) == (2, 1),
        "{report}"
    );
    let text = report.to_string();
    assert!(
        text.contains("it has been set to 8 since") && text.contains("it is 1 already"),
        "{text}"
    );
    assert_eq!(
        (sysctl("one", "arp_ignore"), sysctl("one", "arp_announce")),
        ("8".into(), "1".into())
    );
    journal_is_gone(base.path());
}

pub(crate) async fn a_clsact_qdisc_with_foreign_filters_is_kept() {
    veth("one", "other");
    let base = tempfile::tempdir().unwrap();
    let mut host = host(base.path());
    let (program, _) = program();
    let index = host.netlink().interface("one").await.unwrap().index;
    host.attach("one", Direction::Ingress, &spec("sluice/edge/lb", 10), program.as_fd())
        .await
        .unwrap();
    host.netlink()
        .put_filter(index, Direction::Egress, &spec("foreign", 1), program.as_fd())
        .await
        .unwrap();
    let report = host.undo_all().await.unwrap();
    assert_eq!(report.left.len(), 1, "{report}");
    assert!(
        report.left[0].1.contains("it has other filters: egress bpf filter \"foreign\""),
        "{report}"
    );
    let netlink = Netlink::connect().unwrap();
    assert_eq!(netlink.filters(index, Direction::Ingress).await.unwrap(), []);
    assert_eq!(
        netlink.filters(index, Direction::Egress).await.unwrap()[0].bpf_name.as_deref(),
        Some("foreign")
    );
    journal_is_gone(base.path());
}

pub(crate) async fn a_clsact_qdisc_that_was_added_again_is_removed() {
    veth("one", "other");
    run("tc qdisc add dev one clsact");
    let base = tempfile::tempdir().unwrap();
    let mut host = host(base.path());
    let (program, _) = program();
    for _ in 0..2 {
        host.attach("one", Direction::Ingress, &spec("sluice/edge/lb", 10), program.as_fd())
            .await
            .unwrap();
        // Another program removes its qdisc; Sluice adds one, after it had attached its filter.
        if host.journal().changes().len() == 1 {
            run("tc qdisc del dev one clsact");
        }
    }
    let index = host.netlink().interface("one").await.unwrap().index;
    let report = host.undo_all().await.unwrap();
    assert_eq!((report.undone.len(), report.left.len()), (2, 0), "{report}");
    assert_eq!(Netlink::connect().unwrap().clsact(index).await.unwrap(), None);
    journal_is_gone(base.path());
}

pub(crate) async fn filters_of_every_kind_keep_the_qdisc() -> Completion {
    veth("one", "other");
    let netlink = Netlink::connect().unwrap();
    let index = netlink.interface("one").await.unwrap().index;
    let (program, _) = program();
    let mut kinds = 0;
    for rest in [
        "protocol all matchall action pass",
        "protocol ip u32 match ip dst 192.0.2.1/32 action drop",
        "protocol ip flower dst_ip 192.0.2.1 ip_proto tcp dst_port 443 action drop",
        "protocol 802.1q flower vlan_id 7 action pass",
        "protocol all basic match meta(pkt_len gt 100) action pass",
        "protocol all chain 3 matchall action pass",
        "protocol all flow hash keys src",
        "protocol ip fw",
    ] {
        let base = tempfile::tempdir().unwrap();
        let mut host = host(base.path());
        host.attach("one", Direction::Ingress, &spec("sluice/edge/lb", 10), program.as_fd())
            .await
            .unwrap();
        if !try_run(&format!("tc filter add dev one ingress pref 20 {rest}")).0 {
            host.undo_all().await.unwrap();
            continue;
        }
        kinds += 1;
        let foreign = || {
            let (listed, shown) = try_run("tc filter show dev one ingress");
            listed.then(|| shown.lines().filter(|line| line.contains("pref 20")).count())
        };
        let before = foreign();
        assert_ne!(before, Some(0), "{rest}");
        let report = host.undo_all().await.unwrap();
        match before {
            Some(_) => {
                assert!(report.to_string().contains("it has other filters"), "{rest}: {report}")
            }
            // The kernel fails to list some filters. Then nothing is removed.
            None => assert!(!report.failed.is_empty(), "{rest}: {report}"),
        }
        assert_eq!(foreign(), before, "{rest}");
        assert_eq!(netlink.clsact(index).await.unwrap(), Some(Clsact::Existed), "{rest}");
        netlink.remove_clsact(index).await.unwrap();
    }
    match kinds {
        0 => Completion::ignored_with("this kernel has no classifier but cls_bpf"),
        _ => Completion::Completed,
    }
}

pub(crate) async fn a_deleted_interface_needs_no_undo() {
    let (interfaces, local, vips) = backend_host();
    let base = tempfile::tempdir().unwrap();
    let mut host = host(base.path());
    host.prepare_backend(&setup(&interfaces, &local, &vips)).await.unwrap();
    let (program, _) = program();
    host.attach("one", Direction::Ingress, &spec("sluice/edge/backend", 10), program.as_fd())
        .await
        .unwrap();
    std::mem::forget(host);
    run("ip link del one");
    // A new interface with the same name was not changed by Sluice.
    veth("one", "other");
    run("tc qdisc add dev one clsact");
    let report = undo(base.path()).await;
    assert!(report.failed.is_empty(), "{report}");
    let gone = "already gone: filter sluice/edge/backend on one ingress";
    assert!(report.to_string().contains(gone), "{report}");
    assert!(run("tc qdisc show dev one").contains("clsact"));
    assert!(!run("ip addr show lo").contains("203.0.113.10"));
    journal_is_gone(base.path());
}

pub(crate) async fn a_failed_undo_stays_in_the_journal_and_can_be_repeated() {
    let (interfaces, local, vips) = backend_host();
    let base = tempfile::tempdir().unwrap();
    let mut host = host(base.path());
    host.prepare_backend(&setup(&interfaces, &local, &vips)).await.unwrap();
    std::mem::forget(host);
    // A value that the kernel rejects.
    let path = Journal::path_of(base.path(), "edge", Role::Backend);
    let text = std::fs::read_to_string(&path).unwrap();
    let spoilt =
        text.replacen("\"old\":\"1\",\"new\":\"2\"", "\"old\":\"99999999999\",\"new\":\"2\"", 1);
    assert_ne!(spoilt, text);
    std::fs::write(&path, spoilt).unwrap();
    for _ in 0..2 {
        let report = undo(base.path()).await;
        assert_eq!(report.failed.len(), 1, "{report}");
        assert!(report.failed[0].1.contains("to 99999999999"), "{report}");
        assert!(!run("ip addr show lo").contains("203.0.113.10"), "the rest is undone");
        let left = Journal::open_existing(base.path(), "edge", Role::Backend)
            .unwrap()
            .expect("the journal stays");
        assert_eq!(left.changes().len(), 1);
    }
    set_sysctl("one", "arp_announce", "1");
    assert!(undo(base.path()).await.failed.is_empty());
    journal_is_gone(base.path());
}
