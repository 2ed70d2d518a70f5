//! Expected result of MSS clamping, by RFC 9293 (options), RFC 1624 (checksums) and IEEE 802.1Q
//! (tags).

use std::net::IpAddr;

use etherparse::{Ipv4HeaderSlice, Ipv6HeaderSlice, TcpHeaderSlice};
use ipnet::IpNet;

use crate::packets::frames::Frame;

/// The expected bytes of a frame whose MSS is too large; `None` if the frame stays unchanged.
pub fn clamped(frame: &Frame, vips: &[IpNet], largest: [u32; 2]) -> Option<Vec<u8>> {
    let bytes = &frame.bytes;
    let mut network = 14;
    while matches!(bytes.get(network - 2..network)?, [0x81, 0x00] | [0x88, 0xa8]) {
        network += 4;
    }
    if network > 14 + 2 * 4 {
        return None;
    }
    let packet = bytes.get(network..)?;
    let (source, header, ip_length, largest) = match bytes[network - 2..network] {
        [0x08, 0x00] => {
            let ip = Ipv4HeaderSlice::from_slice(packet).ok()?;
            if ip.protocol().0 != 6 || ip.is_fragmenting_payload() {
                return None;
            }
            (
                IpAddr::from(ip.source_addr()),
                ip.slice().len(),
                usize::from(ip.total_len()),
                largest[0],
            )
        }
        [0x86, 0xdd] => {
            let ip = Ipv6HeaderSlice::from_slice(packet).ok()?;
            if ip.next_header().0 != 6 {
                return None;
            }
            (IpAddr::from(ip.source_addr()), 40, 40 + usize::from(ip.payload_length()), largest[1])
        }
        _ => return None,
    };
    if largest == 0 || !vips.iter().any(|vip| vip.contains(&source)) {
        return None;
    }
    let segment = packet.get(header..ip_length.min(packet.len()))?;
    let tcp = TcpHeaderSlice::from_slice(segment).ok()?;
    let (at, size) = told(tcp.options()).filter(|_| tcp.syn())?;
    if u32::from(size) <= largest {
        return None;
    }
    let mut left = bytes.clone();
    let transport = &mut left[network + header..][..tcp.slice().len()];
    let before = sum(transport);
    transport[20 + at..][..2].copy_from_slice(&(largest as u16).to_be_bytes());
    transport[16..18].fill(0);
    // The checksummed bytes have the same sum as before.
    let checksum = (before + 65_535 - sum(transport)) % 65_535;
    let checksum = if checksum == 0 { u16::MAX } else { checksum as u16 };
    transport[16..18].copy_from_slice(&checksum.to_be_bytes());
    Some(left)
}

/// Offset and value of the first MSS option.
fn told(options: &[u8]) -> Option<(usize, u16)> {
    let mut rest = options;
    loop {
        rest = match rest {
            [1, rest @ ..] => rest,
            [2, 4, high, low, after @ ..] => {
                return Some((options.len() - after.len() - 2, u16::from_be_bytes([*high, *low])));
            }
            [] | [0 | 2, ..] | [_] => return None,
            [_, length, ..] if *length < 2 => return None,
            [_, length, ..] => rest.get(usize::from(*length)..)?,
        };
    }
}

/// The sum of 16-bit words modulo 65,535.
fn sum(bytes: &[u8]) -> u64 {
    bytes.chunks(2).map(|word| u64::from(u16::from_be_bytes([word[0], word[1]]))).sum::<u64>()
        % 65_535
}
