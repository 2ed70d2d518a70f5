//! The backend decapsulates packets for its VIPs and leaves all other frames unchanged.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{EtherType, IpNumber, Ipv4Header};
use sluice_datapath::Reason;

use super::case::DecapCase;
use super::expect::patched;
use crate::packets::addresses::{OTHERS, VIP_V4, VIP_V6};
use crate::packets::expectation::{Action, DecapExpectation};
use crate::packets::fixture::HostFixture;
use crate::packets::frames::{self, Client, ETHERNET, Frame, SHORTEST};

pub(super) const LOCAL_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 3);
pub(super) const LOCAL_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 3);

pub(super) fn cases() -> Vec<DecapCase> {
    let case = |name, frames| DecapCase { name, host: host(), frames };
    let pass = |bytes: Vec<u8>, reason| {
        (Frame::from(bytes), DecapExpectation::Untouched(Action::Pass, reason))
    };
    let drop = |bytes: Vec<u8>, reason| {
        (Frame::from(bytes), DecapExpectation::Untouched(Action::Drop, reason))
    };
    vec![
        case("a packet for a VIP is decapsulated", {
            Client::each().map(|client| taken(wrap(&client, 0), &client, 1)).to_vec()
        }),
        case("decapsulation keeps inner IPv4 options and every payload length", {
            let options = (0..=40).step_by(4).map(|options| Client { options, ..Client::tcp4() });
            let payloads = (0..100)
                .flat_map(|payload| Client::each().map(|client| Client { payload, ..client }));
            options.chain(payloads).map(|client| taken(wrap(&client, 0), &client, 1)).collect()
        }),
        case("Ethernet padding is not counted", {
            let padded = |client: Client| {
                let (mut bytes, mut inner) = (wrap(&client, 0), client.frame());
                bytes.extend([0; 6]);
                inner.extend([0; 6]);
                (
                    bytes.into(),
                    DecapExpectation::Decapsulated(inner, 1, client.packet().len() as u64),
                )
            };
            Client::each().map(padded).to_vec()
        }),
        case("a merged packet counts as its segments", {
            let merged = |client: Client| {
                let (frame, outcome) = taken(wrap(&client, 0), &client, 7);
                (Frame { segments: 7, ..frame }, outcome)
            };
            Client::each().map(merged).to_vec()
        }),
        case("ECN follows the table of RFC 6040", congestion()),
        case("a frame to another host's, the broadcast or a multicast link address passes", {
            let to = |receiver: [u8; 6]| {
                Client::each()
                    .map(|client| pass(patched(wrap(&client, 0), 0, &receiver), Reason::OtherHost))
            };
            OTHERS.into_iter().flat_map(to).collect()
        }),
        case("a packet whose outer destination is not local passes", {
            let v4 =
                frames::outer_v4(Ipv4Addr::new(10, 0, 1, 4), 0, 0, Client::tcp4().packet().len());
            let v6 = frames::outer_v6(VIP_V6, 0, 0, Client::tcp6().packet().len());
            vec![
                pass(frames::encapsulated(&Client::tcp4().frame(), &v4), Reason::NotTunnel),
                pass(frames::encapsulated(&Client::tcp6().frame(), &v6), Reason::NotTunnel),
            ]
        }),
        case("an inner packet to an address that is not a VIP address passes", {
            let other = |client: Client, address: IpAddr| {
                pass(wrap(&client.to_address(address), 0), Reason::NotVip)
            };
            vec![other(Client::tcp4(), LOCAL_V4.into()), other(Client::tcp6(), LOCAL_V6.into())]
        }),
        case("an inner packet to the IPv4-mapped form of a VIP address passes", {
            vec![pass(wrap(&Client::tcp6().to_address(VIP_V4.to_ipv6_mapped()), 0), Reason::NotVip)]
        }),
        case("packets that are not encapsulated pass", {
            let to_vip = Client::each().map(|client| pass(client.frame(), Reason::NotTunnel));
            let to_host = Client::each().map(|client| {
                let address: IpAddr =
                    if client.is_v6() { LOCAL_V6.into() } else { LOCAL_V4.into() };
                pass(client.to_address(address).frame(), Reason::NotTunnel)
            });
            to_vip.into_iter().chain(to_host).collect()
        }),
        case("a packet with an outer header of the other family is decapsulated", {
            let each = Client::each().map(|client| taken(wrap_across(&client, 0), &client, 1));
            let marked = Client::each().map(|client| {
                let left = Client { tos: 3, ..client.clone() };
                taken(wrap_across(&Client { tos: 2, ..client }, 3), &left, 1)
            });
            each.into_iter().chain(marked).collect()
        }),
        case(
            "an inner packet of the other family to an address that is not a VIP address passes",
            {
                let other = |client: Client, address: IpAddr| {
                    pass(wrap_across(&client.to_address(address), 0), Reason::NotVip)
                };
                vec![other(Client::tcp4(), LOCAL_V4.into()), other(Client::tcp6(), LOCAL_V6.into())]
            },
        ),
        DecapCase {
            name: "packets to every address of a VIP prefix are decapsulated, to addresses next to it not",
            host: HostFixture::new(
                vec![LOCAL_V4.into(), LOCAL_V6.into()],
                ["198.18.4.0/22", "2001:db8:5::/48"]
                    .map(|prefix| prefix.parse().expect("a prefix"))
                    .to_vec(),
            ),
            frames: {
                let v4 = |c, d| Client::tcp4().to_address(Ipv4Addr::new(198, 18, c, d));
                let v6 = |third| {
                    Client::udp6().to_address(Ipv6Addr::new(0x2001, 0xdb8, third, 0, 0, 0, 0, 1))
                };
                let inside =
                    [v4(4, 0), v4(7, 255), v6(5)].map(|client| taken(wrap(&client, 0), &client, 1));
                let outside = [v4(3, 255), v4(8, 0), v6(6)]
                    .map(|client| pass(wrap(&client, 0), Reason::NotVip));
                inside.into_iter().chain(outside).collect()
            },
        },
        case("outer fragments and outer headers with options pass", {
            let length = Client::tcp4().packet().len();
            let outer = |change: &dyn Fn(&mut Ipv4Header)| {
                pass(
                    frames::encapsulated(&Client::tcp4().frame(), &with_v4(length, change)),
                    Reason::NotTunnel,
                )
            };
            vec![
                outer(&|header| header.more_fragments = true),
                outer(&|header| header.fragment_offset = 3u16.try_into().expect("13 bits")),
                outer(&|header| header.options = [1, 1, 1, 0].into()),
            ]
        }),
        case("an inner header of another version passes", {
            vec![
                pass(patched(wrap(&Client::tcp4(), 0), ETHERNET + 20, &[0x65]), Reason::BadHeader),
                pass(patched(wrap(&Client::tcp4(), 0), ETHERNET + 20, &[0x44]), Reason::BadHeader),
                pass(patched(wrap(&Client::tcp6(), 0), ETHERNET + 40, &[0x40]), Reason::BadHeader),
            ]
        }),
        case("a frame truncated anywhere in its outer header passes", {
            let v4 = (SHORTEST..ETHERNET + 20).map(|length| (Client::tcp4(), length));
            let v6 = (SHORTEST..ETHERNET + 40).map(|length| (Client::tcp6(), length));
            v4.chain(v6)
                .map(|(client, length)| {
                    pass(wrap(&client, 0)[..length].to_vec(), Reason::Truncated)
                })
                .collect()
        }),
        case("a frame truncated anywhere in its inner header passes", {
            let v4 = (ETHERNET + 20..ETHERNET + 40).map(|length| (Client::tcp4(), length));
            let v6 = (ETHERNET + 40..ETHERNET + 80).map(|length| (Client::tcp6(), length));
            v4.chain(v6)
                .map(|(client, length)| {
                    pass(wrap(&client, 0)[..length].to_vec(), Reason::Truncated)
                })
                .collect()
        }),
        case("an inner length beyond the outer packet is dropped", {
            let long = |client: Client, at: usize, length: usize| {
                drop(
                    patched(wrap(&client, 0), at, &(length as u16).to_be_bytes()),
                    Reason::BadLength,
                )
            };
            let (v4, v6) = (Client::tcp4().packet().len(), Client::tcp6().packet().len());
            vec![
                long(Client::tcp4(), ETHERNET + 20 + 2, v4 + 1),
                long(Client::tcp4(), ETHERNET + 20 + 2, 65_535),
                long(Client::tcp4(), ETHERNET + 20 + 2, 19),
                long(Client::tcp6(), ETHERNET + 40 + 4, v6 - 40 + 1),
                long(Client::tcp6(), ETHERNET + 40 + 4, 65_535),
            ]
        }),
        case("GUE is decapsulated whatever its UDP checksum", {
            let checksums = |bytes: Vec<u8>, v6: bool| {
                let at = ETHERNET + 6 + if v6 { 40 } else { 20 };
                [
                    patched(bytes.clone(), at, &[0, 0]),
                    patched(bytes.clone(), at, &[0x12, 0x34]),
                    bytes,
                ]
            };
            let each = Client::each().into_iter();
            each.flat_map(|client| {
                checksums(gue_headers(&wrap(&client, 0)), client.is_v6())
                    .map(|b| taken(b, &client, 1))
            })
            .collect()
        }),
        case("GUE over the other family is decapsulated", {
            Client::each()
                .map(|client| taken(gue_headers(&wrap_across(&client, 0)), &client, 1))
                .to_vec()
        }),
        case("GUE decapsulation keeps options and payload and counts segments without padding", {
            let payloads = (0..100)
                .flat_map(|payload| Client::each().map(|client| Client { payload, ..client }));
            let options = [Client { options: 40, ..Client::tcp4() }];
            let plain = options
                .into_iter()
                .chain(payloads)
                .map(|client| taken(gue_headers(&wrap(&client, 0)), &client, 1));
            let padded = Client::each().map(|client| {
                let pad = |bytes: Vec<u8>| [bytes, vec![0; 6]].concat();
                let taken = DecapExpectation::Decapsulated(
                    pad(client.frame()),
                    7,
                    client.packet().len() as u64,
                );
                (Frame { segments: 7, ..pad(gue_headers(&wrap(&client, 0))).into() }, taken)
            });
            plain.chain(padded).collect()
        }),
        case("in GUE ECN follows the table of RFC 6040", {
            congestion()
                .into_iter()
                .map(|(frame, outcome)| (gue_headers(&frame.bytes).into(), outcome))
                .collect()
        }),
        case("UDP to another port or address, and GUE other than variant 1, passes", {
            let outer_end = |client: &Client| ETHERNET + if client.is_v6() { 40 } else { 20 };
            let pass = |client: Client, at: usize, bytes: &[u8], reason| {
                let at = outer_end(&client) + at;
                pass(patched(gue_headers(&wrap(&client, 0)), at, bytes), reason)
            };
            let each = |at, bytes: &[u8], reason| {
                Client::each().map(|client| pass(client, at, bytes, reason))
            };
            let elsewhere = |client: Client| {
                let bytes = patched(gue_headers(&wrap(&client, 0)), outer_end(&client) - 1, &[77]);
                (Frame::from(bytes), DecapExpectation::Untouched(Action::Pass, Reason::NotTunnel))
            };
            let other = |client: Client, address: IpAddr| {
                (
                    Frame::from(gue_headers(&wrap(&client.to_address(address), 0))),
                    DecapExpectation::Untouched(Action::Pass, Reason::NotVip),
                )
            };
            each(2, &[0x17, 0xc0], Reason::NotTunnel)
                .into_iter()
                .chain(each(8, &[0x00], Reason::NotTunnel))
                .chain(each(8, &[0x80], Reason::NotTunnel))
                .chain(Client::each().map(elsewhere))
                .chain([
                    other(Client::tcp4(), LOCAL_V4.into()),
                    other(Client::tcp6(), LOCAL_V6.into()),
                ])
                .collect()
        }),
        case("a fragment of a GUE packet passes", {
            let fragment = |bits: u16| {
                pass(
                    patched(
                        gue_headers(&wrap(&Client::udp4(), 0)),
                        ETHERNET + 6,
                        &bits.to_be_bytes(),
                    ),
                    Reason::NotTunnel,
                )
            };
            vec![fragment(0x2000), fragment(0x0003), fragment(0x2003)]
        }),
        case("a frame truncated anywhere in its GUE headers passes", {
            let each = |client: Client, outer: usize, inner: usize| {
                let bytes = gue_headers(&wrap(&client, 0));
                (SHORTEST..ETHERNET + outer + 8 + inner).map(move |length| {
                    let gue = ETHERNET + outer..=ETHERNET + outer + 8;
                    let reason =
                        if gue.contains(&length) { Reason::NotTunnel } else { Reason::Truncated };
                    (
                        Frame::from(bytes[..length].to_vec()),
                        DecapExpectation::Untouched(Action::Pass, reason),
                    )
                })
            };
            each(Client::tcp4(), 20, 20).chain(each(Client::tcp6(), 40, 40)).collect()
        }),
        case("in GUE an inner length beyond the outer packet is dropped", {
            let (v4, v6) =
                (Client::tcp4().packet().len() + 1, Client::tcp6().packet().len() - 40 + 1);
            let long = |client: Client, at: usize, length: usize| {
                drop(
                    patched(gue_headers(&wrap(&client, 0)), at, &(length as u16).to_be_bytes()),
                    Reason::BadLength,
                )
            };
            vec![
                long(Client::tcp4(), ETHERNET + 28 + 2, v4),
                long(Client::tcp6(), ETHERNET + 48 + 4, v6),
            ]
        }),
        case("an outer length beyond the frame, or short of the inner packet, is dropped", {
            Client::each()
                .iter()
                .flat_map(|client| wrong_length(client, wrap(client, 0), client.is_v6()))
                .collect()
        }),
        case("a wrong outer length of the other family is dropped", {
            Client::each()
                .iter()
                .flat_map(|client| wrong_length(client, wrap_across(client, 0), !client.is_v6()))
                .collect()
        }),
        case("bytes between the end of the inner and of the outer packet are ignored", {
            let longer = |client: Client| {
                let (mut bytes, mut inner) = (wrap(&client, 0), client.frame());
                let (at, outer) =
                    if client.is_v6() { (ETHERNET + 4, 0) } else { (ETHERNET + 2, 20) };
                bytes.extend([7; 6]);
                inner.extend([7; 6]);
                let length = (client.packet().len() + outer + 6) as u16;
                let bytes = patched(bytes, at, &length.to_be_bytes());
                (
                    bytes.into(),
                    DecapExpectation::Decapsulated(inner, 1, client.packet().len() as u64),
                )
            };
            Client::each().map(longer).to_vec()
        }),
        case(
            "a packet with an outer or inner TTL of 0 is decapsulated (RFC 1122 section 3.2.1.7)",
            {
                let each = |client: Client| {
                    let at = if client.is_v6() { 7 } else { 8 };
                    let outer = patched(wrap(&client, 0), ETHERNET + at, &[0]);
                    let expired = Client { ttl: 0, ..client.clone() };
                    [taken(outer, &client, 1), taken(wrap(&expired, 0), &expired, 1)]
                };
                Client::each().into_iter().flat_map(each).collect()
            },
        ),
        case("ARP and VLAN tags pass", {
            let tagged = [&[0, 5, 8, 0][..], &wrap(&Client::tcp4(), 0)[ETHERNET..]].concat();
            vec![
                pass(frames::ethernet(EtherType::ARP, &[0; 46]), Reason::NotIp),
                pass(frames::ethernet(EtherType::VLAN_TAGGED_FRAME, &tagged), Reason::NotTunnel),
            ]
        }),
    ]
}

