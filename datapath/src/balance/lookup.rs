//! From destination to VIP, and from VIP to service.

use crate::abi::{
    Address, AddressOptions, Features, Port, PrefixKey, Reason, RouteKey, ServiceRef, VipAddress,
    VipKey, VipOptions,
};
use crate::balance::tables::BalancerTables;
use crate::wire::parse::IpHeader;

/// Finds the VIP address of a packet. Traffic that is not addressed to a VIP costs one hash lookup.
#[inline(always)]
pub(crate) fn find_vip_address<T: BalancerTables>(
    tables: &T,
    ip: &IpHeader,
) -> Result<VipAddress, Reason> {
    if ip.has_mapped_destination() {
        return Err(Reason::NotVip);
    }
    let mut address = tables.vip_address(&ip.destination);
    if address.is_none() && tables.uses(Features::PREFIXES) {
        address = tables.vip_prefix(&PrefixKey::address(&ip.destination));
    }
    address.ok_or(Reason::NotVip)
}

/// Finds the VIP of a port and protocol at a VIP address.
#[inline(always)]
pub(crate) fn find_vip<T: BalancerTables>(
    tables: &T,
    address: &VipAddress,
    port: Port,
    protocol: u8,
) -> Result<ServiceRef, Reason> {
    if let Some(vip) = address.cached.at(port, protocol) {
        return Ok(vip);
    }
    let mut vip = tables.vip(&VipKey::new(address.id, port, protocol));
    if vip.is_none() && tables.uses(Features::ANY_PORT) {
        vip = tables.vip(&VipKey::new(address.id, VipKey::ANY_PORT, protocol));
    }
    vip.ok_or(if address.options.has(AddressOptions::DROP_NO_SERVICE) {
        Reason::NoServiceDropped
    } else {
        Reason::NoService
    })
}

/// Returns the service that handles this client: the target of the longest matching route of the
/// VIP's service, or that service itself. Routes are not chained.
#[inline(always)]
pub(crate) fn apply_route<T: BalancerTables>(
    tables: &T,
    client: &Address,
    vip: ServiceRef,
) -> ServiceRef {
    if tables.uses(Features::ROUTES)
        && vip.options.has(VipOptions::ROUTED)
        && let Some(routed) = tables.route(&RouteKey::new(vip.service, &PrefixKey::address(client)))
    {
        return routed;
    }
    vip
}
