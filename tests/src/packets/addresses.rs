//! Addresses, ports and link addresses of the packet tests.

use std::net::{Ipv4Addr, Ipv6Addr};

use sluice_datapath::abi::Port;

/// Link address of the sender of every frame.
pub const SENDER: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
/// Link address of the receiver: in a test run, that of the namespace's loopback device.
pub const RECEIVER: [u8; 6] = [0; 6];
/// Link addresses other than the receiver's: another host's, broadcast, multicast.
pub const OTHERS: [[u8; 6]; 3] = [[0x02, 0, 0, 0, 0, 0x02], [0xff; 6], [0x01, 0, 0x5e, 0, 0, 0x01]];
/// Source address of IPv4 outer headers.
pub const UNDERLAY_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// Source address of IPv6 outer headers.
pub const UNDERLAY_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1);
/// Next hop of IPv4 outer headers.
pub const NEIGHBOUR_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
/// Next hop of IPv6 outer headers.
pub const NEIGHBOUR_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 9);
/// The IPv4 VIP address.
pub const VIP_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// The IPv6 VIP address.
pub const VIP_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10);
/// Destination port of GUE. Not the assigned port 6080, so that a hard-coded port fails.
pub const GUE_PORT: Port = Port::new(5555);
/// Index of an interface that exists only in the namespaces of the wire tests.
pub const INTERFACE: u32 = 1000;
/// A VIP address of the fuzz fixtures that forwards echo requests to backends.
pub const ECHO_VIP_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 20);
/// The same for IPv6.
pub const ECHO_VIP_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x20);
/// The IPv4 address of the backend that decapsulates.
pub const BACKEND_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 3);
/// The IPv6 address of the backend that decapsulates.
pub const BACKEND_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 3);
