//! Routes: another service handles clients of some prefixes.

use sluice_datapath::Reason;
use sluice_datapath::abi::{AclVerdict, AddressOptions, RateKind, VipOptions};

use super::case::{Case, CaseStep};
use super::expect::{drops, forwards};
use super::icmp_errors::slot;
use super::{echo, icmp_errors};
use crate::packets::expectation::Expectation;
use crate::packets::fixture::{DNS, Fixture, TableSpec, WEB};
use crate::packets::frames::icmp::EchoRequest;
use crate::packets::frames::{self, Client, Frame, L4Kind};

/// The services that routes point to. They have no VIPs.
const NEAR: u32 = 5;
const FAR: u32 = 6;

/// Prefixes that contain every client of the cases.
const CLIENTS: [&str; 2] = ["198.51.100.0/24", "2001:db8:99::/48"];
/// Host prefixes of the clients.
const CLIENT: [&str; 2] = ["198.51.100.7/32", "2001:db8:99::7/128"];
/// Host prefixes of addresses next to the clients'.
const OTHERS: [&str; 2] = ["198.51.100.6/32", "2001:db8:99::6/128"];
/// Host prefixes of the routers that send ICMP errors.
const ROUTERS: [&str; 2] = ["198.51.100.254/32", "2001:db8:99::fe/128"];

/// A fixture in which each service has its own backends, with these routes from both services with
/// VIPs.
fn fixture(routes: &[([&str; 2], u32)]) -> Fixture {
    from(&[WEB, DNS], routes)
}

fn from(services: &[u32], routes: &[([&str; 2], u32)]) -> Fixture {
    let mut fixture = Fixture::new();
    let table = |backends: [u16; 2], hint| TableSpec {
        tracked: false,
        slots: (0..251u16).map(|slot| (backends[usize::from(slot % 2)], slot ^ hint)).collect(),
    };
    fixture.tables.extend([(NEAR, table([5, 6], 0x1240)), (FAR, table([7, 8], 0x0f81))]);
    fixture = (5..=8).fold(fixture, |fixture, index| fixture.with_backend(index, |_| {}));
    for service in services {
        let prefixes = routes
            .iter()
            .flat_map(|(prefixes, to)| prefixes.map(|p| (p.parse().expect("a prefix"), *to)));
        fixture.routes.extend(prefixes.map(|(prefix, to)| ((*service, prefix), to)));
    }
    fixture
}

/// Enough clients to reach different slots.
fn clients() -> impl Iterator<Item = Client> {
    (0..8).flat_map(|port| Client::each().map(|client| client.from_port(42_000 + port)))
}

/// The service of the VIP that a client's packet is addressed to.
fn own(client: &Client) -> u32 {
    if client.transport == L4Kind::Udp { DNS } else { WEB }
}

/// A client's packet that is forwarded and counted for a service.
fn as_of(fixture: &Fixture, client: &Client, service: u32) -> (Frame, Expectation) {
    let (backend, hint) = slot(fixture, service, client);
    of(forwards(client, backend, hint), service)
}

fn of((frame, outcome): (Frame, Expectation), service: u32) -> (Frame, Expectation) {
    match outcome {
        Expectation::Forward(mut forwarded) => {
            forwarded.service = service;
            (frame, Expectation::Forward(forwarded))
        }
        outcome => (frame, outcome),
    }
}

/// The packets of all clients, each forwarded for the service that `chosen` returns.
fn all(fixture: &Fixture, chosen: impl Fn(&Client) -> u32) -> Vec<(Frame, Expectation)> {
    clients().map(|client| as_of(fixture, &client, chosen(&client))).collect()
}

fn case(name: &'static str, fixture: Fixture, chosen: impl Fn(&Client) -> u32) -> Case {
    let frames = all(&fixture, chosen);
    Case::new(name, fixture, frames)
}

