//! Non-initial fragments follow the first fragment.

use etherparse::EtherType;
use sluice_datapath::Reason;
use sluice_datapath::abi::{RateKind, VipOptions};

use super::case::{Case, CaseStep};
use super::expect::{drops, forwards, passes, patched};
use crate::packets::expectation::{Expectation, Forwarded};
use crate::packets::fixture::{BackendSpec, DNS, Fixture, WEB};
use crate::packets::frames::{self, Client, Frame, L4Kind};

const HINT: u16 = 0x557f;

pub(super) fn cases() -> Vec<Case> {
    let each = |send: &dyn Fn(&Client) -> Vec<(Frame, Expectation)>| {
        Client::each().iter().flat_map(send).collect()
    };
    vec![
        Case::new(
            "non-initial fragments go to the backend of the first fragment",
            fixture(),
            each(&|client| (0..4).map(|number| sent(client, 7, number, 4)).collect()),
        ),
        Case::new(
            "non-initial fragments pass before the first fragment and follow it afterwards",
            fixture(),
            each(&|client| {
                vec![
                    passes(fragment(client, 7, 2, 3), Reason::FragmentUnknown),
                    sent(client, 7, 0, 3),
                    sent(client, 7, 2, 3),
                    sent(client, 7, 1, 3),
                ]
            }),
        ),
        Case::new(
            "non-initial fragments of another packet, client or IPv4 protocol pass",
            fixture(),
            each(&|client| {
                let id = 2 * OF_UDP;
                let other = |id, change: &dyn Fn(&mut Client)| {
                    let mut client = client.clone();
                    change(&mut client);
                    passes(fragment(&client, id, 1, 2), Reason::FragmentUnknown)
                };
                let port = client.source.port();
                let mut sequence = vec![
                    sent(client, id, 0, 2),
                    passes(fragment(client, id + 1, 1, 2), Reason::FragmentUnknown),
                    other(id, &|client| {
                        client.source =
                            (Client::each()[usize::from(client.is_v6())].destination.ip(), port)
                                .into()
                    }),
                ];
                if !client.is_v6() {
                    let udp = client.transport == L4Kind::Udp;
                    let same = if udp { id + OF_UDP } else { id - OF_UDP };
                    sequence.push(other(same, &|client| {
                        client.transport = if udp { L4Kind::TcpAck } else { L4Kind::Udp };
                    }));
                }
                sequence.push(sent(client, id, 1, 2));
                sequence
            }),
        ),
        Case::new(
            "fragments of one IPv6 packet may name different next headers (RFC 8200 section 4.5)",
            fixture(),
            {
                const NEXT: usize = 14 + 40;
                const OPTIONS: u8 = 60;

                let clients = Client::each().into_iter().filter(Client::is_v6);
                let of = |client: Client| {
                    let mut first = fragment(&client, 7, 0, 3);
                    // The first fragment has destination options before the L4 header. The fragment
                    // headers of the others name destination options as next header, as most
                    // senders do, or another value.
                    let transport = std::mem::replace(&mut first[NEXT], OPTIONS);
                    first.splice(NEXT + 8..NEXT + 8, [transport, 0, 1, 4, 0, 0, 0, 0]);
                    first[19] += 8;
                    let later =
                        |number, says| patched(fragment(&client, 7, number, 3), NEXT, &[says]);
                    [first, later(1, OPTIONS), later(2, 59)].map(|bytes| forwarded(&client, bytes))
                };
                clients.flat_map(of).collect()
            },
        ),
        Case::new(
            "all fragments to a port without a VIP pass",
            fixture(),
            each(&|client| {
                let client = client.clone().to_port(9);
                vec![
                    passes(fragment(&client, 7, 0, 2), Reason::NoService),
                    passes(fragment(&client, 7, 1, 2), Reason::FragmentUnknown),
                ]
            }),
        ),
        Case::new("fragments to other addresses pass", fixture(), {
            let clients = [
                Client::udp4().to_address([203, 0, 113, 11]),
                Client::udp6().to_address([0, 0, 0, 0, 0, 0, 0, 1]),
            ];
            let both = clients.iter().flat_map(|client| {
                [0, 1].map(|number| passes(fragment(client, 7, number, 2), Reason::NotVip))
            });
            both.collect()
        }),
        Case::new(
            "a tagged non-initial fragment follows the first fragment and leaves without its tag",
            fixture(),
            each(&|client| {
                let tag = |(frame, outcome): (Frame, Expectation)| {
                    (Frame::from(frames::tagged(&frame.bytes, &[(0x8100, 5)])), outcome)
                };
                vec![tag(sent(client, 7, 0, 2)), tag(sent(client, 7, 1, 2))]
            }),
        ),
        Case::new(
            "an atomic fragment is forwarded like a packet without a fragment header",
            fixture(),
            [Client::tcp6(), Client::udp6()].map(|client| sent(&client, 7, 0, 1)).to_vec(),
        ),
        Case::new(
            "a non-initial fragment with a wrong length is dropped",
            fixture(),
            each(&|client| {
                let at = if client.is_v6() { 18 } else { 16 };
                let wrong_length = patched(fragment(client, 7, 1, 2), at, &[0xff, 0xff]);
                vec![sent(client, 7, 0, 2), drops(wrong_length, Reason::BadLength)]
            }),
        ),
        Case::new(
            "a non-initial fragment with a TTL of 0 is dropped",
            fixture(),
            each(&|client| {
                let expired = Client { ttl: 0, ..client.clone() };
                vec![sent(client, 7, 0, 2), drops(fragment(&expired, 7, 1, 2), Reason::TtlExpired)]
            }),
        ),
        Case::new("a packet with two fragment headers passes", fixture(), {
            let twice = patched(fragment(&Client::udp6(), 7, 0, 2), 14 + 40, &[44]);
            vec![passes(twice, Reason::ExtensionHeaders)]
        }),
        reused(),
        dropped(),
        limited(),
        dropped_later(),
    ]
}

