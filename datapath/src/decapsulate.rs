//! The backend's path where its kernel has no tunnel device: takes the outer header off packets for its VIPs.

use crate::flow::{IPV4_IN_IP, IPV6_IN_IP};
use crate::header::{Ipv4, Ipv6};
use crate::packet::{ETHERNET, Packet};
use crate::parse::Network;
use crate::tables::BackendTables;
use crate::{Family, Reason, ecn, parse};

/// Takes the outer header off one packet: on success the inner packet is on its way to the local stack, and accounted.
///
/// Only what is addressed to this host, holds a packet of the same family and carries it to a VIP address is touched. An outer
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
            let outer = parse::ipv4(&packet, ETHERNET)?;
            if outer.protocol != IPV4_IN_IP || outer.header != Ipv4::SIZE || outer.fragment {
                return Err(Reason::NotTunnel);
            }
            let inner = accept(tables, &outer, || parse::ipv4(&packet, ETHERNET + Ipv4::SIZE))?;
            let bytes = measure(&packet, &outer, &inner)?;
            let class = ecn::decapsulate(outer.traffic_class, inner.traffic_class)?;
            let header: Ipv4 = packet.load(ETHERNET + Ipv4::SIZE).ok_or(Reason::Truncated)?;
            let packets = packet.segments();
            packet.decapsulate::<Ipv4, Ipv4>(&header.with_traffic_class(class))?;
            tables.count_decapsulated(packets, bytes);
        }
        Family::V6 => {
            let outer = parse::ipv6(&packet, ETHERNET)?;
            if outer.protocol != IPV6_IN_IP {
                return Err(Reason::NotTunnel);
            }
            let inner = accept(tables, &outer, || parse::ipv6(&packet, ETHERNET + Ipv6::SIZE))?;
            let bytes = measure(&packet, &outer, &inner)?;
            let class = ecn::decapsulate(outer.traffic_class, inner.traffic_class)?;
            let header: Ipv6 = packet.load(ETHERNET + Ipv6::SIZE).ok_or(Reason::Truncated)?;
            let packets = packet.segments();
            packet.decapsulate::<Ipv6, u32>(&header.first_word_with_traffic_class(class))?;
            tables.count_decapsulated(packets, bytes);
        }
    }
    Ok(())
}

/// Whether the packet is for us: the inner header, if the outer one is addressed to this host and the inner one to a VIP.
#[inline(always)]
fn accept<T: BackendTables>(
    tables: &T,
    outer: &Network,
    inner: impl FnOnce() -> Result<Network, Reason>,
) -> Result<Network, Reason> {
    if outer.is_to_mapped() || !tables.is_local(&outer.destination) {
        return Err(Reason::NotTunnel);
    }
    let inner = inner()?;
    if inner.is_to_mapped() || !tables.is_vip(&inner.destination) {
        return Err(Reason::NotVip);
    }
    Ok(inner)
}

/// Bytes of the inner packet. From here on the packet is ours: a length that lies is a drop.
#[inline(always)]
fn measure<P: Packet>(packet: &P, outer: &Network, inner: &Network) -> Result<u64, Reason> {
    let present = packet.length().wrapping_sub(ETHERNET).wrapping_sub(outer.header);
    let unclaimed = match inner.family {
        Family::V4 => 0,
        Family::V6 => Ipv6::SIZE,
    };
    let length = if packet.segment_size() != 0 && inner.length == unclaimed { present } else { inner.length };
    if length > present || length < inner.header {
        return Err(Reason::BadLength);
    }
    Ok(length as u64)
}
