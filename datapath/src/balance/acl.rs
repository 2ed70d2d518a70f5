//! Source ACLs.

use crate::abi::{AclVerdict, Address, Features, PrefixKey, Reason, ServiceRef, VipOptions};
use crate::balance::tables::BalancerTables;

/// Whether the list of sources that counts for all VIPs lets a client through.
#[inline(always)]
pub(crate) fn check_global_acl<T: BalancerTables>(
    tables: &T,
    client: &Address,
) -> Result<(), Reason> {
    if tables.uses(Features::GLOBAL_ACL)
        && let Some(listing) = tables.acl_verdict(AclVerdict::GLOBAL, &PrefixKey::address(client))
    {
        listing.check()?;
    }
    Ok(())
}

/// Whether the lists of sources let a client through: the one for all first, then the service's.
#[inline(always)]
pub(crate) fn check_acl<T: BalancerTables>(
    tables: &T,
    client: &Address,
    vip: &ServiceRef,
) -> Result<(), Reason> {
    check_global_acl(tables, client)?;
    if tables.uses(Features::SERVICE_ACLS) && vip.options.has(VipOptions::ACL) {
        // A service that says it has a list and has none is new: its list is on the way.
        tables
            .acl_verdict(vip.service, &PrefixKey::address(client))
            .ok_or(Reason::AclNotAllowed)?
            .check()?;
    }
    Ok(())
}

/// Whether the lists of sources let a later fragment through: the one for all, then the service's,
/// as they are by now. A service without a list lets everybody through: had it been new and its
/// list on the way, the first fragment would not have been served.
#[inline(always)]
pub(crate) fn check_fragment_acl<T: BalancerTables>(
    tables: &T,
    client: &Address,
    service: u32,
) -> Result<(), Reason> {
    check_global_acl(tables, client)?;
    if tables.uses(Features::SERVICE_ACLS)
        && let Some(listing) = tables.acl_verdict(service, &PrefixKey::address(client))
    {
        listing.check()?;
    }
    Ok(())
}
