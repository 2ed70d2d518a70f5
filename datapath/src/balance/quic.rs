//! Selection of the backend by a QUIC connection ID (QUIC-LB,
//! draft-ietf-quic-load-balancers-21, plaintext connection IDs).
//!
//! A server encodes its configured server ID into the connection IDs that it issues. All packets of
//! a connection reach that server, even if the client's address and port change. The first octet
//! of such an ID has three bits for the configuration; the other five are ignored here. The server
//! ID follows, then octets that only the server interprets.
//!
//! Only version-independent properties of QUIC are used (RFC 8999), with one exception: which
//! packets carry a connection ID that the client chose.

use crate::abi::{Connection, Features, QuicServerKey, Reason, ServiceRef, UDP, VipOptions};
use crate::balance::admit::{Admission, admit_packet};
use crate::balance::forward::{Resegmentation, VipPacket, flow_of, hash_flow};
use crate::balance::lookup::{find_vip_address, find_vip_service};
use crate::balance::maps::BalancerMaps;
use crate::balance::next::Next;
use crate::balance::outcome::{Refusal, StageOutcome, conclude};
use crate::balance::select::{Selection, resolve_connection};
use crate::balance::stage::{Hook, Stage};
use crate::verifier::widen_for_verifier;
use crate::wire::header::{FragmentKind, Udp};
use crate::wire::offsets::HeaderOffsets;
use crate::wire::packet::Packet;
use crate::wire::parse;

/// A whole UDP datagram to a VIP address, where services have QUIC server IDs. If the connection ID
/// matches no backend, the packet continues at
/// [`SlowPathStage`](crate::balance::slow_path::SlowPathStage) with the same header offsets.
pub(crate) struct QuicStage;

impl Stage for QuicStage {
    #[inline(always)]
    fn run<H: Hook, M: BalancerMaps>(hook: &mut H, encoded_offsets: u32, maps: &M) -> u64 {
        let result = match quic(hook.packet(), encoded_offsets, maps) {
            Ok(None) => return Next::ByClass(HeaderOffsets::decode(encoded_offsets)).encode(),
            Ok(Some(outcome)) => Ok(outcome),
            Err(refusal) => Err(refusal),
        };
        conclude(hook, result, maps)
    }
}

/// The backend that a connection ID selects, and the checked datagram's values.
struct QuicSelection {
    admission: Admission,
    selection: Selection,
    /// The flow hash; 0 if no field of the outer headers depends on it.
    hash: u64,
}

/// Whether connection IDs with server IDs may select the backend of a packet to a VIP.
#[inline(always)]
pub(crate) fn has_server_ids<M: BalancerMaps>(
    maps: &M,
    vip_service: &ServiceRef,
    protocol: u8,
) -> bool {
    maps.uses(Features::QUIC) && protocol == UDP && vip_service.options.has(VipOptions::QUIC)
}

#[inline(always)]
fn quic<P: Packet, M: BalancerMaps>(
    packet: P,
    encoded_offsets: u32,
    maps: &M,
) -> Result<Option<StageOutcome>, Refusal> {
    let Some(QuicSelection { admission, selection, hash }) =
        select_by_connection_id(&packet, encoded_offsets, maps)?
    else {
        return Ok(None);
    };
    send(packet, encoded_offsets, &admission, &selection, hash, maps)
        .map(Some)
        .map_err(Refusal::for_service(admission.service))
}

/// Selects the backend by the connection ID; `None` if it matches no backend.
#[inline(always)]
fn select_by_connection_id<P: Packet, M: BalancerMaps>(
    packet: &P,
    encoded_offsets: u32,
    maps: &M,
) -> Result<Option<QuicSelection>, Refusal> {
    let headers = HeaderOffsets::decode(encoded_offsets).parse(packet)?;
    let address = find_vip_address(maps, &headers.ip)?;
    let l4_offset = headers.l4_offset();
    let l4 = parse::l4_header_at(packet, l4_offset, UDP)?;
    let vip_service = find_vip_service(maps, &address, l4.destination_port, UDP)?;
    if !has_server_ids(maps, &vip_service, UDP) {
        return Ok(None);
    }
    // The slow path would refuse the same packets for the same reasons.
    let admission = admit_packet(
        packet,
        headers.ip_offset,
        &headers.ip,
        FragmentKind::None,
        &l4,
        vip_service,
        maps,
    )?;
    let payload_start = l4_offset.wrapping_add(Udp::SIZE);
    let payload_end = headers.ip_offset.wrapping_add(admission.size.packet);
    let Some(selection) =
        find_server(packet, payload_start, payload_end, admission.service.index, maps)
            .and_then(|server| resolve_connection(maps, &server, 0))
    else {
        return Ok(None);
    };
    let hash = if maps.uses(Features::SOURCE_SPREADING) || maps.uses(Features::GUE) {
        let flow = flow_of(&headers.ip, &l4);
        hash_flow(&flow, headers.ip.family, admission.service.options, maps)
    } else {
        0
    };
    Ok(Some(QuicSelection { admission, selection, hash }))
}

