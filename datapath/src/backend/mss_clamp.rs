//! The backend's other direction: what its VIPs tell clients about segments is made to fit through
//! the tunnel ("MSS clamping").
//!
//! Clients send segments of the maximum segment size that the server's SYN-ACK tells them (RFC 9293
//! section 3.7.1), and the server knows nothing of the outer header that a balancer puts in front
//! of them. So the option is made smaller where it tells too much, on its way out. Nothing is ever
//! dropped here, and nothing but that option and the checksum over it is changed.

use crate::abi::{Family, PrefixKey, Reason, TCP};
use crate::backend::tables::BackendTables;
use crate::verifier::widen_for_verifier;
use crate::wire::header::{Ipv4, Ipv6, Tcp};
use crate::wire::offsets::skip_vlan_tags;
use crate::wire::packet::{ETH_HLEN, Packet};
use crate::wire::parse::{family_of_ether_type, from_ipv4, from_ipv6, is_vlan_tag};

/// Bytes of the option: kind, length, and the size in wire order (RFC 9293 section 3.2).
const OPTION: usize = 4;

/// The most options that can stand before the one that is looked for: as many as there are bytes
/// for.
const MOST_OPTIONS: usize = 40 - OPTION + 1;

/// Where a segment tells its maximum segment size.
struct Told {
    /// Offset of the TCP header.
    l4: usize,
    /// Offset of the option.
    option: usize,
    /// The size that it tells.
    size: u16,
    /// The largest that it may tell.
    largest: u16,
}

/// Makes the maximum segment size smaller that a SYN or SYN-ACK from a VIP tells, where it is more
/// than [`BackendTables::largest_segment`]; a segment that was changed is counted.
///
/// Of the options the first that tells a size counts. Untouched are fragments, IPv6 packets with
/// extension headers, which no host puts before a SYN, and what contradicts itself.
#[inline(always)]
pub fn clamp_mss<P: Packet, T: BackendTables>(mut packet: P, tables: &T) {
    if !may_tell(&packet) {
        return;
    }
    if let Some(told) = find(&packet, tables)
        && write(&mut packet, &told).is_ok()
    {
        tables.count_clamped();
    }
}

/// Whether a frame may be a SYN or SYN-ACK: a look at the headers of an ordinary packet, at
/// constant offsets, which is all that most packets cost. What is not ordinary, or is not in the
/// readable part of a packet, may be anything.
#[inline(always)]
fn may_tell<P: Packet>(packet: &P) -> bool {
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

/// Finds a size that is too large, wherever it is.
#[inline(always)]
fn find<P: Packet, T: BackendTables>(packet: &P, tables: &T) -> Option<Told> {
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
    // However long the headers are, the verifier knows the same about the offset now.
    let l4 = widen_for_verifier(start.wrapping_add(ip.header_len) as u32) as usize;
    let header: Tcp = packet.load_at(l4)?;
    let end = l4.wrapping_add(header.length());
    if !header.has_syn() || end > start.wrapping_add(ip.total_len) || end > packet.frame_len() {
        return None;
    }
    let largest = tables.largest_segment(family);
    if largest == 0 || ip.has_mapped_source() || !tables.is_vip(&PrefixKey::address(&ip.source)) {
        return None;
    }
    let (option, size) = option(packet, l4.wrapping_add(Tcp::SMALLEST), end)?;
    (u32::from(size) > largest).then_some(Told { l4, option, size, largest: largest as u16 })
}

/// Finds the option that tells the maximum segment size among those from `at` up to `end`: its
/// offset and the size.
#[inline(always)]
fn option<P: Packet>(packet: &P, mut at: usize, end: usize) -> Option<(usize, u16)> {
    const END: u8 = 0;
    const NOTHING: u8 = 1;
    const MAXIMUM_SEGMENT_SIZE: u8 = 2;

    for _ in 0..MOST_OPTIONS {
        // Whichever options came before, the verifier knows the same about the offset now.
        at = widen_for_verifier(at as u32) as usize;
        if at.wrapping_add(OPTION) > end {
            return None;
        }
        let [kind, length, high, low]: [u8; OPTION] = packet.load_at(at)?;
        at = match (kind, length) {
            (NOTHING, _) => at.wrapping_add(1),
            (MAXIMUM_SEGMENT_SIZE, 4) => return Some((at, u16::from_be_bytes([high, low]))),
            // The rest is padding, or nobody knows where it begins.
            (END | MAXIMUM_SEGMENT_SIZE, _) | (_, 0 | 1) => return None,
            (_, length) => at.wrapping_add(usize::from(length)),
        };
    }
    None
}

/// Writes the largest size in place of the one that is told.
///
/// The checksum is made of 16-bit words, and an option may begin anywhere: then the size is half of
/// one word and half of the next.
#[inline(always)]
fn write<P: Packet>(packet: &mut P, told: &Told) -> Result<(), Reason> {
    let checksum = told.l4.wrapping_add(Tcp::CHECKSUM);
    let ([high, low], [new_high, new_low]) = (told.size.to_be_bytes(), told.largest.to_be_bytes());
    let size = told.option.wrapping_add(2);
    if size & 1 == 0 {
        let (old, new) = ([high, low], [new_high, new_low]);
        return packet.csum_replace2(
            size,
            u16::from_ne_bytes(old),
            u16::from_ne_bytes(new),
            checksum,
        );
    }
    let (first, second) = (size.wrapping_sub(1), size.wrapping_add(1));
    // The option's length stands before the size; what follows it is another option, since the
    // header is made of words.
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
