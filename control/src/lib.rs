//! The desired state of the maps and the way to reach it, as pure functions: no clock, no file
//! access, no kernel.
//!
//! 1. The text of a configuration becomes a checked [`Config`](config::Config).
//! 2. [`Desired`](desired::Desired) is the state of the maps that the configuration describes.
//! 3. [`plan`](plan::plan) returns the steps from the present state ([`Have`](have::Have)) to the
//!    desired state.
//! 4. [`apply`](apply::apply) executes a step on an implementation of
//!    [`MapStore`](apply::MapStore).

#![forbid(unsafe_code)]

pub mod apply;
pub mod capacities;
pub mod config;
pub mod desired;
pub mod have;
pub mod plan;
pub mod prefix;
pub mod service_table;
pub mod step;
pub mod step_text;
