//! Packets to a VIP from sources that no client has: VIP addresses, because two services would
//! answer each other, and martian addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sluice_datapath::Reason;
use sluice_datapath::abi::{AddressOptions, RateKind, VipOptions};

use super::case::{Case, CaseStep};
use super::expect::{drops, forwards, passes};
use super::{echo, fragments, icmp_errors, quic};
use crate::packets::addresses::{VIP_V4, VIP_V6};
use crate::packets::expectation::Expectation;
use crate::packets::fixture::{Fixture, WEB};
use crate::packets::frames::icmp::{EchoRequest, IcmpError};
use crate::packets::frames::{self, Client, Frame, L4Kind};

const HINT: u16 = 0x557f;
/// Addresses of the prefixes of [`with_prefixes`].
const IN_PREFIX_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 3, 77);
const IN_PREFIX_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, 9);

pub(super) fn cases() -> Vec<Case> {
    let refused = |bytes| drops(bytes, Reason::SourceIsVip);
    let from_vips = || Client::each().map(from_vip);
    vec![
        Case::new(
            "a packet from a VIP address to a VIP is dropped",
            Fixture::new(),
            from_vips().map(|client| refused(client.frame())).to_vec(),
        ),
        Case::new(
            "a packet from an address of a VIP prefix to a VIP is dropped",
            with_prefixes(),
            Client::each()
                .map(|client| {
                    let source =
                        if client.is_v6() { IN_PREFIX_V6.into() } else { IN_PREFIX_V4.into() };
                    refused(from(client, source).frame())
                })
                .to_vec(),
        ),
        Case::new(
            "a packet from an address next to a VIP address is forwarded",
            Fixture::new().all_to(1, HINT),
            Client::each()
                .map(|client| {
                    let source: IpAddr = if client.is_v6() {
                        Ipv6Addr::from_bits(VIP_V6.to_bits() ^ 1).into()
                    } else {
                        Ipv4Addr::from_bits(VIP_V4.to_bits() ^ 1).into()
                    };
                    forwards(&from(client, source), 1, HINT)
                })
                .to_vec(),
        ),
        Case::new(
            "a packet from a VIP address to a port without a service passes",
            Fixture::new(),
            from_vips().map(|client| passes(client.to_port(9).frame(), Reason::NoService)).to_vec(),
        ),
        Case::new(
            "tagged packets, IPv4 options and first fragments from a VIP address are dropped",
            Fixture::new(),
            from_vips()
                .into_iter()
                .flat_map(|client| {
                    let tagged = frames::tagged(&client.frame(), &[(0x8100, 6)]);
                    let first = fragments::fragment(&client, 7, 0, 2);
                    let later = fragments::fragment(&client, 7, 1, 2);
                    [
                        refused(tagged),
                        refused(first),
                        // The dropped first fragment left no entry.
                        passes(later, Reason::FragmentUnknown),
                    ]
                })
                .chain([refused(Client { options: 8, ..from_vip(Client::tcp4()) }.frame())])
                .collect(),
        ),
        {
            let refusing =
                || Fixture { prefixes: with_prefixes().prefixes, ..fragments::fixture() };
            let allowed = Fixture { address_options: allowed_3_4(), ..refusing() };
            let sends = |number: usize| {
                Client::each()
                    .map(from_prefix)
                    .map(|client| fragments::sent(&client, 7, number, 2))
                    .map(|(frame, outcome)| CaseStep::Send(frame, outcome))
            };
            let refused = Client::each()
                .map(from_prefix)
                .map(|client| refused(fragments::fragment(&client, 7, 1, 2)))
                .map(|(frame, outcome)| CaseStep::Send(frame, outcome));
            Case {
                name: "a non-initial fragment from a VIP address is dropped, if it was not allowed after its first fragment",
                steps: [CaseStep::Configure(allowed)]
                    .into_iter()
                    .chain(sends(0))
                    .chain([CaseStep::Configure(refusing())])
                    .chain(refused)
                    .collect(),
            }
        },
        Case::new(
            "a QUIC datagram from a VIP address is dropped",
            quic::fixture(),
            quic::both(&quic::short(quic::FIRST_ID))
                .map(|client| refused(from_vip(client).frame()))
                .to_vec(),
        ),
        Case::new(
            "an echo request from a VIP address is not answered",
            Fixture::new(),
            pings().map(|ping| refused(ping.frame())).to_vec(),
        ),
        Case::new("an echo request from a VIP address is not forwarded", forwarding_pings(), {
            pings().map(|ping| refused(ping.frame())).to_vec()
        }),
        Case::new(
            "an ICMP error about a packet from a VIP to a VIP address is dropped",
            Fixture::new(),
            icmp_errors::few()
                .map(|error| IcmpError { client: from_vip(error.client.clone()), ..error })
                .map(|error| refused(error.frame()))
                .collect(),
        ),
        Case::new(
            "packets from a VIP address that is allowed as a source are forwarded",
            Fixture { address_options: allowed_3_4(), ..with_prefixes().all_to(1, HINT) },
            Client::each().map(|client| forwards(&from_prefix(client), 1, HINT)).to_vec(),
        ),
        Case::new(
            "a packet from a VIP address to itself is dropped, even if it is allowed as a source",
            Fixture { address_options: allowed(), ..Fixture::new() },
            from_vips()
                .map(|client| refused(client.frame()))
                .into_iter()
                .chain(pings().map(|ping| refused(ping.frame())))
                .collect(),
        ),
        Case::new("a packet from a martian address to a VIP is dropped", Fixture::new(), {
            martian_clients().map(|client| martian(client.frame())).collect()
        }),
        Case::new(
            "a packet from an address next to a martian range is forwarded",
            Fixture::new().all_to(1, HINT),
            {
                let sources = [
                    "1.0.0.0",
                    "126.255.255.255",
                    "128.0.0.0",
                    "169.253.255.255",
                    "169.255.0.0",
                    "223.255.255.255",
                    "::1:0:0:0",
                    "fdff::1",
                    "fe7f::1",
                    "fec0::1",
                ];
                clients_from(&sources).map(|client| forwards(&client, 1, HINT)).collect()
            },
        ),
        Case::new(
            "a packet from a martian address to a port without a service passes",
            Fixture::new(),
            martian_clients()
                .map(|client| passes(client.to_port(9).frame(), Reason::NoService))
                .collect(),
        ),
        Case::new(
            "tagged packets and fragments from a martian address are dropped and leave no entry",
            Fixture::new().tracked(true),
            martian_clients()
                .flat_map(|client| {
                    [
                        martian(frames::tagged(&client.frame(), &[(0x8100, 6)])),
                        martian(fragments::fragment(&client, 7, 0, 2)),
                        passes(fragments::fragment(&client, 7, 1, 2), Reason::FragmentUnknown),
                    ]
                })
                .collect(),
        ),
        Case::new(
            "packets from a martian address take no tokens",
            {
                let mut fixture = Fixture::new().all_to(1, HINT);
                fixture.rates.insert((WEB, RateKind::Packets), 1);
                fixture.vip_options.insert(WEB, VipOptions::RATE_LIMITED);
                fixture
            },
            clients_from(&["127.0.0.1", "fe80::1"])
                .filter(|client| client.transport != L4Kind::Udp)
                .map(|client| martian(client.frame()))
                .chain([forwards(&Client::tcp4(), 1, HINT)])
                .collect(),
        ),
        Case::new(
            "an ICMP error about a packet from a martian address to a VIP is dropped",
            Fixture::new(),
            martian_clients()
                .map(|client| IcmpError::new(&client, if client.is_v6() { 2 } else { 3 }))
                .map(|error| martian(error.frame()))
                .collect(),
        ),
        Case::new(
            "an ICMP error from a martian address is dropped, unless it is a router's link-local address",
            Fixture::new(),
            icmp_errors::few()
                .flat_map(|error| {
                    let is_v6 = error.client.is_v6();
                    let sources: &[IpAddr] = if is_v6 {
                        &[
                            IpAddr::V6(Ipv6Addr::LOCALHOST),
                            IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1)),
                            IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0xc633, 0x6407)),
                        ]
                    } else {
                        &[
                            IpAddr::V4(Ipv4Addr::LOCALHOST),
                            IpAddr::V4(Ipv4Addr::BROADCAST),
                            IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                        ]
                    };
                    let from_martian = sources
                        .iter()
                        .map(|router| IcmpError { from: Some(*router), ..error.clone() })
                        .map(|error| martian(error.frame()))
                        .collect::<Vec<_>>();
                    let link_local: IpAddr = if is_v6 {
                        Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1).into()
                    } else {
                        [169, 254, 0, 1].into()
                    };
                    let error = IcmpError { from: Some(link_local), ..error };
                    from_martian.into_iter().chain([icmp_errors::followed(&Fixture::new(), &error)])
                })
                .collect(),
        ),
        Case::new(
            "an echo request from a VIP address that is allowed as a source is answered",
            Fixture { address_options: allowed_3_4(), ..with_prefixes() },
            echo::both()
                .map(|ping| {
                    let v6 = ping.source.is_ipv6();
                    let source = if v6 { IN_PREFIX_V6.into() } else { IN_PREFIX_V4.into() };
                    echo::answered(&EchoRequest { source, ..ping })
                })
                .to_vec(),
        ),
        Case::new(
            "the longest VIP prefix of a source decides whether it is allowed",
            {
                let mut fixture = with_prefixes().all_to(1, HINT);
                fixture.prefixes.insert("192.0.3.64/26".parse().expect("a prefix"), 5);
                fixture.address_options.insert(5, AddressOptions::ALLOW_AS_SOURCE);
                fixture
            },
            vec![
                forwards(&from(Client::udp4(), IN_PREFIX_V4.into()), 1, HINT),
                refused(from(Client::udp4(), [192, 0, 3, 7].into()).frame()),
            ],
        ),
    ]
}

