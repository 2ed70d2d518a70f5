//! The backend's egress path: MSS clamping, so that clients' segments fit the tunnel's MTU.
//!
//! Clients send segments up to the maximum segment size (MSS) in the server's SYN-ACK (RFC 9293
//! section 3.7.1), which does not account for the balancer's outer header. The program lowers an
//! MSS option that is too large. It drops no packets, and changes only this option and the TCP
//! checksum.

use crate::abi::{Family, PrefixKey, Reason, TCP};
use crate::backend::maps::BackendMaps;
use crate::verifier::widen_for_verifier;
use crate::wire::header::{Ipv4, Ipv6, Tcp};
use crate::wire::offsets::skip_vlan_tags;
use crate::wire::packet::{ETH_HLEN, Packet};
use crate::wire::parse::{family_of_ether_type, from_ipv4, from_ipv6, is_vlan_tag};

/// Bytes of the MSS option: kind, length, and the MSS in wire order (RFC 9293 section 3.2).
const OPTION_LEN: usize = 4;

/// Maximum number of one-byte options up to the MSS option in 40 bytes.
const MAX_OPTIONS: usize = 40 - OPTION_LEN + 1;

/// The MSS option of a segment.
struct MssOption {
    /// Offset of the TCP header.
    l4: usize,
    /// Offset of the option.
    option: usize,
    /// The MSS.
    size: u16,
    /// The largest allowed MSS.
    largest: u16,
}

/// Lowers the MSS in a SYN or SYN-ACK from a VIP to [`BackendMaps::max_segment_size`], and counts
/// the changed segments.
///
/// Only the first MSS option is read. Fragments, IPv6 packets with extension headers, which hosts
/// do not send with a SYN, and invalid packets pass unchanged.
#[inline(always)]
pub fn clamp_mss<P: Packet, M: BackendMaps>(mut packet: P, maps: &M) {
    if !may_be_syn(&packet) {
        return;
    }
    if let Some(mss) = find_excessive_mss(&packet, maps)
        && rewrite(&mut packet, &mss).is_ok()
    {
        maps.count_clamped();
    }
}

/// Whether a frame may be a SYN or SYN-ACK. For most packets, this check at constant offsets is the
/// only cost. The result is true if the headers have other offsets, or are not in the linear part
/// of the packet.
#[inline(always)]
fn may_be_syn<P: Packet>(packet: &P) -> bool {
    let Some(ether_type) = packet.load::<u16>(ETH_HLEN - 2) else { return false };
    let l4: Option<Tcp> = match family_of_ether_type(ether_type) {
        Some(Family::V4) => match packet.load::<Ipv4>(ETH_HLEN) {
            Some(header) if header.protocol() != TCP => return false,
            Some(header) if header.length() == Ipv4::SIZE => packet.load(ETH_HLEN + Ipv4::SIZE),
            _ => return true,
        },
        Some(Family::V6) => match packet.load::<Ipv6>(ETH_HLEN) {
            Some(header) if header.next_header() != TCP => return false,
            Some(_) => packet.load(ETH_HLEN + Ipv6::SIZE),
            None => return true,
        },
        None => return is_vlan_tag(ether_type),
    };
    l4.is_none_or(|header| header.has_syn())
}

/// Finds an MSS option above the limit, at variable offsets.
#[inline(always)]
fn find_excessive_mss<P: Packet, M: BackendMaps>(packet: &P, maps: &M) -> Option<MssOption> {
    let (ether_type, start) = skip_vlan_tags(packet).ok()?;
    let family = family_of_ether_type(ether_type)?;
    let ip = match family {
        Family::V4 => from_ipv4(&packet.load_at(start)?),
        Family::V6 => from_ipv6(&packet.load_at(start)?),
    }
    .ok()?;
    if ip.protocol != TCP || ip.is_fragment {
        return None;
    }
    // Now the verifier has the same bounds of the offset for any header lengths.
    let l4 = widen_for_verifier(start.wrapping_add(ip.header_len) as u32) as usize;
    let header: Tcp = packet.load_at(l4)?;
    let end = l4.wrapping_add(header.length());
    if !header.has_syn() || end > start.wrapping_add(ip.total_len) || end > packet.frame_len() {
        return None;
    }
    let largest = maps.max_segment_size(family);
    if largest == 0 || ip.has_mapped_source() || !maps.is_vip(&PrefixKey::address(&ip.source)) {
        return None;
    }
    let (option, size) = mss_option(packet, l4.wrapping_add(Tcp::SMALLEST), end)?;
    (u32::from(size) > largest).then_some(MssOption { l4, option, size, largest: largest as u16 })
}

/// Finds the MSS option between `at` and `end`. Returns its offset and the MSS.
#[inline(always)]
fn mss_option<P: Packet>(packet: &P, mut at: usize, end: usize) -> Option<(usize, u16)> {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const MAXIMUM_SEGMENT_SIZE: u8 = 2;

    for _ in 0..MAX_OPTIONS {
        // Now the verifier has the same bounds of the offset after any options.
        at = widen_for_verifier(at as u32) as usize;
        if at.wrapping_add(OPTION_LEN) > end {
            return None;
        }
        let [kind, length, high, low]: [u8; OPTION_LEN] = packet.load_at(at)?;
        at = match (kind, length) {
            (NO_OPERATION, _) => at.wrapping_add(1),
            (MAXIMUM_SEGMENT_SIZE, 4) => return Some((at, u16::from_be_bytes([high, low]))),
            // The rest is padding, or the length of the option is invalid.
            (END | MAXIMUM_SEGMENT_SIZE, _) | (_, 0 | 1) => return None,
            (_, length) => at.wrapping_add(usize::from(length)),
        };
    }
    None
}

/// Replaces the MSS by the largest allowed one.
///
/// The checksum is over 16-bit words, and an option may start at an odd offset. Then the MSS is in
/// the halves of two words.
#[inline(always)]
fn rewrite<P: Packet>(packet: &mut P, mss: &MssOption) -> Result<(), Reason> {
    let checksum = mss.l4.wrapping_add(Tcp::CHECKSUM);
    let ([high, low], [new_high, new_low]) = (mss.size.to_be_bytes(), mss.largest.to_be_bytes());
    let size = mss.option.wrapping_add(2);
    if (size & 1) == 0 {
        let (old, new) = ([high, low], [new_high, new_low]);
        return packet.csum_replace2(
            size,
            u16::from_ne_bytes(old),
            u16::from_ne_bytes(new),
            checksum,
        );
    }
    let (first, second) = (size.wrapping_sub(1), size.wrapping_add(1));
    // The byte before the MSS is the option's length. A byte of the header follows the MSS, since
    // the header's length is a multiple of four.
    let [length, _]: [u8; 2] = packet.load_at(first).ok_or(Reason::AdjustRoomFailed)?;
    let [_, next]: [u8; 2] = packet.load_at(second).ok_or(Reason::AdjustRoomFailed)?;
    let words =
        |high: u8, low: u8| [u16::from_ne_bytes([length, high]), u16::from_ne_bytes([low, next])];
    let ([old, old_second], [new, new_second]) = (words(high, low), words(new_high, new_low));
    if old != new {
        packet.csum_replace2(first, old, new, checksum)?;
    }
    if old_second != new_second {
        packet.csum_replace2(second, old_second, new_second, checksum)?;
    }
    Ok(())
}
