//! What the maps hold while frames are tried: fixtures with names, so that a frame in the corpus can
//! say which one it needs.

use ipnet::IpNet;
use sluice_datapath::abi::VipOptions;

use super::traffic::Traffic;
use crate::packets::cases::LARGEST;
use crate::packets::fixture::{DNS, Fixture, HostFixture, WEB};
use crate::packets::random;

/// A program, and how to make what its maps hold.
#[derive(Debug, Clone, Copy)]
pub enum Subject {
    /// The balancer's, at both of its hooks.
    Balancer(fn() -> Fixture),
    /// The backend's that decapsulates.
    Backend(fn() -> HostFixture),
    /// The backend's that clamps: VIPs, and the largest segments of IPv4 and IPv6.
    Clamp(fn() -> (Vec<IpNet>, [u32; 2])),
}

impl Subject {
    /// What comes to the program.
    pub fn traffic(&self) -> Traffic {
        match self {
            Self::Balancer(_) => Traffic::FromClients,
            Self::Backend(_) => Traffic::Encapsulated,
            Self::Clamp(_) => Traffic::FromBackends,
        }
    }
}

/// A subject and the name of its fixture.
pub type NamedSubject = (&'static str, Subject);

/// A fixture of the balancer: its name, and how to make it.
pub type NamedFixture = (&'static str, fn() -> Fixture);

/// Every fixture of the balancer.
pub const FIXTURES: &[NamedFixture] = &[
    // Two services over four backends, all well.
    ("usual", Fixture::new),
    // The same, every flow in the connection table.
    ("tracked", || Fixture::new().tracked(true)),
    // Slots without a backend, backends without address, route or room, one service tracked, one
    // without a table.
    ("faults", random::fixture),
    // All well, and backends with server IDs.
    ("quic", random::with_server_ids),
    // A way to the backends on which only short packets fit.
    ("narrow", || Fixture::new().with_mtu(150)),
    // The same for services of which one has merged segments cut smaller, and the other tells
    // nobody what fits.
    ("cutting", || Fixture {
        vip_options: [(WEB, VipOptions::RESEGMENT), (DNS, VipOptions::DROP_TOO_BIG)].into(),
        ..Fixture::new().with_mtu(190)
    }),
    // One on which all fit.
    ("wide", || Fixture::new().with_mtu(9000).tracked(true)),
    // Packets to backends in UDP, of which one service's take it without a checksum; some backends
    // are of the other family.
    ("gue", random::gue),
    // VIPs whose services have no lookup table yet.
    ("unfilled", || Fixture { tables: [].into(), ..Fixture::new() }),
];

/// The balancer with each of its fixtures.
pub fn balancer() -> Vec<NamedSubject> {
    FIXTURES.iter().map(|&(name, make)| (name, Subject::Balancer(make))).collect()
}

/// The backend's programs.
pub fn backend() -> Vec<NamedSubject> {
    vec![
        // A backend of two addresses and two VIPs.
        ("backend", Subject::Backend(random::host)),
        // What leaves it.
        ("clamp", Subject::Clamp(|| (random::host().vips, LARGEST))),
    ]
}

/// The subject that has the fixture of a name.
pub fn named(name: &str) -> Option<Subject> {
    balancer()
        .into_iter()
        .chain(backend())
        .find(|(known, _)| *known == name)
        .map(|(_, subject)| subject)
}
