//! Preference lists: who takes a slot while its owner is down.

use alloc::vec;
use alloc::vec::Vec;

use crate::permutation::scale;
use crate::seed::{Purpose, Seed};
use crate::table::Table;

/// How many jumps one list may take before the rest of it is drawn directly.
const MAX_JUMPS: u32 = 32;
/// The places of a list that jumps can fill: the owner of the slot itself, and one of each jump.
const JUMPED: usize = MAX_JUMPS as usize + 1;

/// The preference lists of all slots of a table: for each slot, its owner and those who take over
/// while it is down.
///
/// # How a list comes about
/// A pseudo-random permutation `h` of the slots, keyed by the table's seed, leads from slot to
/// slot. The list of slot `s` is the owners of `s`, `h(s)`, `h(h(s))`, ..., each member once, until
/// it is as long as asked for or names every member with weight. Since slots are owned by weight,
/// so are the places in the lists. A list that is not complete after 32 jumps (when a few members
/// own nearly everything) is completed by keyed draws among the members it lacks, in proportion to
/// their slots; members whose weight is too small for a single slot come last, in an order fixed by
/// their names and the seed.
///
/// A list is therefore a function of the names, weights, size and seed alone, and a shorter list is
/// the beginning of a longer one.
///
/// # What follows for health
/// [`Lists::choose`] gives each slot to the first member of its list that is up. Over any sequence
/// of members going down and coming back, the only slots that move are those whose owner went down
/// and those for whom a member placed better came back. When all are up, the table is
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
    /// The lists of all slots of `table`, with `length` members each (or all members with weight,
    /// if they are fewer).
    ///
    /// Lists of 2 to 4 members are usual. It takes two bytes per entry.
    #[must_use]
    pub fn new(table: &Table, length: usize) -> Self {
        let jump = Jump::new(table.size().get(), table.seed());
        let next: Vec<u32> = (0..table.size().get()).map(|slot| jump.next(slot)).collect();
        let length = length.min(table.order().len());
        let slots = table.owners().len();

        // Whom a slot meets on the next jump, the slot it leads to has met already. Most lists are
        // complete with that, and the look-ups do not wait for each other, as those of a walk do:
        // that matters for tables larger than caches.
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

    /// The list of `slot`, best placed member first.
    ///
    /// # Panics
    /// If the table has no such slot.
    pub fn list(&self, slot: u32) -> impl Iterator<Item = u16> + Clone {
        let slot = slot as usize;
        assert!(slot < self.slots, "slot {slot} of {} slots", self.slots);
        (0..self.length).map(move |place| self.entries[place * self.slots + slot])
    }

    /// For each slot, the first member of its list that is up; `None` where all of them are down.
    ///
    /// `up` is asked once for each member.
    #[must_use]
    pub fn choose(&self, up: impl Fn(u16) -> bool) -> Vec<Option<u16>> {
        let mut chosen = vec![None; self.slots];
        self.choose_into(up, &mut chosen);
        chosen
    }

    /// Like [`Lists::choose`], into memory that is there already.
    ///
    /// # Panics
    /// If `chosen` is not as long as the table has slots.
    pub fn choose_into(&self, up: impl Fn(u16) -> bool, chosen: &mut [Option<u16>]) {
        assert_eq!(chosen.len(), self.slots, "one place for each slot");
        let up: Vec<bool> = (0..self.members).map(|member| up(member as u16)).collect();
        for (slot, chosen) in chosen.iter_mut().enumerate() {
            *chosen = (0..self.length)
                .map(|place| self.entries[place * self.slots + slot])
                .find(|&member| up[usize::from(member)]);
        }
    }
}

impl Table {
    /// The preference list of one slot: its owner, then those who take over while it is down;
    /// `length` members, or all with weight if they are fewer. [`Lists`] says how it comes about
    /// and is the faster way to many of them.
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

/// Makes `list` the list of `slot`; `next` is the jump, and `length` at most the number of members
/// with weight.
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

/// Which of the members that the list of `slot` lacks has this place on it: drawn in proportion to
/// the slots it owns.
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
            // Once nobody has slots left to draw by, the first in order is as good as any.
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
/// a prime. The exponent is odd and at least 3, since a linear map would lead the evenly spaced
/// slots that a member likes to the evenly spaced slots that some other member likes.
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
            .expect("some prime does not divide it");
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
        // The quotient is right or too small by one (Barrett).
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
    fn numbers_are_reduced_as_by_division_up_to_the_largest_product() {
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
    fn lists_of_more_members_than_there_are_jumps_begin_as_shorter_ones_do() {
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
    fn a_list_is_the_owners_met_on_the_jumps_from_the_slot() {
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
