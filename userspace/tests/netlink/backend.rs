//! The setup of a backend: VIP addresses, sysctls, tunnel devices.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use ipnet::IpNet;
use libtest_mimic::Completion;
use sluice::kernel::host::{Decapsulation, HostError};
use sluice::kernel::netlink::Error;

use crate::support::{
    Peer, add_address, host, is_resolved, run, set_sysctl, setup, snapshot, sysctl, try_run, veth,
};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// A peer of `one` in the same networks, with routes that make the VIP addresses on-link.
fn neighbour() -> Peer {
    let peer = Peer::new();
    peer.connect("one", "peer");
    add_address("192.0.2.1/24", "one");
    add_address("2001:db8::1/64", "one");
    peer.run(|| {
        add_address("192.0.2.2/24", "peer");
        add_address("2001:db8::2/64", "peer");
        run("ip route add 203.0.113.0/24 dev peer");
        run("ip route add 2001:db8:1::/64 dev peer");
    });
    peer
}

/// As [`neighbour`], with strict reverse-path filtering of `one`.
fn strict_neighbour() -> Peer {
    let peer = neighbour();
    set_sysctl("all", "rp_filter", "0");
    set_sysctl("one", "rp_filter", "1");
    peer
}

pub(crate) async fn vip_addresses_on_lo_are_not_announced() {
    let peer = neighbour();
    // Without the sysctls the kernel answers, so the test can detect an announcement.
    add_address("203.0.113.99/32", "lo");
    assert!(
        peer.run(|| is_resolved(ip("203.0.113.99"))),
        "by default the kernel answers ARP for addresses on lo"
    );
    run("ip addr del 203.0.113.99/32 dev lo");
    peer.run(|| run("ip neigh flush all"));

    let base = tempfile::tempdir().unwrap();
    let mut host = host(base.path());
    let vips = [
        net("203.0.113.10/32"),
        net("2001:db8:1::10/128"),
        net("203.0.113.32/28"),
        net("2001:db8:1::/112"),
    ];
    host.prepare_backend(&setup(&["one".into()], &[], &vips)).await.unwrap();
    for vip in vips {
        let address = vip.hosts().next().unwrap();
        assert!(!peer.run(move || is_resolved(address)), "{vip} is announced");
        // Every address of a prefix is local: packets to it are not forwarded.
        let route = run(&format!("ip route get {}", vip.broadcast()));
        assert!(route.starts_with("local "), "{vip}: {route}");
    }
    for own in ["192.0.2.1", "2001:db8::1"] {
        assert!(peer.run(move || is_resolved(ip(own))), "{own} must be resolved");
    }
}

pub(crate) async fn a_second_preparation_changes_nothing() {
    let _peer = neighbour();
    let base = tempfile::tempdir().unwrap();
    let interfaces = ["one".into()];
    let local = [ip("192.0.2.1"), ip("2001:db8::1")];
    let vips = [
        net("203.0.113.10/32"),
        net("2001:db8:1::10/128"),
        net("198.18.4.0/22"),
        net("2001:db8:5::/48"),
    ];
    let mut first = host(base.path());
    let report = first.prepare_backend(&setup(&interfaces, &local, &vips)).await.unwrap();
    let mut devices = Vec::new();
    for (address, decapsulation) in &report.decapsulation {
        let kind = if address.is_ipv4() { "ipip" } else { "ip6tnl" };
        match decapsulation {
            Decapsulation::Device(tunnel) => {
                assert!(tunnel.created, "{tunnel:?}");
                devices.push(tunnel.name.as_str());
            }
            Decapsulation::Program { reason } => {
                assert_eq!(reason, &format!("this kernel has no {kind} devices"))
            }
        }
    }
    assert!(devices.is_empty() || devices == ["sluice4", "sluice64", "sluice6"], "{devices:?}");
    assert!(report.decapsulation.len() == if devices.is_empty() { 2 } else { 3 }, "{report:?}");
    let after = snapshot();
    let written = first.journal().changes().to_vec();
    drop(first);
    // The next daemon changes nothing, and the journal still contains every change.
    let mut second = host(base.path());
    let again = second.prepare_backend(&setup(&interfaces, &local, &vips)).await.unwrap();
    assert_eq!(again.changed, Vec::<String>::new());
    assert_eq!(second.journal().changes(), written);
    assert_eq!(snapshot(), after);
    let without =
        sluice::kernel::host::BackendSetup { tunnels: false, ..setup(&interfaces, &local, &vips) };
    let report = second.prepare_backend(&without).await.unwrap();
    assert!(
        report.decapsulation.iter().all(|(_, how)| matches!(how, Decapsulation::Program { .. })),
        "{report:?}"
    );
}

