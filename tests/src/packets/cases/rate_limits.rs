//! Rates of packets and of new flows. No bucket fills again during a case, so that time does not
//! matter.

use sluice_datapath::Reason;
use sluice_datapath::abi::{RateKind, VipOptions};

use super::case::Case;
use super::expect::{drops, forwarded, passes, to, with};
use super::fragments;
use crate::packets::fixture::{DNS, Fixture, WEB};
use crate::packets::frames::{self, Client, ETHERNET, L4Kind};

const HINT: u16 = 0x1240;

/// A fixture with rates, all packets of which go to one backend.
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

    let served = |client: &Client| to(client, 1, HINT);
    let service_limit = |client: &Client| drops(client.frame(), Reason::RateLimitedService);
    let source_limit = |client: &Client| drops(client.frame(), Reason::RateLimitedSource);
    let (tcp4, tcp6, udp4, udp6) = (Client::tcp4(), Client::tcp6(), Client::udp4(), Client::udp6());
    let (syn4, syn6) = (Client::syn(false), Client::syn(true));
    let other = from(Client::tcp4(), "198.51.100.8");
    vec![
        Case::new(
            "a service's packets beyond its rate are dropped, of whichever family, and no other service's",
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
            "connections beyond a service's rate are not opened, and open ones go on",
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
            "a source's packets beyond its rate are dropped, and no other source's",
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
            "a source opens no connections beyond its rate, and its open ones go on",
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
            "an IPv6 source is its whole /64",
            fixture(&[(WEB, SourcePackets, 1)]),
            vec![
                served(&tcp6),
                source_limit(&from(tcp6.clone(), "[2001:db8:99::ffff:1]")),
                served(&from(tcp6.clone(), "[2001:db8:99:1::7]")),
            ],
        ),
        Case::new(
            "a source has a bucket at each service",
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
            "what a source sends too much costs its service nothing",
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
            "UDP and the server's side of a handshake open nothing",
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
            "rates of a service whose VIPs do not ask for them are not looked at",
            {
                let mut fixture = fixture(&[(WEB, Packets, 1), (WEB, SourcePackets, 1)]);
                fixture.vip_options.clear();
                fixture
            },
            vec![served(&tcp4), served(&tcp4), served(&tcp4)],
        ),
        Case::new(
            "what is not for a VIP, or lies, or is expired, takes no token",
            fixture(&[(WEB, Packets, 1), (WEB, SourcePackets, 1)]),
            vec![
                passes(tcp4.clone().to_port(22).frame(), Reason::NoService),
                passes(with(tcp4.frame(), ETHERNET + 16, &[192, 0, 2, 77]), Reason::NotVip),
                drops(with(tcp4.frame(), ETHERNET + 2, &[0xff, 0xff]), Reason::BadLength),
                drops(Client { ttl: 0, ..Client::tcp4() }.frame(), Reason::TtlExpired),
                served(&tcp4),
                source_limit(&tcp4),
            ],
        ),
        Case::new(
            "tagged packets and those with options take from the same buckets",
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
            "each fragment takes a token of its service, first or later, of whichever family",
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
                    // Nobody's rate but the service's own.
                    fragments::sent(&udp4, 7, 0, 4),
                    fragments::sent(&udp4, 7, 1, 4),
                    fragments::sent(&udp6, 7, 0, 4),
                    fragments::sent(&udp6, 7, 1, 4),
                ]
            },
        ),
        Case::new(
            "each fragment takes a token of its source, first or later, and none of another's or of new flows",
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
            "a later fragment that follows nobody, or lies, or is expired, takes no token",
            limited(fragments::fixture(), &[(DNS, Packets, 2), (DNS, SourcePackets, 2)]),
            {
                let lying = with(fragments::fragment(&udp4, 7, 1, 2), ETHERNET + 2, &[0xff, 0xff]);
                let expired = fragments::fragment(&Client { ttl: 0, ..udp4.clone() }, 7, 1, 2);
                vec![
                    passes(fragments::fragment(&udp4, 7, 1, 2), Reason::FragmentUnknown),
                    fragments::sent(&udp4, 7, 0, 2),
                    drops(lying, Reason::BadLength),
                    drops(expired, Reason::TtlExpired),
                    fragments::sent(&udp4, 7, 1, 2),
                    drops(fragments::fragment(&udp4, 7, 1, 2), Reason::RateLimitedSource),
                ]
            },
        ),
        Case::new(
            "ICMP errors about a service's flows take from its buckets",
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
            "lists come before rates: who is denied takes no token",
            {
                let mut fixture = fixture(&[(WEB, Packets, 1)]);
                let denied = "198.51.100.8/32".parse().expect("a prefix");
                fixture
                    .lists
                    .insert(0, [(denied, sluice_datapath::abi::AclVerdict::DENIED)].into());
                fixture
            },
            vec![drops(other.frame(), Reason::AclDenied), served(&tcp4), service_limit(&tcp4)],
        ),
    ]
}
