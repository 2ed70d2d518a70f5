//! Named fixtures of the random frames. A file of the corpus names the fixture that its frames
//! need.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use sluice_datapath::abi::{AclVerdict, AddressOptions, RateKind, VipOptions};

use super::traffic::Traffic;
use crate::packets::addresses::{
    BACKEND_V4, BACKEND_V6, ECHO_VIP_V4, ECHO_VIP_V6, INTERFACE, UNDERLAY_V4, UNDERLAY_V6, VIP_V4,
    VIP_V6,
};
use crate::packets::cases::LARGEST;
use crate::packets::fixture::{BackendSpec, DNS, Fixture, HostFixture, ServerIds, WEB};

/// A program, with a function that makes its fixture.
#[derive(Debug, Clone, Copy)]
pub enum Subject {
    /// The balancer's program, at both hooks.
    Balancer(fn() -> Fixture),
    /// The backend's program that decapsulates.
    Backend(fn() -> HostFixture),
    /// The backend's program that clamps: VIPs, and the largest MSS of IPv4 and IPv6.
    Clamp(fn() -> (Vec<IpNet>, [u32; 2])),
}

impl Subject {
    /// The traffic that the program receives.
    pub fn traffic(&self) -> Traffic {
        match self {
            Self::Balancer(_) => Traffic::FromClients,
            Self::Backend(_) => Traffic::Encapsulated,
            Self::Clamp(_) => Traffic::FromBackends,
        }
    }
}

