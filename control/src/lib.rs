//! What the maps should hold, and how they get there, as pure functions: no clock, no file access,
//! no kernel.
//!
//! The text of a configuration becomes a checked [`Config`](config::Config), that becomes
//! [`Desired`](desired::Desired) state, [`plan`](plan::plan) returns the steps from the state in
//! the maps to the desired state, and [`apply`](apply::apply) executes steps against an
//! implementation of [`MapStore`](apply::MapStore).

pub mod apply;
pub mod capacities;
pub mod config;
pub mod desired;
pub mod have;
pub mod plan;
pub mod prefix;
pub mod service_table;
pub mod step;
