//! Benchmarks: [`program`] measures nanoseconds per packet of the programs alone, [`forwarding`]
//! instructions per packet of a whole kernel, in comparison with other forwarders. The
//! `sluice-bench` binary runs both.

pub mod baseline;
pub mod document;
pub mod forwarding;
pub mod program;
