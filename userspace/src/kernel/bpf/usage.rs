//! What maps take and hold.

use std::path::Path;

use serde::Serialize;

use super::Error;
use super::pins::{COUNTED_BEFORE, Set};
use super::raw::RawMap;
use super::spec::{self, MapSpec, Transfer};

/// What a map takes and holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Its name; with `counted_before/` in front for what was counted in a map that was replaced.
    pub name: String,
    /// Entries that are in use, where that is known: not in arrays, which are whole from the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entries: Option<u64>,
    /// Entries that there is room for.
    pub capacity: u32,
    /// Bytes of kernel memory, as the kernel tells; those of inner maps included.
    pub bytes: u64,
    /// Bytes of them for each possible CPU, where every CPU has values of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_cpu: Option<u64>,
}

/// What the maps of a set take.
///
/// # Errors
///
/// [`Error::System`] when the kernel does not tell.
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
