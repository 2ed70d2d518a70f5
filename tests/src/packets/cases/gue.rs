//! Services that encapsulate in GUE (UDP).

use std::net::IpAddr;
use std::sync::LazyLock;

use etherparse::EtherType;
use sluice_datapath::Reason;
use sluice_datapath::abi::{AddressOptions, VipOptions};

use super::case::{Case, CaseStep};
use super::expect::{drops, forwards, passes, patched};
use crate::packets::expectation::{Expectation, Forwarded};
use crate::packets::fixture::{BackendSpec, DNS, Fixture, WEB};
use crate::packets::frames::icmp::{EchoRequest, IcmpError, packet_too_big};
use crate::packets::frames::{self, Client, ETHERNET, Frame, L4Kind};
use crate::packets::oracle::flow;

const HINT: u16 = 0x557f;
/// The server ID in a plaintext connection ID of the QUIC-LB draft.
const SERVER_ID: &[u8] = &[0xc4, 0x60, 0x5e];

/// A fixture whose packets go to backend 3 in GUE.
fn fixture() -> Fixture {
    let mut fixture = Fixture::new().all_to(3, HINT);
    fixture.vip_options = [(WEB, VipOptions::GUE), (DNS, VipOptions::GUE)].into();
    fixture
}

/// The same with [`VipOptions::ZERO_UDP_CHECKSUM`].
fn agreed() -> Fixture {
    let mut fixture = fixture();
    for options in fixture.vip_options.values_mut() {
        *options = options.with(VipOptions::ZERO_UDP_CHECKSUM);
    }
    fixture
}

fn only(fixture: Fixture, v6: bool) -> Fixture {
    fixture.with_backend(3, |backend| if v6 { backend.v4 = None } else { backend.v6 = None })
}

