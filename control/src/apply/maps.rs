//! The seam between steps and maps.

use std::collections::BTreeMap;

use sluice_datapath::abi::maps::{BalancerList, Counting, Indexed, Keyed, MapId};

use crate::capacities::Capacities;
use crate::service_table::ServiceTable;

/// A map of the balancer's programs.
pub type BalancerMap<T> = MapId<BalancerList, T>;

/// The maps that [`have`](super::have) reads and [`apply`](super::apply) writes: those in the
/// kernel, or a model in a test.
///
/// A method that writes several entries writes them in the given order, each atomically. A crash
/// may happen between any two.
pub trait MapStore {
    /// The error of a read or write.
    type Error;

    /// The entries of a map.
    fn entries<T: Keyed>(
        &self,
        map: BalancerMap<T>,
    ) -> Result<BTreeMap<T::Key, T::Value>, Self::Error>;
    /// Adds or changes entries.
    fn put<T: Keyed>(
        &mut self,
        map: BalancerMap<T>,
        entries: &[(T::Key, T::Value)],
    ) -> Result<(), Self::Error>;
    /// Removes entries. Absent ones are ignored.
    fn remove<T: Keyed>(&mut self, map: BalancerMap<T>, keys: &[T::Key])
    -> Result<(), Self::Error>;
    /// The elements of an array, from index 0.
    fn elements<T: Indexed>(&self, map: BalancerMap<T>) -> Result<Vec<T::Value>, Self::Error>;
    /// Changes elements of an array.
    fn write<T: Indexed>(
        &mut self,
        map: BalancerMap<T>,
        elements: &[(u32, T::Value)],
    ) -> Result<(), Self::Error>;
    /// Sets the counters at indexes to zero.
    fn reset<T: Counting>(
        &mut self,
        map: BalancerMap<T>,
        indexes: &[u32],
    ) -> Result<(), Self::Error>;
    /// The lookup tables of `services`. Services without a table are absent.
    fn tables(&self, services: &[u32]) -> Result<BTreeMap<u32, ServiceTable>, Self::Error>;
    /// Replaces lookup tables.
    fn replace_tables(&mut self, tables: &[(u32, &ServiceTable)]) -> Result<(), Self::Error>;
    /// Removes the lookup table of a service, if it has one.
    fn remove_table(&mut self, service: u32) -> Result<(), Self::Error>;
    /// Removes the source ACL of a service, if it has one.
    fn remove_acl(&mut self, service: u32) -> Result<(), Self::Error>;
    /// The capacities of the maps.
    fn capacities(&self) -> Capacities;
}
