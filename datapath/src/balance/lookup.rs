//! The VIP that a packet goes to, whether its client may come, and whose client it is.

use crate::abi::{
    Address, AddressOptions, Features, Port, PrefixKey, Reason, RouteKey, ServiceRef, VipAddress,
    VipKey, VipOptions,
};
use crate::balance::tables::BalancerTables;
use crate::wire::parse::IpHeader;

/// The VIP address that a packet goes to. Whoever sends to anybody else has cost one look-up.
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

/// The VIP at a port of a VIP address.
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

/// The service whose a client of a VIP is: another one's where a route of the VIP's service holds
/// the client. Its routes are not asked again.
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
