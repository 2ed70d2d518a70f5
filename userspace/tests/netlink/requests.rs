//! Netlink requests and notifications.

use std::net::IpAddr;
use std::time::Duration;

use libtest_mimic::Completion;
use sluice::kernel::netlink::{
    AddressAdded, AddressRemoved, Error, HostChanges, Netlink, TunnelError, TunnelKind,
};

use crate::support::{add_address, run, try_run, veth};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) async fn interfaces_are_read_and_an_unknown_name_is_an_error_with_all_names() {
    veth("one", "other");
    run("ip link set one down mtu 1400 address 02:00:00:00:00:07");
    let netlink = Netlink::connect().unwrap();
    let one = netlink.interface("one").await.unwrap();
    assert_eq!((one.name.as_str(), one.mtu, one.up, one.ethernet), ("one", 1400, false, true));
    assert_eq!(one.mac, Some([2, 0, 0, 0, 0, 7]));
    let lo = netlink.interface("lo").await.unwrap();
    assert_eq!((lo.index, lo.up, lo.ethernet, lo.mac), (1, true, false, None));
    let all = netlink.interfaces().await.unwrap();
    assert!(all.contains(&one) && all.contains(&lo), "{all:?}");
    assert_eq!(netlink.interface_at(one.index).await.unwrap(), Some(one));
    assert_eq!(netlink.interface_at(4711).await.unwrap(), None);
    for missing in ["eth9", "a-name-longer-than-any-interface"] {
        match netlink.interface(missing).await {
            Err(error @ Error::NoInterface { .. }) => {
                let text = error.to_string();
                assert!(
                    text.contains(missing) && text.contains("lo") && text.contains("other"),
                    "{text}"
                );
            }
            other => panic!("{missing}: {other:?}"),
        }
    }
}

pub(crate) async fn addresses_are_added_and_removed_once() {
    let netlink = Netlink::connect().unwrap();
    for (address, prefix_len) in [(ip("203.0.113.10"), 32), (ip("2001:db8:1::10"), 128)] {
        assert_eq!(
            netlink.add_address(1, address, prefix_len).await.unwrap(),
            AddressAdded::Created
        );
        assert_eq!(
            netlink.add_address(1, address, prefix_len).await.unwrap(),
            AddressAdded::Existed
        );
        assert!(netlink.local_addresses().await.unwrap().contains(&(1, address)));
        assert!(netlink.has_address(1, address, prefix_len).await.unwrap());
        assert!(!netlink.has_address(1, address, prefix_len - 1).await.unwrap());
        assert!(!run("ip addr show lo").contains("tentative"));
        assert_eq!(
            netlink.remove_address(1, address, prefix_len).await.unwrap(),
            AddressRemoved::Removed
        );
        assert_eq!(
            netlink.remove_address(1, address, prefix_len).await.unwrap(),
            AddressRemoved::Absent
        );
        assert_eq!(
            netlink.remove_address(4711, address, prefix_len).await.unwrap(),
            AddressRemoved::Absent
        );
    }
    std::fs::write("/proc/sys/net/ipv6/conf/lo/disable_ipv6", "1").unwrap();
    let text = netlink.add_address(1, ip("2001:db8::1"), 128).await.unwrap_err().to_string();
    assert!(text.contains("add 2001:db8::1/128 to lo") && text.contains("disable_ipv6"), "{text}");
}

pub(crate) async fn a_route_contains_interface_gateway_and_mtu() {
    veth("one", "other");
    add_address("192.0.2.1/24", "one");
    add_address("2001:db8::1/64", "one");
    for command in [
        "ip link set one mtu 1600",
        "ip route add 198.51.100.0/24 via 192.0.2.254",
        "ip route add 198.51.100.128/25 via 192.0.2.253 mtu 1450",
        "ip route add 203.0.113.0/24 via inet6 2001:db8::fe",
        "ip route add 2001:db8:2::/48 via 2001:db8::fe mtu 1400",
    ] {
        run(command);
    }
    let netlink = Netlink::connect().unwrap();
    let one = netlink.interface("one").await.unwrap().index;
    for (to, from, gateway, mtu) in [
        ("192.0.2.7", None, None, 1600),
        ("192.0.2.7", Some("192.0.2.1"), None, 1600),
        ("198.51.100.1", Some("192.0.2.1"), Some("192.0.2.254"), 1600),
        ("198.51.100.200", None, Some("192.0.2.253"), 1450),
        ("203.0.113.1", None, Some("2001:db8::fe"), 1600),
        ("2001:db8::7", Some("2001:db8::1"), None, 1600),
        ("2001:db8:2::1", None, Some("2001:db8::fe"), 1400),
    ] {
        let route = netlink.route(ip(to), from.map(ip)).await.unwrap().expect(to);
        assert_eq!(
            (route.index, route.gateway, route.mtu, route.local),
            (one, gateway.map(ip), mtu, false),
            "{to}"
        );
    }
    for local in ["192.0.2.1", "127.0.0.1", "2001:db8::1", "::1"] {
        assert!(netlink.route(ip(local), None).await.unwrap().expect(local).local, "{local}");
    }
}

