//! A backend accepts tunnel packets from listed balancers only.

use std::net::IpAddr;

use sluice_datapath::Reason;

use super::case::DecapCase;
use super::decapsulation::{LOCAL_V4, LOCAL_V6, gue_headers, host, taken, wrap, wrap_across};
use super::expect::patched;
use crate::packets::addresses::UNDERLAY_V4;
use crate::packets::expectation::{Action, DecapExpectation};
use crate::packets::fixture::HostFixture;
use crate::packets::frames::{Client, ETHERNET, Frame};

/// Offset of the source in an outer header.
const SOURCE_V4: usize = ETHERNET + 12;
const SOURCE_V6: usize = ETHERNET + 8;

pub(super) fn cases() -> Vec<DecapCase> {
    let untouched = |bytes: Vec<u8>, action, reason| {
        (Frame::from(bytes), DecapExpectation::Untouched(action, reason))
    };
    let refused = |bytes| untouched(bytes, Action::Drop, Reason::NotBalancer);
    let passes = |bytes| untouched(bytes, Action::Pass, Reason::NotTunnel);
    let case = |name, host, frames| DecapCase { name, host, frames };
    let every = || Client::each().into_iter();
    vec![
        case(
            "a packet from a listed balancer is decapsulated",
            listed(),
            every()
                .flat_map(|client| {
                    [wrap(&client, 0), gue_headers(&wrap(&client, 0)), wrap_across(&client, 0)]
                        .map(|bytes| taken(bytes, &client, 1))
                })
                .collect(),
        ),
        case(
            "a packet from another source is dropped",
            listed(),
            every()
                .flat_map(|client| {
                    [wrap(&client, 0), gue_headers(&wrap(&client, 0)), wrap_across(&client, 0)]
                        .map(|bytes| refused(from_other(bytes)))
                })
                .collect(),
        ),
        case(
            "a packet of another source is dropped, whatever it contains",
            listed(),
            every()
                .map(|client| {
                    let address: IpAddr =
                        if client.is_v6() { LOCAL_V6.into() } else { LOCAL_V4.into() };
                    refused(from_other(wrap(&client.to_address(address), 0)))
                })
                .collect(),
        ),
        case(
            "a packet from the IPv4-mapped address of a balancer is dropped",
            listed(),
            vec![refused(patched(
                wrap(&Client::tcp6(), 0),
                SOURCE_V6,
                &UNDERLAY_V4.to_ipv6_mapped().octets(),
            ))],
        ),
        case(
            "outer fragments, options and extension headers hide no source from the check",
            listed(),
            hidden().into_iter().map(|bytes| refused(from_other(bytes))).collect(),
        ),
        case(
            "outer fragments, options and extension headers of a balancer pass",
            listed(),
            hidden().into_iter().map(passes).collect(),
        ),
        case(
            "packets of other sources that are not for a tunnel pass",
            listed(),
            every()
                .flat_map(|client| {
                    let address: IpAddr =
                        if client.is_v6() { LOCAL_V6.into() } else { LOCAL_V4.into() };
                    [client.frame(), client.to_address(address).frame()].map(passes)
                })
                .chain([
                    // To another host's address.
                    passes(from_other(patched(wrap(&Client::tcp4(), 0), ETHERNET + 19, &[4]))),
                    passes(from_other(patched(wrap(&Client::tcp6(), 0), ETHERNET + 39, &[4]))),
                ])
                .collect(),
        ),
        case(
            "packets to a tunnel device pass from a listed balancer only",
            HostFixture { by_device: vec![LOCAL_V4.into(), LOCAL_V6.into()], ..listed() },
            every()
                .flat_map(|client| {
                    let bytes = wrap(&client, 0);
                    [
                        refused(from_other(bytes.clone())),
                        untouched(bytes, Action::Pass, Reason::TunnelDevice),
                    ]
                })
                .chain(hidden().into_iter().map(|bytes| refused(from_other(bytes))))
                .collect(),
        ),
    ]
}

/// A backend that accepts the balancers' prefixes.
fn listed() -> HostFixture {
    let balancers = [
        ipnet::IpNet::from(IpAddr::from(UNDERLAY_V4)),
        "2001:db8:ffff::/48".parse().expect("a prefix"),
    ];
    HostFixture { balancers: balancers.to_vec(), ..host() }
}

/// The frame with the next outer source; for IPv6, one in the next /48.
fn from_other(mut bytes: Vec<u8>) -> Vec<u8> {
    let is_v4 = bytes[12..14] == [0x08, 0x00];
    bytes[if is_v4 { SOURCE_V4 + 3 } else { SOURCE_V6 + 5 }] ^= 1;
    bytes
}

/// Tunnel packets that the program leaves to the kernel.
fn hidden() -> Vec<Vec<u8>> {
    let v4 = wrap(&Client::tcp4(), 0);
    let mut options = patched(v4.clone(), ETHERNET, &[0x46]);
    options.splice(ETHERNET + 20..ETHERNET + 20, [1, 1, 1, 0]);
    let fragment = |bits: u16| patched(v4.clone(), ETHERNET + 6, &bits.to_be_bytes());
    // Extension headers between the outer header and the inner IPv6 packet.
    let extended = |kinds: &[(u8, [u8; 8])]| {
        let mut bytes = wrap(&Client::tcp6(), 0);
        for (kind, header) in kinds {
            let mut header = *header;
            header[0] = std::mem::replace(&mut bytes[ETHERNET + 6], *kind);
            bytes.splice(ETHERNET + 40..ETHERNET + 40, header);
        }
        bytes
    };
    let destination = (60, [0, 0, 1, 4, 0, 0, 0, 0]);
    vec![
        options,
        fragment(0x2000),
        fragment(0x0003),
        extended(&[destination]),
        extended(&[(0, [0, 0, 1, 4, 0, 0, 0, 0])]),
        extended(&[(44, [0, 0, 0, 1, 0, 0, 0, 7])]),
        extended(&[(44, [0, 0, 0, 9, 0, 0, 0, 7])]),
        extended(&[destination; 3]),
        // More extension headers than the program skips.
        extended(&[destination; 12]),
    ]
}
