//! Shared code of the tests that need root: network namespaces, packets and processes.
//! The test programs use it as a library; the `sluice-lab` binary runs the lab interactively.

pub mod bench;
pub mod kernel;
pub mod lab;
pub mod packets;
