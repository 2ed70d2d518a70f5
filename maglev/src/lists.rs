//! Preference lists: the members that take a slot while its owner is down.

use alloc::vec;
use alloc::vec::Vec;

use crate::permutation::scale;
use crate::seed::{Purpose, Seed};
use crate::table::Table;

/// The maximum number of jumps of one list. The rest of a longer list is drawn.
const MAX_JUMPS: u32 = 32;
/// The maximum number of entries that jumps can fill: the owner of the slot, and one per jump.
const JUMPED: usize = MAX_JUMPS as usize + 1;

/// The preference lists of all slots of a table: for each slot its owner, followed by the members
/// that take the slot while those before them are down.
///
/// # Construction
/// A pseudo-random permutation `h` of the slots, keyed by the table's seed, maps slot to slot. The
/// list of slot `s` consists of the owners of `s`, `h(s)`, `h(h(s))`, ..., each member once, up to
/// the requested length or until it contains every member with weight. Members own slots in
/// proportion to their weights, so they occur in the lists in the same proportion. If a list is not
/// complete after 32 jumps (when a few members own nearly all slots), keyed draws among the missing
/// members complete it, in proportion to their slots. Members whose weight is too small for a
/// single slot come last, in an order fixed by their names and the seed.
///
/// A list is therefore a function of the names, weights, size and seed, and a shorter list is a
/// prefix of a longer one.
///
/// # Health changes
/// [`Lists::choose`] assigns each slot to the first member of its list that is up. Over any
/// sequence of members going down and coming back, a slot moves only if the member that serves it
/// goes down or if a member earlier in its list comes back. With all members up, the result is
/// [`Table::owners`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lists {
    slots: usize,
    members: usize,
    length: usize,
    /// The first entries of all lists, then all second entries, and so on.
    entries: Vec<u16>,
}

impl Lists {
    /// Builds the lists of all slots of `table`, with `length` members each, or with all members
    /// that have weight if those are fewer.
    ///
    /// Lists of 2 to 4 members are usual. An entry takes two bytes.
    #[must_use]
    pub fn new(table: &Table, length: usize) -> Self {
        let jump = Jump::new(table.size().get(), table.seed());
        let next: Vec<u32> = (0..table.size().get()).map(|slot| jump.next(slot)).collect();
        let length = length.min(table.order().len());
        let slots = table.owners().len();

        // Entry n + 1 of a slot is entry n of the slot that it jumps to. This completes most lists.
        // Its loads do not depend on each other, as those of a walk do, which saves time for tables
        // larger than the caches.
        let mut entries = Vec::with_capacity(slots * length);
        for place in 0..length {
            if place == 0 {
                entries.extend_from_slice(table.owners());
            } else {
                let previous = (place - 1) * slots;
                entries.resize((place + 1) * slots, 0);
                let (met, meets) = entries.split_at_mut(place * slots);
                for (member, &next) in meets.iter_mut().zip(&next) {
                    *member = met[previous + next as usize];
                }
            }
        }

        let mut list = Vec::with_capacity(length);
        for slot in 0..slots {
            let member = |place: usize| entries[place * slots + slot];
            let repeats = || {
                (1..length).any(|place| (0..place).any(|before| member(before) == member(place)))
            };
            if length > JUMPED || repeats() {
                walk(table, |at| next[at as usize], slot as u32, length, &mut list);
                for (place, &member) in list.iter().enumerate() {
                    entries[place * slots + slot] = member;
                }
            }
        }
        Self { slots, members: table.slot_counts().len(), length, entries }
    }

    /// The number of members in each list.
    #[must_use]
    pub const fn length(&self) -> usize {
        self.length
    }

    /// The number of slots.
    #[must_use]
    pub const fn slots(&self) -> u32 {
        self.slots as u32
    }

    /// The list of `slot`, its owner first.
    ///
    /// # Panics
    /// If the table has no such slot.
    pub fn list(&self, slot: u32) -> impl Iterator<Item = u16> + Clone {
        let slot = slot as usize;
        assert!(slot < self.slots, "slot {slot} of {} slots", self.slots);
        (0..self.length).map(move |place| self.entries[place * self.slots + slot])
    }

