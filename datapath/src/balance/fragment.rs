//! Later fragments follow their first one, which has the ports.

use crate::abi::{Flow, Fragment, Port, Reason, ServiceRef, VipOptions};
use crate::balance::acl::check_fragment_acl;
use crate::balance::forward::VipPacket;
use crate::balance::gue::GueMeta;
use crate::balance::outcome::{Forward, account_refusal};
use crate::balance::select::Selection;
use crate::balance::tables::BalancerTables;
use crate::wire::offsets::HeaderOffsets;
use crate::wire::packet::Packet;
use crate::wire::parse;
use crate::wire::parse::PacketSize;

/// A stage of its own: a later fragment to a VIP address, at a place that
/// [`locate`](crate::balance::slow_path::parse_headers) found, goes after its first one, if that is
/// known.
///
/// # Errors
///
/// As [`crate::balance()`].
#[inline(always)]
pub fn fragment<P: Packet, T: BalancerTables>(
    packet: P,
    offsets: HeaderOffsets,
    tables: &T,
) -> Result<Forward, Reason> {
    let mut service = 0;
    forward(packet, offsets, tables, &mut service)
        .inspect_err(|reason| account_refusal(tables, service, *reason))
}

#[inline(always)]
fn forward<P: Packet, T: BalancerTables>(
    packet: P,
    offsets: HeaderOffsets,
    tables: &T,
    service: &mut u32,
) -> Result<Forward, Reason> {
    let headers = offsets.parse(&packet)?;
    let identification = headers.identification(&packet)?;
    // Which VIP it is for is not known, only whose. A service that has no rates has none in the map
    // either.
    let (vip, tags) =
        (ServiceRef { service: 0, options: VipOptions::RATE_LIMITED }, headers.tags());
    let size = PacketSize { packet: 0, segment: 0 };
    let gue = GueMeta::for_fragment(&headers.ip);
    let mut ours =
        VipPacket { ip: headers.ip, size, gue, is_syn: false, tags, service: vip, packet };
    let first =
        tables.fragment(&ours.fragment_key(identification)).ok_or(Reason::FragmentUnknown)?;
    if tables.now().wrapping_sub(first.seen) > Fragment::LIFETIME {
        return Err(Reason::FragmentUnknown);
    }

    // From this line on the packet is ours, and every refusal is a counted drop.
    *service = first.owner.into();
    check_fragment_acl(tables, &headers.ip.source, first.owner.into())?;
    *service = first.service;
    ours.service.service = first.service;
    ours.service.options = ours.service.options.with(VipOptions::from_bits(first.options.into()));
    ours.size = parse::fragment_size(&ours.packet, headers.start, &headers.ip)?;
    ours.check_ttl()?;
    ours.check_rates(tables)?;
    let backend = tables.backend(first.backend).ok_or(Reason::NoBackend)?;
    if backend.epoch != first.epoch {
        return Err(Reason::NoBackend);
    }
    let selection = Selection { index: first.backend, backend, hint: first.hint };
    // A later fragment has no ports; its outer source may differ from the first one's.
    let ports = Port::new(0);
    let flow =
        Flow::new(headers.ip.source, headers.ip.destination, ports, ports, headers.ip.protocol);
    let hash = flow.hash(headers.ip.family, tables.hash_key());
    // Errors about later fragments are not sent (RFC 1122 section 3.2.2).
    ours.send_or_drop(&selection, hash, tables)
}
