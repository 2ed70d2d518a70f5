//! Packets that the balancer passes unchanged.

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::{EtherType, IpNumber};
use sluice_datapath::Reason;

use super::case::Case;
use super::expect::{passes, patched};
use crate::packets::addresses::{OTHERS, VIP_V4, VIP_V6};
use crate::packets::expectation::Expectation;
use crate::packets::fixture::Fixture;
use crate::packets::frames::{self, Client, ETHERNET, Frame, L4Kind, SHORTEST};

pub(super) fn cases() -> Vec<Case> {
    let case = |name, frames| Case::new(name, Fixture::new(), frames);
    let both = || [Client::tcp4(), Client::tcp6()];
    let version = |version: u8| {
        let first = |client: Client| (version << 4) | client.frame()[ETHERNET] & 0xf;
        both().map(|client| {
            passes(patched(client.frame(), ETHERNET, &[first(client)]), Reason::BadHeader)
        })
    };
    vec![
        case("ARP passes", vec![passes(frames::ethernet(EtherType::ARP, &[0; 46]), Reason::NotIp)]),
        case("other EtherTypes pass, even if an IP header follows", {
            let types =
                [0x0000, 0x05dc, 0x0806, 0x86dc, 0x86de, 0x8847, 0x88cc, 0xffff].map(EtherType);
            types
                .map(|kind| passes(frames::ethernet(kind, &Client::tcp4().packet()), Reason::NotIp))
                .to_vec()
        }),
        case("a frame with more than two VLAN tags in its bytes passes", {
            let tags = [(0x88a8, 5), (0x8100, 6), (0x8100, 7)];
            Client::each()
                .map(|client| passes(frames::tagged(&client.frame(), &tags), Reason::VlanDepth))
                .to_vec()
        }),
        case("a tagged frame without IP passes", {
            let arp = frames::ethernet(EtherType::ARP, &[0; 46]);
            [&[(0x8100, 5)][..], &[(0x88a8, 5), (0x8100, 6)]]
                .map(|tags| passes(frames::tagged(&arp, tags), Reason::NotIp))
                .to_vec()
        }),
        case("a tagged frame to an address that is not a VIP address passes with its tags", {
            let clients = [
                Client::tcp4().to_address(Ipv4Addr::new(203, 0, 113, 11)),
                Client::tcp6().to_address(Ipv6Addr::LOCALHOST),
            ];
            let tags = [(0x88a8, 5), (0x8100, 6)];
            clients
                .map(|client| passes(frames::tagged(&client.frame(), &tags), Reason::NotVip))
                .to_vec()
        }),
        case("a frame truncated anywhere in its tags passes", {
            let whole = frames::tagged(&Client::tcp4().frame(), &[(0x88a8, 5), (0x8100, 6)]);
            (SHORTEST..ETHERNET + 8)
                .map(|length| passes(whole[..length].to_vec(), Reason::Truncated))
                .collect()
        }),
        case("a frame to another host's, the broadcast or a multicast link address passes", {
            let to = |receiver: [u8; 6]| {
                Client::each()
                    .map(|client| passes(patched(client.frame(), 0, &receiver), Reason::OtherHost))
            };
            OTHERS.into_iter().flat_map(to).collect()
        }),
        case("a packet to an address that is not a VIP address passes", {
            let v4 = [
                Ipv4Addr::new(203, 0, 113, 11),
                Ipv4Addr::new(10, 113, 0, 203),
                Ipv4Addr::BROADCAST,
            ];
            let v6 = [Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x11), Ipv6Addr::LOCALHOST];
            let v4 = v4.map(|address| Client::tcp4().to_address(address));
            let v6 = v6.map(|address| Client::tcp6().to_address(address));
            let all = v4.into_iter().chain(v6);
            all.map(|client| passes(client.frame(), Reason::NotVip)).collect()
        }),
        case("an IPv6 packet to the IPv4-mapped form of a VIP address passes", {
            let clients = [Client::tcp6(), Client::udp6()]
                .map(|client| client.to_address(VIP_V4.to_ipv6_mapped()));
            clients.map(|client| passes(client.frame(), Reason::NotVip)).to_vec()
        }),
        case("a packet from a VIP address passes", {
            let reply = |client: Client| Client {
                source: client.destination,
                destination: client.source,
                ..client
            };
            Client::each().map(|client| passes(reply(client).frame(), Reason::NotVip)).to_vec()
        }),
        case("a packet to a VIP address and another port passes", {
            let ports = [0, 1, 80, 442, 444, 0xbb01, 53 << 8, 65_535];
            let all =
                ports.iter().flat_map(|&port| Client::each().map(|client| client.to_port(port)));
            all.map(|client| passes(client.frame(), Reason::NoService)).collect()
        }),
        case("a packet to the port of a VIP with the other protocol passes", {
            let all = Client::each().map(|client| match client.transport {
                L4Kind::Udp => Client { transport: L4Kind::TcpSyn, ..client },
                _ => Client { transport: L4Kind::Udp, ..client },
            });
            all.map(|client| passes(client.frame(), Reason::NoService)).to_vec()
        }),
        case("other protocols to a VIP address pass", other_protocols()),
        case(
            "an IP header of another version passes",
            [0, 1, 5, 7, 15].into_iter().flat_map(version).collect(),
        ),
        case("an IPv6 header under IPv4's EtherType passes, and the other way round", {
            let swapped = |kind, client: Client| {
                passes(frames::ethernet(kind, &client.packet()), Reason::BadHeader)
            };
            vec![swapped(EtherType::IPV4, Client::tcp6()), swapped(EtherType::IPV6, Client::tcp4())]
        }),
        case("an IPv4 IHL below 5 passes", {
            let short = |ihl: u8| {
                passes(patched(Client::tcp4().frame(), ETHERNET, &[0x40 | ihl]), Reason::BadHeader)
            };
            (0..5).map(short).collect()
        }),
        case("a frame truncated anywhere in its IP header passes", {
            Client::each()
                .iter()
                .flat_map(|client| cut(client, SHORTEST, ETHERNET + fixed(client)))
                .collect()
        }),
        case("a frame truncated anywhere in its options or L4 header passes", {
            let clients =
                Client::each().into_iter().chain([Client { options: 40, ..Client::tcp4() }]);
            let needed = |client: &Client| match client.transport {
                L4Kind::Udp => 8,
                _ => 14,
            };
            clients
                .flat_map(|client| {
                    let network = ETHERNET + fixed(&client);
                    cut(&client, network, network + client.options + needed(&client))
                })
                .collect()
        }),
    ]
}

