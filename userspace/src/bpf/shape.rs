//! What each map holds, and how its size follows from the limits: one line a map.
//!
//! Loading sizes the maps by this table, and replacing them by larger ones copies by it
//! ([`super::growth`]), so a new map of a program needs its line here and nothing else.

use std::path::Path;

use super::Error;
use super::pins::Set;
use super::raw::{RawMap, value};
use super::tally::missing;
use crate::config::limits::MAX_ROUTES;

/// First fragments that are remembered: a second of fragmented packets at a rate that no healthy
/// network has.
const FRAGMENTS: u32 = 8_192;

/// Sources whose rates are kept at once, for services that limit them: the buckets of one that was
/// pushed out are full again.
const SOURCES: u32 = 16_384;

/// Routes: twice as many as a configuration may have, so that new ones are there before old ones
/// go. What is not used takes no memory.
pub const ROUTES: u32 = 2 * MAX_ROUTES;

/// How much the maps can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacities {
    /// Services.
    pub services: u32,
    /// Backends, at most 65,535.
    pub backends: u32,
    /// VIPs, and VIP addresses.
    pub vips: u32,
    /// Entries of the connection table.
    pub connections: u32,
}

impl Capacities {
    pub(super) fn of(&self, limit: Limit) -> u32 {
        match limit {
            Limit::Services => self.services,
            Limit::Backends => self.backends,
            Limit::Vips => self.vips,
            Limit::Connections => self.connections,
        }
    }
}

/// A field of `limits` in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Limit {
    Services,
    Backends,
    Vips,
    Connections,
}

impl Limit {
    /// The field's name.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::Backends => "backends",
            Self::Vips => "vips",
            Self::Connections => "connections",
        }
    }
}

/// Who writes a map, and so what replacing it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holds {
    /// A hash map or a trie that the daemon alone writes.
    Keys,
    /// An array that the daemon alone writes; an element of zeros was never used.
    Elements,
    /// An array of maps that the daemon alone writes. The inner maps stay what they are.
    Tables,
    /// A per-CPU array of 64-bit words that the program counts up. A new one starts at zero: what
    /// the one before it counted is kept beside it.
    Counters,
    /// A hash map that the program writes, and forgets from.
    Flows,
}

/// How many entries a map has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Size {
    /// As many as the program's object says.
    Fixed,
    /// So many.
    Exactly(u32),
    /// One for each.
    Keyed(Limit),
    /// So many for each, and as many for index 0, which means nothing.
    Indexed(Limit, u32),
}

/// A map of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MapShape {
    /// Its name, in the object and as a pin.
    pub(super) name: &'static str,
    pub(super) holds: Holds,
    pub(super) size: Size,
}

impl MapShape {
    const fn new(name: &'static str, holds: Holds, size: Size) -> Self {
        Self { name, holds, size }
    }

    /// How many entries the map has at these capacities; `None` when the object says it.
    pub(super) fn entries(&self, capacities: &Capacities) -> Option<u32> {
        match self.size {
            Size::Fixed => None,
            Size::Exactly(entries) => Some(entries),
            Size::Keyed(limit) => Some(capacities.of(limit)),
            Size::Indexed(limit, each) => Some((capacities.of(limit) + 1) * each),
        }
    }

    /// The limit that sizes the map.
    pub(super) fn limit(&self) -> Option<Limit> {
        match self.size {
            Size::Fixed | Size::Exactly(_) => None,
            Size::Keyed(limit) | Size::Indexed(limit, _) => Some(limit),
        }
    }

    /// How much of its limit a map with so many entries can hold.
    fn capacity(&self, entries: u32) -> u32 {
        match self.size {
            Size::Fixed | Size::Exactly(_) => u32::MAX,
            Size::Keyed(_) => entries,
            Size::Indexed(_, each) => (entries / each).saturating_sub(1),
        }
    }
}

/// The elements of an array of maps that may hold a map: index 0, and those that some service has
/// or had.
///
/// Nobody asks the kernel for the others: before Linux 6.8, to look an inner map up waits until no
/// program runs, for 20 milliseconds and more. A service's record is written before anything else
/// of it, and is never all zeros again.
///
/// # Errors
///
/// [`Error::Open`], [`Error::Absent`], [`Error::System`].
pub(super) fn outer_indexes(directory: &Path) -> Result<Vec<u32>, Error> {
    let path = directory.join(SERVICE_RECORDS);
    let records = RawMap::open(&path)?.ok_or_else(|| missing(&path))?;
    let mut indexes = vec![0];
    records.read(|keys, values| {
        let used =
            values.chunks(records.value()).map(|record| record.iter().any(|byte| *byte != 0));
        let keys = keys.chunks(size_of::<u32>()).map(value::<u32>);
        indexes.extend(
            keys.zip(used).filter(|(index, used)| *used && *index != 0).map(|(index, _)| index),
        );
        Ok(())
    })?;
    Ok(indexes)
}

/// The name of the map of services' records.
const SERVICE_RECORDS: &str = "SERVICE_RECORDS";

