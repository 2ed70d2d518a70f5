//! The maps as far as applying a plan goes: the kernel's, or a model of them.

use std::collections::BTreeMap;

use ipnet::IpNet;
use sluice_datapath::abi::{
    Backend, BackendRecord, Connection, NextHop, QuicIdLengths, QuicServerKey, RouteKey,
    ServiceRecord, ServiceRef, VipAddress, VipKey,
};

use crate::capacities::Capacities;
use crate::lookup_table::LookupTable;

/// What [`super::have`] reads and [`super::apply`] writes.
///
/// A writing method writes one entry after the other, in the order given: a crash comes before or
/// after each of them.
pub trait Maps {
    /// Why a map could not be read or written.
    type Error;

    /// VIP addresses and prefixes.
    fn vip_addresses(&self) -> Result<BTreeMap<IpNet, VipAddress>, Self::Error>;
    /// Adds VIP addresses and prefixes, or changes their options.
    fn put_vip_addresses(&mut self, prefixes: &[(IpNet, VipAddress)]) -> Result<(), Self::Error>;
    /// Removes VIP addresses and prefixes, as far as they are there.
    fn remove_vip_addresses(&mut self, prefixes: &[IpNet]) -> Result<(), Self::Error>;
    /// VIPs and their services.
    fn vips(&self) -> Result<BTreeMap<VipKey, ServiceRef>, Self::Error>;
    /// Adds VIPs, or changes their services or options.
    fn put_vips(&mut self, vips: &[(VipKey, ServiceRef)]) -> Result<(), Self::Error>;
    /// Removes VIPs, as far as they are there.
    fn remove_vips(&mut self, keys: &[VipKey]) -> Result<(), Self::Error>;
    /// Routes.
    fn routes(&self) -> Result<BTreeMap<RouteKey, ServiceRef>, Self::Error>;
    /// Adds routes, or changes where they lead.
    fn put_routes(&mut self, routes: &[(RouteKey, ServiceRef)]) -> Result<(), Self::Error>;
    /// Removes routes, as far as they are there.
    fn remove_routes(&mut self, keys: &[RouteKey]) -> Result<(), Self::Error>;
    /// How long services' QUIC server IDs are, by index.
    fn quic_lengths(&self) -> Result<Vec<QuicIdLengths>, Self::Error>;
    /// Writes how long services' QUIC server IDs are.
    fn set_quic_lengths(&mut self, lengths: &[(u32, QuicIdLengths)]) -> Result<(), Self::Error>;
    /// QUIC server IDs and their backends.
    fn quic_servers(&self) -> Result<BTreeMap<QuicServerKey, Connection>, Self::Error>;
    /// Adds QUIC server IDs, or gives them to other backends.
    fn put_quic_servers(
        &mut self,
        servers: &[(QuicServerKey, Connection)],
    ) -> Result<(), Self::Error>;
    /// Removes QUIC server IDs, as far as they are there.
    fn remove_quic_servers(&mut self, keys: &[QuicServerKey]) -> Result<(), Self::Error>;
    /// The lookup tables of those of these services that have one.
    fn tables(&self, services: &[u32]) -> Result<BTreeMap<u32, LookupTable>, Self::Error>;
    /// Swaps lookup tables in.
    fn replace_tables(&mut self, tables: &[(u32, &LookupTable)]) -> Result<(), Self::Error>;
    /// Removes the lookup table of a service, if it has one.
    fn remove_table(&mut self, service: u32) -> Result<(), Self::Error>;
    /// Removes the list of sources of a service, if it has one.
    fn remove_list(&mut self, index: u32) -> Result<(), Self::Error>;
    /// The backends, by index.
    fn backends(&self) -> Result<Vec<Backend>, Self::Error>;
    /// Writes backends at indexes that no slot refers to.
    fn set_backends(&mut self, backends: &[(u16, Backend)]) -> Result<(), Self::Error>;
    /// Changes next hops.
    fn set_next_hops(&mut self, next_hops: &[(u32, NextHop)]) -> Result<(), Self::Error>;
    /// The records of backends, by index.
    fn backend_records(&self) -> Result<Vec<BackendRecord>, Self::Error>;
    /// Writes records of backends.
    fn set_backend_records(&mut self, records: &[(u16, BackendRecord)]) -> Result<(), Self::Error>;
    /// The records of services, by index.
    fn service_records(&self) -> Result<Vec<ServiceRecord>, Self::Error>;
    /// Writes records of services.
    fn set_service_records(&mut self, records: &[(u32, ServiceRecord)]) -> Result<(), Self::Error>;
    /// Sets the counters of services' indexes to zero.
    fn reset_service_counters(&mut self, indexes: &[u32]) -> Result<(), Self::Error>;
    /// Sets the counters of backends' indexes to zero.
    fn reset_backend_counters(&mut self, indexes: &[u16]) -> Result<(), Self::Error>;

    /// How much the maps can hold.
    fn capacities(&self) -> Capacities;
}
