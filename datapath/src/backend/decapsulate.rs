//! The backend's ingress path on hosts without a tunnel device: removes the outer headers of
//! packets to its VIPs.

use crate::abi::{Family, IPV4_IN_IP, IPV6_IN_IP, Pod, PrefixKey, Reason, UDP};
use crate::backend::maps::BackendMaps;
use crate::wire::header::{FragmentKind, IpUdp, Ipv4, Ipv6, Udp};
use crate::wire::offsets::ParsedHeaders;
use crate::wire::packet::{ETH_HLEN, Packet};
use crate::wire::parse::IpHeader;
use crate::wire::{ecn, parse};

/// Decapsulates one packet: removes its outer IP header, and in GUE the UDP header. On success, the
/// inner packet passes to the local stack and is counted.
///
/// Only packets from a balancer to this host with an inner packet to a VIP address are changed.
/// Outer headers with IP options and outer fragments pass to the kernel, because Sluice's balancer
/// does not send them. A tunnel device of the kernel may decapsulate them, and packets to addresses
/// that the program leaves to it: their source is checked, too.
///
/// # Errors
///
/// The [`Reason`] why the packet passes unchanged or is dropped, already counted.
#[inline(always)]
pub fn decapsulate<P: Packet, M: BackendMaps>(packet: P, maps: &M) -> Result<(), Reason> {
    let result = try_decapsulate(packet, maps);
    if let Err(reason) = result {
        maps.count_reason(reason);
    }
    result
}

#[inline(always)]
fn try_decapsulate<P: Packet, M: BackendMaps>(packet: P, maps: &M) -> Result<(), Reason> {
    // Frames in a VLAN pass: the VLAN interface receives them after this hook. The kernel moves the
    // first tag into the metadata before, and receives frames with a priority tag itself.
    match parse::family_outside_vlans(&packet)?.ok_or(Reason::NotTunnel)? {
        Family::V4 => {
            let outer = parse::parse_ipv4(&packet, ETH_HLEN)?;
            if outer.header_len != Ipv4::SIZE || outer.is_fragment {
                return Err(refuse_unless_balancer(maps, &outer));
            }
            match outer.protocol {
                UDP => strip_outer::<IpUdp<Ipv4>, P, M>(packet, maps, &outer),
                _ => strip_outer::<Ipv4, P, M>(packet, maps, &outer),
            }
        }
        Family::V6 => {
            let outer = parse::parse_ipv6(&packet, ETH_HLEN)?;
            match outer.protocol {
                UDP => strip_outer::<IpUdp<Ipv6>, P, M>(packet, maps, &outer),
                IPV4_IN_IP | IPV6_IN_IP => strip_outer::<Ipv6, P, M>(packet, maps, &outer),
                _ => {
                    let headers = ParsedHeaders::new(outer, ETH_HLEN, FragmentKind::None);
                    match headers.skip_extensions(&packet) {
                        Ok(headers) => Err(refuse_unless_balancer(maps, &headers.ip)),
                        // The kernel may accept more extension headers than this.
                        Err(Reason::ExtensionHeaders) => {
                            let outer = IpHeader { protocol: IPV6_IN_IP, ..outer };
                            Err(refuse_unless_balancer(maps, &outer))
                        }
                        Err(_) => Err(Reason::NotTunnel),
                    }
                }
            }
        }
    }
}

/// The reason for a packet that the program does not decapsulate: IP-in-IP to this host is dropped
/// unless it is from a balancer, because a tunnel device would decapsulate it.
#[inline(always)]
fn refuse_unless_balancer<M: BackendMaps>(maps: &M, outer: &IpHeader) -> Reason {
    let is_ip_in_ip = matches!(outer.protocol, IPV4_IN_IP | IPV6_IN_IP);
    if is_ip_in_ip
        && !outer.has_mapped_destination()
        && maps.local_address(&outer.destination).is_some()
        && !is_from_balancer(maps, outer)
    {
        return Reason::NotBalancer;
    }
    Reason::NotTunnel
}

/// Whether the source of an outer header is accepted.
#[inline(always)]
fn is_from_balancer<M: BackendMaps>(maps: &M, outer: &IpHeader) -> bool {
    !outer.has_mapped_source() && maps.is_balancer(&PrefixKey::address(&outer.source))
}