/// A client's packet from another address.
fn from(mut client: Client, source: IpAddr) -> Client {
    client.source.set_ip(source);
    client
}

/// A client's packet from the VIP prefix of its family.
fn from_prefix(client: Client) -> Client {
    let source = if client.is_v6() { IN_PREFIX_V6.into() } else { IN_PREFIX_V4.into() };
    from(client, source)
}

/// The expectation that a frame is dropped because of its martian source.
fn martian(bytes: Vec<u8>) -> (Frame, Expectation) {
    drops(bytes, Reason::MartianSource)
}

/// Packets of every kind from martian addresses.
fn martian_clients() -> impl Iterator<Item = Client> {
    clients_from(&[
        "0.0.0.0",
        "0.255.255.255",
        "127.0.0.1",
        "127.255.255.255",
        "169.254.0.0",
        "169.254.255.255",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::198.51.100.7",
        "::ffff:198.51.100.7",
        "::ffff:203.0.113.10",
        "fe80::1",
        "febf::1",
        "ff02::1",
        "ffff::1",
    ])
}

/// Packets of every kind of their family from these addresses.
fn clients_from(sources: &[&str]) -> impl Iterator<Item = Client> {
    let sources: Vec<IpAddr> =
        sources.iter().map(|source| source.parse().expect("an address")).collect();
    sources.into_iter().flat_map(|source| {
        Client::each()
            .into_iter()
            .filter(move |client| client.is_v6() == source.is_ipv6())
            .map(move |client| from(client, source))
    })
}

