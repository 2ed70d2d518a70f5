//! Packets to a VIP that are forwarded to a backend.

use std::net::Ipv4Addr;

use super::case::{Case, CaseStep};
use super::expect::{forwarded, forwards, slot_of};
use crate::packets::addresses::VIP_V4;
use crate::packets::expectation::{Expectation, Forwarded};
use crate::packets::fixture::Fixture;
use crate::packets::frames::{self, Client, Frame, L4Kind};

/// A hint with bits in both halves. IPv4 carries its upper ten bits: 0x5540 of 0x557f.
const HINT: u16 = 0x557f;

pub(super) fn cases() -> Vec<Case> {
    let fixture = Fixture::new().all_to(3, HINT);
    let each = |change: &dyn Fn(Client) -> Client| {
        Client::each().map(|client| forwards(&change(client), 3, HINT)).to_vec()
    };
    let one = |client: Client| vec![forwards(&client, 3, HINT)];
    vec![
        Case::new(
            "an IPv4 TCP segment gets an IPv4 outer header",
            fixture.clone(),
            one(Client::tcp4()),
        ),
        Case::new(
            "an IPv6 TCP segment gets an IPv6 outer header",
            fixture.clone(),
            one(Client::tcp6()),
        ),
        Case::new(
            "an IPv4 UDP datagram gets an IPv4 outer header",
            fixture.clone(),
            one(Client::udp4()),
        ),
        Case::new(
            "an IPv6 UDP datagram gets an IPv6 outer header",
            fixture.clone(),
            one(Client::udp6()),
        ),
        Case::new(
            "the SipHash of the flow selects the slot with backend and hint",
            Fixture::new(),
            spread(),
        ),
        Case::new(
            "the outer header carries the hint: ten bits in IPv4, sixteen in IPv6",
            Fixture::new(),
            Vec::new(),
        )
        .hints(),
        Case::new(
            "DSCP and ECN are copied into the outer header",
            fixture.clone(),
            (0..=255).flat_map(|class| each(&|client| Client { tos: class, ..client })).collect(),
        ),
        Case::new("the outer TTL is 64 whatever the client's TTL", fixture.clone(), {
            [1, 2, 63, 64, 65, 255]
                .iter()
                .flat_map(|&ttl| each(&|client| Client { ttl, ..client }))
                .collect()
        }),
        Case::new("the outer checksum is valid for every length", fixture.clone(), {
            (0..=1400)
                .step_by(7)
                .map(|payload| forwards(&Client { payload, ..Client::tcp4() }, 3, HINT))
                .collect()
        }),
        Case::new(
            "the outer checksum is valid when its sum carries twice",
            carrying_world(),
            vec![carrying()],
        ),
        Case::new(
            "IPv4 options of every length stay in the inner packet",
            fixture.clone(),
            (0..=40)
                .step_by(4)
                .flat_map(|options| {
                    [Client { options, ..Client::tcp4() }, Client { options, ..Client::udp4() }]
                })
                .map(|client| forwards(&client, 3, HINT))
                .collect(),
        ),
        Case::new(
            "TCP options of every length stay unchanged",
            fixture.clone(),
            (0..=40)
                .step_by(4)
                .flat_map(|tcp_options| {
                    [Client::tcp4(), Client::tcp6()].map(|c| Client { tcp_options, ..c })
                })
                .map(|client| forwards(&client, 3, HINT))
                .collect(),
        ),
        Case::new(
            "a packet without payload is forwarded",
            fixture.clone(),
            each(&|client| Client { payload: 0, ..client }),
        ),
        Case::new(
            "Ethernet padding is neither counted nor included in the outer length",
            fixture.clone(),
            Client::each()
                .into_iter()
                .flat_map(|client| {
                    [1, 6, 18, 46].map(|padding| (Client { payload: 0, ..client.clone() }, padding))
                })
                .map(|(client, padding)| {
                    let mut bytes = client.frame();
                    bytes.resize(bytes.len() + padding, 0);
                    let outcome = forwarded(&bytes, &client, 3, HINT);
                    (bytes.into(), outcome)
                })
                .collect(),
        ),
        Case::new(
            "a SYN counts as a new connection, a SYN-ACK or ACK does not",
            fixture.clone(),
            {
                let kinds = [L4Kind::TcpSyn, L4Kind::TcpAck, L4Kind::TcpSynAck, L4Kind::TcpSyn];
                let both = kinds.iter().flat_map(|&transport| {
                    [Client::tcp4(), Client::tcp6()].map(|c| Client { transport, ..c })
                });
                both.map(|client| forwards(&client, 3, HINT)).collect()
            },
        ),
        Case::new(
            "a merged packet counts as its segments",
            fixture.clone(),
            segments(&[1, 2, 3, 45, 65_535]),
        ),
        Case::new(
            "a packet is forwarded with and without the DF flag",
            fixture.clone(),
            [true, false]
                .map(|df| forwards(&Client { fragment: (df, false, 0), ..Client::tcp4() }, 3, HINT))
                .to_vec(),
        ),
        Case::new(
            "a packet exactly as long as the MTU allows is forwarded",
            fixture.clone().with_mtu(1164),
            {
                let fits = |client: Client, outer: usize| {
                    let payload = client.payload + 1164 - outer - client.packet().len();
                    forwards(&Client { payload, ..client }, 3, HINT)
                };
                let [tcp4, tcp6, udp4, udp6] = Client::each();
                vec![fits(tcp4, 20), fits(tcp6, 40), fits(udp4, 20), fits(udp6, 40)]
            },
        ),
        Case::new(
            "a packet of 3,000 bytes is forwarded if the MTU allows it",
            fixture.clone().with_mtu(9000),
            each(&|client| Client { payload: 3000, ..client }),
        ),
        Case::new(
            "the MTU applies to the segments of a merged packet: three of 1,140 bytes fit 1,160",
            fixture.clone().with_mtu(1160),
            vec![merged(Client::tcp4(), 1100)],
        ),
        Case::new(
            "the MTU applies to the segments of a merged IPv6 packet: three of 1,160 bytes fit 1,200",
            fixture.clone().with_mtu(1200),
            vec![merged(Client::tcp6(), 1100)],
        ),
        Case::new(
            "the MTU applies to each merged datagram: three of 1,128 bytes fit 1,148",
            fixture.clone().with_mtu(1148),
            vec![merged(Client::udp4(), 1100)],
        ),
        Case::new(
            "the MTU applies to the length of a merged packet with one short segment",
            fixture.with_mtu(1160),
            {
                let client = Client { payload: 900, ..Client::tcp4() };
                let (frame, outcome) = forwards(&client, 3, HINT);
                vec![(Frame { segment_size: 1400, segments: 0, ..frame }, outcome)]
            },
        ),
    ]
}