/// A backend with an address and a VIP address of each family.
pub(super) fn host() -> HostFixture {
    let local = vec![LOCAL_V4.into(), LOCAL_V6.into()];
    HostFixture::new(local, vec![IpAddr::from(VIP_V4).into(), IpAddr::from(VIP_V6).into()])
}

/// A client's encapsulated frame whose outer header has this TOS or traffic class.
pub(super) fn wrap(client: &Client, class: u8) -> Vec<u8> {
    let length = client.packet().len();
    let outer = if client.is_v6() {
        frames::outer_v6(LOCAL_V6, class, 0x1240, length)
    } else {
        frames::outer_v4(LOCAL_V4, class, 0x1240, length)
    };
    frames::encapsulated(&client.frame(), &outer)
}

/// A client's encapsulated frame with wrong outer IPv4 or IPv6 lengths; each is dropped.
fn wrong_length(
    client: &Client,
    bytes: Vec<u8>,
    outer_is_v6: bool,
) -> Vec<(Frame, DecapExpectation)> {
    let inner = client.packet().len();
    // The IPv4 total length includes the header.
    let (at, right) = if outer_is_v6 { (ETHERNET + 4, inner) } else { (ETHERNET + 2, inner + 20) };
    let lengths = [right + 1, right - 1, 65_535, 20, 1, 0];
    let with_length = |length: usize| patched(bytes.clone(), at, &(length as u16).to_be_bytes());
    lengths
        .map(|length| {
            (
                with_length(length).into(),
                DecapExpectation::Untouched(Action::Drop, Reason::BadLength),
            )
        })
        .to_vec()
}

