//! Fills a table: members take turns at choosing slots until all are taken.
//!
//! Three optimisations make this faster than walking the permutations one slot at a time. They do
//! not change the result:
//!
//! - A position in a permutation is stored as a 64-bit fraction of the table. A step is then one
//!   wrapping addition, and the slot is the upper half of a product. There is no division.
//! - A member tests a *window* of its next preferences at once, without data-dependent branches,
//!   and stores which were free. Other members may take some of those before the member's later
//!   turns, so each is tested again when it is used.
//! - The last free slots are the most expensive for a walk. Once only the square root of the table
//!   is left, a turn computes the place of each free slot in the member's permutation and takes the
//!   first.

use alloc::vec;
use alloc::vec::Vec;

use crate::permutation::Permutation;

/// Fills a table of `slots` slots (a prime below 2^23, not less than the number of members) and
/// returns the owner of each slot as an index into `permutations`.
///
/// In each round every member, in order, takes turns in proportion to its share. In each turn it
/// takes the first free slot of its permutation. With equal shares this is the loop of the paper's
/// section 3.4.
///
/// `shares` holds the number of slots of each member; the sum is `slots`.
pub(crate) fn fill(slots: u32, permutations: &[Permutation], shares: &[u32]) -> Vec<u16> {
    // A large window saves time. With many members it does not, because other members take its
    // slots before it is used up.
    match slots as usize / permutations.len() {
        256.. => fill_by::<32>(slots, permutations, shares),
        48.. => fill_by::<16>(slots, permutations, shares),
        _ => fill_by::<4>(slots, permutations, shares),
    }
}

fn fill_by<const WINDOW: u64>(
    slots: u32,
    permutations: &[Permutation],
    shares: &[u32],
) -> Vec<u16> {
    let fractions = Fractions::new(slots);
    let mut taken = TakenSlots::new(slots);
    let mut owners = vec![0; slots as usize];
    let mut walks: Vec<Walk> =
        permutations.iter().map(|permutation| fractions.walk::<WINDOW>(permutation)).collect();

    let mut turns = Turns::new(slots, shares);
    let last = slots.isqrt();
    for _ in last..slots {
        let member = turns.next();
        let slot = walks[member].next::<WINDOW>(&fractions, &mut taken);
        owners[slot as usize] = member as u16;
    }

    let mut free: Vec<u32> = (0..slots).filter(|&slot| taken.is_free(slot)).collect();
    while !free.is_empty() {
        let member = turns.next();
        let rank = fractions.rank(&permutations[member]);
        let first = (0..free.len()).min_by_key(|&place| rank(free[place])).expect("a slot is left");
        owners[free.swap_remove(first) as usize] = member as u16;
    }
    owners
}

/// The order of turns.
///
/// A round gives each member its share divided by the number of rounds, for most members at least
/// one turn. The remainder is carried over to the next round. With equal shares, every member has
/// one turn per round.
struct Turns {
    rounds: u32,
    at: usize,
    members: Vec<Credit>,
}

struct Credit {
    share: u32,
    /// The credit that the member has accumulated; a turn costs `rounds`.
    saved: u32,
}

impl Turns {
    fn new(slots: u32, shares: &[u32]) -> Self {
        let rounds = slots.div_ceil(shares.len() as u32);
        // Every member starts with nearly the credit of one turn, so that the first round includes
        // all of them.
        let mut members: Vec<Credit> =
            shares.iter().map(|&share| Credit { share, saved: rounds - 1 }).collect();
        members[0].saved += members[0].share;
        Self { rounds, at: 0, members }
    }

    #[inline]
    fn next(&mut self) -> usize {
        while self.members[self.at].saved < self.rounds {
            self.at += 1;
            if self.at == self.members.len() {
                self.at = 0;
            }
            let credit = &mut self.members[self.at];
            credit.saved += credit.share;
        }
        self.members[self.at].saved -= self.rounds;
        self.at
    }
}

/// The taken slots as a bit set: with 65,537 slots it fits into the level 1 data cache.
struct TakenSlots(Vec<u64>);

impl TakenSlots {
    fn new(slots: u32) -> Self {
        Self(vec![0; slots.div_ceil(64) as usize])
    }

    #[inline]
    fn is_free(&self, slot: u32) -> bool {
        self.0[(slot / 64) as usize] >> (slot % 64) & 1 == 0
    }

    #[inline]
    fn take(&mut self, slot: u32) {
        self.0[(slot / 64) as usize] |= 1 << (slot % 64);
    }
}

