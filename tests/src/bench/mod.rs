//! What Sluice costs: [`program`], nanoseconds a packet of the programs alone, and [`forwarding`],
//! instructions a packet on a whole kernel beside what else forwards packets. The `sluice-bench`
//! binary runs both.

pub mod baseline;
pub mod document;
pub mod forwarding;
pub mod program;