/// The maps of the balancer's programs.
pub(super) const BALANCER: &[MapShape] = &[
    MapShape::new("VIP_ADDRESSES", Holds::Keys, Size::Keyed(Limit::Vips)),
    MapShape::new("VIP_PREFIXES", Holds::Keys, Size::Keyed(Limit::Vips)),
    MapShape::new("VIPS", Holds::Keys, Size::Keyed(Limit::Vips)),
    MapShape::new("ROUTES", Holds::Keys, Size::Exactly(ROUTES)),
    MapShape::new("QUIC_LENGTHS", Holds::Elements, Size::Indexed(Limit::Services, 1)),
    // Twice as many as a configuration may have, so that new ones are there before old ones go.
    MapShape::new("QUIC_SERVERS", Holds::Keys, Size::Indexed(Limit::Backends, 2)),
    MapShape::new("LISTS", Holds::Tables, Size::Indexed(Limit::Services, 1)),
    MapShape::new("RATES", Holds::Elements, Size::Indexed(Limit::Services, 4)),
    // Written by the program; what it writes while the map is replaced may be lost, which costs a
    // bucket a packet or two.
    MapShape::new("BUCKETS", Holds::Elements, Size::Indexed(Limit::Services, 1)),
    MapShape::new("SOURCES", Holds::Flows, Size::Exactly(SOURCES)),
    MapShape::new("TABLES", Holds::Tables, Size::Indexed(Limit::Services, 1)),
    MapShape::new("BACKENDS", Holds::Elements, Size::Indexed(Limit::Backends, 1)),
    MapShape::new("NEXT_HOPS", Holds::Elements, Size::Indexed(Limit::Backends, 2)),
    MapShape::new("NEIGHBOURS", Holds::Elements, Size::Indexed(Limit::Backends, 4)),
    MapShape::new("CONNECTIONS", Holds::Flows, Size::Keyed(Limit::Connections)),
    MapShape::new("FRAGMENTS", Holds::Flows, Size::Exactly(FRAGMENTS)),
    MapShape::new("SERVICE_COUNTERS", Holds::Counters, Size::Indexed(Limit::Services, 1)),
    MapShape::new("BACKEND_COUNTERS", Holds::Counters, Size::Indexed(Limit::Backends, 1)),
    MapShape::new("REASONS", Holds::Counters, Size::Fixed),
    MapShape::new("EVENT_SWITCH", Holds::Elements, Size::Fixed),
    MapShape::new("OBSERVERS", Holds::Elements, Size::Fixed),
    MapShape::new("EVENTS", Holds::Elements, Size::Fixed),
    MapShape::new("BACKEND_RECORDS", Holds::Elements, Size::Indexed(Limit::Backends, 1)),
    MapShape::new(SERVICE_RECORDS, Holds::Elements, Size::Indexed(Limit::Services, 1)),
    MapShape::new("PATH_MTUS", Holds::Elements, Size::Indexed(Limit::Backends, 2)),
    MapShape::new("PATH_ERRORS", Holds::Elements, Size::Fixed),
    MapShape::new("INSTANCE", Holds::Elements, Size::Fixed),
];

/// The maps of the backend's programs.
pub(super) const BACKEND: &[MapShape] = &[
    MapShape::new("LOCAL_ADDRESSES", Holds::Keys, Size::Fixed),
    MapShape::new("VIP_PREFIXES", Holds::Keys, Size::Keyed(Limit::Vips)),
    MapShape::new("DECAPSULATED", Holds::Counters, Size::Fixed),
    MapShape::new("LARGEST_SEGMENTS", Holds::Elements, Size::Fixed),
    MapShape::new("CLAMPED", Holds::Counters, Size::Fixed),
    MapShape::new("REASONS", Holds::Counters, Size::Fixed),
];

/// What maps of these sizes can hold: of each limit what the smallest of its maps can.
pub(super) fn capacities<'a>(maps: impl Iterator<Item = (&'a MapShape, &'a RawMap)>) -> Capacities {
    let most = u32::MAX;
    let mut capacities =
        Capacities { services: most, backends: most, vips: most, connections: most };
    for (shape, map) in maps {
        let holds = shape.capacity(map.entries());
        let capacity = match shape.limit() {
            None => continue,
            Some(Limit::Services) => &mut capacities.services,
            Some(Limit::Backends) => &mut capacities.backends,
            Some(Limit::Vips) => &mut capacities.vips,
            Some(Limit::Connections) => &mut capacities.connections,
        };
        *capacity = holds.min(*capacity);
    }
    capacities
}

/// Opens the maps of a set.
///
/// # Errors
///
/// [`Error::Open`], [`Error::Shape`] when one is missing.
pub(super) fn open(
    shapes: &'static [MapShape],
    set: &Set,
) -> Result<Vec<(&'static MapShape, RawMap)>, Error> {
    let open = |shape: &'static MapShape| {
        let path = set.directory.join(shape.name);
        Ok((shape, RawMap::open(&path)?.ok_or_else(|| missing(&path))?))
    };
    shapes.iter().map(open).collect()
}
