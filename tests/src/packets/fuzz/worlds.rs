//! What the maps hold while frames are tried: worlds with names, so that a frame in the corpus can
//! say which one it needs.

use ipnet::IpNet;
use sluice_datapath::options::VipOptions;

use super::Traffic;
use crate::packets::cases::LARGEST;
use crate::packets::random;
use crate::packets::world::{DNS, Host, WEB, World};

/// A program, and how to make what its maps hold.
#[derive(Debug, Clone, Copy)]
pub enum Subject {
    /// The balancer's, at both of its hooks.
    Balancer(fn() -> World),
    /// The backend's that decapsulates.
    Backend(fn() -> Host),
    /// The backend's that clamps: VIPs, and the largest segments of IPv4 and IPv6.
    Clamp(fn() -> (Vec<IpNet>, [u32; 2])),
}

impl Subject {
    /// What comes to the program.
    pub fn traffic(&self) -> Traffic {
        match self {
            Self::Balancer(_) => Traffic::OfClients,
            Self::Backend(_) => Traffic::Encapsulated,
            Self::Clamp(_) => Traffic::OfServers,
        }
    }
}

/// A subject and the name of its world.
pub type Named = (&'static str, Subject);

/// A world of the balancer: its name, and how to make it.
pub type Made = (&'static str, fn() -> World);

/// Every world of the balancer.
pub const WORLDS: &[Made] = &[
    // Two services over four backends, all well.
    ("usual", World::new),
    // The same, every flow in the connection table.
    ("tracked", || World::new().tracked(true)),
    // Slots without a backend, backends without address, route or room, one service tracked, one
    // without a table.
    ("faults", random::world),
    // All well, and backends with server IDs.
    ("quic", random::with_server_ids),
    // A way to the backends on which only short packets fit.
    ("narrow", || World::new().with_mtu(150)),
    // The same for services of which one has merged segments cut smaller, and the other tells
    // nobody what fits.
    ("cutting", || World {
        vip_options: [(WEB, VipOptions::RESEGMENT), (DNS, VipOptions::DROP_TOO_BIG)].into(),
        ..World::new().with_mtu(190)
    }),
    // One on which all fit.
    ("wide", || World::new().with_mtu(9000).tracked(true)),
    // Packets to backends in UDP, of which one service's take it without a checksum; some backends
    // are of the other family.
    ("gue", random::gue),
    // VIPs whose services have no lookup table yet.
    ("unfilled", || World { tables: [].into(), ..World::new() }),
];

/// The balancer with each of its worlds.
pub fn balancer() -> Vec<Named> {
    WORLDS.iter().map(|&(name, make)| (name, Subject::Balancer(make))).collect()
}

/// The backend's programs.
pub fn backend() -> Vec<Named> {
    vec![
        // A backend of two addresses and two VIPs.
        ("backend", Subject::Backend(random::host)),
        // What leaves it.
        ("clamp", Subject::Clamp(|| (random::host().vips, LARGEST))),
    ]
}

/// The subject that has the world of a name.
pub fn named(name: &str) -> Option<Subject> {
    balancer()
        .into_iter()
        .chain(backend())
        .find(|(known, _)| *known == name)
        .map(|(_, subject)| subject)
}
