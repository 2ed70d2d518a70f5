//! The fast path: an untagged packet whose TCP or UDP header directly follows an IP header without
//! options.

use crate::abi::{Family, Reason};
use crate::balance::admit::admit_packet;
use crate::balance::forward::{Resegmentation, VipPacket, flow_of};
use crate::balance::lookup::{find_vip_address, find_vip_service};
use crate::balance::maps::BalancerMaps;
use crate::balance::outcome::{Refusal, StageOutcome, conclude};
use crate::balance::quic::has_server_ids;
use crate::balance::select::Tracking;
use crate::balance::stage::{Hook, Stage};
use crate::wire::header::FragmentKind;
use crate::wire::offsets::HeaderOffsets;
use crate::wire::packet::{ETH_HLEN, Packet};
use crate::wire::parse::{self, L4Header};

/// The first stage. It forwards nearly every packet to a VIP, and reads headers at constant offsets
/// only.
pub(crate) struct FastPathStage;

impl Stage for FastPathStage {
    #[inline(always)]
    fn run<H: Hook, M: BalancerMaps>(hook: &mut H, _: u32, maps: &M) -> u64 {
        let result = fast_path(hook.pull_and_wrap(), maps);
        conclude(hook, result, maps)
    }
}

#[inline(always)]
fn fast_path<P: Packet, M: BalancerMaps>(packet: P, maps: &M) -> Result<StageOutcome, Refusal> {
    let Some(family) = parse::family(&packet)? else { return Ok(StageOutcome::ParseHeaders) };
    let ip = match family {
        Family::V4 => parse::parse_ipv4(&packet, ETH_HLEN)?,
        Family::V6 => parse::parse_ipv6(&packet, ETH_HLEN)?,
    };
    let address = find_vip_address(maps, &ip)?;
    if !ip.has_fixed_offsets() {
        return Ok(StageOutcome::ParseHeaders);
    }
    let l4 = parse::l4_header(&packet, &ip)?;
    let vip_service = find_vip_service(maps, &address, l4.destination_port, ip.protocol)?;
    if has_server_ids(maps, &vip_service, ip.protocol) {
        return Ok(StageOutcome::Quic(HeaderOffsets::fixed(ip).encode()));
    }

    // From here on, every refusal is a counted drop of the service.
    let admission =
        admit_packet(&packet, ETH_HLEN, &ip, FragmentKind::None, &l4, vip_service, maps)?;
    let packet = VipPacket::new(packet, ip, None, &l4, &admission);
    select_and_send(packet, &l4, maps).map_err(Refusal::for_service(admission.service))
}

#[inline(always)]
fn select_and_send<P: Packet, M: BalancerMaps>(
    packet: VipPacket<P>,
    l4: &L4Header,
    maps: &M,
) -> Result<StageOutcome, Reason> {
    let flow = flow_of(&packet.ip, l4);
    let (selection, hash) = packet.check_and_select(&flow, maps, Tracking::ReadWrite)?;
    packet.send_or_report(&selection, hash, Resegmentation::ByOption, maps)
}
