//! The lookup table.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::error::Error;
use core::fmt;

use crate::fill::fill;
use crate::permutation::Preference;
use crate::seed::Seed;
use crate::share::shares;
use crate::size::TableSize;

/// The maximum number of members. A member's index is a `u16`; its largest value is reserved for
/// "no member".
pub const MAX_MEMBERS: usize = u16::MAX as usize;

/// A candidate owner of slots, for instance a backend of a load balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Member<'a> {
    /// The identity, which determines the slots that it prefers. A renamed member is another
    /// member.
    pub name: &'a str,
    /// The share of the slots, relative to the other members' weights; 0 for none.
    pub weight: u32,
}

impl<'a> Member<'a> {
    /// A member called `name` of the given `weight`.
    #[must_use]
    pub const fn new(name: &'a str, weight: u32) -> Self {
        Self { name, weight }
    }
}

/// The reason why a table cannot be built.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BuildError {
    /// No member has a weight above 0, or there are no members at all.
    NoWeight,
    /// Two members have this name.
    DuplicateName(String),
    /// There are more members (with or without weight) than [`MAX_MEMBERS`].
    TooManyMembers {
        /// The number of members.
        members: usize,
    },
    /// More members have weight than there are slots.
    TooFewSlots {
        /// The number of members with weight.
        members: usize,
        /// The requested size.
        size: TableSize,
    },
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoWeight => {
                f.write_str("no member has a weight above 0; give at least one a weight")
            }
            Self::DuplicateName(name) => {
                write!(f, "two members are named {name:?}; names must be unique")
            }
            Self::TooManyMembers { members } => {
                write!(
                    f,
                    "{members} members are too many for one table; the maximum is {MAX_MEMBERS}"
                )
            }
            Self::TooFewSlots { members, size } => write!(
                f,
                "{members} members have weight but the table has only {size} slots; \
                 choose a larger table size, best 100 slots per member"
            ),
        }
    }
}

impl Error for BuildError {}

/// A lookup table: the owner of each slot.
///
/// A member's index is its position in the slice given to [`Table::build`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    size: TableSize,
    seed: Seed,
    owners: Vec<u16>,
    /// The number of slots of each member.
    slot_counts: Vec<u32>,
    /// The members with weight, in canonical order.
    order: Vec<u16>,
    names: Names,
}

impl Table {
    /// Divides the slots among the members in proportion to their weights.
    ///
    /// Each member gets its exact share rounded up or down. The name that owns a slot is a function
    /// of the set of names and weights, `size` and `seed`.
    ///
    /// # Errors
    /// [`BuildError`] if the members or the size allow no table.
    pub fn build(members: &[Member<'_>], size: TableSize, seed: &Seed) -> Result<Self, BuildError> {
        if members.len() > MAX_MEMBERS {
            return Err(BuildError::TooManyMembers { members: members.len() });
        }
        let preferences: Vec<Preference> =
            members.iter().map(|member| Preference::new(member.name, size.get(), seed)).collect();
        let name = |member: u16| members[usize::from(member)].name;
        let mut order: Vec<(u32, u16)> =
            preferences.iter().map(|preference| preference.order).zip(0..).collect();
        order.sort_unstable();
        // Members with equal hashes are ordered by name. Equal names have equal hashes, so
        // duplicate names are found here.
        for equal in order.chunk_by_mut(|a, b| a.0 == b.0).filter(|equal| equal.len() > 1) {
            equal.sort_unstable_by_key(|&(_, member)| name(member));
            if let Some([(_, twin), _]) =
                equal.array_windows().find(|[a, b]| name(a.1) == name(b.1))
            {
                return Err(BuildError::DuplicateName(name(*twin).into()));
            }
        }

        let order: Vec<u16> = order
            .into_iter()
            .map(|(_, member)| member)
            .filter(|&member| members[usize::from(member)].weight > 0)
            .collect();
        if order.is_empty() {
            return Err(BuildError::NoWeight);
        }
        if order.len() > size.get() as usize {
            return Err(BuildError::TooFewSlots { members: order.len(), size });
        }

        let weights: Vec<u32> =
            order.iter().map(|&member| members[usize::from(member)].weight).collect();
        let shares = shares(&weights, size.get());
        let permutations: Vec<_> =
            order.iter().map(|&member| preferences[usize::from(member)].permutation).collect();
        let mut owners = fill(size.get(), &permutations, &shares);
        for owner in &mut owners {
            *owner = order[usize::from(*owner)];
        }
        let mut slot_counts = vec![0; members.len()];
        for (&member, share) in order.iter().zip(shares) {
            slot_counts[usize::from(member)] = share;
        }
        let names = Names::new(members.iter().map(|member| member.name));
        Ok(Self { size, seed: *seed, owners, slot_counts, order, names })
    }

    /// The number of slots.
    #[must_use]
    pub const fn size(&self) -> TableSize {
        self.size
    }

    /// The member that owns `slot`.
    ///
    /// # Panics
    /// If the table has no such slot.
    #[must_use]
    pub fn owner(&self, slot: u32) -> u16 {
        self.owners[slot as usize]
    }

    /// The owner of each slot, in order of the slots.
    #[must_use]
    pub fn owners(&self) -> &[u16] {
        &self.owners
    }

    /// The number of slots of each member, in the order of the members.
    #[must_use]
    pub fn slot_counts(&self) -> &[u32] {
        &self.slot_counts
    }

    /// The names of the members, in their order, including members without weight.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        (0..self.slot_counts.len()).map(|member| self.names.name(member))
    }

    /// The members with weight, in the canonical order, which is a function of names and seed.
    pub(crate) fn order(&self) -> &[u16] {
        &self.order
    }

    pub(crate) const fn seed(&self) -> &Seed {
        &self.seed
    }
}

/// The members' names in one allocation.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Names {
    text: String,
    /// The end of each name in `text`.
    ends: Vec<usize>,
}

impl Names {
    fn new<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let mut text = String::new();
        let ends = names
            .map(|name| {
                text.push_str(name);
                text.len()
            })
            .collect();
        Self { text, ends }
    }

    fn name(&self, member: usize) -> &str {
        let start = member.checked_sub(1).map_or(0, |previous| self.ends[previous]);
        &self.text[start..self.ends[member]]
    }
}

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeMap;
    use alloc::format;

    use super::*;

    #[test]
    fn members_whose_hashes_are_equal_are_ordered_by_name() {
        let (size, seed) = (TableSize::MIN, Seed::new([5; 16]));
        let mut met = BTreeMap::new();
        let (one, other) = (0..1_000_000)
            .find_map(|number| {
                let name = format!("web-{number}");
                let order = Preference::new(&name, size.get(), &seed).order;
                met.insert(order, name.clone()).map(|one| (one, name))
            })
            .expect("two of a million 32-bit hashes are equal");
        let members = [Member::new(&one, 1), Member::new("web", 1), Member::new(&other, 1)];
        let table = Table::build(&members, size, &seed).unwrap();
        let swapped = Table::build(&[members[2], members[1], members[0]], size, &seed).unwrap();
        assert!(table.owners().iter().zip(swapped.owners()).all(|(&a, &b)| a == 2 - b));

        let twins = [members[2], members[0], members[2]];
        assert_eq!(Table::build(&twins, size, &seed), Err(BuildError::DuplicateName(other)));
    }

    #[test]
    fn names_of_any_length_are_kept() {
        let names = ["", "a", "", "a longer name", ""];
        let kept = Names::new(names.into_iter());
        assert!((0..5).all(|member| kept.name(member) == names[member]));
    }
}
