//! The size of a map and the transfer of its content at a resize, as derived from its row in
//! [`sluice_datapath::abi::maps`].

use std::path::Path;

use sluice_control::capacities::{Capacities, Limit};
pub(super) use sluice_datapath::abi::maps::{BACKEND, BALANCER, MapSpec};
use sluice_datapath::abi::maps::{MapKind, Writer, balancer};

use super::Error;
use super::percpu::missing;
use super::pins::Set;
use super::raw::{RawMap, value};

/// How a map's content gets into a map of another size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transfer {
    /// Entries of a hash map or trie that only the daemon writes: copied once.
    Entries,
    /// Elements of an array: copied once. An element of zeros was never used.
    Elements,
    /// Inner maps: both outer maps refer to the same ones.
    InnerMaps,
    /// 64-bit counters per CPU: the new map starts at zero, and the counts of the old one are kept
    /// next to it.
    Counts,
    /// Entries of a hash map that the program writes: copied, and again when no packet uses the old
    /// map any more.
    LiveEntries,
    /// No content: the map is never resized.
    None,
}

impl Transfer {
    /// How the content of a map is transferred.
    pub(super) fn of(spec: &MapSpec) -> Self {
        match (spec.kind, spec.writer) {
            (MapKind::Hash | MapKind::SparseHash | MapKind::LpmTrie, Writer::Daemon) => {
                Self::Entries
            }
            (MapKind::Hash | MapKind::SparseHash | MapKind::LpmTrie | MapKind::LruHash, _) => {
                Self::LiveEntries
            }
            (MapKind::Array, _) => Self::Elements,
            (MapKind::ArrayOfMaps, _) => Self::InnerMaps,
            (MapKind::Counters, _) => Self::Counts,
            (MapKind::PerCpuArray | MapKind::RingBuffer, _) => Self::None,
        }
    }
}

/// The number of entries of a map with these capacities; `None` when the object decides.
pub(super) fn entries(spec: &MapSpec, capacities: &Capacities) -> Option<u32> {
    spec.size.entries(|limit| capacities.get(limit))
}

/// The indexes of an array of maps that may refer to a map: index 0, and those of services that
/// exist or existed.
///
/// The others are not looked up, because before Linux 6.8 each lookup of an inner map waits until
/// no program runs, for 20 milliseconds and more. A service's record is written before anything
/// else of the service, and is never all zeros again.
pub(super) fn outer_indexes(directory: &Path) -> Result<Vec<u32>, Error> {
    let path = directory.join(balancer::SERVICE_RECORDS.spec().name);
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

/// The capacities of maps with these numbers of entries: for each limit, that of its smallest map.
pub(super) fn capacities<'a>(maps: impl IntoIterator<Item = (&'a MapSpec, u32)>) -> Capacities {
    let most = u32::MAX;
    let mut capacities =
        Capacities { services: most, backends: most, vips: most, connections: most };
    for (spec, entries) in maps {
        if let Some((limit, capacity)) = spec.size.capacity(entries) {
            let smallest = match limit {
                Limit::Services => &mut capacities.services,
                Limit::Backends => &mut capacities.backends,
                Limit::Vips => &mut capacities.vips,
                Limit::Connections => &mut capacities.connections,
            };
            *smallest = capacity.min(*smallest);
        }
    }
    capacities
}

/// Opens the pinned maps of a set.
pub(super) fn open(
    specs: &'static [MapSpec],
    set: &Set,
) -> Result<Vec<(&'static MapSpec, RawMap)>, Error> {
    let open = |spec: &'static MapSpec| {
        let path = set.directory.join(spec.name);
        Ok((spec, RawMap::open(&path)?.ok_or_else(|| missing(&path))?))
    };
    specs.iter().filter(|spec| spec.pinned).map(open).collect()
}
