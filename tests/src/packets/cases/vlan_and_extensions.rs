//! Headers at other offsets than in a plain frame: VLAN tags, IPv4 options, IPv6 extension headers.

use etherparse::EtherType;
use sluice_datapath::Reason;

use super::case::Case;
use super::expect::{drops, forwarded, passes, patched};
use crate::packets::expectation::{Expectation, Forwarded};
use crate::packets::fixture::{BackendSpec, Fixture};
use crate::packets::frames::{self, Client, Frame};

const HINT: u16 = 0x557f;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;

pub(super) fn cases() -> Vec<Case> {
    let fixture = || Fixture::new().all_to(3, HINT);
    vec![
        Case::new("a packet with VLAN tags in its bytes leaves without them", fixture(), {
            let tags: [&[_]; 4] = [
                &[(0x8100, 5)],
                &[(0x88a8, 5)],
                &[(0x88a8, 0xe005), (0x8100, 6)],
                &[(0x8100, 1), (0x8100, 2)],
            ];
            tags.iter()
                .flat_map(|tags| Client::each().map(|client| tagged(&client, tags)))
                .collect()
        }),
        Case::new("a packet with a VLAN tag in metadata leaves without it", fixture(), {
            let in_metadata = |client: Client, tags: &[(u16, u16)]| {
                let (frame, outcome) = tagged(&client, tags);
                (Frame { vlan: true, ..frame }, outcome)
            };
            let clients = Client::each().into_iter();
            clients
                .flat_map(|client| {
                    [in_metadata(client.clone(), &[]), in_metadata(client, &[(0x8100, 6)])]
                })
                .collect()
        }),
        Case::new(
            "a tagged packet is forwarded across families, with options and with padding",
            fixture().with_backend(3, |b| b.v6 = None),
            {
                let client = Client { payload: 1, ..Client::tcp6() };
                let (length, class) = (client.packet().len(), client.tos);
                let outer = frames::outer_v4_of_v6(
                    BackendSpec::new(3).v4.expect("it has one"),
                    class,
                    HINT,
                    length,
                );
                let mut bytes = frames::tagged(&client.frame(), &[(0x8100, 6)]);
                bytes.extend([0; 5]);
                let outcome =
                    rewrapped(&bytes, 18, &outer, forwarded(&client.frame(), &client, 3, HINT));
                vec![
                    (bytes.into(), outcome),
                    tagged(&Client { options: 8, ..Client::udp4() }, &[(0x8100, 6)]),
                ]
            },
        ),
        Case::new("a tagged packet with a wrong IP length is dropped", fixture(), {
            let wrong_length = patched(Client::tcp4().frame(), 16, &[0xff, 0xff]);
            vec![drops(frames::tagged(&wrong_length, &[(0x8100, 6)]), Reason::BadLength)]
        }),
        Case::new(
            "extension headers of every kind, also several, are skipped to the L4 header",
            fixture(),
            {
                let chains: [&[(u8, usize)]; 7] = [
                    &[(HOP_BY_HOP, 8)],
                    &[(ROUTING, 24)],
                    &[(AUTHENTICATION, 12)],
                    &[(AUTHENTICATION, 24)],
                    &[(DESTINATION, 248)],
                    &[(HOP_BY_HOP, 8), (DESTINATION, 16), (ROUTING, 8), (DESTINATION, 8)],
                    &[(DESTINATION, 8); 8],
                ];
                chains
                    .iter()
                    .flat_map(|chain| {
                        [Client::tcp6(), Client::udp6()].map(|client| extended(&client, chain))
                    })
                    .collect()
            },
        ),
        Case::new(
            "a packet with more than eight extension headers or 256 bytes of them passes",
            fixture(),
            {
                let chains: [&[(u8, usize)]; 2] =
                    [&[(DESTINATION, 8); 9], &[(DESTINATION, 160), (DESTINATION, 104)]];
                chains
                    .iter()
                    .map(|chain| passes(chained(&Client::tcp6(), chain), Reason::ExtensionHeaders))
                    .collect()
            },
        ),
        Case::new("a packet with segments left in a routing header passes", fixture(), {
            let bytes = patched(chained(&Client::tcp6(), &[(ROUTING, 24)]), 14 + 40 + 3, &[1]);
            vec![passes(bytes, Reason::ExtensionHeaders)]
        }),
        Case::new("a packet other than TCP and UDP after extension headers passes", fixture(), {
            let other =
                |last: u8| patched(chained(&Client::tcp6(), &[(DESTINATION, 8)]), 14 + 40, &[last]);
            [1, 4, 41, 50, 58, 59, 132, 135]
                .map(|last| passes(other(last), Reason::OtherProtocol))
                .to_vec()
        }),
        Case::new("a frame truncated anywhere in its extension headers passes", fixture(), {
            let whole = chained(&Client::udp6(), &[(HOP_BY_HOP, 16), (AUTHENTICATION, 12)]);
            (14 + 40..14 + 40 + 28 + 8)
                .map(|length| passes(whole[..length].to_vec(), Reason::Truncated))
                .collect()
        }),
        Case::new(
            "extension headers count towards the packet's length",
            fixture().with_mtu(1164),
            {
                let client = |payload| Client { payload, ..Client::tcp6() };
                let fits = client(1164 - 40 - 40 - 16 - 20);
                let larger = client(fits.payload + 1);
                vec![
                    extended(&fits, &[(DESTINATION, 16)]),
                    drops(chained(&larger, &[(DESTINATION, 16)]), Reason::TooBig),
                ]
            },
        ),
    ]
}

