//! A lookup table as it is in its inner map.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd as _;

use sluice_datapath::entries::{Slot, TableHead};

use super::Error;
use super::memory::Memory;
use super::raw::{RawMap, bytes};
use super::resize::INNER_MAPS;

/// `BPF_F_MMAPABLE` and `BPF_F_INNER_MAP`, as the program's prototype of a table has them.
pub(super) const TABLE_FLAGS: u32 = 1 << 10 | 1 << 12;

/// A lookup table as it is in its inner map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Number of slots, and whether flows are tracked.
    pub head: TableHead,
    /// Counts up with every table of the service.
    pub generation: u32,
    /// Digest of the owners' names, slot by slot: equal on balancers that agree.
    pub digest: u64,
    /// The slots.
    pub slots: Vec<Slot>,
}

impl Table {
    /// The elements of the inner map: two words each.
    fn elements(&self) -> Vec<u64> {
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let mut elements = Vec::with_capacity(self.slots.len() / 2 + 3);
        elements.push(pair(self.head.to_word(), self.generation));
        elements.push(self.digest);
        elements.extend(
            self.slots
                .chunks(2)
                .map(|two| pair(two[0].to_word(), two.get(1).map_or(0, |slot| slot.to_word()))),
        );
        elements
    }

    fn from_elements(elements: &[u64]) -> Option<Self> {
        let [first, digest, slots @ ..] = elements else { return None };
        let head = TableHead::from_word(*first as u32);
        let slots: Vec<Slot> = slots
            .iter()
            .flat_map(|pair| [*pair as u32, (pair >> 32) as u32])
            .take(head.slots as usize)
            .map(Slot::from_word)
            .collect();
        (slots.len() == head.slots as usize).then_some(Self {
            head,
            generation: (first >> 32) as u32,
            digest: *digest,
            slots,
        })
    }
}

/// Reads the lookup tables of those of these services that have one.
///
/// # Errors
///
/// [`Error::System`].
pub(super) fn read(outer: &RawMap, services: &[u32]) -> Result<BTreeMap<u32, Table>, Error> {
    let mut tables = BTreeMap::new();
    for (service, id) in outer.inner_maps(services)? {
        let inner = RawMap::by_id(id, outer.name())?;
        let memory = Memory::map(inner.descriptor(), inner.entries(), false)?;
        if let Some(table) = Table::from_elements(&memory.read()) {
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
pub(super) fn replace(outer: &RawMap, tables: &[(u32, &Table)]) -> Result<(), Error> {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_table_survives_the_round_trip(words in prop::collection::vec(any::<u32>(), 0..20), tracked: bool, generation: u32, digest: u64) {
            let slots: Vec<Slot> = words.into_iter().map(Slot::from_word).collect();
            let head = TableHead { slots: slots.len() as u32, tracked };
            let table = Table { head, generation, digest, slots };
            prop_assert_eq!(Table::from_elements(&table.elements()), Some(table));
        }
    }
}
