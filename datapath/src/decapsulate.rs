//! The backend's path where its kernel has no tunnel device: takes the outer header off packets for its VIPs.

use crate::flow::{IPV4_IN_IP, IPV6_IN_IP};
use crate::packet::{ETHERNET, Packet};
use crate::parse::{IPV4_HEADER, IPV6_HEADER, Network};
use crate::tables::BackendTables;
use crate::{Family, Reason, checksum, ecn, parse};

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
    match parse::family(&packet)? {
        Family::V4 => {
            let outer = parse::ipv4(&packet, ETHERNET)?;
            if outer.protocol != IPV4_IN_IP || outer.header != IPV4_HEADER || outer.fragment {
                return Err(Reason::NotTunnel);
            }
            let inner = accept(tables, &outer, || parse::ipv4(&packet, ETHERNET + IPV4_HEADER))?;
            let bytes = measure(&packet, &outer, &inner)?;
            let class = ecn::decapsulate(outer.traffic_class, inner.traffic_class)?;
            let head: [u8; 12] = packet.load(ETHERNET + IPV4_HEADER).ok_or(Reason::Truncated)?;
            let packets = packet.segments();
            packet.decapsulate::<IPV4_HEADER, 12>(&with_ipv4_class(head, class))?;
            tables.count_decapsulated(packets, bytes);
        }
        Family::V6 => {
            let outer = parse::ipv6(&packet, ETHERNET)?;
            if outer.protocol != IPV6_IN_IP {
                return Err(Reason::NotTunnel);
            }
            let inner = accept(tables, &outer, || parse::ipv6(&packet, ETHERNET + IPV6_HEADER))?;
            let bytes = measure(&packet, &outer, &inner)?;
            let class = ecn::decapsulate(outer.traffic_class, inner.traffic_class)?;
            let head: [u8; 2] = packet.load(ETHERNET + IPV6_HEADER).ok_or(Reason::Truncated)?;
            let packets = packet.segments();
            let head = [(head[0] & 0xf0) | class >> 4, class << 4 | (head[1] & 0x0f)];
            packet.decapsulate::<IPV6_HEADER, 2>(&head)?;
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
    if !tables.is_local(&outer.destination) {
        return Err(Reason::NotTunnel);
    }
    let inner = inner()?;
    if !tables.is_vip(&inner.destination) {
        return Err(Reason::NotVip);
    }
    Ok(inner)
}

/// Bytes of the inner packet. From here on the packet is ours: a length that lies is a drop.
#[inline(always)]
fn measure<P: Packet>(packet: &P, outer: &Network, inner: &Network) -> Result<u64, Reason> {
    let present = packet.len().wrapping_sub(ETHERNET).wrapping_sub(outer.header);
    let unclaimed = match inner.family {
        Family::V4 => 0,
        Family::V6 => IPV6_HEADER,
    };
    let length = if packet.segment_size() != 0 && inner.length == unclaimed { present } else { inner.length };
    if length > present || length < inner.header {
        return Err(Reason::BadLength);
    }
    Ok(length as u64)
}

/// The first bytes of an IPv4 header with another type of service, checksum included.
#[inline(always)]
fn with_ipv4_class(head: [u8; 12], class: u8) -> [u8; 12] {
    let mut head = head;
    let old = u16::from_be_bytes([head[0], head[1]]);
    head[1] = class;
    let sum = checksum::updated(u16::from_be_bytes([head[10], head[11]]), old, u16::from_be_bytes([head[0], class]));
    if old as u8 != class {
        [head[10], head[11]] = sum.to_be_bytes();
    }
    head
}