/// A client's packet with VLAN tags in its bytes, forwarded to backend 3.
fn tagged(client: &Client, tags: &[(u16, u16)]) -> (Frame, Expectation) {
    (frames::tagged(&client.frame(), tags).into(), forwarded(&client.frame(), client, 3, HINT))
}

/// The frame of a client's packet with these extension headers, filled with zeros.
fn chained(client: &Client, chain: &[(u8, usize)]) -> Vec<u8> {
    let packet = client.packet();
    let mut kinds: Vec<u8> = chain.iter().map(|(kind, _)| *kind).collect();
    kinds.push(packet[6]);
    let mut headers = Vec::new();
    for (position, (kind, size)) in chain.iter().enumerate() {
        let length = if *kind == AUTHENTICATION { size / 4 - 2 } else { size / 8 - 1 };
        headers.extend([kinds[position + 1], length as u8]);
        headers.extend(vec![0; size - 2]);
    }
    let mut fixed = packet[..40].to_vec();
    let payload = packet.len() - 40 + headers.len();
    fixed[4..6].copy_from_slice(&(payload as u16).to_be_bytes());
    fixed[6] = kinds[0];
    frames::ethernet(EtherType::IPV6, &[&fixed, &headers[..], &packet[40..]].concat())
}

fn extended(client: &Client, chain: &[(u8, usize)]) -> (Frame, Expectation) {
    with_extensions(client, chain, 3, HINT)
}

/// A client's packet with extension headers, forwarded to a backend.
pub(super) fn with_extensions(
    client: &Client,
    chain: &[(u8, usize)],
    backend: u16,
    hint: u16,
) -> (Frame, Expectation) {
    let bytes = chained(client, chain);
    let length = bytes.len() - 14;
    let host = BackendSpec::new(backend).v6.expect("it has one");
    let outer = frames::outer_v6(host, client.tos, hint, length);
    let outcome = rewrapped(&bytes, 14, &outer, forwarded(&client.frame(), client, backend, hint));
    match outcome {
        Expectation::Forward(forwarded) => {
            (bytes.into(), Expectation::Forward(Forwarded { length: length as u64, ..forwarded }))
        }
        outcome => (bytes.into(), outcome),
    }
}

fn rewrapped(bytes: &[u8], start: usize, outer: &[u8], outcome: Expectation) -> Expectation {
    match outcome {
        Expectation::Forward(forwarded) => Expectation::Forward(Forwarded {
            bytes: frames::encapsulated_from(bytes, start, outer),
            ..forwarded
        }),
        outcome => outcome,
    }
}
