//! Random frames by the million: each program in memory, as it is loaded into the kernel, and its
//! oracle must agree on each.
//!
//! [`Generator`] makes frames fast, [`Bench`] compares what becomes of them, [`Campaign`] does both
//! on every CPU until there were enough, and makes what it finds small. [`corpus`] keeps what was
//! found.

mod bench;
mod binding;
mod campaign;
mod content;
pub mod corpus;
mod draft;
mod generate;
mod layers;
mod minimise;
mod mutate;
mod pool;
pub mod worlds;

pub use bench::{Bench, Seen};
pub use campaign::{Campaign, Found, Summary, Until};
pub use generate::{Generator, Traffic};
