//! Lookup tables as inner maps.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd as _;

use aya_obj::generated::{BPF_F_INNER_MAP, BPF_F_MMAPABLE};
use sluice_control::service_table::ServiceTable;

use super::Error;
use super::mmap::MappedArray;
use super::raw::{RawMap, bytes};
use super::resize::INNER_MAPS;

/// Flags of a lookup table, which must be those of the inner map prototype in the object.
pub(super) const TABLE_FLAGS: u32 = BPF_F_MMAPABLE | BPF_F_INNER_MAP;

/// Reads the lookup tables of these services. Services without one are left out.
pub(super) fn read(outer: &RawMap, services: &[u32]) -> Result<BTreeMap<u32, ServiceTable>, Error> {
    let mut tables = BTreeMap::new();
    for (service, id) in outer.inner_maps(services)? {
        let inner = RawMap::by_id(id, outer.name())?;
        let memory = MappedArray::map(inner.descriptor(), inner.entries(), false)?;
        if let Some(table) = ServiceTable::from_elements(&memory.read()) {
            tables.insert(service, table);
        }
    }
    Ok(tables)
}

/// Creates new inner maps, fills them, and replaces the old ones, many in one call. No packet sees
/// a partial table. After an error, some tables may have been replaced.
///
/// The kernel waits for an RCU grace period (milliseconds), per inner map or per call;
/// [`RawMap::write`] shares the wait.
pub(super) fn replace(outer: &RawMap, tables: &[(u32, &ServiceTable)]) -> Result<(), Error> {
    for tables in tables.chunks(INNER_MAPS) {
        let mut inner = Vec::with_capacity(tables.len());
        for (_, table) in tables {
            let elements = table.elements();
            let length = elements.len() as u32;
            let map = RawMap::array("lookup table", size_of::<u64>(), length, TABLE_FLAGS)?;
            MappedArray::map(map.descriptor(), length, true)?.fill(&elements);
            inner.push(map);
        }
        let keys: Vec<u32> = tables.iter().map(|(service, _)| *service).collect();
        let values: Vec<u32> =
            inner.iter().map(|map| map.descriptor().as_raw_fd() as u32).collect();
        outer.write(bytes(&keys), bytes(&values))?;
    }
    Ok(())
}
