//! The balancer's path: from a client's packet to an encapsulated packet to a backend.
//!
//! The path has stages, and [`balance()`] runs them in order. The fast path forwards nearly every
//! packet, with headers at constant offsets only. Packets with VLAN tags, IP options, extension
//! headers or fragments go to a stage that finds the end of the headers and classifies the packet;
//! then the slow path does the same as the fast path, at any offset. ICMP, non-initial fragments
//! and QUIC have stages of their own. A packet that does not fit its tunnel path becomes an ICMP
//! error to the client.
//!
//! The files in reading order: `stage`, `next`, `outcome` and `maps` (shared by all stages),
//! `pipeline` (the order), `fast_path`, `lookup` (address, VIP, route),
//! `admit` (the point from which refusals are drops), `acl`, `forward` (rates, backend, MTU,
//! sending), `select` (lookup table and connection table), `encapsulate`, `gue` and `finish_gue`;
//! then `slow_path`, `fragment`, `icmp`, `packet_too_big`, `quic`, `capture`. `resolve_flow` is for
//! userspace.
//!
//! In the kernel, each stage is a BPF subprogram with a stack frame of its own: the kernel allows
//! 512 bytes for a function and all its callers together.

mod acl;
mod admit;
mod capture;
pub mod encapsulate;
mod fast_path;
mod finish_gue;
mod forward;
mod fragment;
mod gue;
mod icmp;
mod lookup;
mod maps;
mod next;
mod outcome;
mod packet_too_big;
mod pipeline;
mod quic;
mod resolve_flow;
mod select;
mod slow_path;
mod stage;

pub use gue::{FIRST_SOURCE_PORT, GueMeta};
pub use maps::{BalancerMaps, CaptureMaps, ForwardedCounts, LookupTable, SelectionMaps};
pub use packet_too_big::{QUOTE_V4, QUOTE_V6};
pub use pipeline::{StageRunner, balance};
pub use resolve_flow::{ResolvedFlow, resolve_flow};
pub use stage::{Egress, Hook, Stage};
