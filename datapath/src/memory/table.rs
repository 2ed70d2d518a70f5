//! Lookup tables in plain memory.

use crate::abi::{Slot, TableHead};
use crate::balance::LookupTable;

/// The words of a lookup table.
#[derive(Debug, Clone)]
pub struct TableWords(pub Vec<u32>);

impl TableWords {
    /// The words of a table's inner map: head, generation, digest, slots.
    pub fn new(
        head: TableHead,
        generation: u32,
        digest: u64,
        slots: impl IntoIterator<Item = Slot>,
    ) -> Self {
        let mut words = vec![head.encode(), generation, digest as u32, (digest >> 32) as u32];
        words.extend(slots.into_iter().map(Slot::encode));
        Self(words)
    }
}

impl LookupTable for &TableWords {
    fn pair(&self, element: u32) -> Option<u64> {
        let words = self.0.get(element as usize * 2..)?;
        let (low, high) = (*words.first()?, words.get(1).copied().unwrap_or(0));
        Some(u64::from(low) | (u64::from(high) << 32))
    }
}