/// A client's packet from the VIP address of its family.
fn from_vip(client: Client) -> Client {
    let source = client.destination.ip();
    from(client, source)
}

/// Echo requests from a VIP address.
fn pings() -> [EchoRequest; 2] {
    echo::both().map(|ping| EchoRequest { source: ping.destination, ..ping })
}

/// Options that allow both VIP addresses as sources.
fn allowed() -> std::collections::BTreeMap<u32, AddressOptions> {
    [1, 2].map(|id| (id, AddressOptions::ALLOW_AS_SOURCE)).into()
}

/// Options that allow both VIP prefixes of [`with_prefixes`] as sources.
fn allowed_3_4() -> std::collections::BTreeMap<u32, AddressOptions> {
    [3, 4].map(|id| (id, AddressOptions::ALLOW_AS_SOURCE)).into()
}

fn forwarding_pings() -> Fixture {
    let mut fixture = Fixture::new();
    fixture.address_options = [1, 2].map(|id| (id, AddressOptions::PING_FORWARD)).into();
    fixture.vips.extend([((1, 0, 1), WEB), ((2, 0, 1), WEB)]);
    fixture
}

fn with_prefixes() -> Fixture {
    let mut fixture = Fixture::new();
    fixture.prefixes = [("192.0.3.0/24", 3), ("2001:db8:7::/48", 4)]
        .map(|(prefix, id)| (prefix.parse().expect("a prefix"), id))
        .into();
    fixture
}
