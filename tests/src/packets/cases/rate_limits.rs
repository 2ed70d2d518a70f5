//! Rate limits of packets and of new connections. No bucket refills during a case, so results do
//! not depend on time.

use sluice_datapath::Reason;
use sluice_datapath::abi::{RateKind, VipOptions};

use super::case::Case;
use super::expect::{drops, forwarded, forwards, passes, patched};
use super::fragments;
use crate::packets::fixture::{DNS, Fixture, WEB};
use crate::packets::frames::{self, Client, ETHERNET, L4Kind};

const HINT: u16 = 0x1240;

/// A fixture with rate limits whose packets go to one backend.
fn fixture(rates: &[(u32, RateKind, u32)]) -> Fixture {
    limited(Fixture::new().all_to(1, HINT), rates)
}

fn limited(mut fixture: Fixture, rates: &[(u32, RateKind, u32)]) -> Fixture {
    for (service, limit, burst) in rates {
        fixture.rates.insert((*service, *limit), *burst);
        fixture.vip_options.insert(*service, VipOptions::RATE_LIMITED);
    }
    fixture
}

fn from(client: Client, address: &str) -> Client {
    Client { source: format!("{address}:40001").parse().expect("an address"), ..client }
}

pub(super) fn cases() -> Vec<Case> {
    use RateKind::{NewConnections, Packets, SourceNewConnections, SourcePackets};

    let served = |client: &Client| forwards(client, 1, HINT);
    let service_limit = |client: &Client| drops(client.frame(), Reason::RateLimitedService);
    let source_limit = |client: &Client| drops(client.frame(), Reason::RateLimitedSource);
    let (tcp4, tcp6, udp4, udp6) = (Client::tcp4(), Client::tcp6(), Client::udp4(), Client::udp6());
    let (syn4, syn6) = (Client::syn(false), Client::syn(true));
    let other = from(Client::tcp4(), "198.51.100.8");
    vec![
        Case::new(
            "packets beyond a service's rate are dropped in both families, those of other services are not",
            fixture(&[(WEB, Packets, 2)]),
            vec![
                served(&tcp4),
                served(&tcp6),
                service_limit(&tcp4),
                service_limit(&tcp6),
                service_limit(&other),
                served(&udp4),
            ],
        ),
        Case::new(
            "SYNs beyond a service's rate of new connections are dropped, other segments are not",
            fixture(&[(WEB, NewConnections, 1)]),
            vec![
                served(&syn4),
                service_limit(&syn4),
                service_limit(&syn6),
                served(&tcp4),
                served(&tcp6),
                served(&tcp6),
            ],
        ),
        Case::new(
            "packets beyond a source's rate are dropped, those of other sources are not",
            fixture(&[(WEB, SourcePackets, 2)]),
            vec![
                served(&tcp4),
                served(&syn4),
                source_limit(&tcp4),
                source_limit(&tcp4.clone().from_port(9)),
                served(&other),
                served(&tcp6),
            ],
        ),
        Case::new(
            "SYNs beyond a source's rate of new connections are dropped, other segments are not",
            fixture(&[(WEB, SourceNewConnections, 1)]),
            vec![
                served(&syn4),
                source_limit(&syn4.clone().from_port(9)),
                served(&tcp4),
                served(&syn6),
                source_limit(&syn6),
            ],
        ),
        Case::new(
            "an IPv6 source is a /64",
            fixture(&[(WEB, SourcePackets, 1)]),
            vec![
                served(&tcp6),
                source_limit(&from(tcp6.clone(), "[2001:db8:99::ffff:1]")),
                served(&from(tcp6.clone(), "[2001:db8:99:1::7]")),
            ],
        ),
        Case::new(
            "a source has one bucket per service",
            fixture(&[(WEB, SourcePackets, 1), (DNS, SourcePackets, 2)]),
            vec![
                served(&tcp4),
                served(&udp4),
                served(&udp4),
                source_limit(&udp4),
                source_limit(&tcp4),
                served(&udp6),
            ],
        ),
        Case::new(
            "packets dropped by a source's rate consume no tokens of the service",
            fixture(&[(WEB, SourcePackets, 1), (WEB, Packets, 2)]),
            vec![
                served(&tcp4),
                source_limit(&tcp4),
                source_limit(&tcp4),
                served(&other),
                service_limit(&tcp6),
            ],
        ),
        Case::new(
            "datagrams and SYN-ACKs consume no tokens of new connections",
            fixture(&[
                (WEB, NewConnections, 1),
                (DNS, NewConnections, 1),
                (DNS, SourceNewConnections, 1),
            ]),
            {
                let answer = Client { transport: L4Kind::TcpSynAck, ..Client::tcp4() };
                vec![
                    served(&udp4),
                    served(&udp4),
                    served(&udp6),
                    served(&answer),
                    served(&answer),
                    served(&syn4),
                    service_limit(&syn6),
                ]
            },
        ),
        Case::new(
            "rates of a service without the rate-limit option have no effect",
            {
                let mut fixture = fixture(&[(WEB, Packets, 1), (WEB, SourcePackets, 1)]);
                fixture.vip_options.clear();
                fixture
            },
            vec![served(&tcp4), served(&tcp4), served(&tcp4)],
        ),
        Case::new(
            "packets to other ports, with wrong lengths or a TTL of 0 consume no token",
            fixture(&[(WEB, Packets, 1), (WEB, SourcePackets, 1)]),
            vec![
                passes(tcp4.clone().to_port(22).frame(), Reason::NoService),
                passes(patched(tcp4.frame(), ETHERNET + 16, &[192, 0, 2, 77]), Reason::NotVip),
                drops(patched(tcp4.frame(), ETHERNET + 2, &[0xff, 0xff]), Reason::BadLength),
                drops(Client { ttl: 0, ..Client::tcp4() }.frame(), Reason::TtlExpired),
                served(&tcp4),
                source_limit(&tcp4),
            ],
        ),
        Case::new(
            "tagged packets and packets with options consume tokens of the same buckets",
            fixture(&[(WEB, Packets, 2)]),
            {
                let options = Client { options: 8, ..Client::tcp4() };
                let frame = frames::tagged(&tcp4.frame(), &[(0x8100, 6)]);
                vec![
                    (frame.clone().into(), forwarded(&tcp4.frame(), &tcp4, 1, HINT)),
                    served(&options),
                    drops(frame, Reason::RateLimitedService),
                    service_limit(&options),
                    service_limit(&tcp6),
                ]
            },
        ),
        Case::new(
            "first and non-initial fragments of both families consume tokens of their service",
            limited(fragments::fixture(), &[(WEB, Packets, 4)]),
            {
                let later = |client: &Client, number| fragments::fragment(client, 7, number, 4);
                vec![
                    fragments::sent(&tcp4, 7, 0, 4),
                    fragments::sent(&tcp4, 7, 1, 4),
                    fragments::sent(&tcp6, 7, 0, 4),
                    fragments::sent(&tcp6, 7, 1, 4),
                    drops(later(&tcp4, 2), Reason::RateLimitedService),
                    drops(later(&tcp6, 2), Reason::RateLimitedService),
                    service_limit(&tcp4),
                    // Only the service's own rate applies.
                    fragments::sent(&udp4, 7, 0, 4),
                    fragments::sent(&udp4, 7, 1, 4),
                    fragments::sent(&udp6, 7, 0, 4),
                    fragments::sent(&udp6, 7, 1, 4),
                ]
            },
        ),
        Case::new(
            "first and non-initial fragments consume packet tokens of their source, no tokens of new connections",
            limited(
                fragments::fixture(),
                &[
                    (DNS, SourcePackets, 2),
                    (WEB, NewConnections, 1),
                    (WEB, SourceNewConnections, 1),
                ],
            ),
            {
                let over = |client: &Client| {
                    drops(fragments::fragment(client, 7, 2, 3), Reason::RateLimitedSource)
                };
                let other = from(udp4.clone(), "198.51.100.8");
                let two =
                    |client: &Client| [0, 1].map(|number| fragments::sent(client, 7, number, 3));
                let all =
                    |client: &Client| [0, 1, 2].map(|number| fragments::sent(client, 7, number, 3));
                [
                    &two(&udp4)[..],
                    &[over(&udp4)],
                    &two(&udp6),
                    &[over(&udp6)],
                    &two(&other),
                    &[over(&other)],
                    &all(&tcp4),
                    &all(&tcp6),
                ]
                .concat()
            },
        ),
        Case::new(
            "a non-initial fragment without a first, with a wrong length or a TTL of 0 consumes no token",
            limited(fragments::fixture(), &[(DNS, Packets, 2), (DNS, SourcePackets, 2)]),
            {
                let wrong_length =
                    patched(fragments::fragment(&udp4, 7, 1, 2), ETHERNET + 2, &[0xff, 0xff]);
                let expired = fragments::fragment(&Client { ttl: 0, ..udp4.clone() }, 7, 1, 2);
                vec![
                    passes(fragments::fragment(&udp4, 7, 1, 2), Reason::FragmentUnknown),
                    fragments::sent(&udp4, 7, 0, 2),
                    drops(wrong_length, Reason::BadLength),
                    drops(expired, Reason::TtlExpired),
                    fragments::sent(&udp4, 7, 1, 2),
                    drops(fragments::fragment(&udp4, 7, 1, 2), Reason::RateLimitedSource),
                ]
            },
        ),
        Case::new(
            "ICMP errors about a service's flows consume its tokens",
            fixture(&[(WEB, Packets, 2)]),
            {
                let error =
                    super::icmp_errors::few().next().expect("there is one of TCP over IPv4");
                let followed =
                    super::icmp_errors::followed(&Fixture::new().all_to(1, HINT), &error);
                vec![
                    followed.clone(),
                    followed,
                    drops(error.frame(), Reason::RateLimitedService),
                    service_limit(&tcp4),
                ]
            },
        ),
        Case::new(
            "a packet that an ACL denies consumes no token",
            {
                let mut fixture = fixture(&[(WEB, Packets, 1)]);
                let denied = "198.51.100.8/32".parse().expect("a prefix");
                fixture.acls.insert(0, [(denied, sluice_datapath::abi::AclVerdict::DENIED)].into());
                fixture
            },
            vec![drops(other.frame(), Reason::AclDenied), served(&tcp4), service_limit(&tcp4)],
        ),
    ]
}
