//! Frames of the tests: client packets, ICMP messages, outer headers.

pub mod client;
pub mod frame;
pub mod headers;
pub mod icmp;
pub mod outer;

pub use client::{Client, L4Kind};
pub use frame::{Frame, SHORTEST};
pub use headers::{ETHERNET, ethernet, framed, ipv4, ipv6, turned_back};
pub use outer::{
    encapsulated, encapsulated_from, gue_headers, outer_v4, outer_v4_of_v6, outer_v6,
    outer_v6_of_v4, tagged,
};
