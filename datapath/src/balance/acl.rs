//! Source ACLs.

use crate::abi::{AclVerdict, Address, Features, PrefixKey, Reason, ServiceRef, VipOptions};
use crate::balance::maps::BalancerMaps;

/// Checks the global ACL.
#[inline(always)]
pub(crate) fn check_global_acl<M: BalancerMaps>(maps: &M, client: &Address) -> Result<(), Reason> {
    if maps.uses(Features::GLOBAL_ACL)
        && let Some(verdict) = maps.acl_verdict(AclVerdict::GLOBAL, &PrefixKey::address(client))
    {
        verdict.check()?;
    }
    Ok(())
}

/// Checks the global ACL, then the ACL of the VIP's service.
#[inline(always)]
pub(crate) fn check_acls<M: BalancerMaps>(
    maps: &M,
    client: &Address,
    vip_service: &ServiceRef,
) -> Result<(), Reason> {
    check_global_acl(maps, client)?;
    if maps.uses(Features::SERVICE_ACLS) && vip_service.options.has(VipOptions::ACL) {
        // The ACL of a new service may not be loaded yet. Until then, no client is allowed.
        maps.acl_verdict(vip_service.index, &PrefixKey::address(client))
            .ok_or(Reason::AclNotAllowed)?
            .check()?;
    }
    Ok(())
}

/// Checks the current ACLs for a non-initial fragment: the global one, then the service's. A
/// service without an ACL allows every client: if it were a new service whose ACL is not loaded
/// yet, the first fragment would have been dropped.
#[inline(always)]
pub(crate) fn check_fragment_acl<M: BalancerMaps>(
    maps: &M,
    client: &Address,
    service: u32,
) -> Result<(), Reason> {
    check_global_acl(maps, client)?;
    if maps.uses(Features::SERVICE_ACLS)
        && let Some(verdict) = maps.acl_verdict(service, &PrefixKey::address(client))
    {
        verdict.check()?;
    }
    Ok(())
}