/// Slot numbers as 64-bit fractions of the table.
///
/// The fraction of x is x / slots in units of 2^-64, plus an error above 0 and at most 1 unit. The
/// sum of n fractions has an error of at most n units, and a slot is 2^64 / slots > 2^41 units
/// wide, so the slot is exact for n up to 2^41.
struct Fractions {
    slots: u32,
    /// The quotient of 2^64 and `slots`.
    unit: u64,
    /// The remainder of 2^64 divided by `slots`.
    remainder: u64,
}

impl Fractions {
    fn new(slots: u32) -> Self {
        // `slots` is an odd prime and does not divide 2^64, so 2^64 - 1 has the same quotient as
        // 2^64.
        let divisor = u64::from(slots);
        Self { slots, unit: u64::MAX / divisor, remainder: u64::MAX % divisor + 1 }
    }

    fn of(&self, number: u32) -> u64 {
        let number = u64::from(number);
        number * self.unit + number * self.remainder / u64::from(self.slots) + 1
    }

    #[inline]
    fn slot(&self, fraction: u64) -> u32 {
        ((u128::from(fraction) * u128::from(self.slots)) >> 64) as u32
    }

    fn walk<const WINDOW: u64>(&self, permutation: &Permutation) -> Walk {
        let step = self.of(permutation.skip);
        let start = self.of(permutation.offset).wrapping_sub(step.wrapping_mul(WINDOW));
        Walk { start, step, free: 0 }
    }

    /// Returns a function that maps a slot to a rank: the earlier the slot's place in the
    /// permutation, the smaller the rank.
    ///
    /// The place of a slot is (slot - offset) / skip, modulo the number of slots. Its fraction of
    /// the table suffices as a rank and takes one multiplication, by the fraction of the skip's
    /// inverse. The error is below 2^23 of the 2^41 units between two places, in either direction;
    /// at the offset itself the rank is exactly 0.
    fn rank(&self, permutation: &Permutation) -> impl Fn(u32) -> u64 + use<> {
        let inverse = self.of(inverse(permutation.skip, self.slots));
        let offset = u64::from(permutation.offset);
        move |slot| u64::from(slot).wrapping_sub(offset).wrapping_mul(inverse)
    }
}

/// A member's position in its permutation.
struct Walk {
    /// The fraction of the first preference in the window.
    start: u64,
    /// The fraction of the skip.
    step: u64,
    /// A bit mask of the preferences in the window that were free and have not been tried.
    free: u64,
}

impl Walk {
    /// Takes the first free slot. There must be one.
    #[inline]
    fn next<const WINDOW: u64>(&mut self, fractions: &Fractions, taken: &mut TakenSlots) -> u32 {
        loop {
            while self.free == 0 {
                self.start = self.start.wrapping_add(self.step.wrapping_mul(WINDOW));
                let mut fraction = self.start;
                for place in 0..WINDOW {
                    self.free |= u64::from(taken.is_free(fractions.slot(fraction))) << place;
                    fraction = fraction.wrapping_add(self.step);
                }
            }
            let place = u64::from(self.free.trailing_zeros());
            self.free &= self.free - 1;
            let slot = fractions.slot(self.start.wrapping_add(self.step.wrapping_mul(place)));
            if taken.is_free(slot) {
                taken.take(slot);
                return slot;
            }
        }
    }
}

