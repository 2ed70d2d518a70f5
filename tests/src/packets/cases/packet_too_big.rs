//! Packets too long for the MTU with their outer header: the balancer replies with an ICMP error
//! from the VIP address.

use etherparse::EtherType;
use sluice_datapath::Reason;
use sluice_datapath::abi::VipOptions;

use super::case::Case;
use super::cross_family::crossing;
use super::expect::{drops, forwards};
use crate::packets::expectation::{Expectation, Forwarded};
use crate::packets::fixture::{DNS, Fixture, WEB};
use crate::packets::frames::icmp::packet_too_big;
use crate::packets::frames::{self, Client, Frame, L4Kind};

const HINT: u16 = 0x557f;

pub(super) fn cases() -> Vec<Case> {
    let fixture = |mtu| Fixture::new().all_to(3, HINT).with_mtu(mtu);
    let each = |length: usize| Client::each().map(|client| of_length(client, length));
    vec![
        Case::new(
            "an ICMP error reports the MTU less the outer header",
            fixture(1500),
            each(1500).iter().map(|client| answered(client, room(client, 1500))).collect(),
        ),
        Case::new(
            "a packet exactly as long as the MTU allows is forwarded, one byte more causes an ICMP error",
            fixture(1500),
            {
                let of = |client: Client, more: usize| {
                    let length = room(&client, 1500) as usize + more;
                    of_length(client, length)
                };
                let fits = Client::each().map(|client| forwards(&of(client, 0), 3, HINT));
                let larger = Client::each()
                    .map(|client| answered(&of(client.clone(), 1), room(&client, 1500)));
                fits.into_iter().chain(larger).collect()
            },
        ),
        Case::new(
            "the reported MTU depends on the outer header of a backend of the other family",
            fixture(1500).with_backend(3, |backend| backend.v4 = None),
            vec![answered(&of_length(Client::tcp4(), 1480), 1460)],
        ),
        Case::new(
            "the reported MTU is larger for an IPv6 client of an IPv4 backend",
            fixture(1500).with_backend(3, |backend| backend.v6 = None),
            vec![answered(&of_length(Client::tcp6(), 1490), 1480)],
        ),
        Case::new(
            "an IPv4 packet causes an ICMP error with and without the DF flag",
            fixture(1500),
            {
                let clients = [Client::tcp4(), Client::udp4()];
                clients
                    .map(|client| {
                        answered(
                            &Client { fragment: (false, false, 0), ..of_length(client, 1490) },
                            1480,
                        )
                    })
                    .to_vec()
            },
        ),
        Case::new("no MTU below 576 or 1280 is reported", fixture(300), {
            each(1300)
                .iter()
                .map(|client| answered(client, if client.is_v6() { 1280 } else { 576 }))
                .collect()
        }),
        Case::new("a packet of the minimum MTU causes no ICMP error", fixture(300), {
            Client::each()
                .map(|client| {
                    let smallest = if client.is_v6() { 1280 } else { 576 };
                    drops(of_length(client, smallest).frame(), Reason::TooBig)
                })
                .to_vec()
        }),
        Case::new(
            "a merged packet causes an ICMP error if its segments are too long",
            fixture(1500),
            {
                let too_big = |client: Client, payload: usize, size: u32| {
                    let client = Client { payload, ..client };
                    merged(payload, size, answered(&client, room(&client, 1500)))
                };
                vec![
                    too_big(Client::tcp4(), 3000, 1460),
                    too_big(Client::tcp6(), 3000, 1440),
                    too_big(Client::udp4(), 3100, 1470),
                ]
            },
        ),
        Case::new(
            "a service with the drop option sends no ICMP error",
            Fixture { vip_options: [(WEB, VipOptions::DROP_TOO_BIG)].into(), ..fixture(1500) },
            {
                let silent = [Client::tcp4(), Client::tcp6()]
                    .map(|client| drops(of_length(client, 1490).frame(), Reason::TooBig));
                let told = [Client::udp4(), Client::udp6()].map(|client| {
                    let client = of_length(client, 1490);
                    answered(&client, room(&client, 1500))
                });
                let fits = [Client::tcp4(), Client::tcp6()]
                    .map(|client| forwards(&of_length(client, 1460), 3, HINT));
                silent.into_iter().chain(told).chain(fits).collect()
            },
        ),
        Case::new(
            "a service with the resegment option shortens merged TCP segments and nothing else",
            Fixture { vip_options: [(WEB, VipOptions::RESEGMENT)].into(), ..fixture(1500) },
            {
                let forwarded = |client: Client, payload: usize, size: u32| {
                    let client = Client { payload, ..client };
                    merged(payload, size, forwards(&client, 3, HINT))
                };
                let too_big = |client: Client, payload: usize, size: u32| {
                    let client = Client { payload, ..client };
                    merged(payload, size, answered(&client, room(&client, 1500)))
                };
                let single = |client: Client| {
                    let client = of_length(client, 1500);
                    answered(&client, room(&client, 1500))
                };
                vec![
                    forwarded(Client::tcp4(), 3000, 1460),
                    forwarded(Client::tcp6(), 3000, 1440),
                    forwarded(Client::tcp4(), 60_000, 1441),
                    forwarded(Client { tcp_options: 12, ..Client::tcp4() }, 20_000, 1448),
                    // These segments fit without resegmenting.
                    forwarded(Client::tcp4(), 3000, 1440),
                    forwarded(Client::tcp6(), 3000, 1400),
                    // One byte longer than the MTU without an outer header.
                    too_big(Client::tcp4(), 3000, 1461),
                    too_big(Client::tcp6(), 3000, 1441),
                    too_big(Client { options: 8, ..Client::tcp4() }, 3000, 1450),
                    single(Client::tcp4()),
                    single(Client::tcp6()),
                ]
            },
        ),
        Case::new(
            "the resegment option does not apply to datagrams",
            Fixture { vip_options: [(DNS, VipOptions::RESEGMENT)].into(), ..fixture(1500) },
            {
                let too_big = |client: Client, size: u32| {
                    let client = Client { payload: 3100, ..client };
                    merged(3100, size, answered(&client, room(&client, 1500)))
                };
                let fits = Client { payload: 3100, ..Client::udp4() };
                vec![
                    too_big(Client::udp4(), 1470),
                    too_big(Client::udp6(), 1450),
                    merged(3100, 1450, forwards(&fits, 3, HINT)),
                    answered(&of_length(Client::udp4(), 1500), 1480),
                ]
            },
        ),
        Case::new(
            "resegmenting subtracts the outer header of a backend of the other family",
            Fixture { vip_options: [(WEB, VipOptions::RESEGMENT)].into(), ..fixture(1500) }
                .with_backend(3, |backend| backend.v4 = None),
            {
                // 35 segments of 1440 bytes become 36 of 1400.
                [(3000, 1460), (35 * 1440, 1440), (3000, 1421)]
                    .map(|(payload, size)| {
                        merged(payload, size, crossing(&Client { payload, ..Client::tcp4() }))
                    })
                    .to_vec()
            },
        ),
        Case::new("an ICMP error quotes IPv4 options and TCP options", fixture(1500), {
            let client = Client { options: 40, tcp_options: 40, ..Client::tcp4() };
            vec![
                answered(&of_length(client, 1490), 1480),
                answered(&Client { options: 4, ..of_length(Client::udp4(), 1490) }, 1480),
            ]
        }),
        Case::new(
            "an ICMP error quotes IPv6 extension headers, with the L4 header unchanged",
            fixture(1500),
            {
                let packet = of_length(Client::udp6(), 1490).packet();
                let mut fixed = packet[..40].to_vec();
                fixed[4..6].copy_from_slice(&(packet.len() as u16 - 40 + 8).to_be_bytes());
                fixed[6] = 60;
                let extended = [&fixed[..], &[17, 0, 1, 4, 0, 0, 0, 0], &packet[40..]].concat();
                let bytes = frames::ethernet(EtherType::IPV6, &extended);
                let answer = packet_too_big(&bytes, 48, None, 1460);
                vec![(bytes.into(), Expectation::Reply(Reason::IcmpTooBigSent, answer))]
            },
        ),
        Case::new(
            "a first fragment causes an ICMP error, a non-initial fragment does not",
            fixture(1500),
            {
                let first = Client { fragment: (true, true, 0), ..of_length(Client::udp4(), 1496) };
                let later = Client { fragment: (true, false, 100), ..first.clone() };
                vec![answered(&first, 1480), drops(later.frame(), Reason::TooBig)]
            },
        ),
        Case::new(
            "an ICMP error keeps a VLAN tag in metadata; a frame with tags in its bytes causes none",
            fixture(1500),
            {
                let client = of_length(Client::tcp4(), 1490);
                let (frame, outcome) = answered(&client, 1480);
                let tagged = drops(frames::tagged(&client.frame(), &[(0x8100, 6)]), Reason::TooBig);
                vec![(Frame { vlan: true, ..frame }, outcome), tagged]
            },
        ),
    ]
}

