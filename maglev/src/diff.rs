//! The difference between two tables.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::error::Error;
use core::fmt;

use crate::size::TableSize;
use crate::table::Table;

/// The difference between two tables, by the members' names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diff {
    /// The number of slots of either table.
    pub slots: u32,
    /// The number of slots that change their owner.
    pub moved: u32,
    /// The smallest number of slots in which two tables with these slot counts can differ.
    pub needed: u32,
    /// The members of either table that gain or lose slots, ordered by name.
    pub members: Vec<MemberDiff>,
}

/// The slots that one member gains and loses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberDiff {
    /// The member's name.
    pub name: String,
    /// The number of slots that it owns in the second table only.
    pub gained: u32,
    /// The number of slots that it owns in the first table only.
    pub lost: u32,
}

/// Two tables of different sizes: their slots do not correspond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiffError {
    /// The size of the first table.
    pub before: TableSize,
    /// The size of the second table.
    pub after: TableSize,
}

impl fmt::Display for DiffError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { before, after } = self;
        write!(
            f,
            "tables of {before} and {after} slots cannot be compared; build both with one size"
        )
    }
}

impl Error for DiffError {}

/// Compares two tables of the same size slot by slot. Members with the same name are the same
/// member.
///
/// # Errors
/// [`DiffError`] if the tables differ in size.
pub fn diff(before: &Table, after: &Table) -> Result<Diff, DiffError> {
    if before.size() != after.size() {
        return Err(DiffError { before: before.size(), after: after.size() });
    }
    // Numbers the names of both tables in their sorted order.
    let mut names: Vec<&str> = before.names().chain(after.names()).collect();
    names.sort_unstable();
    names.dedup();
    let number = |table: &Table| -> Vec<usize> {
        table.names().map(|name| names.partition_point(|other| *other < name)).collect()
    };
    let (before_number, after_number) = (number(before), number(after));

    let mut gained = vec![0; names.len()];
    let mut lost = vec![0; names.len()];
    for (&old, &new) in before.owners().iter().zip(after.owners()) {
        let (old, new) = (before_number[usize::from(old)], after_number[usize::from(new)]);
        if old != new {
            lost[old] += 1;
            gained[new] += 1;
        }
    }
    let moved = gained.iter().sum();
    let needed = gained
        .iter()
        .zip(&lost)
        .map(|(gained, lost): (&u32, _)| gained.saturating_sub(*lost))
        .sum();
    let members = (names.iter().zip(gained).zip(lost))
        .filter(|((_, gained), lost)| gained + lost > 0)
        .map(|((name, gained), lost)| MemberDiff { name: (*name).into(), gained, lost })
        .collect();
    Ok(Diff { slots: before.size().get(), moved, needed, members })
}
