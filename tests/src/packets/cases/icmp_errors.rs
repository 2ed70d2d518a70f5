//! ICMP errors to a VIP address go to the backend of the flow that they quote.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sluice_datapath::Reason;
use sluice_datapath::abi::VipOptions;

use super::case::{Case, CaseStep};
use super::expect::{drops, forwards, passes, patched};
use crate::packets::expectation::{Expectation, Forwarded};
use crate::packets::fixture::{BackendSpec, DNS, Fixture, SlotSpec, WEB};
use crate::packets::frames::icmp::IcmpError;
use crate::packets::frames::{self, Client, ETHERNET, Frame, L4Kind};
use crate::packets::oracle::flow;

const HINT: u16 = 0x557f;

/// Every kind of flow, from many ports, with every ICMP error type of its family.
fn each() -> impl Iterator<Item = IcmpError> {
    let flows =
        (0..12).flat_map(|port| Client::each().map(|client| client.from_port(41_000 + port)));
    flows.flat_map(|client| {
        let kinds: &[u8] = if client.is_v6() { &[1, 2, 3, 4] } else { &[3, 11, 12] };
        kinds.iter().map(|kind| IcmpError::new(&client, *kind)).collect::<Vec<_>>()
    })
}

/// One error for each kind of flow.
pub(super) fn few() -> impl Iterator<Item = IcmpError> {
    Client::each()
        .into_iter()
        .map(|client| IcmpError::new(&client, if client.is_v6() { 2 } else { 3 }))
}

