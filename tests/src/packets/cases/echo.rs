//! Echo requests to a VIP address: answered, forwarded, or passed to the host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sluice_datapath::Reason;
use sluice_datapath::abi::AddressOptions;

use super::case::Case;
use super::expect::{drops, passes, patched};
use crate::packets::addresses::{VIP_V4, VIP_V6};
use crate::packets::expectation::{Expectation, Forwarded};
use crate::packets::fixture::{BackendSpec, Fixture, SlotSpec, WEB};
use crate::packets::frames::icmp::EchoRequest;
use crate::packets::frames::{self, Client, ETHERNET, Frame};
use crate::packets::oracle::flow;

/// An echo request of each family.
pub(super) fn both() -> [EchoRequest; 2] {
    [EchoRequest::new(&Client::tcp4()), EchoRequest::new(&Client::tcp6())]
}

pub(super) fn cases() -> Vec<Case> {
    let each = |change: &dyn Fn(EchoRequest) -> EchoRequest| {
        both().map(|ping| answered(&change(ping))).to_vec()
    };
    let from = |v4: &[Ipv4Addr], v6: &[Ipv6Addr]| -> Vec<EchoRequest> {
        let [ping4, ping6] = both();
        let v4 = v4.iter().map(|source| EchoRequest { source: (*source).into(), ..ping4.clone() });
        v4.chain(v6.iter().map(|source| EchoRequest { source: (*source).into(), ..ping6.clone() }))
            .collect()
    };
    vec![
        Case::new(
            "an echo request to a VIP address is answered from that address",
            Fixture::new(),
            each(&|ping| ping),
        ),
        Case::new("an echo reply has the payload of the request, at every size", Fixture::new(), {
            let sizes = [0, 1, 2, 3, 17, 18, 56, 57, 1000, 1472, 2000];
            sizes
                .iter()
                .flat_map(|&size| each(&|ping| EchoRequest { payload: vec![0xa5; size], ..ping }))
                .collect()
        }),
        Case::new("an echo reply keeps the request's TOS and has a TTL of 64", Fixture::new(), {
            let fields = [(1, 0), (64, 0xff), (255, 0xb8)];
            fields.iter().flat_map(|&(ttl, tos)| each(&|p| EchoRequest { ttl, tos, ..p })).collect()
        }),
        Case::new(
            "an echo request in a padded frame is answered in a padded frame",
            Fixture::new(),
            {
                each(&|ping| EchoRequest { payload: vec![1], ..ping })
                    .into_iter()
                    .map(|(mut frame, mut outcome)| {
                        frame.bytes.extend([0; 17]);
                        if let Expectation::Reply(_, bytes) = &mut outcome {
                            bytes.extend([0; 17]);
                        }
                        (frame, outcome)
                    })
                    .collect()
            },
        ),
        Case::new("a tagged echo request is answered with the same tags", Fixture::new(), {
            let tags = [(0x88a8, 5), (0x8100, 6)];
            let tagged = |(frame, outcome): (Frame, Expectation)| match outcome {
                Expectation::Reply(reason, bytes) => {
                    let outcome = Expectation::Reply(reason, frames::tagged(&bytes, &tags));
                    (Frame::from(frames::tagged(&frame.bytes, &tags)), outcome)
                }
                outcome => (frame, outcome),
            };
            each(&|ping| ping).into_iter().map(tagged).collect()
        }),
        Case::new("echo requests to every address of a VIP prefix are answered", prefix(), {
            let v6 = Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, 9);
            each(&|ping| EchoRequest {
                destination: if ping.source.is_ipv6() { v6.into() } else { [192, 0, 3, 77].into() },
                ..ping
            })
        }),
        Case::new("an echo request with a TTL of 0 is dropped", Fixture::new(), {
            both()
                .map(|ping| drops(EchoRequest { ttl: 0, ..ping }.frame(), Reason::TtlExpired))
                .to_vec()
        }),
        Case::new(
            "an echo request with an IP length beyond the frame, or shorter than its header, is dropped",
            Fixture::new(),
            {
                let claim = |length: u16| {
                    both().map(move |ping| {
                        let (at, of) =
                            if ping.source.is_ipv6() { (4, length) } else { (2, length + 20) };
                        drops(
                            patched(ping.frame(), ETHERNET + at, &of.to_be_bytes()),
                            Reason::BadLength,
                        )
                    })
                };
                [0, 7, 65, 0xff00].into_iter().flat_map(claim).collect()
            },
        ),
        Case::new(
            "an echo request from a martian address is dropped",
            Fixture::new(),
            from(
                &[
                    Ipv4Addr::UNSPECIFIED,
                    Ipv4Addr::LOCALHOST,
                    Ipv4Addr::BROADCAST,
                    [224, 0, 0, 1].into(),
                    [240, 0, 0, 1].into(),
                    [169, 254, 0, 1].into(),
                ],
                &[
                    Ipv6Addr::UNSPECIFIED,
                    Ipv6Addr::LOCALHOST,
                    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1),
                    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1),
                    Ipv4Addr::new(198, 51, 100, 7).to_ipv6_mapped(),
                ],
            )
            .iter()
            .map(|ping| drops(ping.frame(), Reason::MartianSource))
            .collect(),
        ),
        Case::new("a fragmented echo request is not answered", Fixture::new(), {
            let [ping4, ping6] = both();
            let fragment = |bits: u16| patched(ping4.frame(), ETHERNET + 6, &bits.to_be_bytes());
            let first = {
                let mut bytes = patched(ping6.frame(), ETHERNET + 6, &[44]);
                bytes.splice(ETHERNET + 40..ETHERNET + 40, [58, 0, 0, 1, 0, 0, 0, 7]);
                bytes
            };
            vec![
                passes(fragment(0x2000), Reason::OtherProtocol),
                passes(fragment(0x2003), Reason::FragmentUnknown),
                passes(fragment(0x0003), Reason::FragmentUnknown),
                passes(first, Reason::OtherProtocol),
            ]
        }),
        Case::new(
            "an echo request with IPv4 options or an IPv6 extension header passes to the host",
            Fixture::new(),
            {
                let [ping4, ping6] = both();
                let mut options = patched(ping4.frame(), ETHERNET, &[0x47]);
                options.splice(ETHERNET + 20..ETHERNET + 20, [1; 8]);
                let mut extended = patched(ping6.frame(), ETHERNET + 6, &[60]);
                extended.splice(ETHERNET + 40..ETHERNET + 40, [58, 0, 1, 4, 0, 0, 0, 0]);
                vec![
                    passes(options, Reason::OtherProtocol),
                    passes(extended, Reason::OtherProtocol),
                ]
            },
        ),
        Case::new(
            "an echo reply and an echo request with a non-zero code pass to the host",
            Fixture::new(),
            {
                both()
                    .map(|ping| {
                        let at = ETHERNET + if ping.source.is_ipv6() { 40 } else { 20 };
                        let reply = if ping.source.is_ipv6() { 129 } else { 0 };
                        [patched(ping.frame(), at, &[reply]), patched(ping.frame(), at + 1, &[1])]
                    })
                    .into_iter()
                    .flatten()
                    .map(|bytes| passes(bytes, Reason::OtherProtocol))
                    .collect()
            },
        ),
        Case::new(
            "echo requests to an address with the host option pass",
            options(AddressOptions::PING_HOST),
            both().map(|ping| passes(ping.frame(), Reason::OtherProtocol)).to_vec(),
        ),
        Case::new(
            "forwarded echo requests go to the backend that their address pair selects",
            forwarding(),
            {
                let clients = (1..40).flat_map(|host| {
                    let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0x99, 0, 0, 0, 0, host);
                    from(&[Ipv4Addr::new(198, 51, 100, host as u8)], &[v6])
                });
                clients.map(|ping| forwarded(&ping)).collect()
            },
        ),
        Case::new(
            "a forwarded echo request with an IP length shorter than its header is dropped",
            forwarding(),
            {
                let ending = |length: u16| {
                    both().map(move |ping| {
                        let (at, of) =
                            if ping.source.is_ipv6() { (4, length) } else { (2, length + 20) };
                        let bytes = patched(ping.frame(), ETHERNET + at, &of.to_be_bytes());
                        drops(bytes, Reason::BadLength)
                    })
                };
                [0, 1, 7].into_iter().flat_map(ending).collect()
            },
        ),
        Case::new(
            "echo requests to a forwarding address without a service pass",
            options(AddressOptions::PING_FORWARD),
            both().map(|ping| passes(ping.frame(), Reason::OtherProtocol)).to_vec(),
        ),
        Case::new(
            "an address that drops unknown ports still answers echo requests",
            options(AddressOptions::DROP_NO_SERVICE),
            {
                let dropped = Client::each()
                    .map(|client| drops(client.to_port(9).frame(), Reason::NoServiceDropped));
                dropped.into_iter().chain(each(&|ping| ping)).collect()
            },
        ),
        Case::new(
            "with a TTL of 1 an echo request is answered, and a packet to an unknown port passes",
            Fixture::new(),
            {
                let unknown_port = Client::each().map(|client| {
                    passes(Client { ttl: 1, ..client.to_port(9) }.frame(), Reason::NoService)
                });
                each(&|ping| EchoRequest { ttl: 1, ..ping })
                    .into_iter()
                    .chain(unknown_port)
                    .collect()
            },
        ),
        Case::new(
            "an echo reply with the layout of the balancer's own replies is not answered",
            Fixture::new(),
            {
                both()
                    .map(|ping| {
                        let answer = EchoRequest {
                            source: ping.destination,
                            destination: ping.source,
                            ..ping
                        };
                        passes(frames::framed(&answer.answer()), Reason::OtherProtocol)
                    })
                    .to_vec()
            },
        ),
    ]
}

