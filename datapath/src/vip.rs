//! The VIP that a packet goes to, whether its client may come, and whose client it is.

use crate::entries::{Listing, PrefixKey, RouteKey, Vip, VipAddress, VipKey};
use crate::flow::Port;
use crate::options::{AddressOptions, Features, VipOptions};
use crate::parse::Network;
use crate::tables::BalancerTables;
use crate::{Address, Reason};

/// The VIP address that a packet goes to. Whoever sends to anybody else has cost one look-up.
#[inline(always)]
pub(crate) fn find_address<T: BalancerTables>(
    tables: &T,
    network: &Network,
) -> Result<VipAddress, Reason> {
    if network.is_to_mapped() {
        return Err(Reason::NotVip);
    }
    let mut address = tables.vip_address(&network.destination);
    if address.is_none() && tables.uses(Features::PREFIXES) {
        address = tables.vip_prefix(&PrefixKey::address(&network.destination));
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
) -> Result<Vip, Reason> {
    if let Some(vip) = address.first.at(port, protocol) {
        return Ok(vip);
    }
    let mut vip = tables.vip(&VipKey::new(address.id, port, protocol));
    if vip.is_none() && tables.uses(Features::ANY_PORT) {
        vip = tables.vip(&VipKey::new(address.id, VipKey::ANY_PORT, protocol));
    }
    vip.ok_or(if address.options.has(AddressOptions::DROP_UNLISTED) {
        Reason::Unlisted
    } else {
        Reason::NotVipPort
    })
}

/// Whether the list of sources that counts for all VIPs lets a client through.
#[inline(always)]
pub(crate) fn check_list_of_all<T: BalancerTables>(
    tables: &T,
    client: &Address,
) -> Result<(), Reason> {
    if tables.uses(Features::LIST_OF_ALL)
        && let Some(listing) = tables.listing(Listing::OF_ALL, &PrefixKey::address(client))
    {
        listing.check()?;
    }
    Ok(())
}

/// Whether the lists of sources let a client through: the one for all first, then the service's.
#[inline(always)]
pub(crate) fn check_source<T: BalancerTables>(
    tables: &T,
    client: &Address,
    vip: &Vip,
) -> Result<(), Reason> {
    check_list_of_all(tables, client)?;
    if tables.uses(Features::LISTS) && vip.options.has(VipOptions::LISTED) {
        // A service that says it has a list and has none is new: its list is on the way.
        tables
            .listing(vip.service, &PrefixKey::address(client))
            .ok_or(Reason::NotAllowed)?
            .check()?;
    }
    Ok(())
}

/// The service whose a client of a VIP is: another one's where a route of the VIP's service holds
/// the client. Its routes are not asked again.
#[inline(always)]
pub(crate) fn route<T: BalancerTables>(tables: &T, client: &Address, vip: Vip) -> Vip {
    if tables.uses(Features::ROUTES)
        && vip.options.has(VipOptions::ROUTED)
        && let Some(routed) = tables.route(&RouteKey::new(vip.service, &PrefixKey::address(client)))
    {
        return routed;
    }
    vip
}
