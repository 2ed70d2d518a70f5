//! Packets in, packets out: one table of cases, run natively and through the programs in the
//! kernel.
//!
//! A [`cases::Case`] says in a sentence what should happen, sends frames that were built with
//! etherparse, and compares verdict, bytes and counters after each. [`native`] runs it on the
//! packet path in memory, [`loaded`] through `BPF_PROG_TEST_RUN`, [`wire`] on virtual Ethernet.
//! [`oracle`] says for any frame what should become of it; it shares no code with the packet path,
//! and judges the random frames of [`random`]. [`watching`] says what a capture must see meanwhile,
//! [`sources`] where outer headers come from when that differs from flow to flow, and [`faults`]
//! which cases show that the faults of other balancers are not here.

pub mod build;
pub mod cases;
pub mod clamping;
pub mod context;
pub mod faults;
pub mod fuzz;
pub mod icmp;
pub mod isolation;
pub mod loaded;
pub mod native;
pub mod network;
pub mod oracle;
pub mod random;
pub mod shared;
pub mod sources;
pub mod watching;
pub mod wire;
pub mod world;
