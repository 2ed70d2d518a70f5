//! Packets in, packets out: one table of cases, run in memory and through the programs in the
//! kernel.
//!
//! - [`fixture`]: the content of the maps; [`frames`]: the frames, built with etherparse;
//!   [`expectation`]: the expected verdict, bytes and counters of a frame.
//! - [`bindings`]: the ways to run the packet path: in memory, by `BPF_PROG_TEST_RUN`, on virtual
//!   Ethernet. [`compare`] sends a frame through one of them and compares verdict, bytes and
//!   counters.
//! - [`cases`]: the table of cases. [`checks`]: tests that do not fit a row of the table.
//! - [`oracle`]: the expectation for any frame. It shares no code with the packet path and judges
//!   the random frames of [`fuzz`].

pub mod addresses;
pub mod bindings;
pub mod cases;
pub mod checks;
pub mod compare;
pub mod expectation;
pub mod fixture;
pub mod frames;
pub mod fuzz;
pub mod oracle;
