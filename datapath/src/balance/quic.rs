//! The backend that a QUIC packet's connection ID names (QUIC-LB,
//! draft-ietf-quic-load-balancers-21, plaintext connection IDs).
//!
//! A server puts the server ID that it was given into the connection IDs that it chooses. So all
//! packets of a connection reach it, from whatever address and port its client sends them. The
//! first octet of such an ID has three bits that say which configuration it is of; the other five
//! mean nothing here. The server ID follows, then what the server made up.
//!
//! Only what is the same in all versions of QUIC is relied upon (RFC 8999), but for one thing:
//! which packets carry an ID that the client made up.

use crate::abi::{Connection, Features, QuicServerKey, Reason, ServiceRef, UDP, VipOptions};
use crate::balance::acl::check_acl;
use crate::balance::encapsulate::resolve_path;
use crate::balance::forward;
use crate::balance::forward::VipPacket;
use crate::balance::gue::GueMeta;
use crate::balance::lookup::{apply_route, find_vip, find_vip_address};
use crate::balance::outcome::{SlowPathOutcome, account_outcome, account_refusal};
use crate::balance::select::{Selection, resolve_connection};
use crate::balance::tables::BalancerTables;
use crate::verifier::widen_for_verifier;
use crate::wire::header::{FragmentKind, Udp};
use crate::wire::offsets::HeaderOffsets;
use crate::wire::packet::{ETH_HLEN, Packet};
use crate::wire::parse;
use crate::wire::parse::PacketSize;

/// The backend that a datagram names, which is there, and what was found out about the datagram
/// until then.
pub struct QuicServer {
    selection: Selection,
    /// Of whom it is a client: of the VIP's service, and of that to which a route leads.
    vip: ServiceRef,
    routed: ServiceRef,
    size: PacketSize,
    gue: GueMeta,
    /// The flow's hash, 0 where nothing in an outer header depends on it.
    hash: u64,
}

/// The first half of a stage: whom the connection ID of a whole UDP datagram to a VIP address
/// names, at a known place. When it names nobody that is there, then it is uncounted, and a matter
/// for [`general`](crate::balance::slow_path::slow_path) at the same place, which says, too,
/// whatever else is wrong with it.
///
/// # Errors
///
/// As [`crate::balance()`].
#[inline(always)]
pub fn select_by_connection_id<P: Packet, T: BalancerTables>(
    packet: &P,
    offsets: HeaderOffsets,
    tables: &T,
) -> Result<Option<QuicServer>, Reason> {
    find(packet, offsets, tables).inspect_err(|reason| account_refusal(tables, 0, *reason))
}

/// The second half: the packet goes there.
///
/// # Errors
///
/// As [`crate::balance()`].
#[inline(always)]
pub fn forward_to_quic_server<P: Packet, T: BalancerTables>(
    packet: P,
    offsets: HeaderOffsets,
    server: &QuicServer,
    tables: &T,
) -> Result<SlowPathOutcome<P>, Reason> {
    let mut service = 0;
    let outcome = forward(packet, offsets, server, tables, &mut service);
    account_outcome(tables, service, outcome)
}

/// Whether connection IDs of a VIP's packets may name their backends.
#[inline(always)]
pub(crate) fn is_quic<T: BalancerTables>(tables: &T, vip: &ServiceRef, protocol: u8) -> bool {
    tables.uses(Features::QUIC) && protocol == UDP && vip.options.has(VipOptions::QUIC)
}

#[inline(always)]
fn find<P: Packet, T: BalancerTables>(
    packet: &P,
    offsets: HeaderOffsets,
    tables: &T,
) -> Result<Option<QuicServer>, Reason> {
    let headers = offsets.parse(packet)?;
    let address = find_vip_address(tables, &headers.ip)?;
    let offset = headers.start.wrapping_add(headers.ip.header_len);
    let l4 = parse::l4_header_at(packet, offset, UDP)?;
    let vip = find_vip(tables, &address, l4.destination_port, UDP)?;
    if !is_quic(tables, &vip, UDP) {
        return Ok(None);
    }
    let routed = apply_route(tables, &headers.ip.source, vip);
    let Ok(size) = parse::packet_size(packet, headers.start, &headers.ip, &l4) else {
        return Ok(None);
    };
    let (start, end) = (offset.wrapping_add(Udp::SIZE), headers.start.wrapping_add(size.packet));
    let Some(selection) = server(packet, start, end, routed.service, tables)
        .and_then(|server| resolve_connection(tables, &server, 0))
    else {
        return Ok(None);
    };
    let (size, gue) = GueMeta::for_l4(packet, &headers.ip, FragmentKind::None, &l4, size, tables);
    let hash = if tables.uses(Features::SOURCE_SPREADING) || tables.uses(Features::GUE) {
        forward::hash_flow(
            &forward::flow_of(&headers.ip, &l4),
            headers.ip.family,
            routed.options,
            tables,
        )
    } else {
        0
    };
    Ok(Some(QuicServer { selection, vip, routed, size, gue, hash }))
}

