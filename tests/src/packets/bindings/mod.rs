//! Bindings of the packet path: in memory, by `BPF_PROG_TEST_RUN`, on virtual Ethernet.

mod binding;
pub mod entries;
pub mod memory;
pub mod namespace;
pub mod route;
pub mod test_run;
pub mod wire;

pub use binding::{BalancerBinding, CaptureBinding, ClampBinding, DecapBinding};
