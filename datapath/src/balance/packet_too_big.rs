//! Packets that do not fit: an ICMP "fragmentation needed" or ICMPv6 "packet too big", from the VIP
//! to the client.
//!
//! The error quotes as much of the packet as RFC 1812 section 4.3.2.3 and RFC 4443 section 2.4
//! recommend. It is sent whether or not don't-fragment is set in an IPv4 packet: the balancer
//! cannot fragment packets, and a client that receives the MTU can (RFC 1191 section 4).

use crate::abi::{Address, Family, ICMP, ICMPV6, Reason, TCP, pod};
use crate::balance::maps::BalancerMaps;
use crate::balance::stage::{Hook, Stage};
use crate::wire::checksum::fold;
use crate::wire::header::{Icmp, Ipv4, Ipv6, REPLY_TTL};
use crate::wire::packet::{ETH_HLEN, Packet};
use crate::wire::parse;
use crate::wire::parse::IpHeader;

/// Bytes that an IPv4 error quotes: the error is 576 bytes long.
pub const QUOTE_V4: usize = 576 - Ipv4::SIZE - Icmp::SIZE;
/// Bytes that an IPv6 error quotes: the error is 1280 bytes long.
pub const QUOTE_V6: usize = 1280 - Ipv6::SIZE - Icmp::SIZE;

/// ICMP type and code of "fragmentation needed" (RFC 792); the header's last word holds the MTU
/// (RFC 1191 section 4).
const UNREACHABLE: u8 = 3;
const FRAGMENTATION_NEEDED: u8 = 4;
/// ICMPv6 type of "packet too big" (RFC 4443 section 3.2).
const V6_PACKET_TOO_BIG: u8 = 2;

/// TOS or traffic class of errors: internetwork control (RFC 1812 section 4.3.2.5).
const TOS: u8 = 0xc0;

/// The most bytes of one call of [`Packet::csum_partial`]: the kernel's limit of `bpf_csum_diff`.
const MAX_CSUM_LEN: usize = 512;

/// The headers of an IPv4 error.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct IcmpErrorV4 {
    ip: Ipv4,
    icmp: Icmp,
}
pod!(IcmpErrorV4, 28);

/// The headers of an IPv6 error.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct IcmpErrorV6 {
    ip: Ipv6,
    icmp: Icmp,
}
pod!(IcmpErrorV6, 48);

/// Turns a packet that does not fit, and is accounted, into an ICMP error that reports the MTU
/// `mtu` to the client, if the rate limit of errors allows.
pub(crate) struct PacketTooBigStage;

impl Stage for PacketTooBigStage {
    #[inline(always)]
    fn run<H: Hook, M: BalancerMaps>(hook: &mut H, mtu: u32, maps: &M) -> u64 {
        let reason = packet_too_big(hook.packet(), mtu, maps);
        hook.apply_verdict(reason).into()
    }
}

/// Returns [`Reason::IcmpTooBigSent`] if the packet has become the error.
#[inline(always)]
fn packet_too_big<P: Packet, M: BalancerMaps>(packet: P, mtu: u32, maps: &M) -> Reason {
    // A VLAN tag in the frame's metadata stays there.
    let family = packet
        .load::<u16>(ETH_HLEN - 2)
        .map(|ether_type| parse::family_for_this_host(&packet, ether_type));
    let result = match family {
        Some(Ok(Family::V4)) => write_error_v4(packet, mtu, maps),
        Some(Ok(Family::V6)) => write_error_v6(packet, mtu, maps),
        _ => return Reason::TooBig,
    };
    match result {
        Ok(()) => {
            maps.count_reason(Reason::IcmpTooBigSent);
            Reason::IcmpTooBigSent
        }
        Err(reason) => {
            if let Reason::IcmpTooBigRateLimited = reason {
                maps.count_reason(reason);
            }
            Reason::TooBig
        }
    }
}

/// Consumes a token of the rate limit, and swaps the MAC addresses, which fails for frames to
/// broadcast and multicast addresses. The source is a unicast address: the packet was admitted.
#[inline(always)]
fn prepare_reply<P: Packet, M: BalancerMaps>(packet: &mut P, maps: &M) -> Result<(), Reason> {
    if !maps.consume_icmp_error_token() {
        return Err(Reason::IcmpTooBigRateLimited);
    }
    packet.swap_macs()
}