pub(super) fn cases() -> Vec<Case> {
    let each = |v6: bool| Client::each().map(|client| sent(&client, v6, true)).to_vec();
    let own = Client::each().map(|client| sent(&client, client.is_v6(), true)).to_vec();
    vec![
        Case::new(
            "a packet is encapsulated in GUE with a UDP checksum over the whole inner packet",
            fixture(),
            own,
        ),
        Case::new(
            "both families are encapsulated in GUE over IPv4",
            only(fixture(), false),
            each(false),
        ),
        Case::new(
            "both families are encapsulated in GUE over IPv6",
            only(fixture(), true),
            each(true),
        ),
        Case::new("one service uses IP-in-IP while another uses GUE", only_dns_uses_gue(), {
            let tcp = [Client::tcp4(), Client::tcp6()].map(|client| forwards(&client, 3, HINT));
            let udp =
                [Client::udp4(), Client::udp6()].map(|client| sent(&client, client.is_v6(), true));
            tcp.into_iter().chain(udp).collect()
        }),
        Case::new(
            "the outer source port depends on the flow, and the checksum is valid for every length",
            fixture(),
            {
                let flows = (0..300).flat_map(|number| {
                    Client::each().map(|client| Client {
                        payload: usize::from(number),
                        tos: number as u8,
                        ..client.from_port(30_000 + number)
                    })
                });
                flows.map(|client| sent(&client, client.is_v6(), true)).collect()
            },
        ),
        Case::new(
            "a UDP checksum of 0 is sent as all ones",
            only(fixture(), false),
            vec![sums_to_zero()],
        ),
        Case::new("the UDP checksum does not cover Ethernet padding", fixture(), {
            let padded = |client: Client| {
                let (frame, outcome) =
                    sent(&Client { payload: 1, ..client.clone() }, client.is_v6(), true);
                let pad = |bytes: Vec<u8>| [bytes, vec![0x5a; 9]].concat();
                (pad(frame.bytes).into(), changed(outcome, pad))
            };
            Client::each().map(padded).to_vec()
        }),
        Case::new("the UDP checksum covers IPv4 options and IPv6 extension headers", fixture(), {
            let options = Client { options: 12, ..Client::tcp4() };
            let extended =
                [&[8][..], &[16, 8], &[256]].map(|sizes| extended(&Client::udp6(), sizes));
            [sent(&options, false, true)].into_iter().chain(extended).collect()
        }),
        Case::new(
            "a tagged packet is encapsulated in GUE without its tags",
            only(fixture(), true),
            {
                let tagged = |client: Client| {
                    let (frame, outcome) = sent(&client, true, true);
                    (frames::tagged(&frame.bytes, &[(0x8100, 6)]).into(), outcome)
                };
                Client::each().map(tagged).to_vec()
            },
        ),
        Case::new(
            "over IPv4 a datagram without a checksum gets an outer checksum of 0",
            only(fixture(), false),
            [Client::udp4(), Client::udp6()].map(|client| unsummed(&client, false)).to_vec(),
        ),
        Case::new("over IPv6 a datagram without a checksum is dropped", only(fixture(), true), {
            let bare =
                [Client::udp4(), Client::udp6()].map(|client| unsummed(&client, true).0.bytes);
            bare.map(|bytes| drops(bytes, Reason::NoChecksum)).to_vec()
        }),
        Case::new(
            "over IPv6 a datagram without a checksum is forwarded if the service allows it (RFC 6935)",
            only(agreed(), true),
            [Client::udp4(), Client::udp6()].map(|client| unsummed(&client, true)).to_vec(),
        ),
        Case::new(
            "a datagram whose checksum covers less than the packet gets an outer checksum of 0",
            only(fixture(), false),
            [Client::udp4(), Client::udp6()].map(|client| longer(&client)).to_vec(),
        ),
        Case::new(
            "over IPv4 a merged packet gets an outer checksum of 0",
            only(fixture(), false),
            Client::each().map(|client| merged(&client, false)).to_vec(),
        ),
        Case::new("over IPv6 a merged packet is dropped", only(fixture(), true), {
            let merged = Client::each()
                .map(|client| (merged(&client, true).0, Expectation::Drop(Reason::NoChecksum)));
            merged.to_vec()
        }),
        Case::new(
            "over IPv6 a merged packet is forwarded if the service allows no checksum",
            only(agreed(), true),
            Client::each().map(|client| merged(&client, true)).to_vec(),
        ),
        Case::new(
            "fragments get an outer checksum of 0 and follow the first fragment in GUE",
            only(agreed(), true),
            fragments(),
        ),
        Case::new(
            "over IPv6 fragments are dropped unless the service allows no checksum",
            only(fixture(), true),
            {
                let drop = |(frame, outcome)| match outcome {
                    Expectation::Forward(_) => (frame, Expectation::Drop(Reason::NoChecksum)),
                    outcome => (frame, outcome),
                };
                fragments().into_iter().map(drop).collect()
            },
        ),
        Case {
            name: "a non-initial fragment uses the encapsulation of the first fragment after the service changed",
            steps: {
                let [first, later] = fragments().try_into().expect("two");
                let plain = Fixture { vip_options: [].into(), ..only(agreed(), true) };
                let send = |(frame, outcome)| CaseStep::Send(frame, outcome);
                vec![
                    CaseStep::Configure(only(agreed(), true)),
                    send(first),
                    CaseStep::Configure(plain),
                    send(later),
                ]
            },
        },
        Case::new(
            "an ICMP error is encapsulated in GUE with a checksum and the source port of its flow",
            fixture(),
            super::icmp_errors::few().map(|error| followed(&error)).collect(),
        ),
        Case::new("a forwarded echo request is encapsulated in GUE with a checksum", pings(), {
            [Client::tcp4(), Client::tcp6()].map(|client| pinged(&client)).to_vec()
        }),
        Case::new("a datagram goes in GUE to the backend of its connection ID", ids(), {
            [Client::udp4(), Client::udp6()].map(|client| named(&client)).to_vec()
        }),
        Case::new("the outer UDP header counts towards the MTU", fixture().with_mtu(1500), {
            let of_length = |client: &Client, length: usize| {
                let headers = Client { payload: 0, ..client.clone() }.packet().len();
                Client { payload: length - headers, ..client.clone() }
            };
            let room = |client: &Client| 1500 - 8 - if client.is_v6() { 40 } else { 20 };
            let fits = Client::each()
                .map(|client| sent(&of_length(&client, room(&client)), client.is_v6(), true));
            let larger = Client::each().map(|client| {
                let frame = of_length(&client, room(&client) + 1).frame();
                let header = if client.is_v6() { 40 } else { 20 };
                let protocol = if client.transport == L4Kind::Udp { 17 } else { 6 };
                let answer = packet_too_big(&frame, header, Some(protocol), room(&client) as u32);
                (frame.into(), Expectation::Reply(Reason::IcmpTooBigSent, answer))
            });
            fits.into_iter().chain(larger).collect()
        }),
        Case::new("a packet that is not addressed to a VIP passes", fixture(), {
            Client::each()
                .map(|client| passes(client.to_port(9).frame(), Reason::NoService))
                .to_vec()
        }),
    ]
}

/// The hash of a client's flow, which selects the outer source port.
fn hash(client: &Client) -> u64 {
    flow::hash(&tuple(client))
}

