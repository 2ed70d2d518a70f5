//! The number of slots of a table.

use core::error::Error;
use core::fmt;

/// The number of slots of a table: a prime from 251 to 5,000,011.
///
/// The size is prime so that every skip from 1 to size - 1 visits every slot. About 100 slots per
/// member keep the shares of equal members within 1 % of each other. The size also determines how
/// evenly the slots of members that are down are spread over the others (see the crate's README).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableSize(u32);

impl TableSize {
    /// The smallest size.
    pub const MIN: Self = Self(251);
    /// 65,537 slots, the size used in the Maglev paper.
    pub const DEFAULT: Self = Self(65_537);
    /// The largest size.
    pub const MAX: Self = Self(5_000_011);

    /// Checks that `slots` is a prime in range.
    ///
    /// # Errors
    /// [`TableSizeError`] otherwise, with the nearest valid sizes.
    pub const fn new(slots: u32) -> Result<Self, TableSizeError> {
        if Self::MIN.0 <= slots && slots <= Self::MAX.0 && is_prime(slots) {
            Ok(Self(slots))
        } else {
            Err(TableSizeError { slots })
        }
    }

    /// The number of slots.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl Default for TableSize {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl fmt::Display for TableSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl TryFrom<u32> for TableSize {
    type Error = TableSizeError;

    fn try_from(slots: u32) -> Result<Self, Self::Error> {
        Self::new(slots)
    }
}

/// A number that is not a valid [`TableSize`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableSizeError {
    slots: u32,
}

impl TableSizeError {
    /// The rejected number.
    #[must_use]
    pub const fn slots(&self) -> u32 {
        self.slots
    }

    /// The largest table size below the rejected number, if there is one.
    #[must_use]
    pub fn below(&self) -> Option<TableSize> {
        let highest = self.slots.saturating_sub(1).min(TableSize::MAX.0);
        (TableSize::MIN.0..=highest).rev().find_map(|slots| TableSize::new(slots).ok())
    }

    /// The smallest table size above the rejected number, if there is one.
    #[must_use]
    pub fn above(&self) -> Option<TableSize> {
        let lowest = self.slots.saturating_add(1).max(TableSize::MIN.0);
        (lowest..=TableSize::MAX.0).find_map(|slots| TableSize::new(slots).ok())
    }
}

impl fmt::Display for TableSizeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { slots } = self;
        let (min, max) = (TableSize::MIN, TableSize::MAX);
        write!(f, "{slots} is not a table size, which is a prime from {min} to {max}; ")?;
        match (self.below(), self.above()) {
            (Some(below), Some(above)) => write!(f, "the nearest are {below} and {above}"),
            (Some(nearest), None) | (None, Some(nearest)) => write!(f, "the nearest is {nearest}"),
            (None, None) => unreachable!("every number is below or above some table size"),
        }
    }
}

impl Error for TableSizeError {}

/// Trial division: at most 1,118 odd divisors for the largest size.
const fn is_prime(number: u32) -> bool {
    if number < 2 || number.is_multiple_of(2) {
        return number == 2;
    }
    let mut divisor = 3;
    while divisor <= number / divisor {
        if number.is_multiple_of(divisor) {
            return false;
        }
        divisor += 2;
    }
    true
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString as _;

    use super::*;

    #[test]
    fn the_named_sizes_are_valid() {
        for size in [TableSize::MIN, TableSize::DEFAULT, TableSize::MAX] {
            assert_eq!(TableSize::new(size.get()), Ok(size));
        }
    }

    #[test]
    fn the_sizes_up_to_10_000_are_the_primes_of_a_sieve() {
        let mut composite = [false; 10_000];
        for number in 2..composite.len() {
            for multiple in (2 * number..composite.len()).step_by(number) {
                composite[multiple] = true;
            }
        }
        for (number, composite) in composite.iter().enumerate() {
            let size = TableSize::new(u32::try_from(number).unwrap());
            assert_eq!(size.is_ok(), number >= 251 && !composite, "{number}");
        }
    }

    #[test]
    fn an_invalid_size_is_refused_with_the_nearest_valid_ones() {
        let error = TableSize::new(65_536).unwrap_err();
        assert_eq!(error.slots(), 65_536);
        assert_eq!(error.below(), TableSize::new(65_521).ok());
        assert_eq!(error.above(), Some(TableSize::DEFAULT));
        assert_eq!(
            error.to_string(),
            "65536 is not a table size, which is a prime from 251 to 5000011; \
             the nearest are 65521 and 65537"
        );
    }

    #[test]
    fn a_size_out_of_range_is_refused_with_the_end_of_the_range() {
        for (slots, nearest) in
            [(0, 251), (2, 251), (250, 251), (5_000_012, 5_000_011), (u32::MAX, 5_000_011)]
        {
            let error = TableSize::new(slots).unwrap_err();
            assert!(
                error.to_string().ends_with(&alloc::format!("; the nearest is {nearest}")),
                "{error}"
            );
        }
        // A prime, but too large.
        assert!(TableSize::new(5_000_077).is_err());
    }
}