#[inline(always)]
fn send<P: Packet, M: BalancerMaps>(
    packet: P,
    encoded_offsets: u32,
    admission: &Admission,
    selection: &Selection,
    hash: u64,
    maps: &M,
) -> Result<StageOutcome, Reason> {
    // Decoded and parsed again, because headers that are kept during the selection of the backend
    // would take up too much of the small stack.
    let headers = HeaderOffsets::decode(encoded_offsets).parse(&packet)?;
    let packet = VipPacket {
        packet,
        ip: headers.ip,
        size: admission.size,
        gue: admission.gue,
        is_syn: false,
        vlan_bytes: Some(headers.vlan_bytes()),
        service: admission.service,
    };
    packet.check_ttl()?;
    packet.consume_tokens(maps)?;
    packet.send_or_report(selection, hash, Resegmentation::Never, maps)
}

/// The backend of the server ID in a QUIC packet, the UDP payload from `payload_start` to
/// `payload_end`.
#[inline(always)]
fn find_server<P: Packet, M: BalancerMaps>(
    packet: &P,
    payload_start: usize,
    payload_end: usize,
    service: u32,
    maps: &M,
) -> Option<Connection> {
    /// Octets of a long header before the connection ID: flags, version (4), length of the ID.
    const LONG_HEADER: u64 = 6;
    /// Octets of a short header before the connection ID: flags.
    const SHORT_HEADER: u64 = 1;
    /// The most octets of a connection ID of version 1, assumed for short headers.
    const MAX_ID_LEN: u64 = 20;

    // Whole words, and arithmetic instead of branches: the verifier explores both ways of a branch.
    let first_word = u64::from_be(packet.load_at(payload_start)?);
    let is_long = first_word >> 63;
    if is_long != 0 && is_chosen_by_client((first_word >> 24) as u32, (first_word >> 56) as u8) {
        return None;
    }
    let header_len =
        SHORT_HEADER.wrapping_add(is_long.wrapping_mul(LONG_HEADER.wrapping_sub(SHORT_HEADER)));
    // A short header does not carry the length of the ID.
    let id_len = if is_long == 0 { MAX_ID_LEN } else { (first_word >> 16) & 0xff };
    let id_offset =
        widen_for_verifier((payload_start as u32).wrapping_add(header_len as u32)) as usize;
    // At least 16 octets follow in every QUIC packet: the sample for header protection has 16
    // octets and starts 4 octets after the start of the packet number (RFC 9001 section 5.4.2).
    if id_offset.wrapping_add(size_of::<[u64; 2]>()) > payload_end {
        return None;
    }
    let id: [u64; 2] = packet.load_at(id_offset)?;
    let (key, server_id_len) =
        QuicServerKey::from_connection_id(service, maps.quic_lengths(service), id)?;
    if id_len <= u64::from(server_id_len) { None } else { maps.quic_server(&key) }
}

/// Whether a packet with a long header carries a connection ID that the client chose: an Initial or
/// 0-RTT packet.
#[inline(always)]
const fn is_chosen_by_client(version: u32, first_octet: u8) -> bool {
    /// RFC 9000 section 17.2.
    const VERSION_1: u32 = 1;
    /// RFC 9369 section 3.
    const VERSION_2: u32 = 0x6b33_43cf;

    let kind = (first_octet >> 4) & 3;
    match version {
        VERSION_1 => kind <= 1,
        VERSION_2 => kind == 1 || kind == 2,
        _ => false,
    }
}
