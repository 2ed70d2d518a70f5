//! Path-MTU discovery through the balancers: a router with a smaller MTU between clients and
//! backends tells the VIP, and the backend must hear of it.

use super::Examination;
use super::transfer::Transfer;
use crate::lab::capture::Captured;
use crate::lab::topology::{Family, HOSTS, clients};
use anyhow::{Context, Result};
use etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded;
use etherparse::{Icmpv4Type, Icmpv6Type, LaxNetSlice, LaxSlicedPacket, TransportSlice};

/// MTU of the router's route to the client for a while, in bytes; IPv6 knows none below 1280.
const SMALL_MTU: u32 = 1400;

pub(super) fn run(examination: &mut Examination<'_>) -> Result<()> {
    let lab = examination.lab;
    let client = clients().next().context("the lab has no client")?;
    let router = &HOSTS[0];
    for family in Family::BOTH {
        // Of the route and not of the link, which would drop longer frames of the client's as they
        // come in: what the client sends, and says of its MTU, is as before. Locked, because only
        // such an MTU counts for what is forwarded.
        let (address, mtu) = (client.address(family).to_string(), SMALL_MTU.to_string());
        let narrow = ["route", "add", &address, "dev", client.name, "mtu", "lock", &mtu];
        lab.namespaces.run(router, "ip", &narrow, "")?;
        let moved =
            Transfer::run(lab, client, examination.wanted.listed(), family, lab.scale.bulk)?;
        lab.namespaces.run(router, "ip", &["route", "del", &address, "dev", client.name], "")?;
        let arrived: usize = moved.balancers.iter().map(|captured| too_big(captured, false)).sum();
        let left: usize = moved.balancers.iter().map(|captured| too_big(captured, true)).sum();
        let name = family.name();
        let bytes = lab.scale.bulk;
        let what =
            format!("{bytes} bytes go up, and come down behind a router whose MTU is {SMALL_MTU}");
        moved.judge(examination, name, what);
        let what = format!(
            "{name}: {arrived} of its errors reached the balancers, {left} left for the flow's backend"
        );
        examination.check(arrived > 0 && arrived == left, what);
    }
    Ok(())
}

/// Errors that say "too big": plain ones that came in, or encapsulated ones that went out.
fn too_big(captured: &Captured, encapsulated: bool) -> usize {
    let frames = captured.frames.iter().filter(|frame| frame.outgoing == encapsulated);
    frames.filter(|frame| says_too_big(&frame.bytes, encapsulated)).count()
}

fn says_too_big(bytes: &[u8], encapsulated: bool) -> bool {
    let Ok(packet) = LaxSlicedPacket::from_ethernet(bytes) else { return false };
    if !encapsulated {
        return is_too_big(&packet);
    }
    let inner = match packet.net {
        Some(LaxNetSlice::Ipv4(v4)) => v4.payload().payload,
        Some(LaxNetSlice::Ipv6(v6)) => v6.payload().payload,
        _ => return false,
    };
    LaxSlicedPacket::from_ip(inner).is_ok_and(|inner| is_too_big(&inner))
}

fn is_too_big(packet: &LaxSlicedPacket<'_>) -> bool {
    match &packet.transport {
        Some(TransportSlice::Icmpv4(icmp)) => {
            matches!(
                icmp.icmp_type(),
                Icmpv4Type::DestinationUnreachable(FragmentationNeeded { .. })
            )
        }
        Some(TransportSlice::Icmpv6(icmp)) => {
            matches!(icmp.icmp_type(), Icmpv6Type::PacketTooBig { .. })
        }
        _ => false,
    }
}
