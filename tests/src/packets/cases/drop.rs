//! Packets to a VIP that cannot be forwarded: counted drops.

use sluice_datapath::Reason;
use sluice_datapath::abi::AddressOptions;

use super::case::Case;
use super::expect::{drops, forwards, passes, patched};
use crate::packets::expectation::Expectation;
use crate::packets::fixture::{Fixture, LARGEST_INDEX};
use crate::packets::frames::{Client, ETHERNET, Frame, L4Kind};

pub(super) fn cases() -> Vec<Case> {
    let all_to = |backend| Fixture::new().all_to(backend, 0x1240);
    let each = |reason| Client::each().map(|client| drops(client.frame(), reason)).to_vec();
    vec![
        Case::new("an IP length of one byte more than the frame is dropped", all_to(1), {
            Client::each().map(|client| claiming(&client, |length| length + 1)).to_vec()
        }),
        Case::new("an IP length of 65,535 bytes is dropped", all_to(1), {
            Client::each().map(|client| claiming(&client, |_| 65_535)).to_vec()
        }),
        Case::new("an IP length that ends inside the L4 header is dropped", all_to(1), {
            let short = |client: Client| {
                let headers = if client.transport == L4Kind::Udp { 8 } else { 20 };
                let network = if client.is_v6() { 0 } else { 20 };
                [0, network, network + 1, network + headers - 1]
                    .into_iter()
                    .map(move |claim| claiming(&client, |_| claim))
            };
            Client::each().into_iter().flat_map(short).collect()
        }),
        Case::new("a frame shorter than its IP length is dropped", all_to(1), {
            let cut = |client: Client| {
                let whole = client.frame();
                (whole.len() - client.payload..whole.len())
                    .map(move |length| drops(whole[..length].to_vec(), Reason::BadLength))
            };
            Client::each().into_iter().flat_map(cut).collect()
        }),
        Case::new("a TCP data offset below 20 bytes is dropped", all_to(1), {
            let short = |words: u8| {
                [(Client::tcp4(), 20), (Client::tcp6(), 40)].map(|(client, network)| {
                    drops(
                        patched(client.frame(), ETHERNET + network + 12, &[words << 4]),
                        Reason::BadLength,
                    )
                })
            };
            (0..5).flat_map(short).collect()
        }),
        Case::new("a TCP data offset beyond the packet is dropped", all_to(1), {
            [(Client::tcp4(), 20), (Client::tcp6(), 40)]
                .map(|(client, network)| {
                    let frame = Client { payload: 39, ..client }.frame();
                    drops(patched(frame, ETHERNET + network + 12, &[0xf0]), Reason::BadLength)
                })
                .to_vec()
        }),
        Case::new("a TTL of 0 is dropped", all_to(1), {
            Client::each()
                .map(|client| drops(Client { ttl: 0, ..client }.frame(), Reason::TtlExpired))
                .to_vec()
        }),
        Case::new(
            "packets of a service without a lookup table are dropped",
            Fixture { tables: [].into(), ..Fixture::new() },
            each(Reason::NoTable),
        ),
        Case::new(
            "packets of a service with an empty lookup table are dropped",
            empty_tables(),
            each(Reason::NoTable),
        ),
        Case::new(
            "packets of a slot without a backend are dropped",
            all_to(0),
            each(Reason::NoBackend),
        ),
        Case::new(
            "packets of a slot whose backend index is out of range are dropped",
            all_to(LARGEST_INDEX + 1),
            each(Reason::NoBackend),
        ),
        Case::new(
            "packets of a slot with a free backend index are dropped",
            all_to(LARGEST_INDEX),
            each(Reason::BackendWithoutAddress),
        ),
        Case::new(
            "a packet to a port without a VIP is dropped if the address has that option",
            Fixture { address_options: [(2, AddressOptions::DROP_NO_SERVICE)].into(), ..all_to(1) },
            vec![
                drops(Client::tcp6().to_port(444).frame(), Reason::NoServiceDropped),
                drops(Client::udp6().to_port(443).frame(), Reason::NoServiceDropped),
                passes(Client::tcp4().to_port(444).frame(), Reason::NoService),
                forwards(&Client::tcp6(), 1, 0x1240),
            ],
        ),
        Case::new(
            "packets to a backend without a route are dropped",
            all_to(2).with_backend(2, |backend| backend.next_hop = None),
            each(Reason::NoRoute),
        ),
        Case::new(
            "a packet one byte longer than the MTU allows is dropped",
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
            "a merged packet with segments one byte longer than the MTU allows is dropped",
            all_to(1).with_mtu(559),
            {
                let client = Client { payload: 3300, ..Client::tcp4() };
                vec![merged(client.frame(), 500, Reason::TooBig)]
            },
        ),
        Case::new(
            "a merged IPv6 packet with segments one byte longer than the MTU allows is dropped",
            all_to(1).with_mtu(1199),
            {
                let client = Client { payload: 3300, ..Client::tcp6() };
                vec![merged(client.frame(), 1100, Reason::TooBig)]
            },
        ),
        Case::new(
            "TCP options count towards the length of merged segments",
            all_to(1).with_mtu(571),
            {
                let client = Client { payload: 3300, tcp_options: 12, ..Client::tcp4() };
                vec![merged(client.frame(), 500, Reason::TooBig)]
            },
        ),
        Case::new("a dropped merged packet counts once", all_to(0), {
            let frame = Client { payload: 3000, ..Client::tcp4() }.frame();
            vec![merged(frame, 1000, Reason::NoBackend)]
        }),
        Case::new(
            "a drop counts once by its reason, and the next packet is forwarded",
            all_to(1),
            {
                let bad = || drops(Client { ttl: 0, ..Client::tcp4() }.frame(), Reason::TtlExpired);
                vec![
                    bad(),
                    forwards(&Client::tcp4(), 1, 0x1240),
                    bad(),
                    bad(),
                    forwards(&Client::udp6(), 1, 0x1240),
                ]
            },
        ),
    ]
}

/// The frame with another IPv4 total length or IPv6 payload length.
fn claiming(client: &Client, claim: impl Fn(u16) -> u16) -> (Frame, Expectation) {
    let bytes = client.frame();
    let at = ETHERNET + if client.is_v6() { 4 } else { 2 };
    let claimed = claim(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
    drops(patched(bytes, at, &claimed.to_be_bytes()), Reason::BadLength)
}

fn merged(bytes: Vec<u8>, segment_size: u32, reason: Reason) -> (Frame, Expectation) {
    (Frame { segment_size, segments: 3, ..bytes.into() }, Expectation::Drop(reason))
}

fn empty_tables() -> Fixture {
    let mut fixture = Fixture::new();
    fixture.tables.values_mut().for_each(|table| table.slots.clear());
    fixture
}
