//! The slow path.

use crate::abi::{Fragment, Reason};
use crate::balance::acl::check_acl;
use crate::balance::encapsulate::resolve_path;
use crate::balance::forward::VipPacket;
use crate::balance::gue::GueMeta;
use crate::balance::lookup::{apply_route, find_vip, find_vip_address};
use crate::balance::outcome::{SlowPathOutcome, account_outcome, account_refusal};
use crate::balance::tables::BalancerTables;
use crate::wire::header::FragmentKind;
use crate::wire::offsets::{self, HeaderOffsets};
use crate::wire::packet::{ETH_HLEN, Packet};
use crate::wire::parse;

/// The second stage: finds the end of the headers of a packet to a VIP address, wherever it is.
///
/// # Errors
///
/// As [`balance`].
#[inline(always)]
pub fn parse_headers<P: Packet, T: BalancerTables>(
    packet: P,
    tables: &T,
) -> Result<(P, HeaderOffsets), Reason> {
    match find_headers(&packet, tables) {
        Ok(offsets) => Ok((packet, offsets)),
        Err(reason) => {
            account_refusal(tables, 0, reason);
            Err(reason)
        }
    }
}

/// A stage of its own: TCP or UDP to a VIP address, at a place that [`locate`] found.
///
/// # Errors
///
/// As [`balance`].
#[inline(always)]
pub fn slow_path<P: Packet, T: BalancerTables>(
    packet: P,
    offsets: HeaderOffsets,
    tables: &T,
) -> Result<SlowPathOutcome<P>, Reason> {
    let mut service = 0;
    let outcome = try_slow_path(packet, offsets, tables, &mut service);
    account_outcome(tables, service, outcome)
}

#[inline(always)]
fn find_headers<P: Packet, T: BalancerTables>(
    packet: &P,
    tables: &T,
) -> Result<HeaderOffsets, Reason> {
    let headers = offsets::parse_ip_header(packet)?;
    find_vip_address(tables, &headers.ip)?;
    Ok(HeaderOffsets::of(&headers.skip_extensions(packet)?))
}

#[inline(always)]
fn try_slow_path<P: Packet, T: BalancerTables>(
    packet: P,
    offsets: HeaderOffsets,
    tables: &T,
    service: &mut u32,
) -> Result<SlowPathOutcome<P>, Reason> {
    let headers = offsets.parse(&packet)?;
    let address = find_vip_address(tables, &headers.ip)?;
    let offset = headers.start.wrapping_add(headers.ip.header_len);
    let l4 = parse::l4_header_at(&packet, offset, headers.ip.protocol)?;
    let vip = find_vip(tables, &address, l4.destination_port, headers.ip.protocol)?;

    // From this line on the packet is ours, and every refusal is a counted drop.
    *service = vip.service;
    check_acl(tables, &headers.ip.source, &vip)?;
    let owner = vip.service;
    let vip = apply_route(tables, &headers.ip.source, vip);
    *service = vip.service;
    let size = parse::packet_size(&packet, headers.start, &headers.ip, &l4)?;
    let (size, gue) = GueMeta::for_l4(&packet, &headers.ip, headers.part, &l4, size, tables);
    let (is_syn, tags) = (l4.is_syn, headers.tags());
    let mut packet = VipPacket { ip: headers.ip, size, gue, is_syn, tags, service: vip, packet };
    let flow = packet.flow(&l4);
    let (selection, hash) = packet.select_backend(&flow, tables, true)?;
    // Read once more: kept while a backend is chosen, it would take up the small stack.
    let headers = offsets.parse(&packet.packet)?;
    (packet.ip, packet.tags) = (headers.ip, headers.tags());
    if let FragmentKind::First = headers.part {
        let entry = Fragment {
            seen: tables.now(),
            service: vip.service,
            owner: owner as u16,
            options: vip.options.bits() as u16,
            epoch: selection.backend.epoch,
            backend: selection.index,
            hint: selection.hint,
        };
        let key = packet.fragment_key(headers.identification(&packet.packet)?);
        tables.insert_fragment(&key, &entry);
    }
    let path = resolve_path(&packet.ip, vip.options, &selection, tables)?;
    if let Some(mtu) = packet.pmtu_to_report(&path, tables)? {
        // What has tags in its bytes is told nothing.
        return if headers.start == ETH_HLEN {
            Ok(SlowPathOutcome::TooBig(packet.packet, mtu))
        } else {
            Err(Reason::TooBig)
        };
    }
    packet.send(&selection, &path, hash, false, tables).map(SlowPathOutcome::Forward)
}
