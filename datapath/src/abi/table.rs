//! Lookup tables: the words of the inner maps of `TABLES`.

/// The first word of a lookup table's inner map: what a program must know before it selects a slot.
///
/// It travels with the slots, so that one swap of the outer map's entry changes all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableHead {
    /// Number of slots, at most [`TableHead::MAX_SLOTS`].
    pub slots: u32,
    /// Whether the flows of this service are kept in the connection table.
    pub tracked: bool,
}

impl TableHead {
    /// TableWords of a table before its first slot: the head, the generation, and the two halves of the
    /// content's digest.
    pub const WORDS: u32 = 4;
    /// Index of the word that holds the head.
    pub const HEAD: u32 = 0;
    /// Index of the word that holds the table's generation: 1 for a service's first table, counting
    /// up.
    pub const GENERATION: u32 = 1;
    /// Index of the first of the two words that hold the content's digest, low half first.
    pub const DIGEST: u32 = 2;
    /// Largest number of slots that a head can say.
    pub const MAX_SLOTS: u32 = 0x00ff_ffff;

    const TRACKED: u32 = 1 << 24;

    /// The head as a word of the table.
    pub const fn encode(self) -> u32 {
        (self.slots & Self::MAX_SLOTS) | if self.tracked { Self::TRACKED } else { 0 }
    }

    /// The head that a word of a table says.
    #[inline(always)]
    pub const fn decode(word: u32) -> Self {
        Self { slots: word & Self::MAX_SLOTS, tracked: word & Self::TRACKED != 0 }
    }
}

/// One slot of a lookup table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// Index of the backend that takes the slot's packets; 0 when none can.
    pub first: u16,
    /// What the outer header tells the backend about the other candidates. In IPv4 its upper ten
    /// bits go into the identification.
    pub hint: u16,
}

impl Slot {
    /// The slot as a word of the table.
    pub const fn encode(self) -> u32 {
        self.first as u32 | (self.hint as u32) << 16
    }

    /// The slot that a word of a table says.
    #[inline(always)]
    pub const fn decode(word: u32) -> Self {
        Self { first: word as u16, hint: (word >> 16) as u16 }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn table_words_survive_the_round_trip(
            slots in 0..=TableHead::MAX_SLOTS, tracked: bool, first: u16, hint: u16,
        ) {
            let head = TableHead { slots, tracked };
            prop_assert_eq!(TableHead::decode(head.encode()), head);
            let slot = Slot { first, hint };
            prop_assert_eq!(Slot::decode(slot.encode()), slot);
        }
    }
}