pub(super) fn cases() -> Vec<Case> {
    let all_to_3 = || Fixture::new().all_to(3, HINT);
    let quoting = |change: &dyn Fn(IcmpError) -> IcmpError| {
        each().map(change).map(|e| followed(&Fixture::new(), &e)).collect()
    };
    let passing = |change: &dyn Fn(IcmpError) -> IcmpError, reason| {
        few().map(|error| passes(change(error).frame(), reason)).collect::<Vec<_>>()
    };
    vec![
        Case::new(
            "an ICMP error of any type goes to the backend of the flow that it quotes",
            Fixture::new(),
            quoting(&|error| error),
        ),
        Case::new(
            "an ICMP error that quotes only 8 bytes of TCP or UDP is forwarded",
            Fixture::new(),
            quoting(&|error| IcmpError { quoted: Some(8), ..error }),
        ),
        Case::new(
            "an ICMP error that quotes IPv4 options or an IPv6 extension header is forwarded",
            Fixture::new(),
            {
                [8, 24, 40]
                    .iter()
                    .flat_map(|&options| few().map(move |e| IcmpError { options, ..e }))
                    .map(follow)
                    .collect()
            },
        ),
        Case::new(
            "an ICMP error that quotes a first fragment is forwarded",
            Fixture::new(),
            quoting(&|error| IcmpError { fragment: Some((0, true)), quoted: Some(8), ..error }),
        ),
        Case::new(
            "an ICMP error that quotes a non-initial fragment passes",
            Fixture::new(),
            passing(
                &|error| IcmpError { fragment: Some((3, false)), ..error },
                Reason::IcmpInnerFragment,
            ),
        ),
        Case::new(
            "an ICMP error uses the hash options of its service",
            hashing(),
            each().map(|error| followed(&hashing(), &error)).collect(),
        ),
        Case::new("an ICMP error matches any-port and prefix VIPs", prefixes(), {
            let at = |error: IcmpError| {
                let v6 = Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, 9);
                let address: IpAddr =
                    if error.client.is_v6() { v6.into() } else { [192, 0, 3, 77].into() };
                IcmpError { client: error.client.to_address(address).to_port(9_999), ..error }
            };
            each().map(at).map(|error| followed(&prefixes(), &error)).collect()
        }),
        tracked(),
        Case::new("a tagged ICMP error leaves without its tags", all_to_3(), {
            few()
                .map(|error| {
                    let (frame, outcome) = followed(&all_to_3(), &error);
                    (frames::tagged(&frame.bytes, &[(0x8100, 6)]).into(), outcome)
                })
                .collect()
        }),
        Case::new(
            "an ICMP error that quotes another source than its own destination passes",
            Fixture::new(),
            {
                let to_other = |error: IcmpError| {
                    let mut quoted = error.client.clone();
                    quoted.destination.set_ip(if quoted.is_v6() {
                        Ipv6Addr::LOCALHOST.into()
                    } else {
                        [10, 9, 9, 9].into()
                    });
                    IcmpError { to: Some(error.client.destination.ip()), client: quoted, ..error }
                };
                passing(&to_other, Reason::IcmpUnrelated)
            },
        ),
        Case::new(
            "an ICMP error to an address that is not a VIP address passes",
            Fixture::new(),
            passing(
                &|error| IcmpError {
                    to: Some(if error.client.is_v6() {
                        Ipv6Addr::LOCALHOST.into()
                    } else {
                        [10, 9, 9, 9].into()
                    }),
                    ..error
                },
                Reason::NotVip,
            ),
        ),
        Case::new(
            "an ICMP error about a port without a VIP passes",
            Fixture::new(),
            passing(
                &|error| IcmpError { client: error.client.to_port(81), ..error },
                Reason::IcmpUnrelated,
            ),
        ),
        Case::new(
            "an ICMP error about another protocol, or about an ICMP error, passes",
            Fixture::new(),
            {
                let other = |protocol: u8| {
                    few().map(move |error| {
                        let at =
                            ETHERNET + error.fixed() + 8 + if error.client.is_v6() { 6 } else { 9 };
                        passes(patched(error.frame(), at, &[protocol]), Reason::IcmpUnrelated)
                    })
                };
                [1, 4, 41, 58, 132].into_iter().flat_map(other).collect()
            },
        ),
        Case::new("an ICMP error that quotes the other IP version passes", Fixture::new(), {
            few()
                .map(|error| {
                    let at = ETHERNET + error.fixed() + 8;
                    let first = if error.client.is_v6() { 0x45 } else { 0x60 };
                    passes(patched(error.frame(), at, &[first]), Reason::IcmpUnrelated)
                })
                .collect()
        }),
        Case::new(
            "an ICMP error whose quote is truncated anywhere before the ports passes",
            Fixture::new(),
            {
                few()
                    .flat_map(|error| {
                        let (whole, quote) = (error.frame(), ETHERNET + error.fixed() + 8);
                        let lengths = quote..quote + error.fixed() + 4;
                        lengths.map(move |length| {
                            passes(whole[..length].to_vec(), Reason::IcmpUnrelated)
                        })
                    })
                    .collect()
            },
        ),
        Case::new("an ICMP message truncated in its header passes", Fixture::new(), {
            few()
                .flat_map(|error| {
                    let (whole, start) = (error.frame(), ETHERNET + error.fixed());
                    (start..start + 8)
                        .map(move |length| passes(whole[..length].to_vec(), Reason::Truncated))
                })
                .collect()
        }),
        Case::new(
            "an ICMP error whose IP length ends before the quoted ports passes, whatever follows",
            Fixture::new(),
            {
                few()
                    .flat_map(|error| {
                        (error.fixed()..2 * error.fixed() + 8 + 4)
                            .map(move |length| (ending_at(&error, length), Reason::IcmpUnrelated))
                    })
                    .map(|(bytes, reason)| passes(bytes, reason))
                    .collect()
            },
        ),
        Case::new(
            "an ICMP error whose IP length ends in the headers of a quoted fragment passes",
            Fixture::new(),
            {
                few()
                    .map(|error| IcmpError { fragment: Some((3, false)), ..error })
                    .map(|error| {
                        let end = 2 * error.fixed() + 8 - 1;
                        passes(ending_at(&error, end), Reason::IcmpUnrelated)
                    })
                    .collect()
            },
        ),
        Case::new("an ICMP error with an IP length beyond the frame is dropped", Fixture::new(), {
            few()
                .map(|error| {
                    let at = ETHERNET + if error.client.is_v6() { 4 } else { 2 };
                    drops(patched(error.frame(), at, &[0xff, 0xff]), Reason::BadLength)
                })
                .collect()
        }),
        Case::new(
            "an ICMP error with a TTL of 0 is dropped, with a TTL of 1 forwarded",
            Fixture::new(),
            {
                let ttl = |ttl| few().map(move |error| IcmpError { ttl, ..error });
                ttl(0)
                    .map(|error| drops(error.frame(), Reason::TtlExpired))
                    .chain(ttl(1).map(follow))
                    .collect()
            },
        ),
        Case::new(
            "an ICMP error too long for the MTU is dropped without a reply",
            Fixture::new().with_mtu(100),
            few().map(|error| drops(error.frame(), Reason::TooBig)).collect(),
        ),
        Case::new("ICMP that is neither an error nor an echo request passes", Fixture::new(), {
            let v4 =
                [0, 1, 4, 5, 9, 10, 13, 42, 255].map(|kind| IcmpError::new(&Client::tcp4(), kind));
            let v6 = [0, 5, 100, 127, 129, 133, 134, 135, 136, 137, 255]
                .map(|kind| IcmpError::new(&Client::tcp6(), kind));
            v4.iter().chain(&v6).map(|error| passes(error.frame(), Reason::OtherProtocol)).collect()
        }),
        Case::new("a fragmented ICMP error passes", Fixture::new(), {
            let bits = [0x20, 0x00];
            vec![passes(
                patched(IcmpError::new(&Client::tcp4(), 3).frame(), ETHERNET + 6, &bits),
                Reason::OtherProtocol,
            )]
        }),
    ]
}