/// The modular inverse: the number from 1 to `prime` - 1 whose product with `number` (in the same
/// range) is 1 modulo `prime`.
fn inverse(number: u32, prime: u32) -> u32 {
    // Euclid's algorithm, keeping `dividend = product * number` modulo `prime`.
    let mut dividend = prime;
    let mut product = 0i64;
    let mut divisor = number;
    let mut next_product = 1i64;
    while divisor > 0 {
        let quotient = dividend / divisor;
        (dividend, divisor) = (divisor, dividend % divisor);
        (product, next_product) = (next_product, product - i64::from(quotient) * next_product);
    }
    product.rem_euclid(i64::from(prime)) as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::paper;
    use crate::share::shares;
    use crate::size::TableSize;

    fn permutation((offset, skip): (u32, u32)) -> Permutation {
        Permutation { offset, skip }
    }

    #[test]
    fn table_1_of_the_paper() {
        let [zero, one, two] = [(3, 4), (0, 2), (3, 1)].map(permutation);
        assert_eq!(fill(7, &[zero, one, two], &[3, 2, 2]), [1, 0, 1, 0, 2, 2, 0]);
        // Without member 1; index 1 is now member 2.
        assert_eq!(fill(7, &[zero, two], &[4, 3]), [0, 0, 0, 0, 1, 1, 1]);
    }

    /// The reference implementation: walks the permutations slot by slot, for any shares.
    fn fill_slot_by_slot(slots: u32, permutations: &[Permutation], shares: &[u32]) -> Vec<u16> {
        let mut owners = vec![None; slots as usize];
        let mut at: Vec<u32> = permutations.iter().map(|permutation| permutation.offset).collect();
        let mut turns = Turns::new(slots, shares);
        for _ in 0..slots {
            let member = turns.next();
            while owners[at[member] as usize].is_some() {
                at[member] = (at[member] + permutations[member].skip) % slots;
            }
            owners[at[member] as usize] = Some(member as u16);
        }
        owners.into_iter().map(Option::unwrap).collect()
    }

    fn size() -> impl Strategy<Value = u32> {
        prop::sample::select(vec![251, 509, 1021, 4093, 65_537])
    }

    fn permutations(slots: u32) -> impl Strategy<Value = Vec<Permutation>> {
        prop::collection::vec((0..slots, 1..slots).prop_map(permutation), 1..=250)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

        #[test]
        fn with_equal_shares_the_table_equals_that_of_the_papers_pseudo_code(
            (slots, permutations) in
                size().prop_flat_map(|slots| (Just(slots), permutations(slots)))
        ) {
            let offset_skip: Vec<_> =
                permutations.iter().map(|one| (one.offset, one.skip)).collect();
            let expected = paper::populate_without_matrix(&offset_skip, slots);
            let members = permutations.len() as u32;
            // The first members get the remaining slots, as in the paper.
            let shares: Vec<u32> = (0..members)
                .map(|member| slots / members + u32::from(member < slots % members))
                .collect();
            let owners = fill(slots, &permutations, &shares);
            prop_assert!(owners.iter().map(|&owner| i32::from(owner)).eq(expected));
        }

        #[test]
        fn with_any_shares_the_table_equals_that_of_a_slot_by_slot_walk(
            (slots, members) in size().prop_flat_map(|slots| {
                let member = ((0..slots, 1..slots).prop_map(permutation), 1u32..=1000);
                (Just(slots), prop::collection::vec(member, 1..=250))
            })
        ) {
            let (permutations, weights): (Vec<_>, Vec<_>) = members.into_iter().unzip();
            let shares = shares(&weights, slots);
            let expected = fill_slot_by_slot(slots, &permutations, &shares);
            prop_assert_eq!(fill(slots, &permutations, &shares), expected);
        }
    }

    #[test]
    fn fractions_lead_to_the_right_slots_all_the_way_round_the_largest_table() {
        let slots = TableSize::MAX.get();
        let fractions = Fractions::new(slots);
        for (offset, skip) in [(slots - 1, 1), (2_345_678, 3_141_592), (0, slots - 1)] {
            let rank = fractions.rank(&permutation((offset, skip)));
            let step = fractions.of(skip);
            let mut fraction = fractions.of(offset);
            let mut slot = offset;
            let mut last_rank = None;
            for _ in 0..slots {
                let rank = rank(slot);
                assert!(fractions.slot(fraction) == slot && last_rank < Some(rank), "{slot}");
                last_rank = Some(rank);
                fraction = fraction.wrapping_add(step);
                slot = (slot + skip) % slots;
            }
        }
    }

    #[test]
    fn the_papers_matrix_and_its_elements_computed_one_by_one_give_the_same_table() {
        let offset_skip: Vec<_> =
            (1..=20).map(|i| (i * 7919 % 1021, i * 104_729 % 1020 + 1)).collect();
        let with_matrix = paper::populate(&paper::permutations(&offset_skip, 1021), 1021);
        assert_eq!(with_matrix, paper::populate_without_matrix(&offset_skip, 1021));
    }

    #[test]
    fn an_inverse_times_its_number_is_one() {
        for prime in [251, 65_537, 5_000_011] {
            for number in (1..prime).step_by(prime as usize / 250).chain([prime - 1]) {
                let inverse = inverse(number, prime);
                assert!((1..prime).contains(&inverse));
                assert_eq!(u64::from(number) * u64::from(inverse) % u64::from(prime), 1);
            }
        }
    }
}
