//! Support for the tests that need root: real namespaces, real packets, real processes.
//!
//! The library holds what the test programs share; the `sluice-lab` binary is the same lab for
//! people.

pub mod bench;
pub mod kernel;
pub mod lab;
pub mod packets;