/// An echo request and its reply.
pub(super) fn answered(ping: &EchoRequest) -> (Frame, Expectation) {
    let frame = ping.frame();
    let answer = frames::turned_back(&frame, &ping.answer());
    (frame.into(), Expectation::Reply(Reason::IcmpEchoReplied, answer))
}

fn options(options: AddressOptions) -> Fixture {
    Fixture { address_options: [(1, options), (2, options)].into(), ..Fixture::new() }
}

/// A fixture that forwards echo requests to the backends of [`WEB`].
fn forwarding() -> Fixture {
    let mut fixture = options(AddressOptions::PING_FORWARD);
    fixture.vips.extend([((1, 0, 1), WEB), ((2, 0, 1), WEB)]);
    fixture
}

fn prefix() -> Fixture {
    let mut fixture = Fixture::new();
    fixture.prefixes = [("192.0.3.0/24", 3), ("2001:db8:7::/48", 4)]
        .map(|(prefix, id)| (prefix.parse().expect("a prefix"), id))
        .into();
    fixture
}

fn forwarded(ping: &EchoRequest) -> (Frame, Expectation) {
    let (destination, protocol): (IpAddr, u8) =
        if ping.source.is_ipv6() { (VIP_V6.into(), 58) } else { (VIP_V4.into(), 1) };
    let tuple = flow::tuple(ping.source, destination, &[0; 4], protocol);
    let slot = flow::slot(&forwarding().tables[&WEB].slots, &tuple).expect("the table has slots");
    to_backend(ping, WEB, slot)
}

/// An echo request that is forwarded to a backend.
pub(super) fn to_backend(
    ping: &EchoRequest,
    service: u32,
    (backend, hint): SlotSpec,
) -> (Frame, Expectation) {
    let (bytes, packet) = (ping.frame(), ping.packet());
    let host = BackendSpec::new(backend);
    let outer = if ping.source.is_ipv6() {
        frames::outer_v6(host.v6.expect("it has one"), 0, hint, packet.len())
    } else {
        frames::outer_v4(host.v4.expect("it has one"), 0, hint, packet.len())
    };
    let outcome = Expectation::Forward(Forwarded {
        bytes: frames::encapsulated(&bytes, &outer),
        service,
        backend,
        packets: 1,
        length: packet.len() as u64,
        is_syn: false,
    });
    (bytes.into(), outcome)
}