pub(crate) async fn unreachable_and_missing_routes_are_none() {
    veth("one", "other");
    add_address("192.0.2.1/24", "one");
    add_address("2001:db8::1/64", "one");
    for (number, kind) in ["blackhole", "unreachable", "prohibit", "throw"].into_iter().enumerate()
    {
        run(&format!("ip route add {kind} 198.51.10{number}.0/24"));
        run(&format!("ip -6 route add {kind} 2001:db8:{}::/48", number + 1));
    }
    let netlink = Netlink::connect().unwrap();
    for number in 0..5 {
        let v4 = ip(&format!("198.51.10{number}.1"));
        let v6 = ip(&format!("2001:db8:{}::1", number + 1));
        for (to, from) in [(v4, ip("192.0.2.1")), (v6, ip("2001:db8::1"))] {
            assert_eq!(netlink.route(to, None).await.unwrap(), None, "{to}");
            assert_eq!(netlink.route(to, Some(from)).await.unwrap(), None, "{to} from {from}");
        }
    }
    assert_eq!(
        netlink.route(ip("192.0.2.255"), None).await.unwrap(),
        None,
        "a broadcast address has no route"
    );
}

pub(crate) async fn a_route_from_a_foreign_address_is_an_error() {
    veth("one", "other");
    add_address("192.0.2.1/24", "one");
    let netlink = Netlink::connect().unwrap();
    let error = netlink.route(ip("192.0.2.7"), Some(ip("192.0.2.99"))).await.unwrap_err();
    assert!(matches!(error, Error::SourceNotLocal { .. }), "{error}");
}

pub(crate) async fn changes_of_links_addresses_and_routes_are_reported() {
    let mut changes = Netlink::connect().unwrap().changes().unwrap();
    let quiet = Duration::from_millis(500);
    let long = Duration::from_secs(60);
    for command in [
        "ip link add one type veth peer name other",
        "ip link set one up",
        "ip addr add 192.0.2.1/24 dev one",
        "ip route add 198.51.100.0/24 dev one",
        "ip rule add from 192.0.2.1 lookup 100",
        "ip -6 rule add from 2001:db8::1 lookup 100",
        "ip -6 route add 2001:db8:5::/48 dev lo",
        "ip addr add 2001:db8::1/128 dev lo nodad",
        "ip nexthop add id 7 blackhole",
        "ip link set one down",
        "ip link del one",
    ] {
        while tokio::time::timeout(quiet, changes.changed()).await.is_ok() {}
        run(command);
        let noticed = tokio::time::timeout(long, changes.changed()).await;
        assert!(matches!(noticed, Ok(Ok(_))), "`{command}`: {noticed:?}");
    }
}

pub(crate) async fn a_notification_names_what_has_changed() {
    veth("one", "other");
    add_address("192.0.2.1/24", "one");
    let mut changes = Netlink::connect().unwrap().changes().unwrap();
    let route = |route: &str| HostChanges {
        routes: [route.parse().unwrap()].into(),
        ..HostChanges::default()
    };
    let (links, filters) = (
        HostChanges { links: true, ..HostChanges::default() },
        HostChanges { filters: true, ..HostChanges::default() },
    );
    for (command, expected) in [
        ("ip route add 198.51.100.0/24 dev one", route("198.51.100.0/24")),
        ("ip route add default via 192.0.2.9", route("0.0.0.0/0")),
        ("ip route del 198.51.100.0/24", route("198.51.100.0/24")),
        ("ip -6 route add 2001:db8:5::/48 dev one", route("2001:db8:5::/48")),
        ("ip -6 route add unreachable default metric 9", route("::/0")),
        ("ip rule add from 192.0.2.1 lookup 100", links.clone()),
        ("ip link set one mtu 1400", links),
        ("tc qdisc add dev one clsact", filters),
    ] {
        run(command);
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(changes.gather().unwrap(), expected, "`{command}`");
    }
    run("ip addr add 192.0.2.7/32 dev lo");
    tokio::time::sleep(Duration::from_millis(200)).await;
    let expected =
        HostChanges { addresses: ["192.0.2.7".parse().unwrap()].into(), ..route("192.0.2.7/32") };
    assert_eq!(changes.gather().unwrap(), expected);
}

