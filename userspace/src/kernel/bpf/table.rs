//! A lookup table as it is in its inner map.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd as _;

use aya_obj::generated::{BPF_F_INNER_MAP, BPF_F_MMAPABLE};
use sluice_control::service_table::ServiceTable;

use super::Error;
use super::memory::Memory;
use super::raw::{RawMap, bytes};
use super::resize::INNER_MAPS;

/// Flags of a lookup table, those of the program's prototype of it.
pub(super) const TABLE_FLAGS: u32 = BPF_F_MMAPABLE | BPF_F_INNER_MAP;

/// Reads the lookup tables of those of these services that have one.
///
/// # Errors
///
/// [`Error::System`].
pub(super) fn read(outer: &RawMap, services: &[u32]) -> Result<BTreeMap<u32, ServiceTable>, Error> {
    let mut tables = BTreeMap::new();
    for (service, id) in outer.inner_maps(services)? {
        let inner = RawMap::by_id(id, outer.name())?;
        let memory = Memory::map(inner.descriptor(), inner.entries(), false)?;
        if let Some(table) = ServiceTable::from_elements(&memory.read()) {
            tables.insert(service, table);
        }
    }
    Ok(tables)
}

/// Builds new inner maps, fills them whole, and swaps them in, many in one call: no packet sees
/// half a table.
///
/// The kernel waits for an RCU grace period (milliseconds) with each of them, or with all;
/// [`RawMap::write`] has many wait together.
///
/// # Errors
///
/// [`Error::System`]; some tables may be in place.
pub(super) fn replace(outer: &RawMap, tables: &[(u32, &ServiceTable)]) -> Result<(), Error> {
    for tables in tables.chunks(INNER_MAPS) {
        let mut inner = Vec::with_capacity(tables.len());
        for (_, table) in tables {
            let elements = table.elements();
            let length = elements.len() as u32;
            let map = RawMap::array("lookup table", size_of::<u64>(), length, TABLE_FLAGS)?;
            Memory::map(map.descriptor(), length, true)?.fill(&elements);
            inner.push(map);
        }
        let keys: Vec<u32> = tables.iter().map(|(service, _)| *service).collect();
        let values: Vec<u32> =
            inner.iter().map(|map| map.descriptor().as_raw_fd() as u32).collect();
        outer.write(bytes(&keys), bytes(&values))?;
    }
    Ok(())
}