/// The bytes of a client's flow that are hashed.
fn tuple(client: &Client) -> Vec<u8> {
    let ports =
        [client.source.port().to_be_bytes(), client.destination.port().to_be_bytes()].concat();
    let protocol = if client.transport == L4Kind::Udp { 17 } else { 6 };
    flow::tuple(client.source.ip(), client.destination.ip(), &ports, protocol)
}

/// The outer GUE headers to backend 3; `summed` is the inner packet that the checksum covers.
fn outer(
    v6: bool,
    class: u8,
    hint: u16,
    length: usize,
    hash: u64,
    summed: Option<&[u8]>,
) -> Vec<u8> {
    let backend = BackendSpec::new(3);
    let outer = if v6 {
        frames::outer_v6(backend.v6.expect("it has one"), class, hint, length)
    } else {
        frames::outer_v4(backend.v4.expect("it has one"), class, hint, length)
    };
    frames::gue_headers(&outer, length, hash, summed)
}

/// A client's packet with the expected GUE frame.
fn sent(client: &Client, v6: bool, summed: bool) -> (Frame, Expectation) {
    let packet = client.packet();
    encapsulated(&client.frame(), client, hash(client), v6, summed.then_some(&packet))
}

/// The changed frame of a client's packet with the expected GUE frame.
fn encapsulated(
    bytes: &[u8],
    client: &Client,
    hash: u64,
    v6: bool,
    summed: Option<&[u8]>,
) -> (Frame, Expectation) {
    let length = bytes.len() - ETHERNET;
    let outer = outer(v6, client.tos, HINT, length, hash, summed);
    let outcome = Expectation::Forward(Forwarded {
        bytes: frames::encapsulated(bytes, &outer),
        service: if client.transport == L4Kind::Udp { DNS } else { WEB },
        backend: 3,
        packets: 1,
        length: length as u64,
        is_syn: client.transport == L4Kind::TcpSyn,
    });
    (bytes.to_vec().into(), outcome)
}

