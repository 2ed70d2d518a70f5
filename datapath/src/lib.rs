//! The packet path as pure functions, and every type that crosses the kernel boundary.
//!
//! This crate is compiled twice: for the BPF virtual machine, inside the programs of
//! `sluice-probes`, and natively, for tests and tools. It is generic over the hook. TC, XDP and the
//! in-memory binding each implement [`Packet`] and the maps
//! ([`BalancerMaps`](balance::BalancerMaps), [`BackendMaps`](backend::BackendMaps)), and
//! convert the result to an action.
//!
//! The entry points are [`balance`], the balancer's path, and [`backend`], the backend's path.
//! [`Reason`] lists the reasons why a packet is not forwarded, and whether such a packet passes or
//! is dropped.
//!
//! Two rules shape the code. *Decide first, write afterwards*: headers are parsed into small
//! values, the backend is selected, and then the packet is changed once. *Pass until a VIP matches,
//! then drop*: until a VIP matches, a packet passes unchanged on every error.
#![cfg_attr(not(feature = "memory"), no_std)]

pub mod abi;
pub mod backend;
pub mod balance;
mod bits;
#[cfg(feature = "memory")]
pub mod memory;
pub mod verifier;
pub mod wire;

pub use abi::{Address, Family, Flow, LAYOUT_VERSION, Pod, Reason, Verdict};
pub use wire::Packet;