    /// For each slot, the first member of its list that is up; `None` if all of them are down.
    ///
    /// Calls `up` once per member.
    #[must_use]
    pub fn choose(&self, up: impl Fn(u16) -> bool) -> Vec<Option<u16>> {
        let mut chosen = vec![None; self.slots];
        self.choose_into(up, &mut chosen);
        chosen
    }

    /// Like [`Lists::choose`], but writes the result into `chosen`.
    ///
    /// # Panics
    /// If the length of `chosen` is not the number of slots.
    pub fn choose_into(&self, up: impl Fn(u16) -> bool, chosen: &mut [Option<u16>]) {
        assert_eq!(chosen.len(), self.slots, "one element for each slot");
        let up: Vec<bool> = (0..self.members).map(|member| up(member as u16)).collect();
        for (slot, chosen) in chosen.iter_mut().enumerate() {
            *chosen = (0..self.length)
                .map(|place| self.entries[place * self.slots + slot])
                .find(|&member| up[usize::from(member)]);
        }
    }
}

impl Table {
    /// The preference list of one slot, with `length` members, or with all members that have weight
    /// if those are fewer. [`Lists`] describes its construction and is faster for many slots.
    ///
    /// # Panics
    /// If the table has no such slot.
    #[must_use]
    pub fn preference_list(&self, slot: u32, length: usize) -> Vec<u16> {
        let jump = Jump::new(self.size().get(), self.seed());
        let mut list = Vec::new();
        walk(self, |at| jump.next(at), slot, length.min(self.order().len()), &mut list);
        list
    }
}

/// Writes the list of `slot` into `list`. `next` is the jump; `length` must not exceed the number
/// of members with weight.
fn walk(table: &Table, next: impl Fn(u32) -> u32, slot: u32, length: usize, list: &mut Vec<u16>) {
    list.clear();
    let mut at = slot;
    for _ in 0..=MAX_JUMPS {
        if list.len() == length {
            return;
        }
        let owner = table.owner(at);
        if !list.contains(&owner) {
            list.push(owner);
        }
        at = next(at);
    }
    if list.len() == length {
        return;
    }
    let mut missing: Vec<u16> =
        table.order().iter().copied().filter(|member| !list.contains(member)).collect();
    while list.len() < length {
        let drawn = draw(table, slot, list.len(), &missing);
        list.push(missing.remove(drawn));
    }
}

/// Draws the member at `place` of the list of `slot` from `missing`, in proportion to the slots
/// that each owns. Returns its index in `missing`.
fn draw(table: &Table, slot: u32, place: usize, missing: &[u16]) -> usize {
    let counts = table.slot_counts();
    let count = |member: u16| counts[usize::from(member)];
    let total = missing.iter().copied().map(count).sum();
    let mut message = [0; 8];
    message[..4].copy_from_slice(&slot.to_le_bytes());
    message[4..].copy_from_slice(&(place as u32).to_le_bytes());
    let mut number = scale(table.seed().hash(Purpose::Draw, &message).0, total);
    missing
        .iter()
        .position(|&member| {
            // If none of the missing members owns a slot, the first one in order is taken.
            let found = total == 0 || number < count(member);
            number = number.wrapping_sub(count(member));
            found
        })
        .expect("the list lacks a member with weight")
}

/// A keyed pseudo-random permutation of the slots: `factor * (slot + shift)^exponent`, modulo the
/// number of slots.
///
/// Raising to a power that has no common divisor with size - 1 is a permutation of the residues of
/// a prime. The exponent is odd and at least 3, because a linear map would map the evenly spaced
/// slots of one member's permutation to the evenly spaced slots of another's.
struct Jump {
    slots: u64,
    /// 2^64 / slots, rounded down.
    reciprocal: u64,
    factor: u64,
    shift: u64,
    exponent: u32,
}

impl Jump {
    fn new(slots: u32, seed: &Seed) -> Self {
        let (first, second) = seed.hash(Purpose::Jump, &[]);
        let exponent = (3..)
            .step_by(2)
            .find(|&exponent| gcd(exponent, slots - 1) == 1)
            .expect("some odd number is coprime to it");
        Self {
            slots: slots.into(),
            reciprocal: u64::MAX / u64::from(slots),
            factor: 1 + u64::from(scale(first, slots - 1)),
            shift: scale(second, slots).into(),
            exponent,
        }
    }

