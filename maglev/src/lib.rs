//! Maglev lookup tables: a hash of a flow picks a *slot*, and the slot names the *member* that
//! serves the flow.
//!
//! ```
//! use sluice_maglev::{Lists, Member, Seed, Table, TableSize};
//!
//! let members = [Member::new("web-1", 100), Member::new("web-2", 50), Member::new("web-3", 50)];
//! let seed = Seed::new(*b"sixteen byte key");
//! let table = Table::build(&members, TableSize::DEFAULT, &seed)?;
//! assert_eq!(table.slot_counts(), [32_769, 16_384, 16_384]);
//!
//! // The owner of slot 7, and the members that replace it while it is down, in order.
//! let list = table.preference_list(7, 3);
//! assert_eq!(list[0], table.owner(7));
//! assert_eq!(list.len(), 3);
//!
//! // The owner of every slot while web-1 is down: no slot of web-2 or web-3 moves.
//! let lists = Lists::new(&table, 3);
//! let owners = lists.choose(|member| members[usize::from(member)].name != "web-1");
//! assert!(owners.iter().all(|owner| *owner != Some(0)));
//! # Ok::<(), sluice_maglev::BuildError>(())
//! ```
//!
//! Guarantees:
//!
//! - **The same table everywhere.** The *name* that owns a slot is a function of the set of names
//!   and weights, the size and the seed. The order of the members, earlier tables and the machine
//!   do not matter.
//! - **Exact weights.** Each member owns its share of the slots to within one slot; weight 0 owns
//!   none.
//! - **Little movement.** Adding or removing a member moves few slots beyond those that must move.
//! - **No movement of other members' slots when health changes.** A slot's [preference list](Lists)
//!   is fixed by the configured members. A member that goes down or comes back only changes which
//!   entry of the list is the first one up.
//!
//! The algorithm is that of D. E. Eisenbud et al., *Maglev: A Fast and Reliable Software Network
//! Load Balancer*, NSDI 2016, section 3.4, with weights and preference lists added. The
//! implementation is faster than the paper's loop and gives the same table.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod diff;
mod fill;
mod lists;
#[cfg(test)]
mod paper;
mod permutation;
mod seed;
mod share;
mod size;
mod table;

pub use diff::{Diff, DiffError, MemberDiff, diff};
pub use lists::Lists;
pub use seed::Seed;
pub use size::{TableSize, TableSizeError};
pub use table::{BuildError, MAX_MEMBERS, Member, Table};

/// Compiles and runs the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
