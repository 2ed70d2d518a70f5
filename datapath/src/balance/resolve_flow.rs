//! The backend and the hash of a flow, by the same code as for its packets: for userspace, which
//! checks ICMP errors about packets that the balancer has sent.

use crate::abi::{Backend, Family, Flow, Port, Reason, ServiceRef};
use crate::balance::forward::hash_flow;
use crate::balance::gue::GueMeta;
use crate::balance::lookup::{apply_route, find_vip_service, lookup_address};
use crate::balance::maps::SelectionMaps;
use crate::balance::select::{Selection, Tracking, select_backend};

/// What the outer header of a flow's packets depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResolvedFlow {
    /// The service of the VIP.
    pub vip_service: ServiceRef,
    /// The service that handles the client: another one if a route of the VIP's service matches.
    pub service: ServiceRef,
    /// The backend, by lookup table and connection table. The connection ID of a QUIC packet may
    /// select another one.
    pub backend: Backend,
    /// The flow hash, of which some bits are in the outer header.
    pub hash: u64,
}

impl ResolvedFlow {
    /// The source port of GUE.
    pub fn gue_source_port(&self) -> Port {
        GueMeta::NONE.with_source_port(self.hash).source_port()
    }
}

/// Resolves a flow of a family: the backend that takes its packets, and the hash. Consumes no
/// tokens, checks no source ACL, and changes no map.
///
/// # Errors
///
/// The [`Reason`] why a packet of the flow is not forwarded.
pub fn resolve_flow<M: SelectionMaps>(
    flow: &Flow,
    family: Family,
    maps: &M,
) -> Result<ResolvedFlow, Reason> {
    if matches!(family, Family::V6) && flow.destination.is_mapped() {
        return Err(Reason::NotVip);
    }
    let address = lookup_address(maps, &flow.destination).ok_or(Reason::NotVip)?;
    let vip_service = find_vip_service(maps, &address, flow.destination_port, flow.protocol())?;
    let service = apply_route(maps, &flow.source, vip_service);
    let table = maps.lookup_table(service.index).ok_or(Reason::NoTable)?;
    let hash = hash_flow(flow, family, service.options, maps);
    let Selection { backend, .. } =
        select_backend(maps, &table, flow, hash, false, Tracking::ReadOnly)?;
    Ok(ResolvedFlow { vip_service, service, backend, hash })
}
