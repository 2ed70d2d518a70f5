//! The seam between steps and maps.

use std::collections::BTreeMap;

use ipnet::IpNet;
use sluice_datapath::abi::{
    Backend, BackendRecord, Connection, NextHop, QuicIdLengths, QuicServerKey, RouteKey,
    ServiceRecord, ServiceRef, VipAddress, VipKey,
};

use crate::capacities::Capacities;
use crate::service_table::ServiceTable;

/// The maps that [`have`](super::have) reads and [`apply`](super::apply) writes: those in the
/// kernel, or a model in a test.
///
/// A method that writes several entries writes them in the given order, each atomically. A crash
/// may happen between any two.
pub trait MapStore {
    /// The error of a read or write.
    type Error;

    /// VIP addresses and prefixes.
    fn vip_addresses(&self) -> Result<BTreeMap<IpNet, VipAddress>, Self::Error>;
    /// Adds or changes VIP addresses and prefixes.
    fn put_vip_addresses(&mut self, prefixes: &[(IpNet, VipAddress)]) -> Result<(), Self::Error>;
    /// Removes VIP addresses and prefixes. Absent ones are ignored.
    fn remove_vip_addresses(&mut self, prefixes: &[IpNet]) -> Result<(), Self::Error>;
    /// VIPs and their services.
    fn vips(&self) -> Result<BTreeMap<VipKey, ServiceRef>, Self::Error>;
    /// Adds or changes VIPs.
    fn put_vips(&mut self, vips: &[(VipKey, ServiceRef)]) -> Result<(), Self::Error>;
    /// Removes VIPs. Absent ones are ignored.
    fn remove_vips(&mut self, keys: &[VipKey]) -> Result<(), Self::Error>;
    /// Routes.
    fn routes(&self) -> Result<BTreeMap<RouteKey, ServiceRef>, Self::Error>;
    /// Adds or changes routes.
    fn put_routes(&mut self, routes: &[(RouteKey, ServiceRef)]) -> Result<(), Self::Error>;
    /// Removes routes. Absent ones are ignored.
    fn remove_routes(&mut self, keys: &[RouteKey]) -> Result<(), Self::Error>;
    /// Lengths of services' QUIC server IDs, by index.
    fn quic_lengths(&self) -> Result<Vec<QuicIdLengths>, Self::Error>;
    /// Changes lengths of services' QUIC server IDs.
    fn set_quic_lengths(&mut self, lengths: &[(u32, QuicIdLengths)]) -> Result<(), Self::Error>;
    /// QUIC server IDs and their backends.
    fn quic_servers(&self) -> Result<BTreeMap<QuicServerKey, Connection>, Self::Error>;
    /// Adds or changes QUIC server IDs.
    fn put_quic_servers(
        &mut self,
        servers: &[(QuicServerKey, Connection)],
    ) -> Result<(), Self::Error>;
    /// Removes QUIC server IDs. Absent ones are ignored.
    fn remove_quic_servers(&mut self, keys: &[QuicServerKey]) -> Result<(), Self::Error>;
    /// The lookup tables of `services`. Services without a table are absent.
    fn tables(&self, services: &[u32]) -> Result<BTreeMap<u32, ServiceTable>, Self::Error>;
    /// Replaces lookup tables.
    fn replace_tables(&mut self, tables: &[(u32, &ServiceTable)]) -> Result<(), Self::Error>;
    /// Removes the lookup table of a service, if it has one.
    fn remove_table(&mut self, service: u32) -> Result<(), Self::Error>;
    /// Removes the source ACL of a service, if it has one.
    fn remove_acl(&mut self, index: u32) -> Result<(), Self::Error>;
    /// Backends, by index.
    fn backends(&self) -> Result<Vec<Backend>, Self::Error>;
    /// Changes backends. No slot refers to their indexes.
    fn set_backends(&mut self, backends: &[(u16, Backend)]) -> Result<(), Self::Error>;
    /// Changes next hops.
    fn set_next_hops(&mut self, next_hops: &[(u32, NextHop)]) -> Result<(), Self::Error>;
    /// Records of backends, by index.
    fn backend_records(&self) -> Result<Vec<BackendRecord>, Self::Error>;
    /// Changes records of backends.
    fn set_backend_records(&mut self, records: &[(u16, BackendRecord)]) -> Result<(), Self::Error>;
    /// Records of services, by index.
    fn service_records(&self) -> Result<Vec<ServiceRecord>, Self::Error>;
    /// Changes records of services.
    fn set_service_records(&mut self, records: &[(u32, ServiceRecord)]) -> Result<(), Self::Error>;
    /// Sets the counters of service indexes to zero.
    fn reset_service_counters(&mut self, indexes: &[u32]) -> Result<(), Self::Error>;
    /// Sets the counters of backend indexes to zero.
    fn reset_backend_counters(&mut self, indexes: &[u16]) -> Result<(), Self::Error>;

    /// The capacities of the maps.
    fn capacities(&self) -> Capacities;
}
