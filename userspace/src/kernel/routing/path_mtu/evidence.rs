//! Evidence that this balancer sent the packet that an ICMP error quotes.

use std::net::IpAddr;

use sluice_datapath::abi::{Features, Port, Settings, UDP, VipOptions};
use sluice_datapath::balance::{SelectionMaps, resolve_flow};
use sluice_datapath::{Address, Family};

use super::error::TooBigError;

/// Whether this balancer sends such a packet as an error quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// The quoted flow is to a VIP, and its outer header is the quoted one.
    Proven,
    /// The flow is not quoted, or the outer header does not depend on it alone.
    Missing,
    /// The quoted flow is to no VIP, or has another outer header.
    Refuted,
}

impl Evidence {
    /// Resolves the quoted flow as for a packet, and compares the outer header.
    pub fn of<M: SelectionMaps>(error: &TooBigError, settings: &Settings, maps: &M) -> Self {
        let (Some(flow), Some(inner)) = (&error.flow, error.inner) else { return Self::Missing };
        let Ok(resolved) = resolve_flow(flow, inner, maps) else { return Self::Refuted };
        let is_gue = maps.uses(Features::GUE) && resolved.service.options.has(VipOptions::GUE);
        let source_port = error.udp.map(|ports| Port::new(ports.source));
        let (source, bits) = settings.outer_source(Family::of(error.source));
        let backend = match error.destination {
            IpAddr::V4(_) => resolved.backend.v4,
            IpAddr::V6(_) => resolved.backend.v6,
        };
        if source_port != is_gue.then(|| resolved.gue_source_port())
            || Address::from(error.source) != source.with_bits(resolved.hash as u32, bits)
        {
            return Self::Refuted;
        }
        if backend == Address::from(error.destination) {
            return Self::Proven;
        }
        // A connection ID may have selected another backend than the flow does.
        let is_quic = maps.uses(Features::QUIC)
            && flow.protocol() == UDP
            && resolved.vip_service.options.has(VipOptions::QUIC);
        if is_quic { Self::Missing } else { Self::Refuted }
    }
}

#[cfg(test)]
mod tests;
