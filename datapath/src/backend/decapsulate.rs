//! The backend's path where its kernel has no tunnel device: takes the outer headers off packets
//! for its VIPs.

use crate::abi::{Family, IPV4_IN_IP, IPV6_IN_IP, Pod, PrefixKey, Reason, UDP};
use crate::backend::tables::BackendTables;
use crate::wire::header::{IpUdp, Ipv4, Ipv6, Udp};
use crate::wire::packet::{ETH_HLEN, Packet};
use crate::wire::parse::IpHeader;
use crate::wire::{ecn, parse};

/// Takes the outer header off one packet, the one of UDP with it: on success the inner packet is on
/// its way to the local stack, and accounted.
///
/// Only what is addressed to this host and carries a packet to a VIP address is touched. An outer
/// header with options, or a fragment, is left to the kernel: no balancer of ours sends them.
///
/// # Errors
///
/// The [`Reason`] why the packet is left alone or dropped, already counted.
#[inline(always)]
pub fn decapsulate<P: Packet, T: BackendTables>(packet: P, tables: &T) -> Result<(), Reason> {
    let outcome = unwrap(packet, tables);
    if let Err(reason) = outcome {
        tables.count_refused(reason);
    }
    outcome
}

#[inline(always)]
fn unwrap<P: Packet, T: BackendTables>(packet: P, tables: &T) -> Result<(), Reason> {
    // A tagged frame is left to the VLAN's own interface, which comes after this hook.
    match parse::family(&packet)?.ok_or(Reason::NotTunnel)? {
        Family::V4 => {
            let outer = parse::parse_ipv4(&packet, ETH_HLEN)?;
            if outer.header_len != Ipv4::SIZE || outer.is_fragment {
                return Err(Reason::NotTunnel);
            }
            match outer.protocol {
                UDP => take::<IpUdp<Ipv4>, P, T>(packet, tables, &outer),
                _ => take::<Ipv4, P, T>(packet, tables, &outer),
            }
        }
        Family::V6 => {
            let outer = parse::parse_ipv6(&packet, ETH_HLEN)?;
            match outer.protocol {
                UDP => take::<IpUdp<Ipv6>, P, T>(packet, tables, &outer),
                _ => take::<Ipv6, P, T>(packet, tables, &outer),
            }
        }
    }
}

/// The family of a packet that is directly behind a UDP header at `start`, in GUE variant 1. The
/// two bits that say the variant are an IP version's.
///
/// The checksum is not looked at: that of the packet inside is, by whoever receives it.
#[inline(always)]
fn in_gue<P: Packet, T: BackendTables>(packet: &P, tables: &T, start: usize) -> Option<Family> {
    let udp: Udp = packet.load(start)?;
    if tables.gue_port().is_none() || udp.destination_port != tables.gue_port() {
        return None;
    }
    match packet.load::<u8>(start.wrapping_add(Udp::SIZE))? >> 4 {
        4 => Some(Family::V4),
        6 => Some(Family::V6),
        _ => None,
    }
}

/// Takes off outer headers that are an `O`.
#[inline(always)]
fn take<O: Pod, P: Packet, T: BackendTables>(
    packet: P,
    tables: &T,
    outer: &IpHeader,
) -> Result<(), Reason> {
    let start = ETH_HLEN.wrapping_add(size_of::<O>());
    let family = match outer.protocol {
        IPV4_IN_IP => Family::V4,
        IPV6_IN_IP => Family::V6,
        UDP => in_gue(&packet, tables, ETH_HLEN.wrapping_add(outer.header_len))
            .ok_or(Reason::NotTunnel)?,
        _ => return Err(Reason::NotTunnel),
    };
    if family != outer.family && !tables.cross_family()
        || outer.has_mapped_destination()
        || !tables.is_local(&outer.destination)
    {
        return Err(Reason::NotTunnel);
    }
    let inner = match family {
        Family::V4 => parse::parse_ipv4(&packet, start)?,
        Family::V6 => parse::parse_ipv6(&packet, start)?,
    };
    if inner.has_mapped_destination() || !tables.is_vip(&PrefixKey::address(&inner.destination)) {
        return Err(Reason::NotVip);
    }

    // From this line on the packet is ours, and every refusal is a counted drop.
    let bytes = measure(&packet, outer, start, &inner)?;
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
    tables.count_decapsulated(packets, bytes);
    Ok(())
}

/// Bytes of the inner packet, which starts at `start` within the outer one, which is within the
/// frame: a length that lies is a drop.
#[inline(always)]
fn measure<P: Packet>(
    packet: &P,
    outer: &IpHeader,
    start: usize,
    inner: &IpHeader,
) -> Result<u64, Reason> {
    let merged = packet.segment_size() != 0;
    let within = length(outer, packet.frame_len().wrapping_sub(ETH_HLEN), merged)?;
    length(inner, within.saturating_sub(start.wrapping_sub(ETH_HLEN)), merged)
        .map(|length| length as u64)
}

/// Bytes of an IP packet, for which there is `room`. A merged one may be too long for its header to
/// say.
#[inline(always)]
fn length(ip: &IpHeader, room: usize, merged: bool) -> Result<usize, Reason> {
    let unsaid = match ip.family {
        Family::V4 => 0,
        Family::V6 => Ipv6::SIZE,
    };
    let length = if merged && ip.total_len == unsaid { room } else { ip.total_len };
    if length > room || length < ip.header_len { Err(Reason::BadLength) } else { Ok(length) }
}