/// Three segments of one size in a merged packet. In a test run the kernel refuses to make room in
/// it, after the MTU check that is tested here: the packet then counts as `adjust_room_failed`, not
/// as `too_big`.
fn merged(client: Client, segment_size: u32) -> (Frame, Expectation) {
    let client = Client { payload: 3300, ..client };
    let (frame, outcome) = forwards(&client, 3, HINT);
    (Frame { segment_size, segments: 3, ..frame }, counted_as(outcome, 3))
}

fn segments(counts: &[u32]) -> Vec<(Frame, Expectation)> {
    let frames = counts.iter().flat_map(|&count| Client::each().map(|client| (client, count)));
    frames
        .map(|(client, count)| {
            let (frame, outcome) = forwards(&client, 3, HINT);
            (Frame { segments: count, ..frame }, counted_as(outcome, count.into()))
        })
        .collect()
}

fn counted_as(outcome: Expectation, packets: u64) -> Expectation {
    match outcome {
        Expectation::Forward(forwarded) => Expectation::Forward(Forwarded { packets, ..forwarded }),
        outcome => outcome,
    }
}

/// Sixty flows of each kind, spread over all backends.
fn spread() -> Vec<(Frame, Expectation)> {
    let fixture = Fixture::new();
    let flows =
        (0..60).flat_map(|port| Client::each().map(|client| client.from_port(20_000 + port * 31)));
    flows
        .map(|client| {
            let (backend, hint) = slot_of(&fixture, &client);
            forwards(&client, backend, hint)
        })
        .collect()
}

/// The backend's address and the hint that, with the length and TOS of [`carrying`], sum the outer
/// header to 0x1ffff: folding it once gives 0x10000, and only a second fold adds that carry. About
/// one sum in 20,000 needs the second fold.
const CARRYING: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 0, 188, 255), 0xb0c0);

fn carrying_world() -> Fixture {
    Fixture::new().all_to(3, CARRYING.1).with_backend(3, |backend| backend.v4 = Some(CARRYING.0))
}

fn carrying() -> (Frame, Expectation) {
    let client = Client { tos: 0x3a, payload: 451, ..Client::tcp4() };
    let (frame, outcome) = forwards(&client, 3, CARRYING.1);
    let outer = frames::outer_v4(CARRYING.0, client.tos, CARRYING.1, client.packet().len());
    let bytes = frames::encapsulated(&frame.bytes, &outer);
    match outcome {
        Expectation::Forward(forwarded) => {
            (frame, Expectation::Forward(Forwarded { bytes, ..forwarded }))
        }
        outcome => (frame, outcome),
    }
}

impl Case {
    /// Each bit of the hint alone, and all bits together, for both families.
    fn hints(mut self) -> Self {
        self.steps.clear();
        for hint in (0..16).map(|bit| 1 << bit).chain([0, u16::MAX]) {
            self.steps.push(CaseStep::Configure(Fixture::new().all_to(2, hint)));
            let clients = [Client::tcp4().to_address(VIP_V4), Client::tcp6()];
            self.steps.extend(clients.map(|client| {
                let (frame, outcome) = forwards(&client, 2, hint);
                CaseStep::Send(frame, outcome)
            }));
        }
        self
    }
}