pub(crate) async fn lost_notifications_count_as_a_change() {
    let mut changes = Netlink::connect().unwrap().changes().unwrap();
    let batch = tempfile::NamedTempFile::new().unwrap();
    let rounds = 4000;
    std::fs::write(
        batch.path(),
        "addr add 192.0.2.1/32 dev lo\naddr del 192.0.2.1/32 dev lo\n".repeat(rounds),
    )
    .unwrap();
    run(&format!("ip -batch {}", batch.path().display()));
    let mut noticed = 0;
    let mut lost = false;
    while let Ok(change) = tokio::time::timeout(Duration::from_secs(2), changes.changed()).await {
        lost |= change.expect("lost messages are no error") == HostChanges::everything();
        noticed += 1;
    }
    assert!(lost, "everything may have changed");
    assert!(
        noticed > 0 && noticed < 2 * rounds,
        "{noticed} notifications: the socket must overflow"
    );
    // One call collects all pending notifications.
    run(&format!("ip -batch {}", batch.path().display()));
    changes.changed().await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    changes.gather().unwrap();
    let more = tokio::time::timeout(Duration::from_secs(1), changes.changed()).await;
    assert!(more.is_err(), "{more:?} is left after all pending notifications were collected");
    add_address("192.0.2.2/32", "lo");
    tokio::time::timeout(Duration::from_secs(60), changes.changed())
        .await
        .expect("a later change is reported")
        .unwrap();
}

pub(crate) async fn a_tunnel_device_is_created_adopted_or_reported_as_unsupported() -> Completion {
    add_address("192.0.2.1/32", "lo");
    add_address("2001:db8::1/128", "lo");
    let netlink = Netlink::connect().unwrap();
    let family = netlink.create_tunnel("t", TunnelKind::Ipip, ip("2001:db8::1")).await.unwrap_err();
    assert!(matches!(family, TunnelError::Family { .. }), "{family}");
    let mut unsupported = 0;
    for (kind, name, local, other) in [
        (TunnelKind::Ipip, "sluice4", ip("192.0.2.1"), ip("192.0.2.9")),
        (TunnelKind::Sit, "sluice64", ip("192.0.2.1"), ip("192.0.2.9")),
        (TunnelKind::Ip6Tnl, "sluice6", ip("2001:db8::1"), ip("2001:db8::9")),
    ] {
        // The expectation follows from `ip`: whether the kernel supports the device.
        let (can, why) = try_run(&format!("ip link add probe type {kind} local {other}"));
        let created = netlink.create_tunnel(name, kind, local).await;
        if !can {
            assert!(
                matches!(created, Err(TunnelError::Unsupported { kind: missing }) if missing == kind),
                "{created:?}: {why}"
            );
            unsupported += 1;
            continue;
        }
        let created = created.unwrap();
        assert!(created.created && created.name == name, "{created:?}");
        let shown = run(&format!("ip -d link show {name}"));
        assert!(
            shown.contains("UP") && shown.contains(&format!("remote any local {local}")),
            "{shown}"
        );
        let found = netlink.create_tunnel(name, kind, local).await.unwrap();
        assert_eq!((found.created, found.index), (false, created.index));

        let mismatch = netlink.create_tunnel(name, kind, other).await.unwrap_err();
        assert!(
            matches!(&mismatch, TunnelError::Mismatch { found, .. } if found.contains(&local.to_string())),
            "{mismatch}"
        );
        let taken = netlink.create_tunnel("second", kind, local).await.unwrap_err();
        assert!(matches!(&taken, TunnelError::Taken { holder, .. } if holder == name), "{taken}");
        run(&format!("ip link set {name} down"));
        let down = netlink.create_tunnel(name, kind, local).await.unwrap_err();
        assert!(
            matches!(&down, TunnelError::Mismatch { found, .. } if found == "is down"),
            "{down}"
        );
        netlink.remove_link(name).await.unwrap();
        netlink.remove_link(name).await.unwrap();
        assert!(!try_run(&format!("ip link show {name}")).0);
        run("ip link del probe");
    }
    match unsupported {
        0 | 1 => Completion::Completed,
        _ => Completion::ignored_with(
            "this kernel has no ipip and ip6tnl devices; only the error was checked",
        ),
    }
}