pub(crate) async fn only_strict_reverse_path_filtering_is_changed() {
    let _peer = neighbour();
    for (all, own, expected) in
        [("0", "0", "0"), ("0", "1", "2"), ("1", "0", "2"), ("1", "2", "2"), ("2", "1", "1")]
    {
        set_sysctl("all", "rp_filter", all);
        set_sysctl("one", "rp_filter", own);
        let base = tempfile::tempdir().unwrap();
        let mut host = host(base.path());
        let (interfaces, local) = (["one".into()], [ip("192.0.2.1")]);
        let without = sluice::kernel::host::BackendSetup {
            tunnels: false,
            ..setup(&interfaces, &local, &[])
        };
        host.prepare_backend(&without).await.unwrap();
        assert_eq!(sysctl("one", "rp_filter"), expected, "all {all}, own {own}");
        assert_eq!(sysctl("all", "rp_filter"), all);
        host.undo_all().await.unwrap();
        assert_eq!(sysctl("one", "rp_filter"), own);
    }
}

pub(crate) async fn gue_beside_tunnel_devices_needs_loose_filtering_of_the_interfaces() {
    let _peer = strict_neighbour();
    let base = tempfile::tempdir().unwrap();
    let mut host = host(base.path());
    let (interfaces, local) = (["one".into()], [ip("192.0.2.1")]);
    let vips = ["203.0.113.10/32".parse().unwrap()];
    let gue = sluice::kernel::host::BackendSetup { gue: true, ..setup(&interfaces, &local, &vips) };
    let report = host.prepare_backend(&gue).await.unwrap();
    // The device, if the kernel has it, and the interface.
    assert_eq!(report.loose_rp_filter.last(), Some(&"one".to_owned()), "{report:?}");
    assert_eq!(sysctl("one", "rp_filter"), "2");
    host.undo_all().await.unwrap();
    assert_eq!(sysctl("one", "rp_filter"), "1");
}

pub(crate) async fn strict_reverse_path_filtering_is_kept_on_request() {
    let _peer = strict_neighbour();
    let base = tempfile::tempdir().unwrap();
    let mut host = host(base.path());
    let (interfaces, local) = (["one".into()], [ip("192.0.2.1")]);
    let keeping = sluice::kernel::host::BackendSetup {
        tunnels: false,
        keep_rp_filter: true,
        ..setup(&interfaces, &local, &[])
    };
    let report = host.prepare_backend(&keeping).await.unwrap();
    assert_eq!(report.loose_rp_filter, Vec::<String>::new());
    assert_eq!(sysctl("one", "rp_filter"), "1");
}

pub(crate) async fn arp_sysctls_are_set_on_interfaces_with_dots_in_their_names() {
    veth("one", "other");
    run("ip link set one down");
    run("ip link set one name eth0.100");
    let base = tempfile::tempdir().unwrap();
    let mut host = host(base.path());
    host.prepare_backend(&setup(&["eth0.100".into()], &[], &[ip("203.0.113.10").into()]))
        .await
        .unwrap();
    assert_eq!(
        (sysctl("eth0.100", "arp_ignore"), sysctl("eth0.100", "arp_announce")),
        ("1".into(), "2".into())
    );
    host.undo_all().await.unwrap();
    assert_eq!(
        (sysctl("eth0.100", "arp_ignore"), sysctl("eth0.100", "arp_announce")),
        ("0".into(), "0".into())
    );
}

pub(crate) async fn an_impossible_setup_is_refused_before_any_change() {
    let _peer = neighbour();
    add_address("203.0.113.50/24", "one");
    set_sysctl("all", "arp_ignore", "3");
    let before = snapshot();
    let base = tempfile::tempdir().unwrap();
    let mut host = host(base.path());
    let good = ip("203.0.113.10");
    let one = ["one".to_owned()];
    let none = ["one".to_owned(), "nine".to_owned()];
    let missing = host.prepare_backend(&setup(&none, &[], &[good.into()])).await.unwrap_err();
    assert!(matches!(missing, HostError::Netlink(Error::NoInterface { .. })), "{missing}");
    let foreign =
        host.prepare_backend(&setup(&one, &[ip("192.0.2.77")], &[good.into()])).await.unwrap_err();
    assert!(matches!(foreign, HostError::NotLocal(_)), "{foreign}");
    let announced = host
        .prepare_backend(&setup(&one, &[], &[good.into(), ip("203.0.113.50").into()]))
        .await
        .unwrap_err();
    assert!(announced.to_string().contains("203.0.113.50 is on one"), "{announced}");
    let forced = host.prepare_backend(&setup(&one, &[], &[good.into()])).await.unwrap_err();
    assert!(forced.to_string().contains("net/ipv4/conf/all/arp_ignore is 3"), "{forced}");
    assert_eq!(snapshot(), before);
    assert_eq!(host.journal().changes(), []);
}