#[inline(always)]
fn write_error_v4<P: Packet, M: BalancerMaps>(
    mut packet: P,
    mtu: u32,
    maps: &M,
) -> Result<(), Reason> {
    let ip = parse::parse_ipv4(&packet, ETH_HLEN)?;
    prepare_reply(&mut packet, maps)?;
    // The packet is longer than the quote, because it exceeds the minimum MTU.
    let mut packet = packet.trim(ETH_HLEN + QUOTE_V4)?;
    let first = packet.csum_partial::<MAX_CSUM_LEN>(ETH_HLEN).ok_or(Reason::AdjustRoomFailed)?;
    let rest = packet
        .csum_partial::<{ QUOTE_V4 - MAX_CSUM_LEN }>(ETH_HLEN + MAX_CSUM_LEN)
        .ok_or(Reason::AdjustRoomFailed)?;
    let mut sum = fold(first) as u32;
    sum = sum.wrapping_add(fold(rest) as u32);
    // An IPv4 header with its checksum sums to zero, so this is the sum of what follows it, too.
    let quote_sum = fix_l4_checksum(&mut packet, &ip, sum, sum)?;
    let mut icmp = Icmp {
        kind: UNREACHABLE,
        code: FRAGMENTATION_NEEDED,
        checksum: 0,
        rest: (mtu & 0xffff).to_be(),
    };
    icmp.checksum = !fold(icmp.sum().wrapping_add(quote_sum));
    let [.., source] = ip.destination.words();
    let [.., destination] = ip.source.words();
    let length = (Ipv4::SIZE + Icmp::SIZE + QUOTE_V4) as u16;
    let ip = Ipv4::new(TOS, length, 0, REPLY_TTL, ICMP, source, destination);
    packet.push_headers(&IcmpErrorV4 { ip, icmp })
}

#[inline(always)]
fn write_error_v6<P: Packet, M: BalancerMaps>(
    mut packet: P,
    mtu: u32,
    maps: &M,
) -> Result<(), Reason> {
    const PAYLOAD: usize = ETH_HLEN + Ipv6::SIZE;
    const LENGTH: u16 = (Icmp::SIZE + QUOTE_V6) as u16;

    let ip = parse::parse_ipv6(&packet, ETH_HLEN)?;
    prepare_reply(&mut packet, maps)?;
    let mut packet = packet.trim(ETH_HLEN + QUOTE_V6)?;
    let header = packet.csum_partial::<{ Ipv6::SIZE }>(ETH_HLEN).ok_or(Reason::AdjustRoomFailed)?;
    let first = packet.csum_partial::<MAX_CSUM_LEN>(PAYLOAD).ok_or(Reason::AdjustRoomFailed)?;
    let second = packet
        .csum_partial::<MAX_CSUM_LEN>(PAYLOAD + MAX_CSUM_LEN)
        .ok_or(Reason::AdjustRoomFailed)?;
    let third = packet
        .csum_partial::<{ QUOTE_V6 - Ipv6::SIZE - 2 * MAX_CSUM_LEN }>(PAYLOAD + 2 * MAX_CSUM_LEN)
        .ok_or(Reason::AdjustRoomFailed)?;
    let payload =
        (fold(first) as u32).wrapping_add(fold(second) as u32).wrapping_add(fold(third) as u32);
    let total = payload.wrapping_add(fold(header) as u32);
    let quote_sum = fix_l4_checksum(&mut packet, &ip, total, payload)?;
    let mut icmp = Icmp { kind: V6_PACKET_TOO_BIG, code: 0, checksum: 0, rest: mtu.to_be() };
    // Length and next header of the pseudo-header (RFC 8200 section 8.1).
    let pseudo = (LENGTH.to_be() as u32).wrapping_add((ICMPV6 as u16).to_be() as u32);
    let addresses = address_sum(&ip.source).wrapping_add(address_sum(&ip.destination));
    icmp.checksum =
        !fold(icmp.sum().wrapping_add(quote_sum).wrapping_add(pseudo).wrapping_add(addresses));
    let (source, destination) = (ip.destination.words(), ip.source.words());
    let ip = Ipv6::new(TOS, 0, LENGTH, ICMPV6, REPLY_TTL, source, destination);
    packet.push_headers(&IcmpErrorV6 { ip, icmp })
}