/// An expectation with other bytes.
fn changed(outcome: Expectation, change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> Expectation {
    match outcome {
        Expectation::Forward(forwarded) => {
            Expectation::Forward(Forwarded { bytes: change(forwarded.bytes.clone()), ..forwarded })
        }
        outcome => outcome,
    }
}

/// A fixture in which only [`DNS`] uses GUE.
fn only_dns_uses_gue() -> Fixture {
    let mut fixture = fixture();
    fixture.vip_options.remove(&WEB);
    fixture
}

/// A packet whose outer checksum is computed as 0, which is sent as all ones.
fn sums_to_zero() -> (Frame, Expectation) {
    const UDP: usize = ETHERNET + 20;
    // Computed once, because the cases are built more than once.
    static FOUND: LazyLock<Client> = LazyLock::new(|| {
        let found = (0..=255).find_map(|third| {
            let mut client = Client::udp4();
            client.source.set_ip([198, 51, third, 7].into());
            let Expectation::Forward(Forwarded { bytes, .. }) = sent(&client, false, true).1 else {
                return None;
            };
            // The client's port cancels out: the inner checksum contains its complement.
            let word = |at: usize| u64::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
            let wanted = (word(UDP) + word(UDP + 6)) % 0xffff;
            let mut tuple = tuple(&client);
            let port = (1_024_u16..40_000).find(|port| {
                tuple[8..10].copy_from_slice(&port.to_be_bytes());
                wanted == 49_152 + flow::hash(&tuple) % 16_384
            })?;
            Some(client.from_port(port))
        });
        found.expect("one address in four has a port that one client's port in 16,384 selects")
    });

    let (frame, outcome) = sent(&FOUND, false, true);
    assert!(
        matches!(&outcome, Expectation::Forward(forwarded) if forwarded.bytes[UDP + 6..][..2] == [0xff; 2]),
        "the checksum is zero"
    );
    (frame, outcome)
}

/// A client's IPv6 packet with destination options of these sizes, with the expected GUE frame.
fn extended(client: &Client, sizes: &[usize]) -> (Frame, Expectation) {
    const DESTINATION: u8 = 60;

    let packet = client.packet();
    let mut headers = Vec::new();
    for (position, size) in sizes.iter().enumerate() {
        let next = if position + 1 == sizes.len() { packet[6] } else { DESTINATION };
        headers.extend([next, (size / 8 - 1) as u8]);
        headers.extend((2..*size).map(|i| (i * 31) as u8));
    }
    let mut fixed = packet[..40].to_vec();
    fixed[4..6].copy_from_slice(&((packet.len() - 40 + headers.len()) as u16).to_be_bytes());
    fixed[6] = DESTINATION;
    let packet = [&fixed, &headers[..], &packet[40..]].concat();
    encapsulated(
        &frames::ethernet(EtherType::IPV6, &packet),
        client,
        hash(client),
        true,
        Some(&packet),
    )
}

/// Offset of the L4 header in a client's frame.
fn transport(client: &Client) -> usize {
    ETHERNET + if client.is_v6() { 40 } else { 20 }
}

/// A client's datagram without a checksum, with the expected GUE frame.
fn unsummed(client: &Client, v6: bool) -> (Frame, Expectation) {
    encapsulated(
        &patched(client.frame(), transport(client) + 6, &[0, 0]),
        client,
        hash(client),
        v6,
        None,
    )
}

/// A client's datagram two bytes longer than its UDP length, with the expected GUE frame over IPv4.
fn longer(client: &Client) -> (Frame, Expectation) {
    let length = Client { payload: client.payload - 2, ..client.clone() }.packet().len()
        - transport(client)
        + ETHERNET;
    let bytes = patched(client.frame(), transport(client) + 4, &(length as u16).to_be_bytes());
    encapsulated(&bytes, client, hash(client), false, None)
}

/// A merged packet of three segments, with the expected GUE frame.
fn merged(client: &Client, v6: bool) -> (Frame, Expectation) {
    let (frame, outcome) = sent(&Client { payload: 300, ..client.clone() }, v6, false);
    let outcome = match outcome {
        Expectation::Forward(forwarded) => {
            Expectation::Forward(Forwarded { packets: 3, ..forwarded })
        }
        outcome => outcome,
    };
    (Frame { segment_size: 100, segments: 3, ..frame }, outcome)
}

/// A first and a non-initial fragment over IPv6.
fn fragments() -> Vec<(Frame, Expectation)> {
    let first = Client { fragment: (false, true, 0), ..Client::udp4() };
    let later = Client { fragment: (false, false, 9), ..Client::udp4() };
    // A non-initial fragment has no ports.
    let portless = flow::hash(&flow::tuple(later.source.ip(), later.destination.ip(), &[0; 4], 17));
    vec![sent(&first, true, false), encapsulated(&later.frame(), &later, portless, true, None)]
}

/// An ICMP error about a client's flow, with the expected GUE frame.
fn followed(error: &IcmpError) -> (Frame, Expectation) {
    let (bytes, client) = (error.frame(), &error.client);
    let class = Client { tos: error.tos, ..client.clone() };
    encapsulated(&bytes, &class, hash(client), client.is_v6(), Some(&bytes[ETHERNET..]))
}

/// A fixture whose packets go to backend 1, except those with the server ID of backend 3.
fn ids() -> Fixture {
    let mut fixture = Fixture::new().all_to(1, HINT);
    fixture.vip_options = [(DNS, VipOptions::GUE)].into();
    fixture.server_ids = [((DNS, 0), (3, [(SERVER_ID.to_vec(), (3, 1))].into()))].into();
    fixture
}

/// A client's QUIC packet with a short header, with the expected GUE frame.
fn named(client: &Client) -> (Frame, Expectation) {
    let client = Client { begins: [&[0x41, 0x07], SERVER_ID].concat(), ..client.clone() };
    let (packet, bytes) = (client.packet(), client.frame());
    let outer = outer(client.is_v6(), client.tos, 0, packet.len(), hash(&client), Some(&packet));
    let (frame, outcome) = sent(&client, client.is_v6(), true);
    (frame, changed(outcome, |_| frames::encapsulated(&bytes, &outer)))
}

/// A fixture that forwards echo requests to the backends of [`WEB`].
fn pings() -> Fixture {
    let mut fixture = fixture();
    fixture.address_options =
        [(1, AddressOptions::PING_FORWARD), (2, AddressOptions::PING_FORWARD)].into();
    fixture.vips.extend([((1, 0, 1), WEB), ((2, 0, 1), WEB)]);
    fixture
}

/// A client's echo request, with the expected GUE frame.
fn pinged(client: &Client) -> (Frame, Expectation) {
    let bytes = EchoRequest::new(client).frame();
    let addresses: (IpAddr, IpAddr) = (client.source.ip(), client.destination.ip());
    let protocol = if client.is_v6() { 58 } else { 1 };
    let hash = flow::hash(&flow::tuple(addresses.0, addresses.1, &[0; 4], protocol));
    encapsulated(&bytes, client, hash, client.is_v6(), Some(&bytes[ETHERNET..]))
}
