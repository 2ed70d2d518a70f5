//! Expected GUE headers, by RFC 768 and RFC 8200 section 8.1. The checksum is summed over every
//! byte.

use std::net::IpAddr;

use etherparse::checksum::Sum16BitWords;
use sluice_datapath::Reason;
use sluice_datapath::abi::VipOptions;

use super::ip::{Fragmentation, Ip};
use crate::packets::frames;

/// The outer headers of `packet`: the IP-in-IP header, then a UDP header with the flow's source
/// port.
pub(super) fn headers(outer: &[u8], packet: &[u8], ip: &Ip, merged: bool, hash: u64) -> Vec<u8> {
    frames::gue_headers(outer, packet.len(), hash, summed(packet, ip, merged).as_deref())
}

/// Whether the receiver accepts the UDP checksum.
pub(super) fn check(outer: &[u8], options: VipOptions) -> Result<(), Reason> {
    let no_checksum = outer.ends_with(&[0, 0]);
    let v6 = outer[0] >> 4 == 6;
    if v6 && no_checksum && !options.has(VipOptions::ZERO_UDP_CHECKSUM) {
        Err(Reason::NoChecksum)
    } else {
        Ok(())
    }
}

/// The packet that the outer checksum covers: with valid inner checksums, because the balancer
/// derives the outer checksum from the inner one. `None` without an inner checksum over the whole
/// payload.
fn summed(packet: &[u8], ip: &Ip, merged: bool) -> Option<Vec<u8>> {
    if merged || ip.fragmentation != Fragmentation::Whole {
        return None;
    }
    let mut bytes = packet.to_vec();
    let (headers, payload) = bytes.split_at_mut(ip.header);
    let own = if ip.source.is_ipv4() { 1 } else { 58 };
    let (field, least) = match ip.protocol {
        6 => (16, 20),
        17 => (6, 8),
        protocol if protocol == own => (2, 8),
        _ => return None,
    };
    if payload.len() < least {
        return None;
    }
    if ip.protocol == 17 {
        let ip_length = usize::from(u16::from_be_bytes([payload[4], payload[5]]));
        if payload[6..8] == [0, 0] || ip_length != payload.len() {
            return None;
        }
    }
    let mut pseudo = Sum16BitWords::new()
        .add_2bytes([0, ip.protocol])
        .add_4bytes((payload.len() as u32).to_be_bytes());
    let pseudo = match (ip.source, ip.destination) {
        (IpAddr::V4(_), IpAddr::V4(_)) if ip.protocol == 1 => Sum16BitWords::new(),
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            pseudo.add_4bytes(source.octets()).add_4bytes(destination.octets())
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            pseudo.add_16bytes(source.octets()).add_16bytes(destination.octets())
        }
        _ => unreachable!("both addresses are of one family"),
    };
    payload[field..field + 2].fill(0);
    let checksum = pseudo.add_slice(payload).ones_complement();
    payload[field..field + 2].copy_from_slice(&checksum.to_ne_bytes());
    if ip.source.is_ipv4() {
        headers[10..12].fill(0);
        let checksum = Sum16BitWords::new().add_slice(headers).ones_complement();
        headers[10..12].copy_from_slice(&checksum.to_ne_bytes());
    }
    Some(bytes)
}