/// The same with an outer header of the other family.
pub(super) fn wrap_across(client: &Client, class: u8) -> Vec<u8> {
    let length = client.packet().len();
    let outer = if client.is_v6() {
        frames::outer_v4_of_v6(LOCAL_V4, class, 0x1240, length)
    } else {
        frames::outer_v6_of_v4(LOCAL_V6, class, 0x1240, length)
    };
    frames::encapsulated(&client.frame(), &outer)
}

/// Converts a frame in IP-in-IP to GUE. The UDP checksum covers the inner packet.
pub(super) fn gue_headers(frame: &[u8]) -> Vec<u8> {
    let header = if frame[ETHERNET] >> 4 == 4 { 20 } else { 40 };
    let (outer, inner) = frame[ETHERNET..].split_at(header);
    frames::encapsulated_from(
        frame,
        ETHERNET + header,
        &frames::gue_headers(outer, inner.len(), 0x1234_5678, Some(inner)),
    )
}

/// An outer IPv4 header for an inner packet of `length` bytes, changed, with a valid checksum.
fn with_v4(length: usize, change: impl FnOnce(&mut Ipv4Header)) -> Vec<u8> {
    let mut header = frames::ipv4(Ipv4Addr::new(192, 0, 2, 1), LOCAL_V4, 0, 64, IpNumber::IPV4);
    change(&mut header);
    header.set_payload_len(length).expect("the packet is short");
    header.header_checksum = header.calc_header_checksum();
    header.to_bytes().to_vec()
}

