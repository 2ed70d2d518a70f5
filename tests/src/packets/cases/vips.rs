//! VIP prefixes, any-port VIPs and hash options.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sluice_datapath::Reason;
use sluice_datapath::abi::VipOptions;

use super::case::Case;
use super::expect::{forwards, passes};
use crate::packets::addresses::{VIP_V4, VIP_V6};
use crate::packets::expectation::{Expectation, Forwarded};
use crate::packets::fixture::{DNS, Fixture, WEB};
use crate::packets::frames::{Client, Frame, L4Kind};
use crate::packets::oracle::flow;

const HINT: u16 = 0x1240;

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "every address of a VIP prefix is a VIP address, addresses next to it are not",
            prefixes(),
            {
                let inside = |client: Client, address: IpAddr| {
                    forwards(&client.to_address(address), 2, HINT)
                };
                let outside = |client: Client, address: IpAddr| {
                    passes(client.to_address(address).frame(), Reason::NotVip)
                };
                vec![
                    inside(Client::tcp4(), Ipv4Addr::new(198, 18, 4, 0).into()),
                    inside(Client::udp4(), Ipv4Addr::new(198, 18, 7, 255).into()),
                    outside(Client::tcp4(), Ipv4Addr::new(198, 18, 3, 255).into()),
                    outside(Client::udp4(), Ipv4Addr::new(198, 18, 8, 0).into()),
                    inside(Client::tcp6(), v6(0x5, 0)),
                    inside(Client::udp6(), v6(0x5, 0xffff)),
                    outside(Client::tcp6(), v6(0x4, 0xffff)),
                    outside(Client::udp6(), v6(0x6, 0)),
                ]
            },
        ),
        Case::new("a packet to a VIP prefix and another port passes", prefixes(), {
            let client = Client::tcp4().to_address(Ipv4Addr::new(198, 18, 5, 5)).to_port(80);
            vec![passes(client.frame(), Reason::NoService)]
        }),
        Case::new(
            "the longest VIP prefix matches, and an address before every prefix",
            nested(),
            {
                let web = |last: u8| Client::tcp4().to_address(Ipv4Addr::new(198, 18, 5, last));
                vec![
                    forwards(&web(0), 2, HINT),
                    passes(web(77).frame(), Reason::NoService),
                    forwards(&web(78), 2, HINT),
                ]
            },
        ),
        Case::new("an IPv4 prefix does not match IPv6 addresses", prefixes(), {
            let mapped = Ipv4Addr::new(198, 18, 4, 0).to_ipv6_mapped();
            let compatible = Ipv6Addr::from(u128::from(Ipv4Addr::new(198, 18, 4, 0).to_bits()));
            [mapped, compatible]
                .map(|address| passes(Client::tcp6().to_address(address).frame(), Reason::NotVip))
                .to_vec()
        }),
        Case::new(
            "an any-port VIP matches every port of its protocol and no other protocol",
            any_port(),
            {
                let ports = [0, 1, 53, 443, 65_535];
                let tcp = ports.iter().flat_map(|&port| {
                    [Client::tcp4(), Client::tcp6()].map(|c| forwards(&c.to_port(port), 2, HINT))
                });
                let udp = [1, 443]
                    .map(|port| passes(Client::udp4().to_port(port).frame(), Reason::NoService));
                tcp.chain(udp).collect()
            },
        ),
        Case::new(
            "a VIP with a port matches before an any-port VIP",
            {
                let mut fixture = any_port();
                fixture.tables.get_mut(&DNS).expect("it is there").slots.fill((4, HINT));
                fixture.vips.insert((1, 443, 6), DNS);
                fixture
            },
            {
                let Expectation::Forward(web) = forwards(&Client::tcp4(), 4, HINT).1 else {
                    unreachable!("it is forwarded")
                };
                let outcome = Expectation::Forward(Forwarded { service: DNS, ..web });
                vec![
                    (Client::tcp4().frame().into(), outcome),
                    forwards(&Client::tcp4().to_port(80), 2, HINT),
                ]
            },
        ),
        Case::new(
            "without the source port in the hash all connections of a client to a VIP have one backend",
            hashing(VipOptions::HASH_CLIENT),
            {
                let tuple =
                    |client: &Client| HashedFields { source_port: 0, ..HashedFields::of(client) };
                flows()
                    .iter()
                    .map(|client| to_slot(VipOptions::HASH_CLIENT, client, tuple(client)))
                    .collect()
            },
        ),
        Case::new(
            "with only the source address in the hash all flows of a client have one backend",
            hashing(VipOptions::HASH_SOURCE),
            {
                let tuple = |client: &Client| HashedFields {
                    destination: None,
                    source_port: 0,
                    port: 0,
                    protocol: 0,
                    ..HashedFields::of(client)
                };
                flows()
                    .iter()
                    .map(|client| to_slot(VipOptions::HASH_SOURCE, client, tuple(client)))
                    .collect()
            },
        ),
    ]
}

