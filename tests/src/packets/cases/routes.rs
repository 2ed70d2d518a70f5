//! Routes: clients of some prefixes are another service's.

use sluice_datapath::Reason;
use sluice_datapath::entries::Listing;
use sluice_datapath::options::{AddressOptions, VipOptions};
use sluice_datapath::rates::Limit;

use super::icmp::slot;
use super::{Case, Step, drops, icmp, pings, to};
use crate::packets::build::{self, Client, Transport};
use crate::packets::icmp::Ping;
use crate::packets::world::{DNS, Frame, Outcome, Table, WEB, World};

/// The services to which routes lead. They have no VIPs.
const NEAR: u32 = 5;
const FAR: u32 = 6;

/// The prefixes that hold every client of the cases.
const CLIENTS: [&str; 2] = ["198.51.100.0/24", "2001:db8:99::/48"];
/// Each client's address alone.
const CLIENT: [&str; 2] = ["198.51.100.7/32", "2001:db8:99::7/128"];
/// Neighbours of the clients.
const OTHERS: [&str; 2] = ["198.51.100.6/32", "2001:db8:99::6/128"];
/// Where the routers are that send errors.
const ROUTERS: [&str; 2] = ["198.51.100.254/32", "2001:db8:99::fe/128"];

/// A world in which each service has tables of its own, and these routes, from both services with
/// VIPs.
fn world(routes: &[([&str; 2], u32)]) -> World {
    from(&[WEB, DNS], routes)
}

fn from(services: &[u32], routes: &[([&str; 2], u32)]) -> World {
    let mut world = World::new();
    let table = |backends: [u16; 2], hint| Table {
        tracked: false,
        slots: (0..251u16).map(|slot| (backends[usize::from(slot % 2)], slot ^ hint)).collect(),
    };
    world.tables.extend([(NEAR, table([5, 6], 0x1240)), (FAR, table([7, 8], 0x0f81))]);
    world = (5..=8).fold(world, |world, index| world.with_backend(index, |_| {}));
    for service in services {
        let prefixes = routes
            .iter()
            .flat_map(|(prefixes, to)| prefixes.map(|p| (p.parse().expect("a prefix"), *to)));
        world.routes.extend(prefixes.map(|(prefix, to)| ((*service, prefix), to)));
    }
    world
}

/// Clients enough that every slot's neighbours are met.
fn clients() -> impl Iterator<Item = Client> {
    (0..8).flat_map(|port| Client::each().map(|client| client.from_port(42_000 + port)))
}

/// The service of whose VIP a client's packet is.
fn own(client: &Client) -> u32 {
    if client.transport == Transport::Udp { DNS } else { WEB }
}

/// A client's packet that is forwarded as a service's.
fn as_of(world: &World, client: &Client, service: u32) -> (Frame, Outcome) {
    let (backend, hint) = slot(world, service, client);
    of(to(client, backend, hint), service)
}

fn of((frame, outcome): (Frame, Outcome), service: u32) -> (Frame, Outcome) {
    match outcome {
        Outcome::Forward(mut forwarded) => {
            forwarded.service = service;
            (frame, Outcome::Forward(forwarded))
        }
        outcome => (frame, outcome),
    }
}

/// All clients' packets, forwarded as the service's that `chosen` says.
fn all(world: &World, chosen: impl Fn(&Client) -> u32) -> Vec<(Frame, Outcome)> {
    clients().map(|client| as_of(world, &client, chosen(&client))).collect()
}

fn case(name: &'static str, world: World, chosen: impl Fn(&Client) -> u32) -> Case {
    let frames = all(&world, chosen);
    Case::new(name, world, frames)
}

fn after(name: &'static str, steps: Vec<(World, Vec<(Frame, Outcome)>)>) -> Case {
    let steps = steps.into_iter().flat_map(|(world, frames)| {
        [Step::Configure(world)]
            .into_iter()
            .chain(frames.into_iter().map(|(f, o)| Step::Send(f, o)))
    });
    Case { name, steps: steps.collect() }
}

