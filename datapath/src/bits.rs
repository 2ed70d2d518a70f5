//! Bit fields of words that one stage passes to the next.

/// A bit field of a 32-bit word.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Field {
    shift: u32,
    mask: u32,
}

impl Field {
    /// The field of the `width` lowest bits.
    pub(crate) const fn first(width: u32) -> Self {
        Self { shift: 0, mask: u32::MAX >> (u32::BITS - width) }
    }

    /// The field of the `width` bits above this field.
    pub(crate) const fn next(self, width: u32) -> Self {
        let shift = self.shift + self.mask.count_ones();
        assert!(shift + width <= u32::BITS, "the fields fit the word");
        Self { shift, mask: u32::MAX >> (u32::BITS - width) }
    }

    /// The word of this field alone. `value` has no more bits than the field.
    #[inline(always)]
    pub(crate) const fn put(self, value: u32) -> u32 {
        value << self.shift
    }

    /// The field's value in a word.
    #[inline(always)]
    pub(crate) const fn get(self, word: u32) -> u32 {
        (word >> self.shift) & self.mask
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn fields_of_a_word_do_not_overlap(a in 0..32_u32, b in 0..2_u32, c in 0..(1_u32 << 26)) {
            let first = Field::first(5);
            let second = first.next(1);
            let third = second.next(26);
            let word = first.put(a) | second.put(b) | third.put(c);
            prop_assert_eq!((first.get(word), second.get(word), third.get(word)), (a, b, c));
        }
    }
}
