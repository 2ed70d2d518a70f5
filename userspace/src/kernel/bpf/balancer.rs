//! The maps of the balancer's program.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use sluice_control::capacities::Capacities;
use sluice_control::prefix::{key_prefix, prefix_key};
use sluice_control::service_table::ServiceTable;
use sluice_datapath::abi::{
    Backend, BackendCounters, BackendRecord, Buckets, ClientKey, Connection, InstanceRecord,
    Neighbour, NextHop, PathMtuRecord, PrefixKey, QuicIdLengths, QuicServerKey, Rate, RouteKey,
    ServiceCounters, ServiceRecord, ServiceRef, VipAddress, VipKey,
};
use sluice_datapath::{Address, Pod, Reason};

use super::acl::{self, AclTrie};
use super::percpu::PerCpuCounters;
use super::pins::Set;
use super::raw::{RawMap, bytes, value};
use super::spec::{self, BALANCER};
use super::table;
use super::typed_map::{self, ArrayMap, KeyedMap};
use super::usage::{self, Usage};
use super::{Error, Pins};

/// The maps of the balancer's program, opened from their pins.
///
/// What is written is written in as few calls as the kernel allows. Many entries in one call are
/// still one write each to whoever reads.
pub struct BalancerMaps {
    vip_addresses: KeyedMap<Address, VipAddress>,
    vip_prefixes: KeyedMap<PrefixKey, VipAddress>,
    vips: KeyedMap<VipKey, ServiceRef>,
    routes: KeyedMap<RouteKey, ServiceRef>,
    quic_lengths: ArrayMap<QuicIdLengths>,
    quic_servers: KeyedMap<QuicServerKey, Connection>,
    lists: RawMap,
    /// Indexes at which there is a list, once they were asked for; nobody else changes them.
    listed: OnceCell<BTreeSet<u32>>,
    rates: ArrayMap<Rate>,
    buckets: ArrayMap<Buckets>,
    sources: KeyedMap<ClientKey, Buckets>,
    tables: RawMap,
    backends: ArrayMap<Backend>,
    next_hops: ArrayMap<NextHop>,
    neighbours: ArrayMap<Neighbour>,
    service_counters: PerCpuCounters,
    backend_counters: PerCpuCounters,
    reasons: PerCpuCounters,
    backend_records: ArrayMap<BackendRecord>,
    service_records: ArrayMap<ServiceRecord>,
    path_mtus: ArrayMap<PathMtuRecord>,
    path_errors: ArrayMap<u64>,
    instance: ArrayMap<InstanceRecord>,
    capacities: Capacities,
}

impl BalancerMaps {
    /// Opens the maps of an instance.
    ///
    /// # Errors
    ///
    /// [`Error::Absent`], [`Error::Open`], [`Error::Shape`].
    pub fn open(pins: &Pins) -> Result<Self, Error> {
        pins.open(Self::of)
    }

    fn of(set: &Set) -> Result<Self, Error> {
        let maps = spec::open(BALANCER, set)?;
        Ok(Self {
            vip_addresses: KeyedMap::open(set, "VIP_ADDRESSES")?,
            vip_prefixes: KeyedMap::open(set, "VIP_PREFIXES")?,
            vips: KeyedMap::open(set, "VIPS")?,
            routes: KeyedMap::open(set, "ROUTES")?,
            quic_lengths: ArrayMap::open(set, "QUIC_ID_LENGTHS")?,
            quic_servers: KeyedMap::open(set, "QUIC_SERVERS")?,
            lists: typed_map::open(set, "ACLS", size_of::<u32>(), size_of::<u32>())?,
            listed: OnceCell::new(),
            rates: ArrayMap::open(set, "RATES")?,
            buckets: ArrayMap::open(set, "SERVICE_BUCKETS")?,
            sources: KeyedMap::open(set, "CLIENT_BUCKETS")?,
            tables: typed_map::open(set, "TABLES", size_of::<u32>(), size_of::<u32>())?,
            backends: ArrayMap::open(set, "BACKENDS")?,
            next_hops: ArrayMap::open(set, "NEXT_HOPS")?,
            neighbours: ArrayMap::open(set, "NEIGHBOURS")?,
            service_counters: PerCpuCounters::open(set, "SERVICE_COUNTERS")?,
            backend_counters: PerCpuCounters::open(set, "BACKEND_COUNTERS")?,
            reasons: PerCpuCounters::open(set, "REASONS")?,
            backend_records: ArrayMap::open(set, "BACKEND_RECORDS")?,
            service_records: ArrayMap::open(set, "SERVICE_RECORDS")?,
            path_mtus: ArrayMap::open(set, "PATH_MTUS")?,
            path_errors: ArrayMap::open(set, "PATH_MTU_ERRORS")?,
            instance: ArrayMap::open(set, "INSTANCE")?,
            capacities: spec::capacities(maps.iter().map(|(spec, map)| (*spec, map))),
        })
    }

