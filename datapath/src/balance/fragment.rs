//! Non-initial fragments follow their first fragment, which has the ports.

use crate::abi::{FirstFragment, Flow, Port, Reason, ServiceRef, VipOptions};
use crate::balance::acl::check_fragment_acl;
use crate::balance::forward::{VipPacket, check_fragment, fragment_key};
use crate::balance::gue::GueMeta;
use crate::balance::lookup::check_source;
use crate::balance::maps::BalancerMaps;
use crate::balance::outcome::{Refusal, StageOutcome, conclude};
use crate::balance::select::Selection;
use crate::balance::stage::{Egress, Hook, Stage};
use crate::wire::offsets::{HeaderOffsets, ParsedHeaders};
use crate::wire::packet::Packet;
use crate::wire::parse;

/// A non-initial fragment to a VIP address, at offsets from
/// [`ParseHeadersStage`](crate::balance::slow_path::ParseHeadersStage): it goes to the backend of
/// its first fragment, if that is known.
pub(crate) struct FragmentStage;

impl Stage for FragmentStage {
    #[inline(always)]
    fn run<H: Hook, M: BalancerMaps>(hook: &mut H, offsets: u32, maps: &M) -> u64 {
        let result = fragment(hook.packet(), HeaderOffsets::decode(offsets), maps);
        conclude(hook, result.map(StageOutcome::Forwarded), maps)
    }
}

#[inline(always)]
fn fragment<P: Packet, M: BalancerMaps>(
    packet: P,
    offsets: HeaderOffsets,
    maps: &M,
) -> Result<Egress, Refusal> {
    let headers = offsets.parse(&packet)?;
    let key = fragment_key(&headers.ip, headers.identification(&packet)?);
    let first = maps.first_fragment(&key).ok_or(Reason::FragmentUnknown)?;
    if maps.now().wrapping_sub(first.seen) > FirstFragment::LIFETIME {
        return Err(Reason::FragmentUnknown.into());
    }

    // From this line on the packet belongs to a service, and every refusal is a counted drop.
    let vip_service = u32::from(first.vip_service);
    check_source(maps, &headers.ip.source, &headers.ip.destination, headers.ip.family)
        .and_then(|()| check_fragment_acl(maps, &headers.ip.source, vip_service))
        .map_err(|reason| Refusal { service: vip_service, reason })?;
    send_after_first(packet, &headers, &first, maps)
        .map_err(|reason| Refusal { service: first.service, reason })
}

#[inline(always)]
fn send_after_first<P: Packet, M: BalancerMaps>(
    packet: P,
    headers: &ParsedHeaders,
    first: &FirstFragment,
    maps: &M,
) -> Result<Egress, Reason> {
    // The entry has only the lower 16 bits of the options. `RATE_LIMITED` is an upper bit, and is
    // set here for every service: one without rate limits has no entry in `RATES`.
    let options = VipOptions::RATE_LIMITED.with(VipOptions::from_bits(first.options.into()));
    let ip = headers.ip;
    let packet = VipPacket {
        ip,
        size: parse::unmerged_size(&packet, headers.ip_offset, &ip)?,
        gue: GueMeta::for_fragment(&ip),
        is_syn: false,
        vlan_bytes: Some(headers.vlan_bytes()),
        service: ServiceRef { index: first.service, options },
        packet,
    };
    packet.check_ttl()?;
    packet.consume_tokens(maps)?;
    check_fragment(&packet.service, maps)?;
    let backend = maps.backend(first.backend).ok_or(Reason::NoBackend)?;
    if backend.epoch != first.epoch {
        return Err(Reason::NoBackend);
    }
    let selection = Selection { index: first.backend, backend, hint: first.hint };
    // Without ports the hash is not that of the first fragment, and neither are the bits of the
    // outer headers that depend on it.
    let no_port = Port::new(0);
    let flow = Flow::new(ip.source, ip.destination, no_port, no_port, ip.protocol);
    let hash = flow.hash(ip.family, maps.hash_key());
    // No ICMP errors are sent about non-initial fragments (RFC 1122 section 3.2.2).
    packet.send_or_drop(&selection, hash, maps)
}
