//! From destination to VIP, and from VIP to service.

use crate::abi::{
    Address, AddressOptions, Family, Features, Port, PrefixKey, Reason, RouteKey, ServiceRef,
    VipAddress, VipKey, VipOptions,
};
use crate::balance::maps::{BalancerMaps, SelectionMaps};
use crate::wire::parse::IpHeader;

/// Finds the VIP address of a packet. Traffic that is not addressed to a VIP costs one hash lookup.
#[inline(always)]
pub(crate) fn find_vip_address<M: SelectionMaps>(
    maps: &M,
    ip: &IpHeader,
) -> Result<VipAddress, Reason> {
    if ip.has_mapped_destination() {
        return Err(Reason::NotVip);
    }
    lookup_address(maps, &ip.destination).ok_or(Reason::NotVip)
}

/// Refuses a martian source, and one that is a VIP address, in a header of a family: a packet from
/// one VIP to another would make the two services answer each other, through the balancer, without
/// end. A packet from a VIP address to itself (a "land" attack) is refused with any options.
#[inline(always)]
pub(crate) fn check_source<M: BalancerMaps>(
    maps: &M,
    source: &Address,
    destination: &Address,
    family: Family,
) -> Result<(), Reason> {
    // One branch for nearly every source.
    if (maps.vip_sources().hint(source, family) | source.martian_hint(family)) & 1 == 0 {
        return Ok(());
    }
    if source.is_martian(family) {
        return Err(Reason::MartianSource);
    }
    match lookup_address(maps, source) {
        Some(entry)
            if !entry.options.has(AddressOptions::ALLOW_AS_SOURCE) || source == destination =>
        {
            Err(Reason::SourceIsVip)
        }
        _ => Ok(()),
    }
}

/// The entry of a VIP address, or of the longest VIP prefix that contains an address.
#[inline(always)]
pub(crate) fn lookup_address<M: SelectionMaps>(maps: &M, address: &Address) -> Option<VipAddress> {
    let mut entry = maps.vip_address(address);
    if entry.is_none() && maps.uses(Features::PREFIXES) {
        entry = maps.vip_prefix(&PrefixKey::address(address));
    }
    entry
}

/// Finds the service of the VIP with this port and protocol at a VIP address.
#[inline(always)]
pub(crate) fn find_vip_service<M: SelectionMaps>(
    maps: &M,
    address: &VipAddress,
    port: Port,
    protocol: u8,
) -> Result<ServiceRef, Reason> {
    if let Some(service) = address.cached.at(port, protocol) {
        return Ok(service);
    }
    let mut service = maps.vip(&VipKey::new(address.id, port, protocol));
    if service.is_none() && maps.uses(Features::ANY_PORT) {
        service = maps.vip(&VipKey::new(address.id, VipKey::ANY_PORT, protocol));
    }
    service.ok_or(if address.options.has(AddressOptions::DROP_NO_SERVICE) {
        Reason::NoServiceDropped
    } else {
        Reason::NoService
    })
}

/// Returns the service that handles this client: the target of the longest matching route of the
/// VIP's service, or that service itself. Routes are not chained.
#[inline(always)]
pub(crate) fn apply_route<M: SelectionMaps>(
    maps: &M,
    client: &Address,
    vip_service: ServiceRef,
) -> ServiceRef {
    if maps.uses(Features::ROUTES)
        && vip_service.options.has(VipOptions::ROUTED)
        && let Some(routed) =
            maps.route(&RouteKey::new(vip_service.index, &PrefixKey::address(client)))
    {
        return routed;
    }
    vip_service
}