fn v6(subnet: u16, last: u16) -> IpAddr {
    Ipv6Addr::new(0x2001, 0xdb8, subnet, last, last, last, last, last).into()
}

/// Two VIP prefixes with 443/tcp and 53/udp.
fn prefixes() -> Fixture {
    let mut fixture = Fixture::new().all_to(2, HINT);
    fixture.prefixes = [("198.18.4.0/22", 7), ("2001:db8:5::/48", 8)]
        .map(|(prefix, id)| (prefix.parse().expect("a prefix"), id))
        .into();
    for id in [7, 8] {
        fixture.vips.insert((id, 443, 6), WEB);
        fixture.vips.insert((id, 53, 17), DNS);
    }
    fixture
}

/// A longer prefix and an address inside the first prefix, with other ports.
fn nested() -> Fixture {
    let mut fixture = prefixes();
    fixture.prefixes.insert("198.18.5.76/31".parse().expect("a prefix"), 9);
    fixture.addresses.insert(Ipv4Addr::new(198, 18, 5, 78).into(), 10);
    fixture.vips.insert((9, 80, 6), WEB);
    fixture.vips.insert((10, 443, 6), WEB);
    fixture
}

fn any_port() -> Fixture {
    let mut fixture = Fixture::new().all_to(2, HINT);
    fixture.vips = [((1, 0, 6), WEB), ((2, 0, 6), WEB)].into();
    fixture
}

fn hashing(options: VipOptions) -> Fixture {
    Fixture { vip_options: [(WEB, options), (DNS, options)].into(), ..Fixture::new() }
}

/// Flows of one client of each kind from several ports.
fn flows() -> Vec<Client> {
    let ports = (0..12).map(|i| 30_000 + 997 * i);
    ports.flat_map(|port| Client::each().map(|client| client.from_port(port))).collect()
}

/// The hashed fields of a flow.
struct HashedFields {
    source: IpAddr,
    destination: Option<IpAddr>,
    source_port: u16,
    port: u16,
    protocol: u8,
}

impl HashedFields {
    fn of(client: &Client) -> Self {
        Self {
            source: client.source.ip(),
            destination: Some(client.destination.ip()),
            source_port: client.source.port(),
            port: client.destination.port(),
            protocol: if client.transport == L4Kind::Udp { 17 } else { 6 },
        }
    }
}

/// A client's packet that goes to the backend of the slot of `tuple`.
fn to_slot(options: VipOptions, client: &Client, tuple: HashedFields) -> (Frame, Expectation) {
    let fixture = hashing(options);
    let unspecified = if client.is_v6() {
        IpAddr::from(Ipv6Addr::UNSPECIFIED)
    } else {
        Ipv4Addr::UNSPECIFIED.into()
    };
    let ports = [tuple.source_port.to_be_bytes(), tuple.port.to_be_bytes()].concat();
    let hashed =
        flow::tuple(tuple.source, tuple.destination.unwrap_or(unspecified), &ports, tuple.protocol);
    let service = if client.transport == L4Kind::Udp { DNS } else { WEB };
    let (backend, hint) =
        flow::slot(&fixture.tables[&service].slots, &hashed).expect("the table has slots");
    assert!([IpAddr::from(VIP_V4), VIP_V6.into()].contains(&client.destination.ip()));
    forwards(client, backend, hint)
}
