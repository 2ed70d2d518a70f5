//! The balancer's maps as the steps of a plan are applied to them.

use std::collections::BTreeMap;

use ipnet::IpNet;
use sluice_control::apply::MapStore;
use sluice_control::capacities::Capacities;
use sluice_control::service_table::ServiceTable;
use sluice_datapath::abi::{
    Backend, BackendRecord, Connection, NextHop, QuicIdLengths, QuicServerKey, RouteKey,
    ServiceRecord, ServiceRef, VipAddress, VipKey,
};

use super::{BalancerMaps, Error};

/// Implements [`MapStore`] by the methods of [`BalancerMaps`] that have the same names.
macro_rules! maps {
    ($(fn $name:ident(&$($mutable:ident)? ; $($argument:ident: $kind:ty),*) -> $answer:ty;)+) => {
        impl MapStore for BalancerMaps {
            type Error = Error;

            $(fn $name(&$($mutable)? self, $($argument: $kind),*) -> Result<$answer, Error> {
                Self::$name(self, $($argument),*)
            })+

            fn capacities(&self) -> Capacities {
                Self::capacities(self)
            }
        }
    };
}

maps! {
    fn vip_addresses(&;) -> BTreeMap<IpNet, VipAddress>;
    fn put_vip_addresses(&mut; prefixes: &[(IpNet, VipAddress)]) -> ();
    fn remove_vip_addresses(&mut; prefixes: &[IpNet]) -> ();
    fn vips(&;) -> BTreeMap<VipKey, ServiceRef>;
    fn put_vips(&mut; vips: &[(VipKey, ServiceRef)]) -> ();
    fn remove_vips(&mut; keys: &[VipKey]) -> ();
    fn routes(&;) -> BTreeMap<RouteKey, ServiceRef>;
    fn put_routes(&mut; routes: &[(RouteKey, ServiceRef)]) -> ();
    fn remove_routes(&mut; keys: &[RouteKey]) -> ();
    fn quic_lengths(&;) -> Vec<QuicIdLengths>;
    fn set_quic_lengths(&mut; lengths: &[(u32, QuicIdLengths)]) -> ();
    fn quic_servers(&;) -> BTreeMap<QuicServerKey, Connection>;
    fn put_quic_servers(&mut; servers: &[(QuicServerKey, Connection)]) -> ();
    fn remove_quic_servers(&mut; keys: &[QuicServerKey]) -> ();
    fn tables(&; services: &[u32]) -> BTreeMap<u32, ServiceTable>;
    fn replace_tables(&mut; tables: &[(u32, &ServiceTable)]) -> ();
    fn remove_table(&mut; service: u32) -> ();
    fn remove_acl(&mut; index: u32) -> ();
    fn backends(&;) -> Vec<Backend>;
    fn set_backends(&mut; backends: &[(u16, Backend)]) -> ();
    fn set_next_hops(&mut; next_hops: &[(u32, NextHop)]) -> ();
    fn backend_records(&;) -> Vec<BackendRecord>;
    fn set_backend_records(&mut; records: &[(u16, BackendRecord)]) -> ();
    fn service_records(&;) -> Vec<ServiceRecord>;
    fn set_service_records(&mut; records: &[(u32, ServiceRecord)]) -> ();
    fn reset_service_counters(&mut; indexes: &[u32]) -> ();
    fn reset_backend_counters(&mut; indexes: &[u16]) -> ();
}
