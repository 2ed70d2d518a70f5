//! The maps as far as applying a plan goes: the kernel's, or a model of them.

use std::collections::BTreeMap;

use ipnet::IpNet;
use sluice_datapath::entries::{Backend, Connection, NextHop, RouteKey, Vip, VipAddress, VipKey};
use sluice_datapath::quic::{IdLengths, ServerKey};
use sluice_datapath::records::{BackendRecord, ServiceRecord};

use crate::kernel::bpf::{BalancerMaps, Capacities, Error, Table};

/// Declares the trait and its implementation by [`BalancerMaps`], whose methods of the same names
/// do the work.
macro_rules! maps {
    ($($(#[$doc:meta])* fn $name:ident(&$($mutable:ident)? ; $($argument:ident: $kind:ty),*) -> $answer:ty;)+) => {
        /// What [`super::have`] reads and [`super::apply`] writes; the methods are those of
        /// [`BalancerMaps`].
        ///
        /// A writing method writes one entry after the other, in the order given: a crash comes
        /// before or after each of them.
        pub trait Maps {
            $($(#[$doc])*
            ///
            /// # Errors
            ///
            /// [`Error`].
            fn $name(&$($mutable)? self, $($argument: $kind),*) -> Result<$answer, Error>;)+

            /// How much the maps can hold.
            fn capacities(&self) -> Capacities;
        }

        impl Maps for BalancerMaps {
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
    /// VIP addresses and prefixes.
    fn vip_addresses(&;) -> BTreeMap<IpNet, VipAddress>;
    /// Adds VIP addresses and prefixes, or changes their options.
    fn put_vip_addresses(&mut; prefixes: &[(IpNet, VipAddress)]) -> ();
    /// Removes VIP addresses and prefixes, as far as they are there.
    fn remove_vip_addresses(&mut; prefixes: &[IpNet]) -> ();
    /// VIPs and their services.
    fn vips(&;) -> BTreeMap<VipKey, Vip>;
    /// Adds VIPs, or changes their services or options.
    fn put_vips(&mut; vips: &[(VipKey, Vip)]) -> ();
    /// Removes VIPs, as far as they are there.
    fn remove_vips(&mut; keys: &[VipKey]) -> ();
    /// Routes.
    fn routes(&;) -> BTreeMap<RouteKey, Vip>;
    /// Adds routes, or changes where they lead.
    fn put_routes(&mut; routes: &[(RouteKey, Vip)]) -> ();
    /// Removes routes, as far as they are there.
    fn remove_routes(&mut; keys: &[RouteKey]) -> ();
    /// How long services' QUIC server IDs are, by index.
    fn quic_lengths(&;) -> Vec<IdLengths>;
    /// Writes how long services' QUIC server IDs are.
    fn set_quic_lengths(&mut; lengths: &[(u32, IdLengths)]) -> ();
    /// QUIC server IDs and their backends.
    fn quic_servers(&;) -> BTreeMap<ServerKey, Connection>;
    /// Adds QUIC server IDs, or gives them to other backends.
    fn put_quic_servers(&mut; servers: &[(ServerKey, Connection)]) -> ();
    /// Removes QUIC server IDs, as far as they are there.
    fn remove_quic_servers(&mut; keys: &[ServerKey]) -> ();
    /// The lookup tables of those of these services that have one.
    fn tables(&; services: &[u32]) -> BTreeMap<u32, Table>;
    /// Swaps lookup tables in.
    fn replace_tables(&mut; tables: &[(u32, &Table)]) -> ();
    /// Removes the lookup table of a service, if it has one.
    fn remove_table(&mut; service: u32) -> ();
    /// Removes the list of sources of a service, if it has one.
    fn remove_list(&mut; index: u32) -> ();
    /// The backends, by index.
    fn backends(&;) -> Vec<Backend>;
    /// Writes backends at indexes that no slot refers to.
    fn set_backends(&mut; backends: &[(u16, Backend)]) -> ();
    /// Changes next hops.
    fn set_next_hops(&mut; next_hops: &[(u32, NextHop)]) -> ();
    /// The records of backends, by index.
    fn backend_records(&;) -> Vec<BackendRecord>;
    /// Writes records of backends.
    fn set_backend_records(&mut; records: &[(u16, BackendRecord)]) -> ();
    /// The records of services, by index.
    fn service_records(&;) -> Vec<ServiceRecord>;
    /// Writes records of services.
    fn set_service_records(&mut; records: &[(u32, ServiceRecord)]) -> ();
    /// Sets the counters of services' indexes to zero.
    fn reset_service_counters(&mut; indexes: &[u32]) -> ();
    /// Sets the counters of backends' indexes to zero.
    fn reset_backend_counters(&mut; indexes: &[u16]) -> ();
}