/// The client with the payload for an IP packet of this length.
fn of_length(client: Client, length: usize) -> Client {
    let headers = Client { payload: 0, ..client.clone() }.packet().len();
    Client { payload: length - headers, ..client }
}

/// The same as a merged packet of segments of this size.
fn merged(
    payload: usize,
    size: u32,
    (frame, outcome): (Frame, Expectation),
) -> (Frame, Expectation) {
    let segments = payload.div_ceil(size as usize) as u32;
    let outcome = match outcome {
        Expectation::Forward(forwarded) => {
            Expectation::Forward(Forwarded { packets: segments.into(), ..forwarded })
        }
        other => other,
    };
    (Frame { segment_size: size, segments, ..frame }, outcome)
}

/// The MTU for a client's packet after an outer header of its family.
fn room(client: &Client, mtu: u32) -> u32 {
    mtu - if client.is_v6() { 40 } else { 20 }
}

/// A client's frame and the ICMP error in reply.
fn answered(client: &Client, mtu: u32) -> (Frame, Expectation) {
    let frame = client.frame();
    let header = if client.is_v6() { 40 } else { 20 + client.options };
    let protocol = if client.transport == L4Kind::Udp { 17 } else { 6 };
    let answer = packet_too_big(&frame, header, Some(protocol), mtu);
    (frame.into(), Expectation::Reply(Reason::IcmpTooBigSent, answer))
}