pub(crate) async fn a_removed_vip_is_deleted_unless_it_existed_before() {
    add_address("203.0.113.30/32", "lo");
    let base = tempfile::tempdir().unwrap();
    let mut host = host(base.path());
    let (ours, foreign) = (net("203.0.113.10/32"), net("203.0.113.30/32"));
    let prefixes = [net("198.18.4.0/22"), net("198.18.8.0/22")];
    run("ip route add local 198.18.8.0/22 dev lo proto static");
    let vips = [ours, foreign, prefixes[0], prefixes[1]];
    assert_eq!(host.ensure_vips(&vips).await.unwrap(), [ours, prefixes[0]]);
    assert_eq!(host.ensure_vips(&vips).await.unwrap(), []);
    assert_eq!(host.journal().changes().len(), 2, "{:?}", host.journal().changes());
    // Removed by another program: added again.
    run("ip addr del 203.0.113.10/32 dev lo");
    run("ip route del local 198.18.4.0/22 dev lo");
    assert_eq!(host.ensure_vips(&vips).await.unwrap(), [ours, prefixes[0]]);
    assert_eq!(host.remove_vips_except(&[ours, foreign]).await.unwrap(), [prefixes[0]]);
    assert_eq!(host.remove_vips_except(&[foreign]).await.unwrap(), [ours]);
    assert_eq!(host.remove_vips_except(&[]).await.unwrap(), []);
    let routes = run("ip route show table local");
    assert!(!routes.contains("198.18.4.0") && routes.contains("198.18.8.0"), "{routes}");
    let shown = run("ip addr show lo");
    assert!(shown.contains("203.0.113.30") && !shown.contains("203.0.113.10"), "{shown}");
    assert_eq!(host.journal().changes(), []);
}

/// Sends datagrams from the peer to a VIP address; returns whether one arrives.
fn arrives(peer: &Peer, vip: IpAddr) -> bool {
    let socket = UdpSocket::bind((vip, 4000)).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut buffer = [0; 64];
    (0..20).any(|_| {
        peer.run(move || {
            let any = if vip.is_ipv4() { ip("0.0.0.0") } else { ip("::") };
            // The first datagrams may fail during address resolution.
            let _ = UdpSocket::bind((any, 0)).unwrap().send_to(b"hello", (vip, 4000));
        });
        matches!(socket.recv(&mut buffer), Ok(5))
    })
}

pub(crate) async fn encapsulated_packets_arrive_at_the_vip_through_tunnel_devices() -> Completion {
    for (kind, local) in [("ipip", "192.0.2.1"), ("sit", "192.0.2.1"), ("ip6tnl", "2001:db8::1")] {
        if !try_run(&format!("ip link add probe type {kind} local {local}")).0 {
            return Completion::ignored_with(format!("this kernel has no {kind} devices"));
        }
        run("ip link del probe");
    }
    let peer = neighbour();
    // The client's packets arrive through the tunnel while the route to the client is over `one`.
    peer.run(|| {
        run("ip link add wrap44 type ipip local 192.0.2.2 remote 192.0.2.1");
        run("ip link add wrap64 type sit local 192.0.2.2 remote 192.0.2.1");
        // The kernel allows one ip6tnl device per pair of addresses, so this one has both families.
        run("ip link add wrap6 type ip6tnl mode any local 2001:db8::2 remote 2001:db8::1 encaplimit none");
        for wrap in ["wrap44", "wrap64", "wrap6"] {
            run(&format!("ip link set {wrap} up"));
        }
    });
    let vips = [net("203.0.113.10/32"), net("2001:db8:1::10/128")];
    let local = [ip("192.0.2.1"), ip("2001:db8::1")];
    // Reverse path filtering of `all` and `default`: off, strict, loose.
    for (all, new) in [("0", "0"), ("1", "0"), ("0", "1"), ("2", "0"), ("0", "2")] {
        set_sysctl("all", "rp_filter", all);
        set_sysctl("default", "rp_filter", new);
        let before = snapshot();
        let base = tempfile::tempdir().unwrap();
        let mut host = host(base.path());
        host.prepare_backend(&setup(&["one".into()], &local, &vips)).await.unwrap();
        for (v4, v6) in [("wrap44", "wrap6"), ("wrap6", "wrap64")] {
            peer.run(move || {
                run(&format!("ip route replace 203.0.113.10/32 dev {v4} src 192.0.2.2"));
                run(&format!("ip route replace 2001:db8:1::10/128 dev {v6} src 2001:db8::2"));
            });
            for vip in vips.map(|vip| vip.addr()) {
                let tunnels = format!("through {v4} and {v6}, rp_filter {all}, {new}");
                assert!(
                    arrives(&peer, vip),
                    "{tunnels}: nothing arrived at {vip}: {}",
                    run("ip -s link")
                );
            }
        }
        let report = host.undo_all().await.unwrap();
        assert!(report.left.is_empty() && report.failed.is_empty(), "{report}");
        assert_eq!(snapshot(), before);
    }
    Completion::Completed
}