pub(super) fn cases() -> Vec<Case> {
    let routed = || world(&[(CLIENTS, NEAR)]);
    let named = routed();
    vec![
        case(
            "a client that a route holds gets a backend of the service to which it leads",
            routed(),
            |_| NEAR,
        ),
        case(
            "a client that no route holds gets a backend of its VIP's service",
            world(&[(OTHERS, NEAR)]),
            own,
        ),
        case(
            "the longest prefix that holds a client decides",
            world(&[(CLIENTS, NEAR), (CLIENT, FAR)]),
            |_| FAR,
        ),
        case(
            "a longer prefix beside a client decides nothing",
            world(&[(CLIENTS, NEAR), (OTHERS, FAR)]),
            |_| NEAR,
        ),
        case(
            "a route of a service says nothing about the VIPs of another",
            from(&[WEB], &[(CLIENTS, NEAR)]),
            |client| {
                if own(client) == WEB { NEAR } else { DNS }
            },
        ),
        case(
            "the routes of two services lead one client to different places",
            {
                let mut world = from(&[WEB], &[(CLIENTS, NEAR)]);
                world.routes.extend(from(&[DNS], &[(CLIENTS, FAR)]).routes);
                world
            },
            |client| if own(client) == WEB { NEAR } else { FAR },
        ),
        case(
            "one family's routes say nothing about the other, not even that of all its clients",
            world(&[(["0.0.0.0/0", "2001:db8:98::/48"], NEAR)]),
            |client| if client.is_v6() { own(client) } else { NEAR },
        ),
        case(
            "a client is routed once, whatever routes there are where it is led to",
            {
                let mut world = routed();
                world.routes.extend(from(&[NEAR], &[(CLIENTS, FAR)]).routes);
                world
            },
            |_| NEAR,
        ),
        case(
            "a route may lead to a service that has VIPs",
            from(&[WEB], &[(CLIENTS, DNS)]),
            |_| DNS,
        ),
        after(
            "a route that changes counts at once, and so does one that goes",
            vec![
                (routed(), all(&named, |_| NEAR)),
                (world(&[(CLIENTS, FAR)]), all(&named, |_| FAR)),
                (world(&[]), all(&named, own)),
            ],
        ),
        Case::new(
            "a client that is led to a service without a table is dropped",
            {
                let mut world = routed();
                world.tables.remove(&NEAR);
                world
            },
            Client::each().map(|client| drops(client.frame(), Reason::NoTable)).to_vec(),
        ),
        Case::new(
            "the slot is selected as the service wants to which a route leads",
            {
                let mut world = routed();
                world.vip_options =
                    [(NEAR, VipOptions::HASH_CLIENT), (WEB, VipOptions::HASH_SOURCE)].into();
                world
            },
            {
                // Without the port, a client has one backend at a VIP.
                clients()
                    .map(|client| {
                        let (backend, hint) = slot(&named, NEAR, &client.clone().from_port(0));
                        of(to(&client, backend, hint), NEAR)
                    })
                    .collect()
            },
        ),
        after("a flow is tracked as the service wants to which a route leads", {
            let tracked = |backend: u16| {
                let mut world = world(&[(CLIENTS, NEAR)]);
                world
                    .tables
                    .insert(NEAR, Table { tracked: true, slots: vec![(backend, 0x1240); 251] });
                world
            };
            let sent =
                |backend| clients().map(|client| of(to(&client, backend, 0x1240), NEAR)).collect();
            vec![(tracked(5), sent(5)), (tracked(6), sent(5))]
        }),
        Case::new(
            "a client takes the tokens of the service to which a route leads",
            {
                let mut world = from(&[WEB], &[(CLIENTS, NEAR)]);
                world.vip_options = [(NEAR, VipOptions::LIMITED)].into();
                world.rates = [((NEAR, Limit::Packets), 1)].into();
                world
            },
            {
                let own = as_of(&named, &Client::udp4(), DNS);
                vec![
                    as_of(&named, &Client::tcp4(), NEAR),
                    drops(Client::tcp6().frame(), Reason::ServiceLimit),
                    own,
                ]
            },
        ),
        Case::new(
            "the lists that count are those of the service whose VIP it is",
            {
                let mut world = routed();
                let denied = |prefixes: [&str; 2]| {
                    prefixes.map(|p| (p.parse().expect("a prefix"), Listing::DENIED)).into()
                };
                world.lists =
                    [(WEB, denied(CLIENTS)), (NEAR, denied(CLIENTS)), (DNS, denied(OTHERS))].into();
                world.vip_options =
                    [WEB, DNS, NEAR].map(|service| (service, VipOptions::LISTED)).into();
                world
            },
            Client::each()
                .map(|client| match own(&client) {
                    WEB => drops(client.frame(), Reason::Denied),
                    _ => as_of(&named, &client, NEAR),
                })
                .to_vec(),
        ),
        after("later fragments meet the lists of the service whose VIP their first one was for", {
            let listed = |service| {
                let mut world = routed().all_to(5, 0x1240);
                world.lists = [(
                    service,
                    CLIENTS.map(|p| (p.parse().expect("a prefix"), Listing::DENIED)).into(),
                )]
                .into();
                world
            };
            let fragment = |fragment| Client { fragment, ..Client::udp4() };
            let (first, later) = (fragment((false, true, 0)), fragment((false, false, 9)));
            let sent = |client: &Client| of(to(client, 5, 0x1240), NEAR);
            vec![
                (listed(NEAR), vec![sent(&first), sent(&later)]),
                (listed(DNS), vec![drops(later.frame(), Reason::Denied)]),
            ]
        }),
        Case::new(
            "an ICMP error goes where the client is led whose flow it quotes, whoever sends it",
            world(&[(CLIENT, NEAR), (ROUTERS, FAR)]),
            icmp::few()
                .map(|error| icmp::to_backend(&error, NEAR, slot(&named, NEAR, &error.client)))
                .collect(),
        ),
        Case::new(
            "pings that are forwarded go where their client is led",
            {
                let mut world = routed().all_to(5, 0x1240);
                world.address_options =
                    [(1, AddressOptions::PING_FORWARD), (2, AddressOptions::PING_FORWARD)].into();
                world.vips.extend([((1, 0, 1), WEB), ((2, 0, 1), WEB)]);
                world
            },
            [Client::tcp4(), Client::tcp6()]
                .map(|client| pings::to_backend(&Ping::new(&client), NEAR, (5, 0x1240)))
                .to_vec(),
        ),
        Case::new(
            "a client is led behind VLAN tags and IPv4 options, and all its fragments are",
            routed().all_to(5, 0x1240),
            {
                let sent = |client: &Client| of(to(client, 5, 0x1240), NEAR);
                let tagged = Client::each().map(|client| {
                    let (frame, outcome) = sent(&client);
                    (Frame::from(build::tagged(&frame.bytes, &[(0x8100, 6)])), outcome)
                });
                let fragments = [(false, true, 0), (false, false, 9)]
                    .map(|fragment| sent(&Client { fragment, ..Client::udp4() }));
                [&tagged[..], &[sent(&Client { options: 8, ..Client::tcp4() })], &fragments]
                    .concat()
            },
        ),
    ]
}
