//! The fast path.

use crate::abi::{Family, Reason};
use crate::balance::acl::check_acl;
use crate::balance::encapsulate::resolve_path;
use crate::balance::forward::VipPacket;
use crate::balance::gue::GueMeta;
use crate::balance::lookup::{apply_route, find_vip, find_vip_address};
use crate::balance::outcome::{FastPathOutcome, account_refusal};
use crate::balance::quic::is_quic;
use crate::balance::tables::BalancerTables;
use crate::wire::header::FragmentKind;
use crate::wire::offsets::HeaderOffsets;
use crate::wire::packet::{ETH_HLEN, Packet};
use crate::wire::parse;

/// The first stage: an untagged packet whose TCP or UDP header directly follows a plain IP header.
///
/// # Errors
///
/// As [`balance`].
#[inline(always)]
pub fn fast_path<P: Packet, T: BalancerTables>(
    packet: P,
    tables: &T,
) -> Result<FastPathOutcome<P>, Reason> {
    let mut service = 0;
    let outcome = try_fast_path(packet, tables, &mut service);
    match &outcome {
        Ok(
            FastPathOutcome::Forward(_) | FastPathOutcome::SlowPath(_) | FastPathOutcome::Udp(..),
        ) => {}
        Ok(FastPathOutcome::TooBig(..)) => account_refusal(tables, service, Reason::TooBig),
        Err(reason) => account_refusal(tables, service, *reason),
    }
    outcome
}

#[inline(always)]
fn try_fast_path<P: Packet, T: BalancerTables>(
    packet: P,
    tables: &T,
    service: &mut u32,
) -> Result<FastPathOutcome<P>, Reason> {
    let Some(family) = parse::family(&packet)? else {
        return Ok(FastPathOutcome::SlowPath(packet));
    };
    let ip = match family {
        Family::V4 => parse::parse_ipv4(&packet, ETH_HLEN)?,
        Family::V6 => parse::parse_ipv6(&packet, ETH_HLEN)?,
    };
    let address = find_vip_address(tables, &ip)?;
    if !ip.has_fixed_offsets() {
        return Ok(FastPathOutcome::SlowPath(packet));
    }
    let l4 = parse::l4_header(&packet, &ip)?;
    let vip = find_vip(tables, &address, l4.destination_port, ip.protocol)?;
    if is_quic(tables, &vip, ip.protocol) {
        return Ok(FastPathOutcome::Udp(packet, HeaderOffsets::direct(ip).encode()));
    }

    // From this line on the packet is ours, and every refusal is a counted drop.
    *service = vip.service;
    check_acl(tables, &ip.source, &vip)?;
    let vip = apply_route(tables, &ip.source, vip);
    *service = vip.service;
    let size = parse::packet_size(&packet, ETH_HLEN, &ip, &l4)?;
    let (size, gue) = GueMeta::for_l4(&packet, &ip, FragmentKind::None, &l4, size, tables);
    let packet = VipPacket { ip, size, gue, is_syn: l4.is_syn, tags: None, service: vip, packet };
    let flow = packet.flow(&l4);
    let (selection, hash) = packet.select_backend(&flow, tables, true)?;
    let path = resolve_path(&packet.ip, vip.options, &selection, tables)?;
    let shrink = packet.can_resegment(&path, tables);
    if !shrink && let Some(mtu) = packet.pmtu_to_report(&path, tables)? {
        return Ok(FastPathOutcome::TooBig(packet.packet, mtu));
    }
    packet.send(&selection, &path, hash, shrink, tables).map(FastPathOutcome::Forward)
}