    /// How much the maps can hold.
    pub fn capacities(&self) -> Capacities {
        self.capacities
    }

    /// What the maps of an instance take.
    ///
    /// # Errors
    ///
    /// [`Error::Absent`], [`Error::Open`], [`Error::System`].
    pub fn usage(pins: &Pins) -> Result<Vec<Usage>, Error> {
        pins.open(|set| usage::of(BALANCER, set))
    }

    /// What was applied last.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn instance(&self) -> Result<InstanceRecord, Error> {
        self.instance.at(0)
    }

    /// Writes down what is applied.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn set_instance(&mut self, record: &InstanceRecord) -> Result<(), Error> {
        self.instance.put(&[(0, *record)])
    }

    /// VIP addresses and prefixes.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn vip_addresses(&self) -> Result<BTreeMap<IpNet, VipAddress>, Error> {
        let single = self
            .vip_addresses
            .all()?
            .into_iter()
            .map(|(address, entry)| (IpAddr::from(address).into(), entry));
        let prefixes =
            self.vip_prefixes.all()?.into_iter().map(|(key, entry)| (key_prefix(key), entry));
        Ok(single.chain(prefixes).collect())
    }

    /// Adds VIP addresses and prefixes, or changes what is known of them.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn put_vip_addresses(&mut self, prefixes: &[(IpNet, VipAddress)]) -> Result<(), Error> {
        let (single, wide): (Vec<_>, Vec<_>) =
            prefixes.iter().partition(|(prefix, _)| is_single(*prefix));
        let single: Vec<_> = single
            .into_iter()
            .map(|(prefix, entry)| (Address::from(prefix.addr()), entry))
            .collect();
        self.vip_addresses.put(&single)?;
        let wide: Vec<_> =
            wide.into_iter().map(|(prefix, entry)| (prefix_key(prefix), entry)).collect();
        self.vip_prefixes.put(&wide)
    }

    /// Removes VIP addresses and prefixes, as far as they are there.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn remove_vip_addresses(&mut self, prefixes: &[IpNet]) -> Result<(), Error> {
        let (single, wide): (Vec<IpNet>, Vec<IpNet>) =
            prefixes.iter().partition(|prefix| is_single(**prefix));
        self.vip_addresses.remove(
            &single.into_iter().map(|prefix| Address::from(prefix.addr())).collect::<Vec<_>>(),
        )?;
        self.vip_prefixes.remove(&wide.into_iter().map(prefix_key).collect::<Vec<_>>())
    }

    /// VIPs and their services.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn vips(&self) -> Result<BTreeMap<VipKey, ServiceRef>, Error> {
        Ok(self.vips.all()?.into_iter().collect())
    }

    /// Adds VIPs, or moves them to other services.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn put_vips(&mut self, vips: &[(VipKey, ServiceRef)]) -> Result<(), Error> {
        self.vips.put(vips)
    }

    /// Removes VIPs, as far as they are there.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn remove_vips(&mut self, keys: &[VipKey]) -> Result<(), Error> {
        self.vips.remove(keys)
    }

    /// Routes: clients of a service that are another's.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn routes(&self) -> Result<BTreeMap<RouteKey, ServiceRef>, Error> {
        Ok(self.routes.all()?.into_iter().collect())
    }

    /// Adds routes, or changes where they lead.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn put_routes(&mut self, routes: &[(RouteKey, ServiceRef)]) -> Result<(), Error> {
        self.routes.put(routes)
    }

    /// Removes routes, as far as they are there.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn remove_routes(&mut self, keys: &[RouteKey]) -> Result<(), Error> {
        self.routes.remove(keys)
    }

    /// How long the QUIC server IDs of services are, by index.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn quic_lengths(&self) -> Result<Vec<QuicIdLengths>, Error> {
        self.quic_lengths.all()
    }

    /// Writes how long the QUIC server IDs of services are.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn set_quic_lengths(&mut self, lengths: &[(u32, QuicIdLengths)]) -> Result<(), Error> {
        self.quic_lengths.put(lengths)
    }

    /// QUIC server IDs and their backends.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn quic_servers(&self) -> Result<BTreeMap<QuicServerKey, Connection>, Error> {
        Ok(self.quic_servers.all()?.into_iter().collect())
    }

    /// Adds QUIC server IDs, or gives them to other backends.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn put_quic_servers(
        &mut self,
        servers: &[(QuicServerKey, Connection)],
    ) -> Result<(), Error> {
        self.quic_servers.put(servers)
    }

    /// Removes QUIC server IDs, as far as they are there.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn remove_quic_servers(&mut self, keys: &[QuicServerKey]) -> Result<(), Error> {
        self.quic_servers.remove(keys)
    }

    /// Swaps lists of sources in, many in one call: each packet meets a list as it was, or as it
    /// is, whole.
    ///
    /// The index is a service's, or `AclVerdict::GLOBAL`.
    ///
    /// # Errors
    ///
    /// [`Error::System`]; some lists may be in place.
    pub fn put_lists(&mut self, lists: &[(u32, &AclTrie)]) -> Result<(), Error> {
        // Should it fail, nobody knows which are in place.
        let listed = self.listed.take();
        acl::replace(&self.lists, lists)?;
        if let Some(mut listed) = listed {
            listed.extend(lists.iter().map(|(index, _)| *index));
            self.listed = listed.into();
        }
        Ok(())
    }

    /// Whether there is a list of sources at an index.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn has_list(&self, index: u32) -> Result<bool, Error> {
        Ok(self.listed()?.contains(&index))
    }

    /// Indexes at which there is a list of sources.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn listed(&self) -> Result<&BTreeSet<u32>, Error> {
        if let Some(listed) = self.listed.get() {
            return Ok(listed);
        }
        // As in `spec::outer_indexes`.
        let used = (0_u32..).zip(self.service_records()?).filter(|(index, record)| {
            *index == 0 || bytes(std::slice::from_ref(record)).iter().any(|byte| *byte != 0)
        });
        let used: Vec<u32> = used.map(|(index, _)| index).collect();
        let lists = self.lists.inner_maps(&used)?;
        Ok(self.listed.get_or_init(|| lists.into_iter().map(|(index, _)| index).collect()))
    }

    /// Removes the list of sources at an index that no packet is to meet any more, if there is one.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn remove_acl(&mut self, index: u32) -> Result<(), Error> {
        self.lists.delete(&index.to_ne_bytes())?;
        if let Some(listed) = self.listed.get_mut() {
            listed.remove(&index);
        }
        Ok(())
    }

    /// All rates, by [`Rate::index`].
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn rates(&self) -> Result<Vec<Rate>, Error> {
        self.rates.all()
    }

    /// Changes rates under traffic.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn set_rates(&mut self, rates: &[(u32, Rate)]) -> Result<(), Error> {
        self.rates.put(rates)
    }

    /// Fills the token buckets of services and of their sources: those of one rate mean nothing to
    /// another.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn fill_buckets(&mut self, services: &BTreeSet<u32>) -> Result<(), Error> {
        let full: Vec<_> = services.iter().map(|service| (*service, Buckets::default())).collect();
        self.buckets.put(&full)?;
        let sources = self.sources.all()?.into_iter().map(|(key, _)| key);
        self.sources
            .remove(&sources.filter(|key| services.contains(&key.service())).collect::<Vec<_>>())
    }

    /// The lookup tables of those of these services that have one.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn tables(&self, services: &[u32]) -> Result<BTreeMap<u32, ServiceTable>, Error> {
        table::read(&self.tables, services)
    }

    /// Builds new lookup tables and swaps them in: no packet sees half a table.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn replace_tables(&mut self, tables: &[(u32, &ServiceTable)]) -> Result<(), Error> {
        table::replace(&self.tables, tables)
    }

    /// Removes the lookup table of a service that no VIP leads to, if it has one.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn remove_table(&mut self, service: u32) -> Result<(), Error> {
        self.tables.delete(&service.to_ne_bytes())
    }

    /// The backends, by index.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn backends(&self) -> Result<Vec<Backend>, Error> {
        self.backends.all()
    }

    /// Writes backends at indexes that no slot refers to.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn set_backends(&mut self, backends: &[(u16, Backend)]) -> Result<(), Error> {
        self.backends.put(&wide(backends))
    }

    /// All next hops, by [`NextHop::index`].
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn next_hops(&self) -> Result<Vec<NextHop>, Error> {
        self.next_hops.all()
    }

    /// Changes next hops under traffic.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn set_next_hops(&mut self, next_hops: &[(u32, NextHop)]) -> Result<(), Error> {
        self.next_hops.put(next_hops)
    }

    /// All MTUs that routers have told, by [`NextHop::index`].
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn path_mtus(&self) -> Result<Vec<PathMtuRecord>, Error> {
        self.path_mtus.all()
    }

    /// Writes MTUs that routers have told.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn set_path_mtus(&mut self, records: &[(u32, PathMtuRecord)]) -> Result<(), Error> {
        self.path_mtus.put(records)
    }

    /// What became of errors about encapsulated packets, counted.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn path_errors(&self) -> Result<Vec<u64>, Error> {
        self.path_errors.all()
    }

    /// Writes counts of errors about encapsulated packets.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn set_path_errors(&mut self, counts: &[(u32, u64)]) -> Result<(), Error> {
        self.path_errors.put(counts)
    }

    /// All neighbours, by [`NextHop::neighbour_index`].
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn neighbours(&self) -> Result<Vec<Neighbour>, Error> {
        self.neighbours.all()
    }

    /// Writes neighbours that no next hop names.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn set_neighbours(&mut self, neighbours: &[(u32, Neighbour)]) -> Result<(), Error> {
        self.neighbours.put(neighbours)
    }

    /// The records of all backends, by index.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn backend_records(&self) -> Result<Vec<BackendRecord>, Error> {
        self.backend_records.all()
    }

    /// Writes the records of backends.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn set_backend_records(&mut self, records: &[(u16, BackendRecord)]) -> Result<(), Error> {
        self.backend_records.put(&wide(records))
    }

    /// The records of all services, by index.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn service_records(&self) -> Result<Vec<ServiceRecord>, Error> {
        self.service_records.all()
    }

    /// Writes the records of services.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn set_service_records(&mut self, records: &[(u32, ServiceRecord)]) -> Result<(), Error> {
        self.service_records.put(records)
    }

    /// What a service forwarded, over all CPUs.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn service_counters(&self, index: u32) -> Result<ServiceCounters, Error> {
        Ok(value(bytes(&self.service_counters.at(index)?)))
    }

    /// What was forwarded to a backend, over all CPUs.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn backend_counters(&self, index: u16) -> Result<BackendCounters, Error> {
        Ok(value(bytes(&self.backend_counters.at(index.into())?)))
    }

    /// Sets the counters of services' indexes to zero, before the indexes get new services.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn reset_service_counters(&mut self, indexes: &[u32]) -> Result<(), Error> {
        self.service_counters.reset(indexes)
    }

    /// Sets the counters of backends' indexes to zero, before the indexes get new backends.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn reset_backend_counters(&mut self, indexes: &[u16]) -> Result<(), Error> {
        self.backend_counters.reset(&indexes.iter().copied().map(u32::from).collect::<Vec<_>>())
    }

    /// How many packets were not forwarded, by reason; only reasons that occurred.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn reasons(&self) -> Result<Vec<(Reason, u64)>, Error> {
        occurred(&self.reasons)
    }
}

/// Backends' indexes as keys.
fn wide<T: Pod>(entries: &[(u16, T)]) -> Vec<(u32, T)> {
    entries.iter().map(|(index, value)| (u32::from(*index), *value)).collect()
}

/// The reasons that occurred.
pub(super) fn occurred(reasons: &PerCpuCounters) -> Result<Vec<(Reason, u64)>, Error> {
    let counted = reasons.all()?;
    let count = |reason: &Reason| counted.get(reason.index() as usize).copied().unwrap_or(0);
    Ok(Reason::ALL
        .iter()
        .map(|reason| (*reason, count(reason)))
        .filter(|(_, count)| *count != 0)
        .collect())
}

/// Whether a prefix is one address, which a hash finds faster than a trie.
fn is_single(prefix: IpNet) -> bool {
    prefix.prefix_len() == prefix.max_prefix_len()
}
