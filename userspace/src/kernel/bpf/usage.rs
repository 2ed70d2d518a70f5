//! Memory and entries of maps.

use std::path::Path;

use serde::Serialize;

use super::Error;
use super::pins::{COUNTED_BEFORE, Set};
use super::raw::RawMap;
use super::spec::{self, MapSpec, Transfer};

/// Memory and entries of a map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// The map's name, with the prefix `counted_before/` for the counts of a replaced map.
    pub name: String,
    /// The number of entries in use; `None` for arrays, which always have all elements.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entries: Option<u64>,
    /// The maximum number of entries.
    pub capacity: u32,
    /// Bytes of kernel memory as reported by the kernel, including inner maps.
    pub bytes: u64,
    /// Bytes per possible CPU; `None` if the map is not per-CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_cpu: Option<u64>,
}

/// Memory and entries of the maps of a set.
pub(super) fn of(specs: &'static [MapSpec], set: &Set) -> Result<Vec<Usage>, Error> {
    let mut usage = Vec::new();
    for (spec, map) in spec::open(specs, set)? {
        usage.push(of_map(spec, &map, &set.directory)?);
    }
    let kept = set.earlier.iter().filter(|directory| directory.ends_with(COUNTED_BEFORE));
    for directory in kept {
        for spec in specs.iter().filter(|spec| Transfer::of(spec) == Transfer::Counts) {
            if let Some(map) = RawMap::open(&directory.join(spec.name))? {
                usage.push(Usage {
                    name: format!("{COUNTED_BEFORE}/{}", spec.name),
                    ..of_map(spec, &map, directory)?
                });
            }
        }
    }
    Ok(usage)
}

fn of_map(spec: &MapSpec, map: &RawMap, directory: &Path) -> Result<Usage, Error> {
    let mut bytes = map.memory()?;
    let mut entries = None;
    match Transfer::of(spec) {
        Transfer::Entries | Transfer::LiveEntries => {
            let mut count = 0;
            map.read(|keys, _| {
                count += (keys.len() / map.key()) as u64;
                Ok(())
            })?;
            entries = Some(count);
        }
        Transfer::InnerMaps => {
            let inner = map.inner_maps(&spec::outer_indexes(directory)?)?;
            for (_, id) in &inner {
                bytes += RawMap::by_id(*id, map.name())?.memory()?;
            }
            entries = Some(inner.len() as u64);
        }
        Transfer::Elements | Transfer::Counts | Transfer::None => {}
    }
    let bytes_per_cpu = map.is_per_cpu().then(|| map.each() as u64 * u64::from(map.entries()));
    Ok(Usage { name: spec.name.to_owned(), entries, capacity: map.entries(), bytes, bytes_per_cpu })
}
