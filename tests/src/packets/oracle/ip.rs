//! Parses the IP header of a frame, by the RFCs.

use std::net::IpAddr;

use etherparse::{EtherType, Ipv4HeaderSlice, Ipv6HeaderSlice};
use sluice_datapath::Reason;

use crate::packets::frames::Frame;

/// Fragmentation of a packet; fragments have an identification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fragmentation {
    Whole,
    First(u32),
    NonInitial(u32),
}

impl Fragmentation {
    fn new(offset: u16, more: bool, id: u32) -> Self {
        match (offset, more) {
            (0, false) => Self::Whole,
            (0, true) => Self::First(id),
            _ => Self::NonInitial(id),
        }
    }
}

/// The fields of an IP header.
#[derive(Debug)]
pub(super) struct Ip {
    /// Offset in the frame.
    pub(super) start: usize,
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) protocol: u8,
    /// Bytes of the header with options and extension headers.
    pub(super) header: usize,
    pub(super) length: usize,
    pub(super) tos: u8,
    pub(super) ttl: u8,
    pub(super) fragmentation: Fragmentation,
}

/// The IP header of a frame with at most two VLAN tags.
pub(super) fn find(frame: &Frame) -> Result<Ip, Reason> {
    let mut start = 14;
    let mut kind = EtherType(number(&frame.bytes, 12)?);
    for _ in 0..2 {
        if matches!(kind, EtherType::VLAN_TAGGED_FRAME | EtherType::PROVIDER_BRIDGING) {
            kind = EtherType(number(&frame.bytes, start + 2)?);
            start += 4;
        }
    }
    match kind {
        EtherType::IPV4 | EtherType::IPV6 if frame.is_for_other_host() => Err(Reason::OtherHost),
        EtherType::IPV4 => v4(&frame.bytes, start),
        EtherType::IPV6 => v6(&frame.bytes, start),
        EtherType::VLAN_TAGGED_FRAME | EtherType::PROVIDER_BRIDGING => Err(Reason::VlanDepth),
        _ => Err(Reason::NotIp),
    }
}

fn number(bytes: &[u8], at: usize) -> Result<u16, Reason> {
    let two = bytes.get(at..at + 2).ok_or(Reason::Truncated)?;
    Ok(u16::from_be_bytes([two[0], two[1]]))
}

pub(super) fn v4(bytes: &[u8], start: usize) -> Result<Ip, Reason> {
    let bytes = bytes.get(start..).filter(|bytes| bytes.len() >= 20).ok_or(Reason::Truncated)?;
    // Options may be truncated; the fixed part is sufficient.
    let mut padded = bytes[..bytes.len().min(60)].to_vec();
    padded.resize(60, 0);
    let h = Ipv4HeaderSlice::from_slice(&padded).map_err(|_| Reason::BadHeader)?;
    Ok(Ip {
        start,
        source: h.source_addr().into(),
        destination: h.destination_addr().into(),
        protocol: h.protocol().0,
        header: h.slice().len(),
        length: h.total_len().into(),
        tos: h.dcp().value() << 2 | h.ecn().value(),
        ttl: h.ttl(),
        fragmentation: Fragmentation::new(
            h.fragments_offset().value(),
            h.more_fragments(),
            h.identification().into(),
        ),
    })
}

pub(super) fn v6(bytes: &[u8], start: usize) -> Result<Ip, Reason> {
    let bytes = bytes.get(start..).filter(|bytes| bytes.len() >= 40).ok_or(Reason::Truncated)?;
    let h = Ipv6HeaderSlice::from_slice(bytes).map_err(|_| Reason::BadHeader)?;
    Ok(Ip {
        start,
        source: h.source_addr().into(),
        destination: h.destination_addr().into(),
        protocol: h.next_header().0,
        header: 40,
        length: usize::from(h.payload_length()) + 40,
        tos: h.traffic_class(),
        ttl: h.hop_limit(),
        fragmentation: Fragmentation::Whole,
    })
}

impl Ip {
    /// The same with IPv6 extension headers included in the header: at most eight headers and 256
    /// bytes.
    pub(super) fn past_extensions(mut self, frame: &[u8]) -> Result<Self, Reason> {
        if self.source.is_ipv4() {
            return Ok(self);
        }
        for _ in 0..=8 {
            if self.header > 40 + 256 {
                return Err(Reason::ExtensionHeaders);
            }
            let rest = frame.get(self.start + self.header..).unwrap_or(&[]);
            let is_fragment = self.protocol == 44;
            let bytes = match self.protocol {
                0 | 43 | 51 | 60 => rest.get(..4),
                44 => rest.get(..8),
                _ => return Ok(self),
            };
            let bytes = bytes.ok_or(Reason::Truncated)?;
            if is_fragment && self.fragmentation != Fragmentation::Whole
                || self.protocol == 43 && bytes[3] > 0
            {
                return Err(Reason::ExtensionHeaders);
            }
            self.header += match self.protocol {
                44 => 8,
                51 => (usize::from(bytes[1]) + 2) * 4,
                _ => (usize::from(bytes[1]) + 1) * 8,
            };
            self.protocol = bytes[0];
            if is_fragment {
                let word = u16::from_be_bytes([bytes[2], bytes[3]]);
                let id = u32::from_be_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
                self.fragmentation = Fragmentation::new(word >> 3, word & 1 == 1, id);
                if matches!(self.fragmentation, Fragmentation::NonInitial(_)) {
                    return Ok(self);
                }
            }
        }
        Err(Reason::ExtensionHeaders)
    }
}