/// Gives the quoted L4 checksum a value that the kernel does not change later. Returns the sum of
/// the quote with it. `sum` is the sum of the quote, `payload` the sum of its bytes after the IP
/// header.
///
/// If the packet's checksum is not complete yet (CHECKSUM_PARTIAL), the kernel completes it when
/// the error is sent: it writes the complement of the sum of everything from the L4 header on, the
/// field included, into the field. A program cannot see that state, and the ICMP checksum covers
/// the field. So the field gets the fixed point of that operation: with `s` the sum without the
/// field, `f = -(s + f)`, hence `f = -s / 2`. In one's complement, a division by two is a rotation
/// to the right by one bit. Receivers do not verify the quoted checksum, since the quote is cut
/// off.
#[inline(always)]
fn fix_l4_checksum<P: Packet>(
    packet: &mut P,
    ip: &IpHeader,
    sum: u32,
    payload: u32,
) -> Result<u32, Reason> {
    const TCP_CHECKSUM: usize = 16;
    const UDP_CHECKSUM: usize = 6;

    if !ip.is_tcp_or_udp() {
        return Ok(fold(sum) as u32);
    }
    let offset_in_l4 = if ip.protocol == TCP { TCP_CHECKSUM } else { UDP_CHECKSUM };
    let offset = ETH_HLEN.wrapping_add(ip.header_len).wrapping_add(offset_in_l4);
    let old: u16 = packet.load_at(offset).ok_or(Reason::AdjustRoomFailed)?;
    let without_field = fold((fold(payload) as u32).wrapping_add(!old as u32));
    let new = (!without_field).rotate_right(1);
    packet.store(offset, &new)?;
    Ok(fold((fold(sum) as u32).wrapping_add(!old as u32).wrapping_add(new as u32)) as u32)
}

/// The sum of an address's 16-bit words, at most 2^19.
#[inline(always)]
const fn address_sum(address: &Address) -> u32 {
    let [a, b, c, d] = address.words();
    let low =
        (a & 0xffff).wrapping_add(b & 0xffff).wrapping_add(c & 0xffff).wrapping_add(d & 0xffff);
    low.wrapping_add(a >> 16).wrapping_add(b >> 16).wrapping_add(c >> 16).wrapping_add(d >> 16)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::abi::Settings;
    use crate::memory::{MemoryBalancer, PacketBuffer};

    /// Sums as RFC 1071 defines it, in wire order.
    fn sum(bytes: &[u8]) -> u16 {
        let words = bytes.chunks(2).map(|word| u64::from(u16::from_be_bytes([word[0], word[1]])));
        let mut sum: u64 = words.sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    /// Whether the error in a frame is valid to its receiver.
    fn is_valid(frame: &[u8]) -> bool {
        let packet = &frame[ETH_HLEN..];
        match packet[0] >> 4 {
            4 => sum(&packet[..20]) == 0xffff && sum(&packet[20..]) == 0xffff,
            _ => {
                sum(&[&packet[8..], &(packet.len() as u16 - 40).to_be_bytes(), &[0, 58]].concat())
                    == 0xffff
            }
        }
    }

    proptest! {
        /// The kernel's completion of a CHECKSUM_PARTIAL checksum (`skb_checksum_help`) changes
        /// nothing.
        #[test]
        fn an_error_is_valid_whether_or_not_a_kernel_completes_the_quoted_checksum(
            v6: bool, tcp: bool, options in 0..=10u8, bytes in proptest::collection::vec(any::<u8>(), 1500),
        ) {
            let mut frame = [vec![0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1], bytes].concat();
            let protocol = if tcp { 6 } else { 17 };
            let header = if v6 {
                frame[12..15].copy_from_slice(&[0x86, 0xdd, 0x60]);
                frame[20] = protocol;
                frame[22] = 0x20;
                40
            } else {
                let header = 20 + 4 * usize::from(options);
                frame[12..15].copy_from_slice(&[0x08, 0x00, 0x45 + options]);
                (frame[23], frame[26]) = (protocol, 198);
                frame[24..26].fill(0);
                let checksum = !sum(&frame[14..][..header]);
                frame[24..26].copy_from_slice(&checksum.to_be_bytes());
                header
            };
            let maps = MemoryBalancer::new(Settings::NONE);
            prop_assert_eq!(packet_too_big(PacketBuffer::new(&mut frame), 1400, &maps), Reason::IcmpTooBigSent);
            prop_assert!(is_valid(&frame), "{:02x?}", frame);

            let start = ETH_HLEN + if v6 { 48 } else { 28 } + header;
            let field = start + if tcp { 16 } else { 6 };
            let completed = !sum(&frame[start..]);
            let before = frame[field..field + 2].to_vec();
            frame[field..field + 2].copy_from_slice(&completed.to_be_bytes());
            prop_assert_eq!(&frame[field..field + 2], &before[..]);
            prop_assert!(is_valid(&frame), "{:02x?}", frame);
        }
    }
}
