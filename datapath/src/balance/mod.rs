//! The balancer's path: from a client's packet to an encapsulated one on its way to a backend.
//!
//! The path has stages. [`fast_path`] handles nearly every packet completely, with headers at
//! constant offsets only. Packets with VLAN tags, IP options, extension headers or fragments go to
//! [`parse_headers`], which finds the end of the headers and classifies the packet:
//! [`slow_path`] does what [`fast_path`] does, at any offset; [`icmp`] and [`fragment`] handle the
//! rest. For a service with QUIC server IDs, [`select_by_connection_id`] comes before
//! [`slow_path`]. In the kernel each stage is a BPF subprogram with a stack frame of its own;
//! [`balance`] runs all of them in order.

mod acl;
pub mod capture;
pub mod encapsulate;
mod fast_path;
mod forward;
mod fragment;
mod gue;
mod icmp;
mod lookup;
mod outcome;
mod packet_too_big;
mod pipeline;
mod quic;
mod select;
mod slow_path;
mod tables;

pub use fast_path::fast_path;
pub use fragment::fragment;
pub use gue::{FIRST_SOURCE_PORT, GueMeta, finish_gue};
pub use icmp::{IcmpOutcome, echo_reply, icmp};
pub use outcome::{FastPathOutcome, Forward, SlowPathOutcome};
pub use packet_too_big::{QUOTE_V4, QUOTE_V6, packet_too_big};
pub use pipeline::balance;
pub use quic::{forward_to_quic_server, select_by_connection_id};
pub use slow_path::{parse_headers, slow_path};
pub use tables::{BalancerTables, CaptureTables, ForwardedCounts, LookupTable};