#[inline(always)]
fn forward<P: Packet, T: BalancerTables>(
    packet: P,
    offsets: HeaderOffsets,
    server: &QuicServer,
    tables: &T,
    service: &mut u32,
) -> Result<SlowPathOutcome<P>, Reason> {
    let QuicServer { selection, vip, routed, size, gue, hash } = server;
    // Read once more: kept while the server is found, it would take up the small stack.
    let headers = offsets.parse(&packet)?;

    // From this line on the packet is ours, and every refusal is a counted drop.
    *service = vip.service;
    check_acl(tables, &headers.ip.source, vip)?;
    *service = routed.service;
    let (ip, tags) = (headers.ip, headers.tags());
    let packet =
        VipPacket { ip, size: *size, gue: *gue, is_syn: false, tags, service: *routed, packet };
    packet.check_ttl()?;
    packet.check_rates(tables)?;
    let path = resolve_path(&packet.ip, routed.options, selection, tables)?;
    if let Some(mtu) = packet.pmtu_to_report(&path, tables)? {
        // What has tags in its bytes is told nothing.
        return if headers.start == ETH_HLEN {
            Ok(SlowPathOutcome::TooBig(packet.packet, mtu))
        } else {
            Err(Reason::TooBig)
        };
    }
    packet.send(selection, &path, *hash, false, tables).map(SlowPathOutcome::Forward)
}

/// The server that the connection ID of a UDP datagram names, if a service knows it. What UDP
/// carries is from `start` on and ends before `end`.
#[inline(always)]
fn server<P: Packet, T: BalancerTables>(
    packet: &P,
    start: usize,
    end: usize,
    service: u32,
    tables: &T,
) -> Option<Connection> {
    /// The octet, and after it four of a version and one of the connection ID's length, with which
    /// a long header begins.
    const LONG: u64 = 6;
    /// The most octets of a connection ID of version 1. Servers choose no longer ones, whatever the
    /// version.
    const MOST: u64 = 20;

    // In whole words, and with arithmetic where there could be a branch: the verifier follows each.
    let begins = u64::from_be(packet.load_at(start)?);
    let is_long = begins >> 63;
    if is_long != 0 && is_clients_own((begins >> 24) as u32, (begins >> 56) as u8) {
        return None;
    }
    // In a short header the ID comes at once; how long it is, only its server knows.
    let before = 1_u64.wrapping_add(is_long.wrapping_mul(LONG.wrapping_sub(1)));
    let octets = if is_long == 0 { MOST } else { begins >> 16 & 0xff };
    let at = widen_for_verifier((start as u32).wrapping_add(before as u32)) as usize;
    // No packet of QUIC is so short that fewer octets follow: what is encrypted alone has 20 (RFC
    // 9001 section 5.4.2).
    if at.wrapping_add(size_of::<[u64; 2]>()) > end {
        return None;
    }
    let id: [u64; 2] = packet.load_at(at)?;
    let (key, length) =
        QuicServerKey::from_connection_id(service, tables.quic_lengths(service), id)?;
    if octets <= u64::from(length) { None } else { tables.quic_server(&key) }
}

/// Whether the client made up the connection ID of a packet with a long header: of an Initial or
/// 0-RTT packet.
#[inline(always)]
const fn is_clients_own(version: u32, first: u8) -> bool {
    /// RFC 9000 section 17.2.
    const VERSION_1: u32 = 1;
    /// RFC 9369 section 3.
    const VERSION_2: u32 = 0x6b33_43cf;

    let kind = first >> 4 & 3;
    match version {
        VERSION_1 => kind <= 1,
        VERSION_2 => kind == 1 || kind == 2,
        _ => false,
    }
}