/// Bytes of the IP header without options.
fn fixed(client: &Client) -> usize {
    if client.is_v6() { 40 } else { 20 }
}

/// The frame truncated to every length from `shortest` to below `needed`, from which on it is known
/// to be for a VIP.
fn cut(client: &Client, shortest: usize, needed: usize) -> Vec<(Frame, Expectation)> {
    let whole = client.frame();
    (shortest..needed).map(|length| passes(whole[..length].to_vec(), Reason::Truncated)).collect()
}

fn other_protocols() -> Vec<(Frame, Expectation)> {
    let client = Ipv4Addr::new(198, 51, 100, 7);
    // These bytes would be an echo request in ICMP.
    let content = [8, 0, 0, 0, 0x12, 0x34, 0, 1, 0xca, 0xfe, 0, 0, 0, 0, 0, 0];
    let numbers = [0, 1, 2, 4, 41, 47, 50, 58, 132, 255];
    let v4 = numbers.into_iter().filter(|number| *number != 1).map(|number| {
        let mut header = frames::ipv4(client, VIP_V4, 0, 64, IpNumber(number));
        header.set_payload_len(content.len()).expect("the packet is short");
        header.header_checksum = header.calc_header_checksum();
        frames::ethernet(EtherType::IPV4, &[&header.to_bytes()[..], &content].concat())
    });
    let source = Ipv6Addr::new(0x2001, 0xdb8, 0x99, 0, 0, 0, 0, 7);
    let v6 = numbers.map(|number| {
        let header = frames::ipv6(source, VIP_V6, 0, 0, 64, IpNumber(number), content.len());
        frames::ethernet(EtherType::IPV6, &[&header.to_bytes()[..], &content].concat())
    });
    v4.chain(v6).map(|bytes| passes(bytes, Reason::OtherProtocol)).collect()
}
