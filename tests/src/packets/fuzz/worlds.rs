//! What the maps hold while frames are tried: worlds with names, so that a frame in the corpus can say which one it needs.

use sluice_datapath::options::VipOptions;

use crate::packets::random;
use crate::packets::world::{DNS, WEB, World};

/// A world's name and how to make it.
pub type Named = (&'static str, fn() -> World);

/// Every world.
pub const WORLDS: &[Named] = &[
    // Two services over four backends, all well.
    ("usual", World::new),
    // The same, every flow in the connection table.
    ("tracked", || World::new().tracked(true)),
    // Slots without a backend, backends without address, route or room, one service tracked, one without a table.
    ("faults", random::world),
    // A way to the backends on which only short packets fit.
    ("narrow", || World::new().with_mtu(150)),
    // The same for services of which one has merged segments cut smaller, and the other tells nobody what fits.
    ("cutting", || World {
        vip_options: [(WEB, VipOptions::RESEGMENT), (DNS, VipOptions::DROP_TOO_BIG)].into(),
        ..World::new().with_mtu(190)
    }),
    // One on which all fit.
    ("wide", || World::new().with_mtu(9000).tracked(true)),
    // VIPs whose services have no lookup table yet.
    ("unfilled", || World { tables: [].into(), ..World::new() }),
];

/// The world of a name.
pub fn named(name: &str) -> Option<World> {
    WORLDS.iter().find(|(known, _)| *known == name).map(|(_, make)| make())
}
