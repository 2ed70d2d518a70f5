//! Source ACLs: deny lists and allow lists, global and per service.

use sluice_datapath::Reason;
use sluice_datapath::abi::{AclVerdict, VipOptions};

use super::case::{Case, CaseStep};
use super::expect::{drops, forwards, passes, patched};
use super::{echo, fragments, icmp_errors};
use crate::packets::fixture::{DNS, Fixture, WEB};
use crate::packets::frames::{self, Client, ETHERNET};

const HINT: u16 = 0x1240;
/// Prefixes of length 0: the default verdict for sources outside all other prefixes.
const DEFAULT: [&str; 2] = ["0.0.0.0/0", "::/0"];
/// Prefixes that contain every client of the cases.
const CLIENTS: [&str; 2] = ["198.51.100.0/24", "2001:db8:99::/48"];
/// Host prefixes of the clients.
const CLIENT: [&str; 2] = ["198.51.100.7/32", "2001:db8:99::7/128"];
/// Host prefixes of the routers that send ICMP errors.
const ROUTERS: [&str; 2] = ["198.51.100.254/32", "2001:db8:99::fe/128"];
/// Host prefixes of addresses next to the clients'.
const OTHERS: [&str; 2] = ["198.51.100.6/32", "2001:db8:99::6/128"];