/// A subject and the name of its fixture.
pub type NamedSubject = (&'static str, Subject);

/// The name of a fixture of the balancer, with a function that makes it.
pub type NamedFixture = (&'static str, fn() -> Fixture);

/// Every fixture of the balancer.
pub const FIXTURES: &[NamedFixture] = &[
    // Two services over four backends.
    ("default", Fixture::new),
    // The same; every flow is in the connection table.
    ("tracked", || Fixture::new().tracked(true)),
    ("all-outcomes", all_outcomes),
    // Backends with QUIC server IDs.
    ("quic", with_server_ids),
    // An MTU towards the backends that only short packets fit.
    ("narrow", || Fixture::new().with_mtu(150)),
    // The same; one service resegments merged packets, the other sends no ICMP errors.
    ("resegment", || Fixture {
        vip_options: [(WEB, VipOptions::RESEGMENT), (DNS, VipOptions::DROP_TOO_BIG)].into(),
        ..Fixture::new().with_mtu(190)
    }),
    // An MTU that every frame fits.
    ("wide", || Fixture::new().with_mtu(9000).tracked(true)),
    ("gue", gue),
    // A limited rate of fragments, and a service that drops them.
    ("fragments", || Fixture {
        vip_options: [(WEB, VipOptions::RATE_LIMITED), (DNS, VipOptions::DROP_FRAGMENTS)].into(),
        rates: [((WEB, RateKind::Fragments), 9)].into(),
        ..Fixture::new()
    }),
    // VIPs of services without lookup tables.
    ("no-table", || Fixture { tables: [].into(), ..Fixture::new() }),
];

/// The balancer with each of its fixtures.
pub fn balancer() -> Vec<NamedSubject> {
    FIXTURES.iter().map(|&(name, make)| (name, Subject::Balancer(make))).collect()
}

/// The backend's programs.
pub fn backend() -> Vec<NamedSubject> {
    vec![
        ("backend", Subject::Backend(host)),
        ("balancers", Subject::Backend(with_balancers)),
        ("clamp", Subject::Clamp(|| (host().vips, LARGEST))),
    ]
}

/// The subject whose fixture has this name.
pub fn named(name: &str) -> Option<Subject> {
    balancer()
        .into_iter()
        .chain(backend())
        .find(|(known, _)| *known == name)
        .map(|(_, subject)| subject)
}

/// A backend with one address per family and two VIPs.
pub fn host() -> HostFixture {
    HostFixture::new(
        vec![BACKEND_V4.into(), BACKEND_V6.into()],
        vec![IpAddr::from(VIP_V4).into(), IpAddr::from(VIP_V6).into()],
    )
}

/// The same, with some accepted sources, and a tunnel device for IPv6.
fn with_balancers() -> HostFixture {
    let prefixes = ["10.0.1.0/24", "2001:db8:2::/48"];
    let prefixes = prefixes.map(|prefix| prefix.parse().expect("a prefix"));
    let addresses = [IpAddr::from(UNDERLAY_V4), UNDERLAY_V6.into()].map(IpNet::from);
    HostFixture {
        by_device: vec![BACKEND_V6.into()],
        balancers: [prefixes, addresses].concat(),
        ..host()
    }
}

/// A fixture in which every outcome occurs: slots without a backend, backends without an address or
/// a route or with a small MTU, a tracked service, ACLs, routes, server IDs and rate limits.
fn all_outcomes() -> Fixture {
    /// A service with VIPs and without a lookup table.
    const NO_TABLE: u32 = 3;
    /// A service whose tokens the first few packets consume.
    const LIMITED: u32 = 4;
    /// A service without VIPs that routes lead to.
    const ROUTED: u32 = 5;

    let mut fixture = Fixture::new()
        .with_backend(3, |backend| backend.next_hop = None)
        .with_backend(4, |backend| backend.next_hop = Some((INTERFACE, 120)))
        .with_backend(5, |backend| *backend = BackendSpec { v4: None, ..BackendSpec::new(5) })
        .with_backend(6, |backend| *backend = BackendSpec { v6: None, ..BackendSpec::new(6) });
    for (service, table) in &mut fixture.tables {
        table.tracked = *service == DNS;
        for (position, slot) in table.slots.iter_mut().enumerate() {
            slot.0 = [1, 2, 1, 2, 3, 4, 5, 6, 7, 0, 9, 1][position % 12];
        }
    }
    fixture.address_options = [(2, AddressOptions::DROP_NO_SERVICE)].into();
    fixture.addresses.extend([(ECHO_VIP_V4.into(), 3), (ECHO_VIP_V6.into(), 4)]);
    fixture
        .address_options
        .extend([(3, AddressOptions::PING_FORWARD), (4, AddressOptions::PING_FORWARD)]);
    fixture.vips.extend([((3, 0, 1), WEB), ((4, 0, 1), DNS)]);
    let acl = |entries: &[(&str, AclVerdict)]| {
        entries
            .iter()
            .map(|(prefix, verdict)| (prefix.parse().expect("a prefix"), *verdict))
            .collect()
    };
    fixture.acls = [
        (
            AclVerdict::GLOBAL,
            acl(&[
                ("198.51.100.5/32", AclVerdict::DENIED),
                ("2001:db8:99::4/126", AclVerdict::ALLOWED),
                ("2001:db8:99::5/128", AclVerdict::DENIED),
            ]),
        ),
        (
            DNS,
            acl(&[
                ("0.0.0.0/0", AclVerdict::NOT_ALLOWED),
                ("::/0", AclVerdict::NOT_ALLOWED),
                ("198.51.100.0/24", AclVerdict::ALLOWED),
                ("198.51.100.6/32", AclVerdict::DENIED),
                ("2001:db8:99::/64", AclVerdict::ALLOWED),
            ]),
        ),
    ]
    .into();
    fixture.vip_options.insert(DNS, VipOptions::ACL.with(VipOptions::GUE));
    fixture.server_ids = server_ids();
    fixture.tables.insert(ROUTED, fixture.tables[&DNS].clone());
    fixture.routes = [
        ("198.51.100.6/31", ROUTED),
        ("198.51.100.7/32", WEB),
        ("198.51.99.0/24", NO_TABLE),
        ("2001:db8:98::/47", ROUTED),
        ("2001:db8:99::7/128", WEB),
        ("2001:db8:99::6/128", NO_TABLE),
    ]
    .map(|(clients, to)| ((WEB, clients.parse().expect("a prefix")), to))
    .into();
    fixture.vips.extend([((1, 80, 6), NO_TABLE), ((2, 80, 6), NO_TABLE)]);
    fixture.vips.extend([((1, 22, 6), LIMITED), ((2, 22, 6), LIMITED)]);
    fixture.tables.insert(LIMITED, fixture.tables[&WEB].clone());
    fixture.vip_options.insert(LIMITED, VipOptions::RATE_LIMITED);
    fixture.rates =
        [((LIMITED, RateKind::SourcePackets), 3), ((LIMITED, RateKind::Packets), 4)].into();
    fixture
}

/// Services that encapsulate in GUE, one of them also without a UDP checksum; backends of either
/// family and of both.
fn gue() -> Fixture {
    let mut fixture = Fixture::new()
        .with_backend(2, |backend| backend.v4 = None)
        .with_backend(3, |backend| backend.v6 = None)
        .with_backend(4, |backend| backend.next_hop = Some((INTERFACE, 160)));
    fixture.vip_options =
        [(WEB, VipOptions::GUE), (DNS, VipOptions::GUE.with(VipOptions::ZERO_UDP_CHECKSUM))].into();
    fixture
}

/// Backends with server IDs; the routes of some clients lead to a service whose backends have other
/// server IDs.
fn with_server_ids() -> Fixture {
    const ROUTED: u32 = 5;

    let mut fixture = Fixture { server_ids: server_ids(), ..Fixture::new() };
    fixture.tables.insert(ROUTED, fixture.tables[&DNS].clone());
    let (length, _) = fixture.server_ids[&(DNS, 0)];
    let servers = [(vec![0, 2], (3, 1)), (vec![0, 3], (4, 1))].into();
    fixture.server_ids.insert((ROUTED, 0), (length, servers));
    fixture.routes =
        ["198.51.100.5/32", "198.51.99.0/24", "2001:db8:99::5/128", "2001:db8:98::/48"]
            .map(|clients| ((DNS, clients.parse().expect("a prefix")), ROUTED))
            .into();
    fixture
}

/// Config rotation and server ID length in bytes of every QUIC-LB configuration of [`server_ids`].
pub(super) const QUIC_CONFIGS: [(u8, usize); 5] = [(0, 2), (1, 1), (2, 15), (3, 8), (6, 7)];

/// Three server IDs per rotation of the UDP service: all zero except for the last byte, which is 0,
/// 1 or 2. Some are those of removed backends.
fn server_ids() -> BTreeMap<(u32, u8), ServerIds> {
    let id = |length: usize, last: u8| [vec![0; length - 1], vec![last]].concat();
    let servers = |rotation: u8, length: usize| {
        let backend = |n: u8| [1, 2, 4, 5, 6, 9][usize::from((rotation + 2 * n) % 6)];
        (0..3u8)
            .map(move |n| (id(length, n), (backend(n), 1 + u32::from(n == 2 && rotation == 1))))
            .collect()
    };
    QUIC_CONFIGS
        .map(|(rotation, length)| ((DNS, rotation), (length, servers(rotation, length))))
        .into()
}
