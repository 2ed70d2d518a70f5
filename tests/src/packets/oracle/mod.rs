//! What a program should do with a frame, by the documentation alone: headers read and written by
//! etherparse, flows hashed by siphasher.

pub mod clamp;
pub mod decapsulate;
mod encapsulate;
pub mod flow;
mod gue;
mod icmp;
mod ip;
mod judge;
mod lookup;
mod quic;

pub use lookup::Oracle;
