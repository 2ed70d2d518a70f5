//! Deny- and allow-lists of sources.

use sluice_datapath::Reason;
use sluice_datapath::abi::{AclVerdict, VipOptions};

use super::case::{Case, CaseStep};
use super::expect::{drops, passes, to, with};
use super::{echo, fragments, icmp_errors};
use crate::packets::fixture::{DNS, Fixture, WEB};
use crate::packets::frames::{self, Client, ETHERNET};

const HINT: u16 = 0x1240;
/// The prefixes of no bits: what counts for sources that no other prefix holds.
const EVERYBODY: [&str; 2] = ["0.0.0.0/0", "::/0"];
/// The prefixes that hold every client of the cases.
const CLIENTS: [&str; 2] = ["198.51.100.0/24", "2001:db8:99::/48"];
/// Each client's address alone.
const CLIENT: [&str; 2] = ["198.51.100.7/32", "2001:db8:99::7/128"];
/// The routers that send errors.
const ROUTERS: [&str; 2] = ["198.51.100.254/32", "2001:db8:99::fe/128"];
/// Neighbours of the clients.
const OTHERS: [&str; 2] = ["198.51.100.6/32", "2001:db8:99::6/128"];

type Said = ([&'static str; 2], AclVerdict);

/// A fixture whose services have a list, all packets of which go to one backend.
fn fixture(list: u32, said: &[Said]) -> Fixture {
    listed(Fixture::new().all_to(1, HINT), list, said)
}

fn listed(mut fixture: Fixture, list: u32, said: &[Said]) -> Fixture {
    let prefixes = said
        .iter()
        .flat_map(|(prefixes, says)| prefixes.map(|p| (p.parse().expect("a prefix"), *says)));
    fixture.lists.insert(list, prefixes.collect());
    if list != AclVerdict::GLOBAL {
        fixture.vip_options.insert(list, VipOptions::ACL);
    }
    fixture
}

pub(super) fn cases() -> Vec<Case> {
    use AclVerdict as Says;

    let all = || Client::each().map(|client| to(&client, 1, HINT)).to_vec();
    let refused = |reason| Client::each().map(|client| drops(client.frame(), reason)).to_vec();
    // Two clients to the service WEB, then two to DNS.
    let web_refused = |reason| [&refused(reason)[..2], &all()[2..]].concat();
    let case = |name, fixture, frames| Case::new(name, fixture, frames);
    let after = |name, steps: Vec<(Fixture, Vec<_>)>| Case {
        name,
        steps: steps
            .into_iter()
            .flat_map(|(fixture, frames)| {
                [CaseStep::Configure(fixture)]
                    .into_iter()
                    .chain(frames.into_iter().map(|(f, o)| CaseStep::Send(f, o)))
            })
            .collect(),
    };
    vec![
        case(
            "a source in the deny-list of all is dropped at every VIP",
            fixture(0, &[(CLIENTS, Says::DENIED)]),
            refused(Reason::AclDenied),
        ),
        case(
            "a source in a service's deny-list is dropped at that service only",
            fixture(WEB, &[(CLIENTS, Says::DENIED)]),
            web_refused(Reason::AclDenied),
        ),
        case(
            "a source beside the denied ones is served",
            fixture(0, &[(OTHERS, Says::DENIED)]),
            all(),
        ),
        case(
            "a prefix of one address denies that address",
            fixture(WEB, &[(CLIENT, Says::DENIED)]),
            web_refused(Reason::AclDenied),
        ),
        case(
            "with an allow-list a source that is not in it is dropped",
            fixture(WEB, &[(EVERYBODY, Says::NOT_ALLOWED), (OTHERS, Says::ALLOWED)]),
            web_refused(Reason::AclNotAllowed),
        ),
        case(
            "with an allow-list a source in it is served",
            fixture(WEB, &[(EVERYBODY, Says::NOT_ALLOWED), (CLIENTS, Says::ALLOWED)]),
            all(),
        ),
        case(
            "with an allow-list for all a source that is not in it is dropped everywhere",
            fixture(0, &[(EVERYBODY, Says::NOT_ALLOWED), (OTHERS, Says::ALLOWED)]),
            refused(Reason::AclNotAllowed),
        ),
        case(
            "the longer of a denied and an allowed prefix counts: allowed inside denied",
            fixture(0, &[(CLIENTS, Says::DENIED), (CLIENT, Says::ALLOWED)]),
            all(),
        ),
        case(
            "the longer of a denied and an allowed prefix counts: denied inside allowed",
            fixture(
                WEB,
                &[(EVERYBODY, Says::NOT_ALLOWED), (CLIENTS, Says::ALLOWED), (CLIENT, Says::DENIED)],
            ),
            web_refused(Reason::AclDenied),
        ),
        case(
            "what a service allows is still dropped when it is denied to all",
            listed(
                fixture(0, &[(CLIENTS, Says::DENIED)]),
                WEB,
                &[(EVERYBODY, Says::NOT_ALLOWED), (CLIENT, Says::ALLOWED)],
            ),
            refused(Reason::AclDenied),
        ),
        case(
            "what is allowed to all is still dropped when a service denies it",
            listed(
                fixture(0, &[(EVERYBODY, Says::NOT_ALLOWED), (CLIENTS, Says::ALLOWED)]),
                WEB,
                &[(CLIENT, Says::DENIED)],
            ),
            web_refused(Reason::AclDenied),
        ),
        case(
            "one family's list says nothing about the other",
            {
                let mut fixture = fixture(WEB, &[(EVERYBODY, Says::ALLOWED)]);
                fixture
                    .lists
                    .entry(WEB)
                    .or_default()
                    .insert("::/0".parse().expect("a prefix"), Says::DENIED);
                fixture
            },
            vec![to(&Client::tcp4(), 1, HINT), drops(Client::tcp6().frame(), Reason::AclDenied)],
        ),
        case(
            "a new service whose list is not there yet serves nobody",
            {
                let mut fixture = fixture(WEB, &[]);
                fixture.lists.clear();
                fixture
            },
            web_refused(Reason::AclNotAllowed),
        ),
        after(
            "a list that is replaced counts at once, and one that is removed no longer",
            vec![
                (fixture(WEB, &[(CLIENTS, Says::DENIED)]), web_refused(Reason::AclDenied)),
                (
                    fixture(WEB, &[(EVERYBODY, Says::NOT_ALLOWED)]),
                    web_refused(Reason::AclNotAllowed),
                ),
                (Fixture::new().all_to(1, HINT), all()),
            ],
        ),
        after(
            "a list for all that is removed no longer counts",
            vec![
                (fixture(0, &[(CLIENTS, Says::DENIED)]), refused(Reason::AclDenied)),
                (Fixture::new().all_to(1, HINT), all()),
            ],
        ),
        after(
            "an established flow of a tracked service is cut off by the list",
            vec![
                (Fixture::new().all_to(1, HINT).tracked(true), all()),
                (
                    fixture(WEB, &[(CLIENTS, Says::DENIED)]).tracked(true),
                    web_refused(Reason::AclDenied),
                ),
            ],
        ),
        case(
            "nobody else's packets meet a list: other addresses, other ports, other protocols",
            fixture(0, &[(EVERYBODY, Says::DENIED)]),
            [
                Client::each()
                    .map(|client| passes(client.to_port(22).frame(), Reason::NoService))
                    .to_vec(),
                vec![passes(
                    with(Client::tcp4().frame(), ETHERNET + 16, &[192, 0, 2, 77]),
                    Reason::NotVip,
                )],
                vec![passes(
                    with(Client::tcp4().frame(), ETHERNET + 9, &[132]),
                    Reason::OtherProtocol,
                )],
            ]
            .concat(),
        ),
        case(
            "lists come before everything that is said about the packet: a packet that lies is denied, too",
            fixture(0, &[(CLIENTS, Says::DENIED)]),
            vec![drops(
                with(Client::tcp4().frame(), ETHERNET + 2, &[0xff, 0xff]),
                Reason::AclDenied,
            )],
        ),
        case(
            "lists count behind VLAN tags, IPv4 options and in first fragments",
            fixture(0, &[(CLIENTS, Says::DENIED)]),
            [
                Client::each()
                    .map(|client| {
                        drops(frames::tagged(&client.frame(), &[(0x8100, 6)]), Reason::AclDenied)
                    })
                    .to_vec(),
                vec![
                    drops(Client { options: 8, ..Client::tcp4() }.frame(), Reason::AclDenied),
                    drops(
                        Client { fragment: (false, true, 0), ..Client::udp4() }.frame(),
                        Reason::AclDenied,
                    ),
                    // Nobody wrote down where the first one went.
                    passes(
                        Client { fragment: (false, false, 8), ..Client::udp4() }.frame(),
                        Reason::FragmentUnknown,
                    ),
                ],
            ]
            .concat(),
        ),
        after("a later fragment is dropped when its source has been denied since the first one", {
            let firsts = || Client::each().map(|client| fragments::sent(&client, 7, 0, 3)).to_vec();
            let later = || Client::each().map(|client| fragments::sent(&client, 7, 1, 3)).to_vec();
            let dropped = |reason| {
                Client::each()
                    .map(|client| drops(fragments::fragment(&client, 7, 1, 3), reason))
                    .to_vec()
            };
            // Two clients to the service WEB, then two to DNS.
            let web_dropped = |reason| [&dropped(reason)[..2], &later()[2..]].concat();
            let with = |list, said: &[Said]| listed(fragments::fixture(), list, said);
            vec![
                (fragments::fixture(), firsts()),
                (with(0, &[(CLIENTS, Says::DENIED)]), dropped(Reason::AclDenied)),
                (
                    with(0, &[(EVERYBODY, Says::NOT_ALLOWED), (OTHERS, Says::ALLOWED)]),
                    dropped(Reason::AclNotAllowed),
                ),
                (with(WEB, &[(CLIENT, Says::DENIED)]), web_dropped(Reason::AclDenied)),
                (
                    with(WEB, &[(EVERYBODY, Says::NOT_ALLOWED), (OTHERS, Says::ALLOWED)]),
                    web_dropped(Reason::AclNotAllowed),
                ),
                (with(WEB, &[(EVERYBODY, Says::NOT_ALLOWED), (CLIENT, Says::ALLOWED)]), later()),
                (with(0, &[(OTHERS, Says::DENIED)]), later()),
                // Without any list they are served as before.
                (fragments::fixture(), later()),
            ]
        }),
        after("a later fragment that lies or is expired is denied before that is said of it", {
            let bent = |client: &Client| {
                let at = if client.is_v6() { 18 } else { 16 };
                let lying = with(fragments::fragment(client, 7, 1, 2), at, &[0xff, 0xff]);
                let expired = fragments::fragment(&Client { ttl: 0, ..client.clone() }, 7, 1, 2);
                [drops(lying, Reason::AclDenied), drops(expired, Reason::AclDenied)]
            };
            vec![
                (
                    fragments::fixture(),
                    Client::each().map(|client| fragments::sent(&client, 7, 0, 2)).to_vec(),
                ),
                (
                    listed(fragments::fixture(), 0, &[(CLIENTS, Says::DENIED)]),
                    Client::each().iter().flat_map(bent).collect(),
                ),
            ]
        }),
        case(
            "an ICMP error is dropped when the client whose flow it quotes is denied, whoever sends it",
            fixture(0, &[(CLIENT, Says::DENIED)]),
            icmp_errors::few().map(|error| drops(error.frame(), Reason::AclDenied)).collect(),
        ),
        case(
            "an ICMP error from a router that is in no allow-list, and in a deny-list, is followed",
            listed(
                fixture(WEB, &[(EVERYBODY, Says::NOT_ALLOWED), (CLIENT, Says::ALLOWED)]),
                0,
                &[(ROUTERS, Says::DENIED)],
            ),
            icmp_errors::few()
                .map(|error| icmp_errors::followed(&Fixture::new().all_to(1, HINT), &error))
                .collect(),
        ),
        case(
            "pings of a source that is denied to all are dropped; a service's list says nothing of pings",
            listed(fixture(0, &[(CLIENT, Says::DENIED)]), WEB, &[(EVERYBODY, Says::NOT_ALLOWED)]),
            echo::both().into_iter().map(|ping| drops(ping.frame(), Reason::AclDenied)).collect(),
        ),
        case(
            "pings are answered whatever a service's list says",
            fixture(WEB, &[(EVERYBODY, Says::DENIED)]),
            echo::both().iter().map(echo::answered).collect(),
        ),
        case(
            "a service without a list pays no heed to another's",
            fixture(DNS, &[(EVERYBODY, Says::DENIED)]),
            [&all()[..2], &refused(Reason::AclDenied)[2..]].concat(),
        ),
    ]
}
