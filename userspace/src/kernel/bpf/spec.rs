//! What each map holds, and how its size follows from the limits: one line a map.
//!
//! Loading sizes the maps by this table, and replacing them by larger ones copies by it
//! ([`super::resize`]), so a new map of a program needs its line here and nothing else.

use std::path::Path;

use sluice_control::capacities::{Capacities, Limit, ROUTES};

use super::Error;
use super::percpu::missing;
use super::pins::Set;
use super::raw::{RawMap, value};

/// First fragments that are remembered: a second of fragmented packets at a rate that no healthy
/// network has.
const FRAGMENTS: u32 = 8_192;

/// Sources whose rates are kept at once, for services that limit them: the buckets of one that was
/// pushed out are full again.
const SOURCES: u32 = 16_384;

/// Who writes a map, and so what replacing it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Writer {
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
pub(super) struct MapSpec {
    /// Its name, in the object and as a pin.
    pub(super) name: &'static str,
    pub(super) writer: Writer,
    pub(super) size: Size,
}

impl MapSpec {
    const fn new(name: &'static str, writer: Writer, size: Size) -> Self {
        Self { name, writer, size }
    }

    /// How many entries the map has at these capacities; `None` when the object says it.
    pub(super) fn entries(&self, capacities: &Capacities) -> Option<u32> {
        match self.size {
            Size::Fixed => None,
            Size::Exactly(entries) => Some(entries),
            Size::Keyed(limit) => Some(capacities.get(limit)),
            Size::Indexed(limit, each) => Some((capacities.get(limit) + 1) * each),
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
pub(super) const BALANCER: &[MapSpec] = &[
    MapSpec::new("VIP_ADDRESSES", Writer::Keys, Size::Keyed(Limit::Vips)),
    MapSpec::new("VIP_PREFIXES", Writer::Keys, Size::Keyed(Limit::Vips)),
    MapSpec::new("VIPS", Writer::Keys, Size::Keyed(Limit::Vips)),
    MapSpec::new("ROUTES", Writer::Keys, Size::Exactly(ROUTES)),
    MapSpec::new("QUIC_ID_LENGTHS", Writer::Elements, Size::Indexed(Limit::Services, 1)),
    // Twice as many as a configuration may have, so that new ones are there before old ones go.
    MapSpec::new("QUIC_SERVERS", Writer::Keys, Size::Indexed(Limit::Backends, 2)),
    MapSpec::new("ACLS", Writer::Tables, Size::Indexed(Limit::Services, 1)),
    MapSpec::new("RATES", Writer::Elements, Size::Indexed(Limit::Services, 4)),
    // Written by the program; what it writes while the map is replaced may be lost, which costs a
    // bucket a packet or two.
    MapSpec::new("SERVICE_BUCKETS", Writer::Elements, Size::Indexed(Limit::Services, 1)),
    MapSpec::new("CLIENT_BUCKETS", Writer::Flows, Size::Exactly(SOURCES)),
    MapSpec::new("TABLES", Writer::Tables, Size::Indexed(Limit::Services, 1)),
    MapSpec::new("BACKENDS", Writer::Elements, Size::Indexed(Limit::Backends, 1)),
    MapSpec::new("NEXT_HOPS", Writer::Elements, Size::Indexed(Limit::Backends, 2)),
    MapSpec::new("NEIGHBOURS", Writer::Elements, Size::Indexed(Limit::Backends, 4)),
    MapSpec::new("CONNECTIONS", Writer::Flows, Size::Keyed(Limit::Connections)),
    MapSpec::new("FRAGMENTS", Writer::Flows, Size::Exactly(FRAGMENTS)),
    MapSpec::new("SERVICE_COUNTERS", Writer::Counters, Size::Indexed(Limit::Services, 1)),
    MapSpec::new("BACKEND_COUNTERS", Writer::Counters, Size::Indexed(Limit::Backends, 1)),
    MapSpec::new("REASONS", Writer::Counters, Size::Fixed),
    MapSpec::new("CAPTURE_CONTROL", Writer::Elements, Size::Fixed),
    MapSpec::new("CAPTURE_STATE", Writer::Elements, Size::Fixed),
    MapSpec::new("CAPTURE_EVENTS", Writer::Elements, Size::Fixed),
    MapSpec::new("BACKEND_RECORDS", Writer::Elements, Size::Indexed(Limit::Backends, 1)),
    MapSpec::new(SERVICE_RECORDS, Writer::Elements, Size::Indexed(Limit::Services, 1)),
    MapSpec::new("PATH_MTUS", Writer::Elements, Size::Indexed(Limit::Backends, 2)),
    MapSpec::new("PATH_MTU_ERRORS", Writer::Elements, Size::Fixed),
    MapSpec::new("INSTANCE", Writer::Elements, Size::Fixed),
];

/// The maps of the backend's programs.
pub(super) const BACKEND: &[MapSpec] = &[
    MapSpec::new("LOCAL_ADDRESSES", Writer::Keys, Size::Fixed),
    MapSpec::new("VIP_PREFIXES", Writer::Keys, Size::Keyed(Limit::Vips)),
    MapSpec::new("DECAPSULATED", Writer::Counters, Size::Fixed),
    MapSpec::new("MAX_SEGMENT_SIZES", Writer::Elements, Size::Fixed),
    MapSpec::new("MSS_CLAMPED", Writer::Counters, Size::Fixed),
    MapSpec::new("REASONS", Writer::Counters, Size::Fixed),
];

/// What maps of these sizes can hold: of each limit what the smallest of its maps can.
pub(super) fn capacities<'a>(maps: impl Iterator<Item = (&'a MapSpec, &'a RawMap)>) -> Capacities {
    let most = u32::MAX;
    let mut capacities =
        Capacities { services: most, backends: most, vips: most, connections: most };
    for (spec, map) in maps {
        let holds = spec.capacity(map.entries());
        let capacity = match spec.limit() {
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
    specs: &'static [MapSpec],
    set: &Set,
) -> Result<Vec<(&'static MapSpec, RawMap)>, Error> {
    let open = |spec: &'static MapSpec| {
        let path = set.directory.join(spec.name);
        Ok((spec, RawMap::open(&path)?.ok_or_else(|| missing(&path))?))
    };
    specs.iter().map(open).collect()
}
