//! From VIP to service: ACL, route and size of a packet. Before a packet matches a VIP, every
//! refusal lets it pass; from here on, every refusal is a counted drop of a service.

use crate::abi::{Address, ServiceRef};
use crate::balance::acl::check_acl;
use crate::balance::gue::GueMeta;
use crate::balance::lookup::apply_route;
use crate::balance::maps::BalancerMaps;
use crate::balance::outcome::Refusal;
use crate::wire::header::FragmentKind;
use crate::wire::packet::Packet;
use crate::wire::parse::{self, IpHeader, L4Header, PacketSize};

/// A TCP or UDP packet that its VIP accepts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Claim {
    /// The service of the VIP.
    pub(crate) vip_service: ServiceRef,
    /// The service that handles the packet: another one if a route of the VIP's service matches.
    pub(crate) service: ServiceRef,
    pub(crate) size: PacketSize,
    pub(crate) gue: GueMeta,
}

/// Checks the ACLs of a packet to a VIP, and returns the service that handles it.
#[inline(always)]
pub(crate) fn admit<M: BalancerMaps>(
    client: &Address,
    vip: ServiceRef,
    maps: &M,
) -> Result<ServiceRef, Refusal> {
    check_acl(maps, client, &vip).map_err(Refusal::of(vip))?;
    Ok(apply_route(maps, client, vip))
}

/// As [`admit`], and measures a TCP or UDP packet whose IP header is at `start`.
#[inline(always)]
pub(crate) fn claim<P: Packet, M: BalancerMaps>(
    packet: &P,
    start: usize,
    ip: &IpHeader,
    fragment_kind: FragmentKind,
    l4: &L4Header,
    vip: ServiceRef,
    maps: &M,
) -> Result<Claim, Refusal> {
    let service = admit(&ip.source, vip, maps)?;
    let size = parse::packet_size(packet, start, ip, l4).map_err(Refusal::of(service))?;
    let (size, gue) = GueMeta::for_l4(packet, ip, fragment_kind, l4, size, maps);
    Ok(Claim { vip_service: vip, service, size, gue })
}
