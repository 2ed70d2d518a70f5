//! Expected result of decapsulation, by the RFCs: 2003 (IPv4 in IPv4), 2473 (IPv6 tunnels), 4213
//! (IPv6 in IPv4), 6040 (ECN), 2983 (the inner packet keeps its DSCP), 1122 section 3.2.1.7 (a host
//! accepts packets with any TTL) and 1624 (checksums). The outer header's checksum is not checked:
//! of that header only the ECN field has an effect.

use std::net::IpAddr;

use sluice_datapath::Reason;

use super::ip::{self, Fragmentation, Ip};
use crate::packets::addresses::GUE_PORT;

use crate::packets::expectation::{Action, DecapExpectation};
use crate::packets::fixture::HostFixture;
use crate::packets::frames::Frame;

/// Bytes of an Ethernet header.
const LINK: usize = 14;

/// The expected result at a backend. `cross_family`: whether it can decapsulate across address
/// families.
pub fn decapsulated(frame: &Frame, host: &HostFixture, cross_family: bool) -> DecapExpectation {
    match unwrapped(frame, host, cross_family) {
        Ok(expectation) => expectation,
        Err(reason @ (Reason::BadLength | Reason::EcnForbidden | Reason::NotBalancer)) => {
            DecapExpectation::Untouched(Action::Drop, reason)
        }
        Err(reason) => DecapExpectation::Untouched(Action::Pass, reason),
    }
}

fn unwrapped(
    frame: &Frame,
    host: &HostFixture,
    cross_family: bool,
) -> Result<DecapExpectation, Reason> {
    let bytes = &frame.bytes;
    let kind = bytes.get(12..14).ok_or(Reason::Truncated)?;
    let outer = match kind {
        // A VLAN interface removes tags.
        _ if frame.vlan => return Err(Reason::NotTunnel),
        [0x81, 0x00] | [0x88, 0xa8] => return Err(Reason::NotTunnel),
        [0x08, 0x00] | [0x86, 0xdd] if frame.is_for_other_host() => return Err(Reason::OtherHost),
        [0x08, 0x00] => ip::v4(bytes, LINK)?,
        [0x86, 0xdd] => ip::v6(bytes, LINK)?,
        _ => return Err(Reason::NotIp),
    };
    let (source, destination) = (outer.source, outer.destination);
    // The kernel handles options, fragments and extension headers.
    let plain = outer.fragmentation == Fragmentation::Whole
        && outer.header == if outer.source.is_ipv4() { 20 } else { 40 };
    if !plain || !matches!(outer.protocol, 4 | 17 | 41) {
        // The kernel may decapsulate it, whatever headers are in between.
        let is_tunnel = match outer.past_extensions(bytes) {
            Ok(outer) => matches!(outer.protocol, 4 | 41),
            Err(reason) => reason == Reason::ExtensionHeaders,
        };
        let is_refused = is_tunnel && is_for(host, destination) && !is_accepted(host, source);
        return Err(if is_refused { Reason::NotBalancer } else { Reason::NotTunnel });
    }
    let mut start = LINK + outer.header;
    let inner_is_v4 = match outer.protocol {
        4 => true,
        41 => false,
        // The first two bits after the UDP header are the GUE variant; in variant 1 they begin an
        // IP version.
        17 if bytes.get(start + 2..start + 4) == Some(&GUE_PORT.wire()) => {
            start += 8;
            match bytes.get(start).map(|first| first >> 4) {
                Some(4) => true,
                Some(6) => false,
                _ => return Err(Reason::NotTunnel),
            }
        }
        _ => return Err(Reason::NotTunnel),
    };
    let is_cross_family = inner_is_v4 != outer.source.is_ipv4();
    if !is_for(host, destination) {
        return Err(Reason::NotTunnel);
    }
    if !is_accepted(host, source) {
        return Err(Reason::NotBalancer);
    }
    if host.by_device.contains(&destination) {
        return Err(Reason::TunnelDevice);
    }
    if is_cross_family && !cross_family {
        return Err(Reason::NotTunnel);
    }
    let inner = if inner_is_v4 { ip::v4(bytes, start)? } else { ip::v6(bytes, start)? };
    if is_mapped(inner.destination) || !host.vips.iter().any(|vip| vip.contains(&inner.destination))
    {
        return Err(Reason::NotVip);
    }

    // The inner packet is within the outer one, which is within the frame. Padding may follow.
    let of_outer = length(frame, &outer, bytes.len() - LINK)?;
    let of_inner = length(frame, &inner, of_outer.saturating_sub(start - LINK))?;
    let tos = inner.tos & !3 | resulting_ecn(inner.tos & 3, outer.tos & 3)?;
    let mut packet = bytes[start..].to_vec();
    if tos != inner.tos {
        set_tos(&mut packet, inner_is_v4, tos);
    }
    let kind: [u8; 2] = if inner_is_v4 { [0x08, 0x00] } else { [0x86, 0xdd] };
    let left = [&bytes[..12], &kind, &packet].concat();
    Ok(DecapExpectation::Decapsulated(left, frame.segments.max(1).into(), of_inner as u64))
}

