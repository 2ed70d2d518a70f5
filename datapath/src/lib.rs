//! The packet's journey as pure functions, and every type that crosses the kernel boundary.
//!
//! This crate is compiled twice: for the BPF virtual machine, inside the programs of
//! `sluice-probes`, and natively, for tests and tools. It knows neither TC nor XDP: a hook gives it
//! a [`Packet`] and its [`BalancerTables`] or [`BackendTables`], and turns what comes back into an
//! action.
//!
//! Start reading at [`balance`](balance()), the balancer's path from wire to wire, and at
//! [`decapsulate`](decapsulate()) and [`clamp`](clamp()), the backend's. [`Reason`] lists every way
//! in which a packet is not forwarded, and says which of them pass and which drop.
//!
//! Two rules shape the code. *Decide first, write afterwards*: headers are read into small values,
//! the backend is chosen, and only then is the packet changed, once. *Pass until sure, then drop*:
//! until a VIP has matched, a packet is somebody else's and every refusal lets it pass untouched.
#![cfg_attr(not(feature = "memory"), no_std)]

pub mod address;
pub mod balance;
pub mod checksum;
mod choose;
pub mod clamp;
pub mod decapsulate;
pub mod ecn;
pub mod encapsulate;
pub mod entries;
pub mod flow;
pub mod follow;
pub mod gue;
pub mod header;
pub mod icmp;
#[cfg(feature = "memory")]
pub mod memory;
pub mod observe;
pub mod options;
mod ours;
pub mod packet;
pub mod parse;
pub mod plain;
pub mod quic;
pub mod rates;
pub mod reason;
pub mod records;
pub mod reject;
pub mod siphash;
pub mod tables;
pub mod verifier;
mod vip;
pub mod walk;

pub use address::{Address, Family};
pub use balance::{First, Forward, Outcome, balance};
pub use clamp::clamp;
pub use decapsulate::decapsulate;
pub use flow::Flow;
pub use follow::follow;
pub use icmp::icmp;
pub use packet::Packet;
pub use plain::Plain;
pub use quic::quic;
pub use reason::{Reason, Verdict};
pub use reject::reject;
pub use tables::{BackendTables, BalancerTables, EventTables, LookupTable};

/// Version of everything that is laid out in pinned maps: names, keys, values and their meaning.
///
/// It is a directory name under the instance's pins. It is raised whenever a map changes in a way
/// that a program or daemon of another version would misread.
pub const LAYOUT_VERSION: u32 = 6;
