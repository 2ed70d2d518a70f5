//! The UDP header of GUE, in the space that encapsulation has reserved.
//!
//! Its checksum follows from headers alone ("local checksum offload"): the checksum of the inner
//! packet determines the sum of everything that it covers.

use crate::abi::{Family, ICMP, Port, Reason};
use crate::balance::gue::GueMeta;
use crate::balance::maps::BalancerMaps;
use crate::balance::stage::{Hook, Stage};
use crate::wire::checksum::{fold_wide, sum};
use crate::wire::header::{Ipv4, Ipv6, Udp};
use crate::wire::packet::{ETH_HLEN, Packet};
use crate::wire::parse::family_of_ether_type;

/// The most bytes of IPv6 extension headers that are summed: all that
/// [`wire::offsets`](crate::wire::offsets) parses.
const MAX_EXTENSION_BYTES: usize = 256;

/// Writes the UDP header of an encapsulated packet. Returns 0, or the action of the hook if the
/// packet is dropped after all: no hook's action for a drop is 0. Such a packet stays counted as
/// forwarded, because this stage does not know its service.
pub(crate) struct FinishGueStage;

impl Stage for FinishGueStage {
    #[inline(always)]
    fn run<H: Hook, M: BalancerMaps>(hook: &mut H, gue: u32, maps: &M) -> u64 {
        match write_udp_header(hook.packet(), GueMeta::decode(gue), maps.gue_port()) {
            Ok(()) => 0,
            Err(reason) => {
                maps.count_reason(reason);
                hook.apply_verdict(reason).into()
            }
        }
    }
}

#[inline(always)]
fn write_udp_header<P: Packet>(mut packet: P, gue: GueMeta, port: Port) -> Result<(), Reason> {
    const UDP_V4: usize = ETH_HLEN + Ipv4::SIZE;
    const UDP_V6: usize = ETH_HLEN + Ipv6::SIZE;
    /// Earlier stages have read these headers, so only the change since then can be the cause.
    const UNREADABLE: Reason = Reason::AdjustRoomFailed;

    let source = gue.source_port();
    let ether_type = packet.load(ETH_HLEN - 2).ok_or(UNREADABLE)?;
    match family_of_ether_type(ether_type).ok_or(UNREADABLE)? {
        Family::V4 => {
            let outer: Ipv4 = packet.load(ETH_HLEN).ok_or(UNREADABLE)?;
            // The length of a merged packet that does not fit the field is zero, as in the outer
            // header.
            let length = outer.total_length().saturating_sub(Ipv4::SIZE);
            let addresses = sum(outer.addresses());
            let udp = Udp::new(source, port, length as u16);
            let udp = match gue.protocol() {
                Some(protocol) => {
                    let inner =
                        inner_sum::<P, { UDP_V4 + Udp::SIZE }>(&packet, protocol, gue.header_len());
                    udp.with_checksum(addresses.wrapping_add(inner.ok_or(UNREADABLE)?))
                }
                None => udp,
            };
            packet.write(UDP_V4, &udp)
        }
        Family::V6 => {
            let outer: Ipv6 = packet.load(ETH_HLEN).ok_or(UNREADABLE)?;
            let addresses =
                sum(outer.source().words()).wrapping_add(sum(outer.destination().words()));
            let udp = Udp::new(source, port, outer.payload_length() as u16);
            let udp = match gue.protocol() {
                Some(protocol) => {
                    let inner =
                        inner_sum::<P, { UDP_V6 + Udp::SIZE }>(&packet, protocol, gue.header_len());
                    udp.with_checksum(addresses.wrapping_add(inner.ok_or(UNREADABLE)?))
                }
                None => udp,
            };
            packet.write(UDP_V6, &udp)
        }
    }
}

/// The one's complement sum of the inner packet at `START`, assuming that the inner checksum is
/// right; `None` if its headers are out of bounds. `protocol` is that of the L4 header.
/// `header_len` is the length of the IP header in bytes, including options or extension headers.
///
/// The bytes that a checksum covers, the checksum included, sum to the complement of its
/// pseudo-header (RFC 9293 section 3.1, RFC 768; RFC 8200 section 8.1). That also holds for a
/// checksum that a device has yet to complete. If the inner checksum is wrong, so is the outer one.
#[inline(always)]
fn inner_sum<P: Packet, const START: usize>(
    packet: &P,
    protocol: u8,
    header_len: usize,
) -> Option<u64> {
    let wire_order = |number: usize| u64::from((number as u16).to_be());
    Some(match packet.load::<u8>(START)? >> 4 {
        // An IPv4 header with its options sums to zero, and so does an ICMP message, which has no
        // pseudo-header.
        4 if protocol == ICMP => 0,
        4 => {
            let inner: Ipv4 = packet.load(START)?;
            let pseudo = sum(inner.addresses())
                .wrapping_add(wire_order(usize::from(protocol)))
                .wrapping_add(wire_order(inner.total_length().wrapping_sub(header_len)));
            u64::from(!fold_wide(pseudo))
        }
        // The addresses are both in the header and in the pseudo-header, so they cancel out.
        _ => {
            let first: [u32; 2] = packet.load(START)?;
            let inner: Ipv6 = packet.load(START)?;
            let covered = inner.payload_length().wrapping_sub(header_len.wrapping_sub(Ipv6::SIZE));
            let pseudo = wire_order(usize::from(protocol)).wrapping_add(wire_order(covered));
            sum(first)
                .wrapping_add(extensions_sum(
                    packet,
                    START.wrapping_add(Ipv6::SIZE),
                    START.wrapping_add(header_len),
                )?)
                .wrapping_add(u64::from(!fold_wide(pseudo)))
        }
    })
}

/// The sum of IPv6 extension headers, from offset `start` to offset `end`.
#[inline(always)]
fn extensions_sum<P: Packet>(packet: &P, start: usize, end: usize) -> Option<u64> {
    let mut sum = 0_u64;
    let mut offset = start;
    for _ in 0..MAX_EXTENSION_BYTES / size_of::<u32>() {
        if offset >= end {
            break;
        }
        sum = sum.wrapping_add(u64::from(packet.load_at::<u32>(offset)?));
        offset = offset.wrapping_add(size_of::<u32>());
    }
    Some(sum)
}
