//! Packets to a VIP that cannot be forwarded: counted drops.

use sluice_datapath::Reason;
use sluice_datapath::abi::AddressOptions;

use super::case::Case;
use super::expect::{drops, passes, to, with};
use crate::packets::expectation::Expectation;
use crate::packets::fixture::{Fixture, LARGEST_INDEX};
use crate::packets::frames::{Client, ETHERNET, Frame, L4Kind};

pub(super) fn cases() -> Vec<Case> {
    let all_to = |backend| Fixture::new().all_to(backend, 0x1240);
    let each = |reason| Client::each().map(|client| drops(client.frame(), reason)).to_vec();
    vec![
        Case::new("a claim of one byte more than the frame has is dropped", all_to(1), {
            Client::each().map(|client| claiming(&client, |length| length + 1)).to_vec()
        }),
        Case::new("a claim of 65,535 bytes is dropped", all_to(1), {
            Client::each().map(|client| claiming(&client, |_| 65_535)).to_vec()
        }),
        Case::new("a claim that ends inside the transport header is dropped", all_to(1), {
            let short = |client: Client| {
                let headers = if client.transport == L4Kind::Udp { 8 } else { 20 };
                let network = if client.is_v6() { 0 } else { 20 };
                [0, network, network + 1, network + headers - 1]
                    .into_iter()
                    .map(move |claim| claiming(&client, |_| claim))
            };
            Client::each().into_iter().flat_map(short).collect()
        }),
        Case::new(
            "a frame cut inside the payload is dropped, for its header claims more",
            all_to(1),
            {
                let cut = |client: Client| {
                    let whole = client.frame();
                    (whole.len() - client.payload..whole.len())
                        .map(move |length| drops(whole[..length].to_vec(), Reason::BadLength))
                };
                Client::each().into_iter().flat_map(cut).collect()
            },
        ),
        Case::new("a TCP header that says to be shorter than 20 bytes is dropped", all_to(1), {
            let short = |words: u8| {
                [(Client::tcp4(), 20), (Client::tcp6(), 40)].map(|(client, network)| {
                    drops(
                        with(client.frame(), ETHERNET + network + 12, &[words << 4]),
                        Reason::BadLength,
                    )
                })
            };
            (0..5).flat_map(short).collect()
        }),
        Case::new("a TCP header that says to be longer than the packet is dropped", all_to(1), {
            [(Client::tcp4(), 20), (Client::tcp6(), 40)]
                .map(|(client, network)| {
                    let frame = Client { payload: 39, ..client }.frame();
                    drops(with(frame, ETHERNET + network + 12, &[0xf0]), Reason::BadLength)
                })
                .to_vec()
        }),
        Case::new("a packet whose time to live is zero is dropped", all_to(1), {
            Client::each()
                .map(|client| drops(Client { ttl: 0, ..client }.frame(), Reason::TtlExpired))
                .to_vec()
        }),
        Case::new(
            "without a lookup table packets are dropped",
            Fixture { tables: [].into(), ..Fixture::new() },
            each(Reason::NoTable),
        ),
        Case::new(
            "a lookup table without slots drops packets",
            empty_tables(),
            each(Reason::NoTable),
        ),
        Case::new("a slot without a backend drops its packets", all_to(0), each(Reason::NoBackend)),
        Case::new(
            "a slot that names an index beyond the array drops its packets",
            all_to(LARGEST_INDEX + 1),
            each(Reason::NoBackend),
        ),
        Case::new(
            "a slot that names a free index drops its packets",
            all_to(LARGEST_INDEX),
            each(Reason::BackendWithoutAddress),
        ),
        Case::new(
            "a packet to a port that no VIP has is dropped where the address says so",
            Fixture { address_options: [(2, AddressOptions::DROP_NO_SERVICE)].into(), ..all_to(1) },
            vec![
                drops(Client::tcp6().to_port(444).frame(), Reason::NoServiceDropped),
                drops(Client::udp6().to_port(443).frame(), Reason::NoServiceDropped),
                passes(Client::tcp4().to_port(444).frame(), Reason::NoService),
                to(&Client::tcp6(), 1, 0x1240),
            ],
        ),
        Case::new(
            "without a route to the backend packets are dropped",
            all_to(2).with_backend(2, |backend| backend.next_hop = None),
            each(Reason::NoRoute),
        ),
        Case::new(
            "a packet of one byte more than fits the MTU is dropped",
            all_to(1).with_mtu(564),
            {
                let too_big = |client: Client, outer: usize| {
                    let payload = client.payload + 565 - outer - client.packet().len();
                    drops(Client { payload, ..client }.frame(), Reason::TooBig)
                };
                let [tcp4, tcp6, udp4, udp6] = Client::each();
                vec![too_big(tcp4, 20), too_big(tcp6, 40), too_big(udp4, 20), too_big(udp6, 40)]
            },
        ),
        Case::new(
            "merged segments of one byte more than fit the MTU are dropped",
            all_to(1).with_mtu(559),
            {
                let client = Client { payload: 3300, ..Client::tcp4() };
                vec![merged(client.frame(), 500, Reason::TooBig)]
            },
        ),
        Case::new(
            "merged IPv6 segments of one byte more than fit the MTU are dropped",
            all_to(1).with_mtu(1199),
            {
                let client = Client { payload: 3300, ..Client::tcp6() };
                vec![merged(client.frame(), 1100, Reason::TooBig)]
            },
        ),
        Case::new(
            "TCP options count against the MTU of merged segments",
            all_to(1).with_mtu(571),
            {
                let client = Client { payload: 3300, tcp_options: 12, ..Client::tcp4() };
                vec![merged(client.frame(), 500, Reason::TooBig)]
            },
        ),
        Case::new("a merged packet is one refusal, whatever it holds", all_to(0), {
            let frame = Client { payload: 3000, ..Client::tcp4() }.frame();
            vec![merged(frame, 1000, Reason::NoBackend)]
        }),
        Case::new(
            "what is dropped is counted once by its reason, and what comes next is forwarded",
            all_to(1),
            {
                let bad = || drops(Client { ttl: 0, ..Client::tcp4() }.frame(), Reason::TtlExpired);
                vec![
                    bad(),
                    to(&Client::tcp4(), 1, 0x1240),
                    bad(),
                    bad(),
                    to(&Client::udp6(), 1, 0x1240),
                ]
            },
        ),
    ]
}

/// The packet with another length in its IP header: IPv4's total length, IPv6's payload length.
fn claiming(client: &Client, claim: impl Fn(u16) -> u16) -> (Frame, Expectation) {
    let bytes = client.frame();
    let at = ETHERNET + if client.is_v6() { 4 } else { 2 };
    let claimed = claim(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
    drops(with(bytes, at, &claimed.to_be_bytes()), Reason::BadLength)
}

fn merged(bytes: Vec<u8>, segment_size: u32, reason: Reason) -> (Frame, Expectation) {
    (Frame { segment_size, segments: 3, ..bytes.into() }, Expectation::Drop(reason))
}

fn empty_tables() -> Fixture {
    let mut fixture = Fixture::new();
    fixture.tables.values_mut().for_each(|table| table.slots.clear());
    fixture
}
