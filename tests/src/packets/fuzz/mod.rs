//! Millions of random frames: each program, in memory and in the kernel, must agree with its oracle
//! on every frame. [`Generator`] makes frames, [`DifferentialHarness`] sends each through every
//! binding and compares, [`Run`] does both on every CPU for a number of frames or a time, and
//! minimises frames that reveal a difference. [`corpus`] holds such frames.

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
