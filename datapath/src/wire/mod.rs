//! The wire format: header layouts, checksums, ECN, parsing, and the [`Packet`] trait.

pub mod checksum;
pub mod ecn;
pub mod header;
pub mod offsets;
pub mod packet;
pub mod parse;

pub use packet::Packet;
