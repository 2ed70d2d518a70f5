//! The lookup table of a service, and its form in the inner map of `TABLES`.

use sluice_datapath::abi::{Slot, TableHead};

/// The lookup table of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceTable {
    /// The number of slots, and whether flows are kept in the connection table.
    pub head: TableHead,
    /// Version of the table: incremented with each replacement.
    pub generation: u32,
    /// Digest of the owners' names in slot order, equal on balancers with equal lookup tables.
    pub digest: u64,
    /// The slots.
    pub slots: Vec<Slot>,
}

impl ServiceTable {
    /// The elements of the inner map, two words in each.
    pub fn elements(&self) -> Vec<u64> {
        let pair = |low: u32, high: u32| u64::from(low) | (u64::from(high) << 32);
        let mut elements = Vec::with_capacity(self.slots.len() / 2 + 3);
        elements.push(pair(self.head.encode(), self.generation));
        elements.push(self.digest);
        elements.extend(
            self.slots
                .chunks(2)
                .map(|two| pair(two[0].encode(), two.get(1).map_or(0, |slot| slot.encode()))),
        );
        elements
    }

    /// The inverse of [`Self::elements`]; `None` when elements are missing.
    pub fn from_elements(elements: &[u64]) -> Option<Self> {
        let [first, digest, slots @ ..] = elements else { return None };
        let head = TableHead::decode(*first as u32);
        let slots: Vec<Slot> = slots
            .iter()
            .flat_map(|pair| [*pair as u32, (pair >> 32) as u32])
            .take(head.slots as usize)
            .map(Slot::decode)
            .collect();
        (slots.len() == head.slots as usize).then_some(Self {
            head,
            generation: (first >> 32) as u32,
            digest: *digest,
            slots,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_table_survives_the_round_trip(words in prop::collection::vec(any::<u32>(), 0..20), tracked: bool, generation: u32, digest: u64) {
            let slots: Vec<Slot> = words.into_iter().map(Slot::decode).collect();
            let head = TableHead { slots: slots.len() as u32, tracked };
            let table = ServiceTable { head, generation, digest, slots };
            prop_assert_eq!(ServiceTable::from_elements(&table.elements()), Some(table));
        }
    }
}
