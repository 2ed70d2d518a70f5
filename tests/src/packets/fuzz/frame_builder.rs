//! Builds frames layer by layer and records the offsets of layers and length fields for mutations.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fastrand::Rng;

use super::values;
use crate::packets::addresses::GUE_PORT;

/// Protocol numbers.
pub(super) mod protocol {
    pub(crate) const HOP_BY_HOP: u8 = 0;
    pub(crate) const ICMP: u8 = 1;
    pub(crate) const IPV4: u8 = 4;
    pub(crate) const TCP: u8 = 6;
    pub(crate) const UDP: u8 = 17;
    pub(crate) const IPV6: u8 = 41;
    pub(crate) const ROUTING: u8 = 43;
    pub(crate) const FRAGMENT: u8 = 44;
    pub(crate) const AUTHENTICATION: u8 = 51;
    pub(crate) const ICMPV6: u8 = 58;
    pub(crate) const NOTHING: u8 = 59;
    pub(crate) const DESTINATION: u8 = 60;
}

/// A frame under construction.
#[derive(Debug, Default)]
pub(super) struct FrameBuilder {
    /// The bytes so far.
    pub(super) bytes: Vec<u8>,
    /// Offsets of layers.
    pub(super) edges: Vec<usize>,
    /// Offsets of 16-bit length fields.
    pub(super) lengths: Vec<usize>,
    /// Whether most TCP segments are SYNs or SYN-ACKs with options.
    pub(super) handshakes: bool,
}

impl FrameBuilder {
    /// Starts a new frame.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.edges.clear();
        self.lengths.clear();
    }

    /// Begins a layer at the current end and returns its offset.
    pub(super) fn edge(&mut self) -> usize {
        self.edges.push(self.bytes.len());
        self.bytes.len()
    }

    pub(super) fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(super) fn put16(&mut self, word: u16) {
        self.put(&word.to_be_bytes());
    }

    pub(super) fn set16(&mut self, at: usize, word: usize) {
        self.bytes[at..at + 2].copy_from_slice(&(word as u16).to_be_bytes());
    }

    /// Payload bytes, mostly few.
    pub(super) fn payload(&mut self, rng: &mut Rng) {
        let length = match rng.u8(..20) {
            0..=2 => 0,
            3..=15 => rng.usize(..80),
            16..=18 => rng.usize(..600),
            _ => rng.usize(..2800),
        };
        let start = self.edge();
        self.bytes.resize(start + length, rng.u8(..));
        if length > 8 {
            let at = start + rng.usize(..length - 8);
            self.bytes[at..at + 8].copy_from_slice(&rng.u64(..).to_be_bytes());
        }
    }

    /// Writes total length and checksum of the IPv4 header at `start`.
    pub(super) fn finish_ipv4(&mut self, start: usize, header: usize) {
        let length = self.bytes.len() - start;
        self.set16(start + 2, length);
        self.set16(start + 10, 0);
        let sum = ones_complement(0, &self.bytes[start..start + header]);
        self.set16(start + 10, sum.into());
    }

    /// Writes the payload length of the IPv6 header at `start`.
    pub(super) fn finish_ipv6(&mut self, start: usize) {
        let length = self.bytes.len() - start - 40;
        self.set16(start + 4, length);
    }

    /// Writes the checksum at `at` over the bytes from `start` and the pseudo-header.
    pub(super) fn finish_transport(
        &mut self,
        start: usize,
        at: usize,
        endpoints: &Endpoints,
        protocol: u8,
    ) {
        if self.bytes.len() < at + 2 {
            return;
        }
        self.set16(at, 0);
        let length = self.bytes.len() - start;
        let mut sum = u64::from(protocol) + length as u64;
        for address in [endpoints.source, endpoints.destination] {
            sum += match address {
                IpAddr::V4(v4) => words(&v4.octets()),
                IpAddr::V6(v6) => words(&v6.octets()),
            };
        }
        let sum = ones_complement(sum, &self.bytes[start..]);
        self.set16(at, if sum == 0 { 0xffff } else { sum.into() });
    }
}

fn words(bytes: &[u8]) -> u64 {
    bytes
        .chunks(2)
        .map(|two| u64::from(two[0]) << 8 | u64::from(two.get(1).copied().unwrap_or(0)))
        .sum()
}

/// The complement of the ones' complement sum (RFC 1071).
pub(super) fn ones_complement(start: u64, bytes: &[u8]) -> u16 {
    let mut sum = start + words(bytes);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Source and destination of a packet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Endpoints {
    /// Source address.
    pub(super) source: IpAddr,
    /// Destination address, of the same family.
    pub(super) destination: IpAddr,
    /// Source port.
    pub(super) source_port: u16,
    /// Destination port.
    pub(super) destination_port: u16,
}

impl Endpoints {
    /// Mostly from a client to a VIP.
    pub(super) fn forward(rng: &mut Rng) -> Self {
        let v6 = rng.bool();
        let source_port = 40_000 + rng.u16(..48);
        let destination_port = values::port(rng);
        let (source, destination) = match rng.u8(..40) {
            0 => (values::any(rng, v6), values::any(rng, v6)),
            1 => (values::vip(v6), values::client(rng, v6)),
            2 => (values::client(rng, v6), values::near_vip(rng, v6)),
            3 => (values::vip(v6), values::vip(v6)),
            4 => (values::client(rng, v6), values::any(rng, v6)),
            5 => (values::any(rng, v6), values::vip(v6)),
            _ => (values::client(rng, v6), values::vip(v6)),
        };
        Self { source, destination, source_port, destination_port }
    }

    /// Mostly from a balancer to a backend's GUE port.
    pub(super) fn to_backend(rng: &mut Rng) -> Self {
        let v6 = rng.bool();
        let destination =
            if rng.u8(..20) == 0 { values::any(rng, v6) } else { values::backend(v6) };
        let destination_port = if rng.u8(..20) == 0 { rng.u16(..) } else { GUE_PORT.number() };
        Self {
            source: values::any(rng, v6),
            destination,
            source_port: rng.u16(..),
            destination_port,
        }
    }

    /// The reverse direction.
    pub(super) fn reversed(self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
        }
    }

    /// Whether the addresses are IPv6.
    pub(super) fn is_v6(&self) -> bool {
        self.source.is_ipv6()
    }

    /// The octets of both IPv4 addresses.
    pub(super) fn v4(&self) -> [[u8; 4]; 2] {
        [self.source, self.destination].map(|address| {
            match address {
                IpAddr::V4(v4) => v4,
                IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
            }
            .octets()
        })
    }

    /// The octets of both IPv6 addresses.
    pub(super) fn v6(&self) -> [[u8; 16]; 2] {
        [self.source, self.destination].map(|address| {
            match address {
                IpAddr::V6(v6) => v6,
                IpAddr::V4(_) => Ipv6Addr::UNSPECIFIED,
            }
            .octets()
        })
    }
}