/// After the first fragment another backend gets the backend's index.
fn reused() -> Case {
    let before = fixture();
    let after = Fixture::new().all_to(4, HINT).with_backend(3, |backend| backend.epoch += 1);
    let client = Client::udp4();
    let (first, forwarded) = sent(&client, 7, 0, 2);
    let (later, dropped) = drops(fragment(&client, 7, 1, 2), Reason::NoBackend);
    Case {
        name: "a non-initial fragment does not go to a new backend with the index of the first fragment's backend",
        steps: vec![
            CaseStep::Configure(before),
            CaseStep::Send(first, forwarded),
            CaseStep::Configure(after),
            CaseStep::Send(later, dropped),
        ],
    }
}

/// A fixture whose [`WEB`] drops fragments.
fn dropping() -> Fixture {
    Fixture { vip_options: [(WEB, VipOptions::DROP_FRAGMENTS)].into(), ..fixture() }
}

fn dropped() -> Case {
    let frames = |client: &Client| {
        if client.transport == L4Kind::Udp {
            return vec![sent(client, 7, 0, 2), sent(client, 7, 1, 2)];
        }
        vec![
            drops(fragment(client, 7, 0, 2), Reason::FragmentDropped),
            // Without an entry, the other fragments belong to no service.
            passes(fragment(client, 7, 1, 2), Reason::FragmentUnknown),
            forwards(client, 3, HINT),
        ]
    };
    Case::new(
        "a service with the drop option drops first fragments, and forwards whole packets",
        dropping(),
        Client::each().iter().flat_map(frames).collect(),
    )
}

