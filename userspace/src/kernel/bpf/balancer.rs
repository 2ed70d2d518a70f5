//! The maps of the balancer's programs.

use std::collections::{BTreeMap, BTreeSet};

use sluice_control::apply::{BalancerMap, MapStore};
use sluice_control::capacities::Capacities;
use sluice_control::service_table::ServiceTable;
use sluice_datapath::Reason;
use sluice_datapath::abi::Buckets;
use sluice_datapath::abi::maps::balancer::{
    ACLS, CLIENT_BUCKETS, REASONS, SERVICE_BUCKETS, SERVICE_RECORDS, TABLES,
};
use sluice_datapath::abi::maps::{BalancerList, Counting, Indexed, Keyed};

use super::Error;
use super::acl::{self, AclTrie};
use super::map_set::MapSet;
use super::raw::bytes;
use super::table;

/// The maps of the balancer's programs, opened from their pins.
pub type BalancerMaps = MapSet<BalancerList>;

impl BalancerMaps {
    /// Replaces source ACLs, many in one call: each packet sees an old or a new ACL as a whole.
    ///
    /// The index is that of a service, or `AclVerdict::GLOBAL`. After an error some ACLs may have
    /// been replaced.
    pub fn replace_acls(&mut self, acls: &[(u32, &AclTrie)]) -> Result<(), Error> {
        // Taken out, because after an error it is unknown which of them exist.
        let known = self.acl_indexes.take();
        acl::replace(self.outer(ACLS), acls)?;
        if let Some(mut known) = known {
            known.extend(acls.iter().map(|(index, _)| *index));
            self.acl_indexes = known.into();
        }
        Ok(())
    }

    /// Whether there is a source ACL at an index.
    pub fn has_acl(&self, index: u32) -> Result<bool, Error> {
        Ok(self.acl_indexes()?.contains(&index))
    }

    /// The indexes of source ACLs.
    pub fn acl_indexes(&self) -> Result<&BTreeSet<u32>, Error> {
        if let Some(known) = self.acl_indexes.get() {
            return Ok(known);
        }
        // As in `spec::outer_indexes`.
        let used = (0_u32..).zip(self.elements(SERVICE_RECORDS)?).filter(|(index, record)| {
            *index == 0 || bytes(std::slice::from_ref(record)).iter().any(|byte| *byte != 0)
        });
        let used: Vec<u32> = used.map(|(index, _)| index).collect();
        let acls = self.outer(ACLS).inner_maps(&used)?;
        Ok(self.acl_indexes.get_or_init(|| acls.into_iter().map(|(index, _)| index).collect()))
    }

    /// Removes the source ACL at an index, if there is one.
    pub fn remove_acl(&mut self, index: u32) -> Result<(), Error> {
        self.outer(ACLS).delete(&index.to_ne_bytes())?;
        if let Some(known) = self.acl_indexes.get_mut() {
            known.remove(&index);
        }
        Ok(())
    }

    /// Fills the token buckets of services and of their clients, because the tokens of one rate
    /// have no meaning for another.
    pub fn fill_buckets(&mut self, services: &BTreeSet<u32>) -> Result<(), Error> {
        let full: Vec<_> = services.iter().map(|service| (*service, Buckets::default())).collect();
        self.write(SERVICE_BUCKETS, &full)?;
        let clients = self.entries(CLIENT_BUCKETS)?.into_keys();
        let clients = clients.filter(|client| services.contains(&client.service()));
        self.remove(CLIENT_BUCKETS, &clients.collect::<Vec<_>>())
    }

    /// Packets that were not forwarded, by reason, without those of which there were none.
    pub fn reasons(&self) -> Result<Vec<(Reason, u64)>, Error> {
        Ok(occurred(&self.totals(REASONS)?))
    }
}

impl MapStore for BalancerMaps {
    type Error = Error;

    fn entries<T: Keyed>(&self, map: BalancerMap<T>) -> Result<BTreeMap<T::Key, T::Value>, Error> {
        self.entries(map)
    }

    fn put<T: Keyed>(
        &mut self,
        map: BalancerMap<T>,
        entries: &[(T::Key, T::Value)],
    ) -> Result<(), Error> {
        self.put(map, entries)
    }

    fn remove<T: Keyed>(&mut self, map: BalancerMap<T>, keys: &[T::Key]) -> Result<(), Error> {
        self.remove(map, keys)
    }

    fn elements<T: Indexed>(&self, map: BalancerMap<T>) -> Result<Vec<T::Value>, Error> {
        self.elements(map)
    }

    fn write<T: Indexed>(
        &mut self,
        map: BalancerMap<T>,
        elements: &[(u32, T::Value)],
    ) -> Result<(), Error> {
        self.write(map, elements)
    }

    fn reset<T: Counting>(&mut self, map: BalancerMap<T>, indexes: &[u32]) -> Result<(), Error> {
        self.reset(map, indexes)
    }

    fn tables(&self, services: &[u32]) -> Result<BTreeMap<u32, ServiceTable>, Error> {
        table::read(self.outer(TABLES), services)
    }

    fn replace_tables(&mut self, tables: &[(u32, &ServiceTable)]) -> Result<(), Error> {
        table::replace(self.outer(TABLES), tables)
    }

    fn remove_table(&mut self, service: u32) -> Result<(), Error> {
        self.outer(TABLES).delete(&service.to_ne_bytes())
    }

    fn remove_acl(&mut self, service: u32) -> Result<(), Error> {
        self.remove_acl(service)
    }

    fn capacities(&self) -> Capacities {
        self.capacities()
    }
}

/// The counts by reason, without those that are zero.
pub(super) fn occurred(counts: &[u64]) -> Vec<(Reason, u64)> {
    let count = |reason: &Reason| counts.get(reason.index() as usize).copied().unwrap_or(0);
    Reason::ALL
        .iter()
        .map(|reason| (*reason, count(reason)))
        .filter(|(_, count)| *count != 0)
        .collect()
}