/// Whether tunnels end at an address.
fn is_for(host: &HostFixture, address: IpAddr) -> bool {
    host.local.contains(&address)
}

/// Whether a source of outer headers is accepted.
fn is_accepted(host: &HostFixture, source: IpAddr) -> bool {
    let listed = |prefix: &ipnet::IpNet| prefix.contains(&source);
    !is_mapped(source) && (host.balancers.is_empty() || host.balancers.iter().any(listed))
}

fn is_mapped(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some())
}

/// Bytes of an IP packet within `room`. The length field of a merged packet may be 0.
fn length(frame: &Frame, ip: &Ip, room: usize) -> Result<usize, Reason> {
    let no_length = if ip.source.is_ipv4() { 0 } else { 40 };
    let length = if frame.segment_size > 0 && ip.length == no_length { room } else { ip.length };
    if length > room || length < ip.header { Err(Reason::BadLength) } else { Ok(length) }
}

/// The resulting ECN field (RFC 6040 section 4.2): the more severe of both. A Not-ECT packet stays
/// Not-ECT and is dropped if the outer header has CE.
fn resulting_ecn(inner: u8, outer: u8) -> Result<u8, Reason> {
    const NOT_CAPABLE: u8 = 0b00;
    const CAPABLE_1: u8 = 0b01;
    const CAPABLE_0: u8 = 0b10;
    const EXPERIENCED: u8 = 0b11;

    let severity = |ecn: u8| {
        [NOT_CAPABLE, CAPABLE_0, CAPABLE_1, EXPERIENCED].iter().position(|known| *known == ecn)
    };
    match (inner, outer) {
        (NOT_CAPABLE, EXPERIENCED) => Err(Reason::EcnForbidden),
        (NOT_CAPABLE, _) => Ok(NOT_CAPABLE),
        _ => Ok(if severity(outer) > severity(inner) { outer } else { inner }),
    }
}

/// Writes the TOS or traffic class. A valid checksum stays valid; a wrong checksum keeps its error.
fn set_tos(packet: &mut [u8], is_v4: bool, tos: u8) {
    if !is_v4 {
        packet[0] = packet[0] & 0xf0 | tos >> 4;
        packet[1] = packet[1] & 0x0f | tos << 4;
        return;
    }
    let header = &mut packet[..20];
    let before = sum(header);
    header[1] = tos;
    header[10..12].fill(0);
    let checksum = (before + 65_535 - sum(header)) % 65_535;
    header[10..12].copy_from_slice(&(checksum as u16).to_be_bytes());
}

/// The sum of 16-bit words modulo 65,535.
fn sum(bytes: &[u8]) -> u64 {
    bytes.chunks(2).map(|word| u64::from(u16::from_be_bytes([word[0], word[1]]))).sum::<u64>()
        % 65_535
}
