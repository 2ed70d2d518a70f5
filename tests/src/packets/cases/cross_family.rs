//! Backends with an address of the other IP family only.

use sluice_datapath::Reason;

use super::case::Case;
use super::expect::{drops, forwarded, forwards};
use crate::packets::expectation::{Expectation, Forwarded};
use crate::packets::fixture::{BackendSpec, Fixture};
use crate::packets::frames::{self, Client, Frame};

const HINT: u16 = 0x557f;

pub(super) fn cases() -> Vec<Case> {
    let v4_only = || Fixture::new().all_to(3, HINT).with_backend(3, |backend| backend.v6 = None);
    let v6_only = || Fixture::new().all_to(3, HINT).with_backend(3, |backend| backend.v4 = None);
    vec![
        Case::new("an IPv6 packet to an IPv4 backend gets an IPv4 outer header", v4_only(), {
            let each = Client::each().map(|client| {
                if client.is_v6() { crossing(&client) } else { forwards(&client, 3, HINT) }
            });
            each.to_vec()
        }),
        Case::new("an IPv4 packet to an IPv6 backend gets an IPv6 outer header", v6_only(), {
            let each = Client::each().map(|client| {
                if client.is_v6() { forwards(&client, 3, HINT) } else { crossing(&client) }
            });
            each.to_vec()
        }),
        Case::new("across families DSCP and ECN are copied, and the outer TTL is 64", v6_only(), {
            let clients =
                [0, 3, 0x2e << 2, 0xff].map(|tos| Client { tos, ttl: 9, ..Client::udp4() });
            clients.iter().map(crossing).collect()
        }),
        Case::new(
            "an IPv4 packet with an IPv6 outer header may be exactly as long as the MTU",
            v6_only().with_mtu(564),
            {
                let client = Client { payload: 564 - 40 - 40, ..Client::tcp4() };
                let larger = Client { payload: client.payload + 1, ..Client::tcp4() };
                vec![crossing(&client), drops(larger.frame(), Reason::TooBig)]
            },
        ),
        Case::new(
            "an IPv6 packet with an IPv4 outer header may be exactly as long as the MTU",
            v4_only().with_mtu(1164),
            {
                let client = Client { payload: 1164 - 20 - 60, ..Client::tcp6() };
                let larger = Client { payload: client.payload + 1, ..Client::tcp6() };
                vec![crossing(&client), drops(larger.frame(), Reason::TooBig)]
            },
        ),
        Case::new(
            "the IPv4 outer header of a padded IPv6 packet does not include the padding",
            v4_only(),
            {
                let client = Client { payload: 0, ..Client::udp6() };
                let (frame, outcome) = crossing(&client);
                let pad = |mut bytes: Vec<u8>| {
                    bytes.extend([0; 9]);
                    bytes
                };
                let Expectation::Forward(forwarded) = outcome else {
                    unreachable!("it is forwarded")
                };
                let bytes = pad(forwarded.bytes);
                vec![(
                    pad(frame.bytes).into(),
                    Expectation::Forward(Forwarded { bytes, ..forwarded }),
                )]
            },
        ),
    ]
}

/// A client's packet that goes to backend 3 with an outer header of the other family.
pub(super) fn crossing(client: &Client) -> (Frame, Expectation) {
    let (bytes, length) = (client.frame(), client.packet().len());
    let backend = BackendSpec::new(3);
    let outer = if client.is_v6() {
        frames::outer_v4_of_v6(backend.v4.expect("it has one"), client.tos, HINT, length)
    } else {
        frames::outer_v6_of_v4(backend.v6.expect("it has one"), client.tos, HINT, length)
    };
    let Expectation::Forward(within) = forwarded(&bytes, client, 3, HINT) else {
        unreachable!("it is forwarded")
    };
    let outcome =
        Expectation::Forward(Forwarded { bytes: frames::encapsulated(&bytes, &outer), ..within });
    (bytes.into(), outcome)
}