/// The frame with an IP packet of `length` bytes by its header. The other bytes become padding.
fn ending_at(error: &IcmpError, length: usize) -> Vec<u8> {
    let (at, value) = if error.client.is_v6() { (4, length - 40) } else { (2, length) };
    patched(error.frame(), ETHERNET + at, &(value as u16).to_be_bytes())
}

fn follow(error: IcmpError) -> (Frame, Expectation) {
    followed(&Fixture::new(), &error)
}

/// An ICMP error that goes to the backend of the quoted flow.
pub(super) fn followed(fixture: &Fixture, error: &IcmpError) -> (Frame, Expectation) {
    let service = if error.client.transport == L4Kind::Udp { DNS } else { WEB };
    to_backend(error, service, slot(fixture, service, &error.client))
}

pub(super) fn to_backend(
    error: &IcmpError,
    service: u32,
    (backend, hint): SlotSpec,
) -> (Frame, Expectation) {
    let (packet, bytes) = (error.packet(), error.frame());
    let host = BackendSpec::new(backend);
    let outer = if error.client.is_v6() {
        frames::outer_v6(host.v6.expect("it has one"), error.tos, hint, packet.len())
    } else {
        frames::outer_v4(host.v4.expect("it has one"), error.tos, hint, packet.len())
    };
    let outcome = Expectation::Forward(Forwarded {
        bytes: frames::encapsulated(&bytes, &outer),
        service,
        backend,
        packets: 1,
        length: packet.len() as u64,
        is_syn: false,
    });
    (bytes.into(), outcome)
}

/// The slot of a client's flow, by the hash options of its service.
pub(super) fn slot(fixture: &Fixture, service: u32, client: &Client) -> SlotSpec {
    let options = fixture.vip_options.get(&service).copied().unwrap_or_default();
    let (mut source, mut destination) = (client.source, client.destination);
    let mut protocol = if client.transport == L4Kind::Udp { 17 } else { 6 };
    if options != VipOptions::NONE {
        source.set_port(0);
    }
    if options == VipOptions::HASH_SOURCE {
        let unspecified: IpAddr = if client.is_v6() {
            Ipv6Addr::UNSPECIFIED.into()
        } else {
            Ipv4Addr::UNSPECIFIED.into()
        };
        destination = (unspecified, 0).into();
        protocol = 0;
    }
    let ports = [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
    let tuple = flow::tuple(source.ip(), destination.ip(), &ports, protocol);
    flow::slot(&fixture.tables[&service].slots, &tuple).expect("the table has slots")
}

fn hashing() -> Fixture {
    let vip_options = [(WEB, VipOptions::HASH_CLIENT), (DNS, VipOptions::HASH_SOURCE)].into();
    Fixture { vip_options, ..Fixture::new() }
}

/// A fixture with any-port VIPs on one prefix per family.
fn prefixes() -> Fixture {
    let mut fixture = Fixture::new();
    for (id, prefix) in [(3, "192.0.3.0/24"), (4, "2001:db8:7::/48")] {
        fixture.prefixes.insert(prefix.parse().expect("a prefix"), id);
        fixture.vips.extend([((id, 0, 6), WEB), ((id, 0, 17), DNS)]);
    }
    fixture
}

/// The backend comes from the connection table, not from the lookup table. An error creates no
/// entry.
fn tracked() -> Case {
    let before = Fixture::new().all_to(3, HINT).tracked(true);
    let after = Fixture::new().all_to(1, HINT).tracked(true);
    let mut steps = vec![CaseStep::Configure(before)];
    let send = |(frame, outcome)| CaseStep::Send(frame, outcome);
    steps.extend(Client::each().iter().map(|client| send(forwards(client, 3, HINT))));
    steps.push(CaseStep::Configure(after.clone()));
    for error in few() {
        let service = if error.client.transport == L4Kind::Udp { DNS } else { WEB };
        steps.push(send(to_backend(&error, service, (3, HINT))));
        // This flow has no entry, so the slot selects the backend, also after the next change.
        let unseen = IcmpError { client: error.client.from_port(999), ..error };
        steps.push(send(to_backend(&unseen, service, (1, HINT))));
    }
    steps.push(CaseStep::Configure(Fixture::new().all_to(2, HINT).tracked(true)));
    for error in few() {
        let service = if error.client.transport == L4Kind::Udp { DNS } else { WEB };
        let unseen = IcmpError { client: error.client.from_port(999), ..error };
        steps.push(send(to_backend(&unseen, service, (2, HINT))));
    }
    Case { name: "an ICMP error follows its flow's connection entry and creates none", steps }
}
