//! What changes from one table to another.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::error::Error;
use core::fmt;

use crate::size::TableSize;
use crate::table::Table;

/// What changes from one table to another, by the members' names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diff {
    /// How many slots both tables have.
    pub slots: u32,
    /// How many slots change their owner.
    pub moved: u32,
    /// The least number of slots that any two tables with these slot counts differ in.
    pub needed: u32,
    /// The members of either table that gain or lose slots, ordered by name.
    pub members: Vec<MemberDiff>,
}

/// What changes for one member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberDiff {
    /// The member.
    pub name: String,
    /// How many slots it owns only in the second table.
    pub gained: u32,
    /// How many slots it owned only in the first table.
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

/// Compares two tables slot by slot. Members are the same if their names are.
///
/// # Errors
/// [`DiffError`] if the tables differ in size.
pub fn diff(before: &Table, after: &Table) -> Result<Diff, DiffError> {
    if before.size() != after.size() {
        return Err(DiffError { before: before.size(), after: after.size() });
    }
    // Numbers for the names of both tables, in the order of the names.
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
