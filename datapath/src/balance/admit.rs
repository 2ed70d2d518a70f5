//! Admission of a packet that matches a VIP: source, ACLs, route and size. Before a packet matches
//! a VIP, every refusal lets it pass; from here on, every refusal is a counted drop of a service.

use crate::abi::{Address, Family, ServiceRef};
use crate::balance::acl::check_acls;
use crate::balance::gue::GueMeta;
use crate::balance::lookup::{apply_route, check_source};
use crate::balance::maps::BalancerMaps;
use crate::balance::outcome::Refusal;
use crate::wire::header::FragmentKind;
use crate::wire::packet::Packet;
use crate::wire::parse::{self, IpHeader, L4Header, PacketSize};

/// The service and the measures of an admitted TCP or UDP packet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Admission {
    /// The service of the VIP.
    pub(crate) vip_service: ServiceRef,
    /// The service that handles the packet: another one if a route of the VIP's service matches.
    pub(crate) service: ServiceRef,
    pub(crate) size: PacketSize,
    /// Inputs of the UDP header of GUE; the source port is still missing.
    pub(crate) gue: GueMeta,
}

/// Checks the client of a VIP address: it is neither a martian nor a VIP address, and the source
/// ACLs allow it. Returns the service that handles it.
#[inline(always)]
pub(crate) fn admit_client<M: BalancerMaps>(
    client: &Address,
    vip_address: &Address,
    family: Family,
    vip_service: ServiceRef,
    maps: &M,
) -> Result<ServiceRef, Refusal> {
    check_source(maps, client, vip_address, family)
        .and_then(|()| check_acls(maps, client, &vip_service))
        .map_err(Refusal::for_service(vip_service))?;
    Ok(apply_route(maps, client, vip_service))
}

/// As [`admit_client`], and measures the TCP or UDP packet, whose IP header is at `ip_offset`.
#[inline(always)]
pub(crate) fn admit_packet<P: Packet, M: BalancerMaps>(
    packet: &P,
    ip_offset: usize,
    ip: &IpHeader,
    fragment_kind: FragmentKind,
    l4: &L4Header,
    vip_service: ServiceRef,
    maps: &M,
) -> Result<Admission, Refusal> {
    let service = admit_client(&ip.source, &ip.destination, ip.family, vip_service, maps)?;
    let size =
        parse::packet_size(packet, ip_offset, ip, l4).map_err(Refusal::for_service(service))?;
    let (size, gue) = GueMeta::for_l4(packet, ip, fragment_kind, l4, size, maps);
    Ok(Admission { vip_service, service, size, gue })
}
