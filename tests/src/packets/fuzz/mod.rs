//! Random frames by the million: each program in memory and in the kernel must agree with its
//! oracle on every frame.
//!
//! [`Generator`] makes frames fast, [`DifferentialHarness`] gives each frame to every binding and
//! compares, [`Run`] does both on every CPU until there were enough frames, and minimises what it
//! finds. [`corpus`] keeps the frames that were found.

mod checked;
pub mod corpus;
pub mod coverage;
pub mod fixtures;
mod frame_builder;
mod generate;
mod harness;
mod ip;
mod layers;
mod minimise;
mod mutate;
mod run;
mod totals;
mod traffic;
mod values;

pub use generate::Generator;
pub use harness::DifferentialHarness;
pub use run::{Disagreement, Run, Summary, Until};
pub use totals::Totals;
pub use traffic::Traffic;
