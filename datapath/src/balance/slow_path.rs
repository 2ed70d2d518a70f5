//! The slow path: packets with VLAN tags, IP options, extension headers or fragments.

use crate::abi::{Features, FirstFragment, Reason};
use crate::balance::admit::admit_packet;
use crate::balance::forward::{Resegmentation, VipPacket, check_fragment, flow_of, fragment_key};
use crate::balance::lookup::{find_vip_address, find_vip_service};
use crate::balance::maps::BalancerMaps;
use crate::balance::next::Next;
use crate::balance::outcome::{Refusal, StageOutcome, conclude};
use crate::balance::select::Tracking;
use crate::balance::stage::{Hook, Stage};
use crate::wire::header::FragmentKind;
use crate::wire::offsets::{self, HeaderOffsets, PacketClass};
use crate::wire::packet::Packet;
use crate::wire::parse::{self, L4Header};

/// Finds the end of the headers of a packet to a VIP address, at any offset, and classifies the
/// packet.
pub(crate) struct ParseHeadersStage;

impl Stage for ParseHeadersStage {
    #[inline(always)]
    fn run<H: Hook, M: BalancerMaps>(hook: &mut H, _: u32, maps: &M) -> u64 {
        let result = parse_headers(&hook.packet(), maps);
        match result {
            Ok(offsets) => {
                if maps.uses(Features::QUIC) && offsets.class() == PacketClass::Udp {
                    return Next::Quic(offsets.encode()).encode();
                }
                Next::ByClass(offsets).encode()
            }
            Err(reason) => {
                Refusal::from(reason).account(maps);
                hook.apply_verdict(reason).into()
            }
        }
    }
}

/// TCP or UDP to a VIP, at offsets from [`ParseHeadersStage`] or [`QuicStage`].
///
/// [`QuicStage`]: crate::balance::quic::QuicStage
pub(crate) struct SlowPathStage;

impl Stage for SlowPathStage {
    #[inline(always)]
    fn run<H: Hook, M: BalancerMaps>(hook: &mut H, encoded_offsets: u32, maps: &M) -> u64 {
        let result = slow_path(hook.packet(), encoded_offsets, maps);
        conclude(hook, result, maps)
    }
}

#[inline(always)]
fn parse_headers<P: Packet, M: BalancerMaps>(
    packet: &P,
    maps: &M,
) -> Result<HeaderOffsets, Reason> {
    let headers = offsets::parse_ip_header(packet)?;
    find_vip_address(maps, &headers.ip)?;
    Ok(HeaderOffsets::of(&headers.skip_extensions(packet)?))
}

#[inline(always)]
fn slow_path<P: Packet, M: BalancerMaps>(
    packet: P,
    encoded_offsets: u32,
    maps: &M,
) -> Result<StageOutcome, Refusal> {
    let headers = HeaderOffsets::decode(encoded_offsets).parse(&packet)?;
    let address = find_vip_address(maps, &headers.ip)?;
    let l4 = parse::l4_header_at(&packet, headers.l4_offset(), headers.ip.protocol)?;
    let vip_service = find_vip_service(maps, &address, l4.destination_port, headers.ip.protocol)?;

    // From here on, every refusal is a counted drop of the service.
    let admission = admit_packet(
        &packet,
        headers.ip_offset,
        &headers.ip,
        headers.fragment_kind,
        &l4,
        vip_service,
        maps,
    )?;
    let packet = VipPacket::new(packet, headers.ip, Some(headers.vlan_bytes()), &l4, &admission);
    select_and_send(packet, encoded_offsets, &l4, admission.vip_service.index, maps)
        .map_err(Refusal::for_service(admission.service))
}

#[inline(always)]
fn select_and_send<P: Packet, M: BalancerMaps>(
    mut packet: VipPacket<P>,
    encoded_offsets: u32,
    l4: &L4Header,
    vip_service: u32,
    maps: &M,
) -> Result<StageOutcome, Reason> {
    let flow = flow_of(&packet.ip, l4);
    let (selection, hash) = packet.check_and_select(&flow, maps, Tracking::ReadWrite)?;
    // Decoded and parsed again, because headers that are kept during the selection of the backend
    // would take up too much of the small stack.
    let headers = HeaderOffsets::decode(encoded_offsets).parse(&packet.packet)?;
    packet.ip = headers.ip;
    packet.vlan_bytes = Some(headers.vlan_bytes());
    if let FragmentKind::First = headers.fragment_kind {
        // Checked here and not before the selection, so that the verifier explores that once.
        check_fragment(&packet.service, maps)?;
        let entry = FirstFragment {
            seen: maps.now(),
            service: packet.service.index,
            vip_service: vip_service as u16,
            options: packet.service.options.bits() as u16,
            epoch: selection.backend.epoch,
            backend: selection.index,
            hint: selection.hint,
        };
        let key = fragment_key(&packet.ip, headers.identification(&packet.packet)?);
        maps.insert_first_fragment(&key, &entry);
    }
    packet.send_or_report(&selection, hash, Resegmentation::Never, maps)
}
