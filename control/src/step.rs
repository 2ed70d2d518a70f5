//! Steps of a plan.

use ipnet::IpNet;
use sluice_datapath::abi::{
    Backend, Connection, QuicIdLengths, QuicServerKey, RouteKey, ServiceRef, VipAddress, VipKey,
};

use crate::service_table::ServiceTable;

/// A backend to write at an unused index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewBackend {
    /// The index.
    pub index: u16,
    /// The unique name.
    pub name: String,
    /// The entry in `BACKENDS`.
    pub entry: Backend,
    /// Whether the backend is draining.
    pub draining: bool,
}

/// A lookup table to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTable {
    /// The index of the service.
    pub service: u32,
    /// The service's name.
    pub name: String,
    /// Whether the index is new, so that its counters and record are written first.
    pub created: bool,
    /// The table.
    pub table: ServiceTable,
}

/// One change of the maps: a batch that is complete before the next step starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Add backends. No slot refers to them yet.
    AddBackends(Vec<NewBackend>),
    /// Update the draining flag of backends' records. Programs do not read it: the lookup tables
    /// have the result.
    SetDraining(Vec<(u16, bool)>),
    /// Replace lookup tables, in one batch.
    ReplaceTables(Vec<NewTable>),
    /// Add routes or change their targets, before a VIP's options enable them.
    PutRoutes(Vec<(RouteKey, ServiceRef)>),
    /// Remove routes.
    RemoveRoutes(Vec<RouteKey>),
    /// Add or change QUIC server IDs, then the lengths of services' server IDs.
    PutServerIds {
        /// New or changed server IDs.
        servers: Vec<(QuicServerKey, Connection)>,
        /// New or changed lengths.
        lengths: Vec<(u32, QuicIdLengths)>,
    },
    /// Clear the lengths of services without server IDs, then remove server IDs.
    RemoveServerIds {
        /// Server IDs to remove.
        servers: Vec<QuicServerKey>,
        /// Services without server IDs.
        services: Vec<u32>,
    },
    /// Clear the cached VIP of addresses, because that VIP is changed or removed next.
    ClearCachedVips(Vec<(IpNet, VipAddress)>),
    /// Add or change VIPs, then add or change VIP addresses, with their options and cached VIPs.
    PutVips {
        /// New or changed addresses.
        addresses: Vec<(IpNet, VipAddress)>,
        /// New or changed VIPs.
        vips: Vec<(VipKey, ServiceRef)>,
    },
    /// Remove VIP addresses, then VIPs.
    RemoveVips {
        /// VIPs to remove.
        vips: Vec<VipKey>,
        /// VIP addresses to remove.
        addresses: Vec<IpNet>,
    },
    /// Remove services. Their indexes enter quarantine.
    RetireServices(Vec<u32>),
    /// Remove backends. Their indexes enter quarantine.
    RetireBackends(Vec<u16>),
}
