//! The packet path as pure functions, and every type that crosses the kernel boundary.
//!
//! This crate is compiled twice: for the BPF virtual machine, inside the programs of
//! `sluice-probes`, and natively, for tests and tools. It is generic over the hook: TC, XDP and
//! memory each bring a [`Packet`](wire::Packet) and the maps
//! ([`BalancerTables`](balance::BalancerTables), [`BackendTables`](backend::BackendTables)), and
//! turn the result into an action.
//!
//! Start reading at [`balance`], the balancer's path, and at [`backend`], the backend's. [`Reason`]
//! lists every reason why a packet is not forwarded, and whether such a packet passes or is
//! dropped.
//!
//! Two rules shape the code. *Decide first, write afterwards*: headers are read into small values,
//! the backend is selected, and only then the packet is changed, once. *Pass until a VIP matches,
//! then drop*: before that, every refusal lets the packet pass unchanged.
#![cfg_attr(not(feature = "memory"), no_std)]

pub mod abi;
pub mod backend;
pub mod balance;
#[cfg(feature = "memory")]
pub mod memory;
pub mod verifier;
pub mod wire;

pub use abi::{Address, Family, Flow, LAYOUT_VERSION, Pod, Reason, Verdict};
pub use wire::Packet;