fn after(name: &'static str, steps: Vec<(Fixture, Vec<(Frame, Expectation)>)>) -> Case {
    let steps = steps.into_iter().flat_map(|(fixture, frames)| {
        [CaseStep::Configure(fixture)]
            .into_iter()
            .chain(frames.into_iter().map(|(f, o)| CaseStep::Send(f, o)))
    });
    Case { name, steps: steps.collect() }
}

pub(super) fn cases() -> Vec<Case> {
    let routed = || fixture(&[(CLIENTS, NEAR)]);
    let named = routed();
    vec![
        case("a client in a route's prefix gets a backend of the route's target", routed(), |_| {
            NEAR
        }),
        case(
            "a client outside all routes gets a backend of the VIP's service",
            fixture(&[(OTHERS, NEAR)]),
            own,
        ),
        case(
            "the longest matching prefix selects the route",
            fixture(&[(CLIENTS, NEAR), (CLIENT, FAR)]),
            |_| FAR,
        ),
        case(
            "a longer prefix that does not contain the client has no effect",
            fixture(&[(CLIENTS, NEAR), (OTHERS, FAR)]),
            |_| NEAR,
        ),
        case(
            "a service's route does not apply to VIPs of another service",
            from(&[WEB], &[(CLIENTS, NEAR)]),
            |client| {
                if own(client) == WEB { NEAR } else { DNS }
            },
        ),
        case(
            "routes of two services send one client to different targets",
            {
                let mut fixture = from(&[WEB], &[(CLIENTS, NEAR)]);
                fixture.routes.extend(from(&[DNS], &[(CLIENTS, FAR)]).routes);
                fixture
            },
            |client| if own(client) == WEB { NEAR } else { FAR },
        ),
        case(
            "a default route of one family does not apply to the other family",
            fixture(&[(["0.0.0.0/0", "2001:db8:98::/48"], NEAR)]),
            |client| if client.is_v6() { own(client) } else { NEAR },
        ),
        case(
            "routes are not chained",
            {
                let mut fixture = routed();
                fixture.routes.extend(from(&[NEAR], &[(CLIENTS, FAR)]).routes);
                fixture
            },
            |_| NEAR,
        ),
        case("a route may point to a service with VIPs", from(&[WEB], &[(CLIENTS, DNS)]), |_| DNS),
        after(
            "changing or removing a route takes effect at once",
            vec![
                (routed(), all(&named, |_| NEAR)),
                (fixture(&[(CLIENTS, FAR)]), all(&named, |_| FAR)),
                (fixture(&[]), all(&named, own)),
            ],
        ),
        Case::new(
            "a packet routed to a service without a lookup table is dropped",
            {
                let mut fixture = routed();
                fixture.tables.remove(&NEAR);
                fixture
            },
            Client::each().map(|client| drops(client.frame(), Reason::NoTable)).to_vec(),
        ),
        Case::new(
            "the hash options of the route's target select the slot",
            {
                let mut fixture = routed();
                fixture.vip_options =
                    [(NEAR, VipOptions::HASH_CLIENT), (WEB, VipOptions::HASH_SOURCE)].into();
                fixture
            },
            {
                // Without the source port, all flows of a client to a VIP have one backend.
                clients()
                    .map(|client| {
                        let (backend, hint) = slot(&named, NEAR, &client.clone().from_port(0));
                        of(forwards(&client, backend, hint), NEAR)
                    })
                    .collect()
            },
        ),
        after("the tracking option of the route's target applies", {
            let tracked = |backend: u16| {
                let mut fixture = fixture(&[(CLIENTS, NEAR)]);
                fixture
                    .tables
                    .insert(NEAR, TableSpec { tracked: true, slots: vec![(backend, 0x1240); 251] });
                fixture
            };
            let sent = |backend| {
                clients().map(|client| of(forwards(&client, backend, 0x1240), NEAR)).collect()
            };
            vec![(tracked(5), sent(5)), (tracked(6), sent(5))]
        }),
        Case::new(
            "a routed packet consumes tokens of the route's target",
            {
                let mut fixture = from(&[WEB], &[(CLIENTS, NEAR)]);
                fixture.vip_options = [(NEAR, VipOptions::RATE_LIMITED)].into();
                fixture.rates = [((NEAR, RateKind::Packets), 1)].into();
                fixture
            },
            {
                let own = as_of(&named, &Client::udp4(), DNS);
                vec![
                    as_of(&named, &Client::tcp4(), NEAR),
                    drops(Client::tcp6().frame(), Reason::RateLimitedService),
                    own,
                ]
            },
        ),
        Case::new(
            "the ACL of the VIP's service applies, not that of the route's target",
            {
                let mut fixture = routed();
                let denied = |prefixes: [&str; 2]| {
                    prefixes.map(|p| (p.parse().expect("a prefix"), AclVerdict::DENIED)).into()
                };
                fixture.acls =
                    [(WEB, denied(CLIENTS)), (NEAR, denied(CLIENTS)), (DNS, denied(OTHERS))].into();
                fixture.vip_options =
                    [WEB, DNS, NEAR].map(|service| (service, VipOptions::ACL)).into();
                fixture
            },
            Client::each()
                .map(|client| match own(&client) {
                    WEB => drops(client.frame(), Reason::AclDenied),
                    _ => as_of(&named, &client, NEAR),
                })
                .to_vec(),
        ),
        after("the ACL of the VIP's service applies to non-initial fragments", {
            let with_acl = |service| {
                let mut fixture = routed().all_to(5, 0x1240);
                fixture.acls = [(
                    service,
                    CLIENTS.map(|p| (p.parse().expect("a prefix"), AclVerdict::DENIED)).into(),
                )]
                .into();
                fixture
            };
            let fragment = |fragment| Client { fragment, ..Client::udp4() };
            let (first, later) = (fragment((false, true, 0)), fragment((false, false, 9)));
            let sent = |client: &Client| of(forwards(client, 5, 0x1240), NEAR);
            vec![
                (with_acl(NEAR), vec![sent(&first), sent(&later)]),
                (with_acl(DNS), vec![drops(later.frame(), Reason::AclDenied)]),
            ]
        }),
        Case::new(
            "an ICMP error follows the route of the quoted flow's client",
            fixture(&[(CLIENT, NEAR), (ROUTERS, FAR)]),
            icmp_errors::few()
                .map(|error| {
                    icmp_errors::to_backend(&error, NEAR, slot(&named, NEAR, &error.client))
                })
                .collect(),
        ),
        Case::new(
            "forwarded echo requests follow the route of their source",
            {
                let mut fixture = routed().all_to(5, 0x1240);
                fixture.address_options =
                    [(1, AddressOptions::PING_FORWARD), (2, AddressOptions::PING_FORWARD)].into();
                fixture.vips.extend([((1, 0, 1), WEB), ((2, 0, 1), WEB)]);
                fixture
            },
            [Client::tcp4(), Client::tcp6()]
                .map(|client| echo::to_backend(&EchoRequest::new(&client), NEAR, (5, 0x1240)))
                .to_vec(),
        ),
        Case::new(
            "routes apply to tagged packets, IPv4 options and all fragments",
            routed().all_to(5, 0x1240),
            {
                let sent = |client: &Client| of(forwards(client, 5, 0x1240), NEAR);
                let tagged = Client::each().map(|client| {
                    let (frame, outcome) = sent(&client);
                    (Frame::from(frames::tagged(&frame.bytes, &[(0x8100, 6)])), outcome)
                });
                let fragments = [(false, true, 0), (false, false, 9)]
                    .map(|fragment| sent(&Client { fragment, ..Client::udp4() }));
                [&tagged[..], &[sent(&Client { options: 8, ..Client::tcp4() })], &fragments]
                    .concat()
            },
        ),
    ]
}