pub(super) fn taken(bytes: Vec<u8>, client: &Client, packets: u64) -> (Frame, DecapExpectation) {
    (
        bytes.into(),
        DecapExpectation::Decapsulated(client.frame(), packets, client.packet().len() as u64),
    )
}

/// Figure 4 of RFC 6040: the resulting ECN field for each inner field (0 Not-ECT, 1 and 2 ECT, 3
/// CE) and outer field; `None` where the packet is dropped.
fn congestion() -> Vec<(Frame, DecapExpectation)> {
    let table = [
        (0, [Some(0), Some(0), Some(0), None]),
        (1, [Some(1), Some(1), Some(1), Some(3)]),
        (2, [Some(2), Some(1), Some(2), Some(3)]),
        (3, [Some(3), Some(3), Some(3), Some(3)]),
    ];
    let mut frames = Vec::new();
    for (inner, row) in table {
        for (outer, leaves) in (0..).zip(row) {
            for (inner_dscp, outer_dscp) in [(0, 0), (0xb8, 0x28)] {
                for client in Client::each() {
                    let client = Client { tos: inner_dscp | inner, ..client };
                    let bytes = wrap(&client, outer_dscp | outer);
                    let outcome = match leaves {
                        None => DecapExpectation::Untouched(Action::Drop, Reason::EcnForbidden),
                        Some(leaves) => {
                            let left = Client { tos: inner_dscp | leaves, ..client.clone() };
                            DecapExpectation::Decapsulated(
                                left.frame(),
                                1,
                                left.packet().len() as u64,
                            )
                        }
                    };
                    frames.push((bytes.into(), outcome));
                }
            }
        }
    }
    frames
}
