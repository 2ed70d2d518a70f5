//! Finds import cycles between the modules of a crate.
//!
//! A module depends on the modules that define the items it names: in private `use` declarations,
//! and in paths of its items, bodies, attributes and macro calls. A path through a re-export leads
//! to the defining module, and a `pub use` alone is no dependency of the module that contains it.
//! `mod` declarations are none either. Items under `#[cfg(test)]` are ignored.
//!
//! Resolution is by name, without types: method calls are not followed to the module of their
//! `impl`, and items that a macro generates are attributed to the module that calls the macro.

mod cycles;
mod references;
mod resolve;
mod tree;

#[cfg(test)]
mod tests;

pub use cycles::{Cycle, Dependency, cycles};
pub use tree::Tree;