    fn next(&self, slot: u32) -> u32 {
        let base = self.reduce(u64::from(slot) + self.shift);
        let square = self.reduce(base * base);
        let mut power = base;
        for _ in 0..self.exponent / 2 {
            power = self.reduce(power * square);
        }
        self.reduce(power * self.factor) as u32
    }

    /// `number` modulo the number of slots, without a division.
    fn reduce(&self, number: u64) -> u64 {
        // Barrett reduction: the quotient is exact or too small by one.
        let quotient = ((u128::from(number) * u128::from(self.reciprocal)) >> 64) as u64;
        let remainder = number - quotient * self.slots;
        if remainder < self.slots { remainder } else { remainder - self.slots }
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::size::TableSize;
    use crate::table::Member;

    const SEED: Seed = Seed::new([3; 16]);

    #[test]
    fn jumps_are_the_documented_permutation() {
        for (slots, exponent) in
            [(251, 3), (1021, 7), (4093, 5), (65_537, 3), (655_373, 3), (5_000_011, 7)]
        {
            let jump = Jump::new(slots, &SEED);
            assert_eq!(jump.exponent, exponent, "{slots}");
            let mut met = vec![false; slots as usize];
            for slot in 0..slots {
                let modulo = u128::from(slots);
                let base = (u128::from(slot) + u128::from(jump.shift)) % modulo;
                let power = (0..exponent).fold(1, |power, _| power * base % modulo);
                let next = jump.next(slot);
                assert_eq!(u128::from(next), power * u128::from(jump.factor) % modulo);
                assert!(!met[next as usize], "two slots lead to slot {next} of {slots}");
                met[next as usize] = true;
            }
        }
    }

    #[test]
    fn reduction_equals_division_up_to_the_largest_product() {
        for slots in [251, 65_537, 5_000_011] {
            let jump = Jump::new(slots, &SEED);
            let slots = u64::from(slots);
            let square = (slots - 1) * (slots - 1);
            for number in
                [0, 1, slots - 1, slots, slots + 1, 2 * slots - 1, 2 * slots, square - 1, square]
            {
                assert_eq!(jump.reduce(number), number % slots, "{number} modulo {slots}");
            }
        }
    }

    #[test]
    fn lists_longer_than_the_number_of_jumps_begin_with_the_shorter_lists() {
        let names: alloc::vec::Vec<_> =
            (0..400).map(|number| alloc::format!("web-{number}")).collect();
        let members: alloc::vec::Vec<_> = names.iter().map(|name| Member::new(name, 1)).collect();
        let table = Table::build(&members, TableSize::new(4093).unwrap(), &SEED).unwrap();
        let longest = Lists::new(&table, JUMPED + 8);
        for length in JUMPED - 1..JUMPED + 8 {
            let lists = Lists::new(&table, length);
            for slot in 0..table.size().get() {
                let list: alloc::vec::Vec<_> = lists.list(slot).collect();
                assert_eq!(
                    list,
                    table.preference_list(slot, length),
                    "slot {slot}, length {length}"
                );
                assert!(
                    list.iter().copied().eq(longest.list(slot).take(length)),
                    "slot {slot}, length {length}"
                );
            }
        }
    }

    #[test]
    fn a_list_consists_of_the_owners_along_the_jumps_from_the_slot() {
        let members = [("a", 5), ("b", 1), ("c", 3), ("d", 2)]
            .map(|(name, weight)| Member::new(name, weight));
        let table = Table::build(&members, TableSize::new(1021).unwrap(), &SEED).unwrap();
        let jump = Jump::new(1021, &SEED);
        for slot in 0..1021 {
            let mut at = slot;
            let mut expected = vec![table.owner(slot)];
            for _ in 0..MAX_JUMPS {
                at = jump.next(at);
                if !expected.contains(&table.owner(at)) {
                    expected.push(table.owner(at));
                }
            }
            let list = table.preference_list(slot, 4);
            assert_eq!(list.len(), 4);
            assert_eq!(list[..expected.len()], expected);
        }
    }
}