/// Fragments consume the tokens of their own rate, whole packets none.
fn limited() -> Case {
    let mut fixture = fixture();
    fixture.rates.insert((WEB, RateKind::Fragments), 3);
    fixture.vip_options.insert(WEB, VipOptions::RATE_LIMITED);
    let (tcp4, tcp6, udp4) = (Client::tcp4(), Client::tcp6(), Client::udp4());
    Case::new(
        "fragments beyond a service's rate of fragments are dropped",
        fixture,
        vec![
            forwards(&tcp4, 3, HINT),
            sent(&tcp4, 7, 0, 3),
            sent(&tcp4, 7, 1, 3),
            sent(&tcp6, 7, 0, 3),
            drops(fragment(&tcp4, 7, 2, 3), Reason::RateLimitedFragments),
            drops(fragment(&tcp6, 8, 0, 3), Reason::RateLimitedFragments),
            sent(&udp4, 7, 0, 2),
            sent(&udp4, 7, 1, 2),
            forwards(&tcp6, 3, HINT),
        ],
    )
}

/// The option is set between the fragments of a packet.
fn dropped_later() -> Case {
    let client = Client::tcp4();
    let (first, forwarded) = sent(&client, 7, 0, 2);
    let (later, follows) = sent(&client, 7, 1, 2);
    Case {
        name: "a non-initial fragment follows a first fragment from before the drop option",
        steps: vec![
            CaseStep::Configure(fixture()),
            CaseStep::Send(first, forwarded),
            CaseStep::Configure(dropping()),
            CaseStep::Send(later, follows),
        ],
    }
}

/// A fixture whose packets, and their fragments by [`sent`], go to one backend.
pub(super) fn fixture() -> Fixture {
    Fixture::new().all_to(3, HINT)
}

/// Bytes of each fragment except the last.
const PART: usize = 48;
/// Added to the identification of datagrams: one client sends segments and datagrams, and fragments
/// of IPv6 packets belong together by addresses and identification alone.
const OF_UDP: u16 = 100;

/// Fragment `number` of `count` of a client's packet with this identification, plus [`OF_UDP`] for
/// datagrams.
pub(super) fn fragment(client: &Client, id: u16, number: usize, count: usize) -> Vec<u8> {
    let id = if client.transport == L4Kind::Udp { id + OF_UDP } else { id };
    let packet = Client { payload: 150, ..client.clone() }.packet();
    let fixed = if client.is_v6() { 40 } else { 20 };
    let content = &packet[fixed..];
    let last = number + 1 == count;
    let part = &content[number * PART..if last { content.len() } else { (number + 1) * PART }];
    let offset = (number * PART / 8) as u16;
    let mut header = packet[..fixed].to_vec();
    if client.is_v6() {
        header[4..6].copy_from_slice(&(part.len() as u16 + 8).to_be_bytes());
        let next = std::mem::replace(&mut header[6], 44);
        let bits = offset << 3 | u16::from(!last);
        header.extend([next, 0]);
        header.extend([bits.to_be_bytes(), [0, 0], id.to_be_bytes()].concat());
        return frames::ethernet(EtherType::IPV6, &[&header[..], part].concat());
    }
    header[2..4].copy_from_slice(&(part.len() as u16 + 20).to_be_bytes());
    header[4..6].copy_from_slice(&id.to_be_bytes());
    header[6..8].copy_from_slice(&(offset | u16::from(!last) << 13).to_be_bytes());
    frames::ethernet(EtherType::IPV4, &[&header[..], part].concat())
}

/// The same with the expectation that it goes to backend 3.
pub(super) fn sent(client: &Client, id: u16, number: usize, count: usize) -> (Frame, Expectation) {
    forwarded(client, fragment(client, id, number, count))
}

/// A fragment of a client's packet with the expected backend.
fn forwarded(client: &Client, bytes: Vec<u8>) -> (Frame, Expectation) {
    let (backend, length) = (BackendSpec::new(3), bytes.len() - 14);
    let outer = if client.is_v6() {
        frames::outer_v6(backend.v6.expect("it has one"), client.tos, HINT, length)
    } else {
        frames::outer_v4(backend.v4.expect("it has one"), client.tos, HINT, length)
    };
    let outcome = Expectation::Forward(Forwarded {
        bytes: frames::encapsulated(&bytes, &outer),
        service: if client.transport == L4Kind::Udp { DNS } else { WEB },
        backend: 3,
        packets: 1,
        length: length as u64,
        is_syn: false,
    });
    (bytes.into(), outcome)
}
