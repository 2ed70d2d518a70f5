//! Packets from a VIP address to a VIP: two services would answer each other.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sluice_datapath::Reason;
use sluice_datapath::abi::AddressOptions;

use super::case::{Case, CaseStep};
use super::expect::{drops, forwards, passes};
use super::{echo, fragments, icmp_errors, quic};
use crate::packets::addresses::{VIP_V4, VIP_V6};
use crate::packets::fixture::{Fixture, WEB};
use crate::packets::frames::icmp::{EchoRequest, IcmpError};
use crate::packets::frames::{self, Client};

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
            "an IPv6 packet from the IPv4-mapped address of a VIP is forwarded",
            Fixture::new().all_to(1, HINT),
            [Client::tcp6(), Client::udp6()]
                .map(|client| forwards(&from(client, VIP_V4.to_ipv6_mapped().into()), 1, HINT))
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
            let allowed = Fixture { address_options: allowed(), ..fragments::fixture() };
            let sends = |number: usize| {
                from_vips()
                    .map(|client| fragments::sent(&client, 7, number, 2))
                    .map(|(frame, outcome)| CaseStep::Send(frame, outcome))
            };
            let refused = from_vips()
                .map(|client| refused(fragments::fragment(&client, 7, 1, 2)))
                .map(|(frame, outcome)| CaseStep::Send(frame, outcome));
            Case {
                name: "a non-initial fragment from a VIP address is dropped, if it was not allowed after its first fragment",
                steps: [CaseStep::Configure(allowed)]
                    .into_iter()
                    .chain(sends(0))
                    .chain([CaseStep::Configure(fragments::fixture())])
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
            Fixture { address_options: allowed(), ..Fixture::new().all_to(1, HINT) },
            from_vips().map(|client| forwards(&client, 1, HINT)).to_vec(),
        ),
        Case::new(
            "an echo request from a VIP address that is allowed as a source is answered",
            Fixture { address_options: allowed(), ..Fixture::new() },
            pings().iter().map(echo::answered).collect(),
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