type AclEntry = ([&'static str; 2], AclVerdict);

/// A fixture with one ACL. All packets go to one backend.
fn fixture(acl: u32, entries: &[AclEntry]) -> Fixture {
    with_acl(Fixture::new().all_to(1, HINT), acl, entries)
}

fn with_acl(mut fixture: Fixture, acl: u32, entries: &[AclEntry]) -> Fixture {
    let prefixes = entries
        .iter()
        .flat_map(|(prefixes, verdict)| prefixes.map(|p| (p.parse().expect("a prefix"), *verdict)));
    fixture.acls.insert(acl, prefixes.collect());
    if acl != AclVerdict::GLOBAL {
        fixture.vip_options.insert(acl, VipOptions::ACL);
    }
    fixture
}

pub(super) fn cases() -> Vec<Case> {
    use AclVerdict as Verdict;

    let all = || Client::each().map(|client| forwards(&client, 1, HINT)).to_vec();
    let refused = |reason| Client::each().map(|client| drops(client.frame(), reason)).to_vec();
    // Two clients of WEB, then two of DNS.
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
            "a source in the global deny list is dropped at every VIP",
            fixture(0, &[(CLIENTS, Verdict::DENIED)]),
            refused(Reason::AclDenied),
        ),
        case(
            "a source in a service's deny list is dropped at that service only",
            fixture(WEB, &[(CLIENTS, Verdict::DENIED)]),
            web_refused(Reason::AclDenied),
        ),
        case(
            "a source outside the denied prefixes is forwarded",
            fixture(0, &[(OTHERS, Verdict::DENIED)]),
            all(),
        ),
        case(
            "a host prefix denies one address",
            fixture(WEB, &[(CLIENT, Verdict::DENIED)]),
            web_refused(Reason::AclDenied),
        ),
        case(
            "a source outside a service's allow list is dropped",
            fixture(WEB, &[(DEFAULT, Verdict::NOT_ALLOWED), (OTHERS, Verdict::ALLOWED)]),
            web_refused(Reason::AclNotAllowed),
        ),
        case(
            "a source in a service's allow list is forwarded",
            fixture(WEB, &[(DEFAULT, Verdict::NOT_ALLOWED), (CLIENTS, Verdict::ALLOWED)]),
            all(),
        ),
        case(
            "a source outside the global allow list is dropped at every VIP",
            fixture(0, &[(DEFAULT, Verdict::NOT_ALLOWED), (OTHERS, Verdict::ALLOWED)]),
            refused(Reason::AclNotAllowed),
        ),
        case(
            "the longest prefix decides: allowed inside denied",
            fixture(0, &[(CLIENTS, Verdict::DENIED), (CLIENT, Verdict::ALLOWED)]),
            all(),
        ),
        case(
            "the longest prefix decides: denied inside allowed",
            fixture(
                WEB,
                &[
                    (DEFAULT, Verdict::NOT_ALLOWED),
                    (CLIENTS, Verdict::ALLOWED),
                    (CLIENT, Verdict::DENIED),
                ],
            ),
            web_refused(Reason::AclDenied),
        ),
        case(
            "the global deny list overrides a service's allow list",
            with_acl(
                fixture(0, &[(CLIENTS, Verdict::DENIED)]),
                WEB,
                &[(DEFAULT, Verdict::NOT_ALLOWED), (CLIENT, Verdict::ALLOWED)],
            ),
            refused(Reason::AclDenied),
        ),
        case(
            "a service's deny list overrides the global allow list",
            with_acl(
                fixture(0, &[(DEFAULT, Verdict::NOT_ALLOWED), (CLIENTS, Verdict::ALLOWED)]),
                WEB,
                &[(CLIENT, Verdict::DENIED)],
            ),
            web_refused(Reason::AclDenied),
        ),
        case(
            "an ACL entry of one family does not affect the other family",
            {
                let mut fixture = fixture(WEB, &[(DEFAULT, Verdict::ALLOWED)]);
                fixture
                    .acls
                    .entry(WEB)
                    .or_default()
                    .insert("::/0".parse().expect("a prefix"), Verdict::DENIED);
                fixture
            },
            vec![
                forwards(&Client::tcp4(), 1, HINT),
                drops(Client::tcp6().frame(), Reason::AclDenied),
            ],
        ),
        case(
            "a service whose ACL is missing drops all packets",
            {
                let mut fixture = fixture(WEB, &[]);
                fixture.acls.clear();
                fixture
            },
            web_refused(Reason::AclNotAllowed),
        ),
        after(
            "replacing or removing a service's ACL takes effect at once",
            vec![
                (fixture(WEB, &[(CLIENTS, Verdict::DENIED)]), web_refused(Reason::AclDenied)),
                (
                    fixture(WEB, &[(DEFAULT, Verdict::NOT_ALLOWED)]),
                    web_refused(Reason::AclNotAllowed),
                ),
                (Fixture::new().all_to(1, HINT), all()),
            ],
        ),
        after(
            "removing the global ACL takes effect at once",
            vec![
                (fixture(0, &[(CLIENTS, Verdict::DENIED)]), refused(Reason::AclDenied)),
                (Fixture::new().all_to(1, HINT), all()),
            ],
        ),
        after(
            "an ACL drops packets of flows in the connection table",
            vec![
                (Fixture::new().all_to(1, HINT).tracked(true), all()),
                (
                    fixture(WEB, &[(CLIENTS, Verdict::DENIED)]).tracked(true),
                    web_refused(Reason::AclDenied),
                ),
            ],
        ),
        case(
            "packets to other addresses, ports and protocols are not checked against ACLs",
            fixture(0, &[(DEFAULT, Verdict::DENIED)]),
            [
                Client::each()
                    .map(|client| passes(client.to_port(22).frame(), Reason::NoService))
                    .to_vec(),
                vec![passes(
                    patched(Client::tcp4().frame(), ETHERNET + 16, &[192, 0, 2, 77]),
                    Reason::NotVip,
                )],
                vec![passes(
                    patched(Client::tcp4().frame(), ETHERNET + 9, &[132]),
                    Reason::OtherProtocol,
                )],
            ]
            .concat(),
        ),
        case(
            "ACLs are checked before the packet's length",
            fixture(0, &[(CLIENTS, Verdict::DENIED)]),
            vec![drops(
                patched(Client::tcp4().frame(), ETHERNET + 2, &[0xff, 0xff]),
                Reason::AclDenied,
            )],
        ),
        case(
            "ACLs apply to tagged packets, IPv4 options and first fragments",
            fixture(0, &[(CLIENTS, Verdict::DENIED)]),
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
                    // The denied first fragment left no entry in the fragment table.
                    passes(
                        Client { fragment: (false, false, 8), ..Client::udp4() }.frame(),
                        Reason::FragmentUnknown,
                    ),
                ],
            ]
            .concat(),
        ),
        after(
            "a non-initial fragment is dropped if its source was denied after the first fragment",
            {
                let firsts =
                    || Client::each().map(|client| fragments::sent(&client, 7, 0, 3)).to_vec();
                let later =
                    || Client::each().map(|client| fragments::sent(&client, 7, 1, 3)).to_vec();
                let dropped = |reason| {
                    Client::each()
                        .map(|client| drops(fragments::fragment(&client, 7, 1, 3), reason))
                        .to_vec()
                };
                // Two clients of WEB, then two of DNS.
                let web_dropped = |reason| [&dropped(reason)[..2], &later()[2..]].concat();
                let fragments_with_acl =
                    |acl, entries: &[AclEntry]| with_acl(fragments::fixture(), acl, entries);
                vec![
                    (fragments::fixture(), firsts()),
                    (
                        fragments_with_acl(0, &[(CLIENTS, Verdict::DENIED)]),
                        dropped(Reason::AclDenied),
                    ),
                    (
                        fragments_with_acl(
                            0,
                            &[(DEFAULT, Verdict::NOT_ALLOWED), (OTHERS, Verdict::ALLOWED)],
                        ),
                        dropped(Reason::AclNotAllowed),
                    ),
                    (
                        fragments_with_acl(WEB, &[(CLIENT, Verdict::DENIED)]),
                        web_dropped(Reason::AclDenied),
                    ),
                    (
                        fragments_with_acl(
                            WEB,
                            &[(DEFAULT, Verdict::NOT_ALLOWED), (OTHERS, Verdict::ALLOWED)],
                        ),
                        web_dropped(Reason::AclNotAllowed),
                    ),
                    (
                        fragments_with_acl(
                            WEB,
                            &[(DEFAULT, Verdict::NOT_ALLOWED), (CLIENT, Verdict::ALLOWED)],
                        ),
                        later(),
                    ),
                    (fragments_with_acl(0, &[(OTHERS, Verdict::DENIED)]), later()),
                    // Without an ACL they are forwarded again.
                    (fragments::fixture(), later()),
                ]
            },
        ),
        after("ACLs are checked before the length and the TTL of a non-initial fragment", {
            let invalid = |client: &Client| {
                let at = if client.is_v6() { 18 } else { 16 };
                let wrong_length = patched(fragments::fragment(client, 7, 1, 2), at, &[0xff, 0xff]);
                let expired = fragments::fragment(&Client { ttl: 0, ..client.clone() }, 7, 1, 2);
                [drops(wrong_length, Reason::AclDenied), drops(expired, Reason::AclDenied)]
            };
            vec![
                (
                    fragments::fixture(),
                    Client::each().map(|client| fragments::sent(&client, 7, 0, 2)).to_vec(),
                ),
                (
                    with_acl(fragments::fixture(), 0, &[(CLIENTS, Verdict::DENIED)]),
                    Client::each().iter().flat_map(invalid).collect(),
                ),
            ]
        }),
        case(
            "an ICMP error is dropped if the client of the quoted flow is denied",
            fixture(0, &[(CLIENT, Verdict::DENIED)]),
            icmp_errors::few().map(|error| drops(error.frame(), Reason::AclDenied)).collect(),
        ),
        case(
            "an ICMP error from a denied router is forwarded if the client is allowed",
            with_acl(
                fixture(WEB, &[(DEFAULT, Verdict::NOT_ALLOWED), (CLIENT, Verdict::ALLOWED)]),
                0,
                &[(ROUTERS, Verdict::DENIED)],
            ),
            icmp_errors::few()
                .map(|error| icmp_errors::followed(&Fixture::new().all_to(1, HINT), &error))
                .collect(),
        ),
        case(
            "echo requests from a globally denied source are dropped",
            with_acl(
                fixture(0, &[(CLIENT, Verdict::DENIED)]),
                WEB,
                &[(DEFAULT, Verdict::NOT_ALLOWED)],
            ),
            echo::both().into_iter().map(|ping| drops(ping.frame(), Reason::AclDenied)).collect(),
        ),
        case(
            "a service's ACL does not apply to echo requests that the balancer answers",
            fixture(WEB, &[(DEFAULT, Verdict::DENIED)]),
            echo::both().iter().map(echo::answered).collect(),
        ),
        case(
            "a service's ACL does not apply to another service",
            fixture(DNS, &[(DEFAULT, Verdict::DENIED)]),
            [&all()[..2], &refused(Reason::AclDenied)[2..]].concat(),
        ),
    ]
}
