//! The order in which a member would like to have the slots.

use crate::seed::{Purpose, Seed};

/// A permutation of the slots: `offset`, `offset + skip`, `offset + 2 * skip`, ..., modulo the
/// (prime) number of slots.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Permutation {
    /// The slot liked best, below the number of slots.
    pub(crate) offset: u32,
    /// The step, from 1 to the number of slots - 1.
    pub(crate) skip: u32,
}

/// What the hash of a member's name decides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Preference {
    pub(crate) permutation: Permutation,
    /// Its place among the members when they take turns. Independent of the permutation, so that
    /// early members do not share a region of the table.
    pub(crate) order: u32,
}

impl Preference {
    pub(crate) fn new(name: &str, slots: u32, seed: &Seed) -> Self {
        let (first, second) = seed.hash(Purpose::Permutation, name.as_bytes());
        Self {
            permutation: Permutation {
                offset: scale(first, slots),
                skip: 1 + scale(second, slots - 1),
            },
            // The offset is decided by the upper half.
            order: first as u32,
        }
    }
}

/// Maps a uniformly distributed 64-bit number to one below `bound`, by multiplication rather than
/// division. No value is more likely than another by more than `bound / 2^64`.
pub(crate) fn scale(number: u64, bound: u32) -> u32 {
    ((u128::from(number) * u128::from(bound)) >> 64) as u32
}
