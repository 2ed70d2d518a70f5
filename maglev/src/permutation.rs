//! The order in which a member prefers slots.

use crate::seed::{Purpose, Seed};

/// A permutation of the slots: `offset`, `offset + skip`, `offset + 2 * skip`, ..., modulo the
/// (prime) number of slots.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Permutation {
    /// The most preferred slot, below the number of slots.
    pub(crate) offset: u32,
    /// The step, from 1 to the number of slots - 1.
    pub(crate) skip: u32,
}

/// The values derived from the hash of a member's name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Preference {
    pub(crate) permutation: Permutation,
    /// The sort key of the member in the order of turns. Independent of the permutation, so that
    /// the first members do not prefer the same region of the table.
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
            // `offset` depends on the upper half.
            order: first as u32,
        }
    }
}

/// Maps a uniformly distributed 64-bit number to one below `bound`, by multiplication instead of
/// division. The probabilities of two values differ by at most `bound / 2^64` (relative).
pub(crate) fn scale(number: u64, bound: u32) -> u32 {
    ((u128::from(number) * u128::from(bound)) >> 64) as u32
}
