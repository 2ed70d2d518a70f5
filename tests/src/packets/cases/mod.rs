//! The table of cases, by theme.

mod acl;
mod balancers;
mod case;
mod connections;
mod cross_family;
mod decapsulation;
mod drop;
mod echo;
mod expect;
mod forwarding;
mod fragments;
mod gue;
mod icmp_errors;
mod mss_clamp;
mod packet_too_big;
mod pass;
mod quic;
mod rate_limits;
mod routes;
mod vip_sources;
mod vips;
mod vlan_and_extensions;

pub use case::{Case, CaseStep, DecapCase};
pub use mss_clamp::{ClampCase, LARGEST, cases as mss_clamp, handshake};

/// Every case of decapsulation.
pub fn decapsulation() -> Vec<DecapCase> {
    [decapsulation::cases(), balancers::cases()].concat()
}

/// Every case of the balancer.
pub fn balancing() -> Vec<Case> {
    [
        forwarding::cases(),
        cross_family::cases(),
        vips::cases(),
        vlan_and_extensions::cases(),
        fragments::cases(),
        icmp_errors::cases(),
        gue::cases(),
        echo::cases(),
        packet_too_big::cases(),
        pass::cases(),
        drop::cases(),
        connections::cases(),
        acl::cases(),
        vip_sources::cases(),
        routes::cases(),
        quic::cases(),
        rate_limits::cases(),
    ]
    .concat()
}
