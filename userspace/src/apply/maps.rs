//! The maps as far as applying a plan goes: the kernel's, or a model of them.

use std::collections::BTreeMap;

use ipnet::IpNet;
use sluice_datapath::entries::{Backend, NextHop, Vip, VipAddress, VipKey};
use sluice_datapath::records::{BackendRecord, ServiceRecord};

use crate::bpf::{BalancerMaps, Capacities, Error, Table};

/// Declares the trait and its implementation by [`BalancerMaps`], whose methods of the same names do the work.
macro_rules! maps {
    ($($(#[$doc:meta])* fn $name:ident(&$($mutable:ident)? ; $($argument:ident: $kind:ty),*) -> $answer:ty;)+) => {
        /// What [`super::have`] reads and [`super::apply`] writes; the methods are those of [`BalancerMaps`].
        ///
        /// Each writing method is one step for whoever watches: a crash comes before it or after it.
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
    /// Adds a VIP address or prefix, or changes its options.
    fn put_vip_address(&mut; prefix: IpNet, value: VipAddress) -> ();
    /// Removes a VIP address or prefix, if it is there.
    fn remove_vip_address(&mut; prefix: IpNet) -> ();
    /// VIPs and their services.
    fn vips(&;) -> BTreeMap<VipKey, Vip>;
    /// Adds a VIP, or changes its service or options.
    fn put_vip(&mut; key: VipKey, vip: Vip) -> ();
    /// Removes a VIP, if it is there.
    fn remove_vip(&mut; key: VipKey) -> ();
    /// The lookup table of a service, if it has one.
    fn table(&; service: u32) -> Option<Table>;
    /// Swaps lookup tables in.
    fn replace_tables(&mut; tables: &[(u32, &Table)]) -> ();
    /// Removes the lookup table of a service, if it has one.
    fn remove_table(&mut; service: u32) -> ();
    /// Removes the list of sources of a service, if it has one.
    fn remove_list(&mut; index: u32) -> ();
    /// The backend at an index.
    fn backend(&; index: u16) -> Backend;
    /// Writes the backend at an index that no slot refers to.
    fn set_backend(&mut; index: u16, backend: &Backend) -> ();
    /// Changes a next hop.
    fn set_next_hop(&mut; index: u32, next_hop: NextHop) -> ();
    /// The record of the backend at an index.
    fn backend_record(&; index: u16) -> BackendRecord;
    /// Writes the record of the backend at an index.
    fn set_backend_record(&mut; index: u16, record: &BackendRecord) -> ();
    /// The record of the service at an index.
    fn service_record(&; index: u32) -> ServiceRecord;
    /// Writes the record of the service at an index.
    fn set_service_record(&mut; index: u32, record: &ServiceRecord) -> ();
    /// Sets the counters of a service's index to zero.
    fn reset_service_counters(&mut; index: u32) -> ();
    /// Sets the counters of a backend's index to zero.
    fn reset_backend_counters(&mut; index: u16) -> ();
}