/// The family of the inner packet directly after the UDP header at `start`, in GUE variant 1. The
/// variant's two bits are part of the IP version.
///
/// The UDP checksum is not verified. The receiver verifies the checksum of the inner packet.
#[inline(always)]
fn gue_inner_family<P: Packet, M: BackendMaps>(
    packet: &P,
    maps: &M,
    start: usize,
) -> Option<Family> {
    let udp: Udp = packet.load(start)?;
    if maps.gue_port().is_none() || udp.destination_port != maps.gue_port() {
        return None;
    }
    match packet.load::<u8>(start.wrapping_add(Udp::SIZE))? >> 4 {
        4 => Some(Family::V4),
        6 => Some(Family::V6),
        _ => None,
    }
}

/// Removes outer headers with the layout `O`.
#[inline(always)]
fn strip_outer<O: Pod, P: Packet, M: BackendMaps>(
    packet: P,
    maps: &M,
    outer: &IpHeader,
) -> Result<(), Reason> {
    let start = ETH_HLEN.wrapping_add(size_of::<O>());
    let family = match outer.protocol {
        IPV4_IN_IP => Family::V4,
        IPV6_IN_IP => Family::V6,
        UDP => gue_inner_family(&packet, maps, ETH_HLEN.wrapping_add(outer.header_len))
            .ok_or(Reason::NotTunnel)?,
        _ => return Err(Reason::NotTunnel),
    };
    if outer.has_mapped_destination() {
        return Err(Reason::NotTunnel);
    }
    let local = maps.local_address(&outer.destination).ok_or(Reason::NotTunnel)?;

    // A tunnel packet to this host: one that is not from a balancer is dropped.
    if !is_from_balancer(maps, outer) {
        return Err(Reason::NotBalancer);
    }
    if local.decapsulates == 0 {
        return Err(Reason::TunnelDevice);
    }
    if family != outer.family && !maps.cross_family() {
        return Err(Reason::NotTunnel);
    }
    let inner = match family {
        Family::V4 => parse::parse_ipv4(&packet, start)?,
        Family::V6 => parse::parse_ipv6(&packet, start)?,
    };
    if inner.has_mapped_destination() || !maps.is_vip(&PrefixKey::address(&inner.destination)) {
        return Err(Reason::NotVip);
    }

    // From here on, the packet is for a VIP: every error is a counted drop.
    let bytes = inner_len(&packet, outer, start, &inner)?;
    let tos = ecn::decapsulate(outer.tos, inner.tos)?;
    let packets = packet.segments();
    match family {
        Family::V4 => {
            let header: Ipv4 = packet.load(start).ok_or(Reason::Truncated)?;
            packet.decapsulate::<O, Ipv4>(outer.family, family, &header.with_tos(tos))?;
        }
        Family::V6 => {
            let header: Ipv6 = packet.load(start).ok_or(Reason::Truncated)?;
            packet.decapsulate::<O, u32>(
                outer.family,
                family,
                &header.first_word_with_traffic_class(tos),
            )?;
        }
    }
    maps.count_decapsulated(packets, bytes);
    Ok(())
}

/// Bytes of the inner packet, whose header is at offset `start`. Fails if the inner packet exceeds
/// the outer one, or the outer packet the frame.
#[inline(always)]
fn inner_len<P: Packet>(
    packet: &P,
    outer: &IpHeader,
    start: usize,
    inner: &IpHeader,
) -> Result<u64, Reason> {
    let merged = packet.segment_size() != 0;
    let outer_len = checked_len(outer, packet.frame_len().wrapping_sub(ETH_HLEN), merged)?;
    checked_len(inner, outer_len.saturating_sub(start.wrapping_sub(ETH_HLEN)), merged)
        .map(|length| length as u64)
}

/// Bytes of an IP packet, at most `available`. The length field of a merged packet may be zero
/// (Linux "BIG TCP").
#[inline(always)]
fn checked_len(ip: &IpHeader, available: usize, merged: bool) -> Result<usize, Reason> {
    let zero_length = match ip.family {
        Family::V4 => 0,
        Family::V6 => Ipv6::SIZE,
    };
    let length = if merged && ip.total_len == zero_length { available } else { ip.total_len };
    if length > available || length < ip.header_len { Err(Reason::BadLength) } else { Ok(length) }
}
