//! Lookup tables: the words of the inner maps of `TABLES`.

/// The first word of a lookup table's inner map: the table's length and options.
///
/// It is stored with the slots, so that one swap of the outer map's entry replaces both atomically.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableHead {
    /// Number of slots, at most [`TableHead::MAX_SLOTS`].
    pub slots: u32,
    /// Whether the connection table tracks the flows of this service.
    pub tracked: bool,
}

impl TableHead {
    /// Number of words before the first slot: the head, the generation, and the two halves of the
    /// content's digest.
    pub const WORDS: u32 = 4;
    /// Index of the head.
    pub const HEAD: u32 = 0;
    /// Index of the table's generation, which is 1 for a service's first table and counts up.
    pub const GENERATION: u32 = 1;
    /// Index of the first of the two words of the content's digest, low half first.
    pub const DIGEST: u32 = 2;
    /// Maximum number of slots.
    pub const MAX_SLOTS: u32 = 0x00ff_ffff;

    const TRACKED: u32 = 1 << 24;

    /// Encodes the head as a word, host order.
    pub const fn encode(self) -> u32 {
        (self.slots & Self::MAX_SLOTS) | if self.tracked { Self::TRACKED } else { 0 }
    }

    /// Decodes a head.
    #[inline(always)]
    pub const fn decode(word: u32) -> Self {
        Self { slots: word & Self::MAX_SLOTS, tracked: (word & Self::TRACKED) != 0 }
    }
}

/// One slot of a lookup table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// Index of the slot's backend; 0 if no backend is available.
    pub backend: u16,
    /// Bits of the outer header reserved for the other candidates of the slot. For IPv4, the upper
    /// ten bits are in the identification.
    pub hint: u16,
}

impl Slot {
    /// Encodes the slot as a word, host order.
    pub const fn encode(self) -> u32 {
        self.backend as u32 | ((self.hint as u32) << 16)
    }

    /// Decodes a slot.
    #[inline(always)]
    pub const fn decode(word: u32) -> Self {
        Self { backend: word as u16, hint: (word >> 16) as u16 }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn table_words_round_trip(
            slots in 0..=TableHead::MAX_SLOTS, tracked: bool, backend: u16, hint: u16,
        ) {
            let head = TableHead { slots, tracked };
            prop_assert_eq!(TableHead::decode(head.encode()), head);
            let slot = Slot { backend, hint };
            prop_assert_eq!(Slot::decode(slot.encode()), slot);
        }
    }
}
