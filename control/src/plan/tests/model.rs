//! A model of the maps that checks after each write that packets find consistent entries.

use sluice_datapath::abi::{
    BackendRecord, Connection, ICMP, Name, NextHop, QuicIdLengths, QuicServerKey, RouteKey,
    ServiceRecord, ServiceRef as VipEntry, VipAddress,
};

use super::*;
use crate::apply::{self, MapStore};

const FREE: Backend = Backend { v4: Address::NONE, v6: Address::NONE, epoch: 0 };
const NO_BACKEND: BackendRecord =
    BackendRecord { name: Name::NONE, reusable_after: 0, epoch: 0, draining: 0 };
const NO_SERVICE: ServiceRecord = ServiceRecord { name: Name::NONE, reusable_after: 0 };

/// The destination of a packet: address, port and protocol number.
type Destination = (IpNet, u16, u8);

/// The daemon died before a write.
#[derive(Debug)]
pub(super) struct Interrupted;

/// The maps, and the conditions during the change to one desired state.
pub(super) struct Model {
    capacities: Capacities,
    addresses: BTreeMap<IpNet, VipAddress>,
    vips: BTreeMap<VipKey, VipEntry>,
    routes: BTreeMap<RouteKey, VipEntry>,
    quic_servers: BTreeMap<QuicServerKey, Connection>,
    quic_lengths: BTreeMap<u32, QuicIdLengths>,
    tables: BTreeMap<u32, ServiceTable>,
    backends: BTreeMap<u16, Backend>,
    next_hops: BTreeMap<u32, NextHop>,
    backend_records: BTreeMap<u16, BackendRecord>,
    service_records: BTreeMap<u32, ServiceRecord>,
    /// The time in nanoseconds since boot.
    pub(super) now: u64,
    /// The number of writes before the daemon dies; `None` if it does not.
    pub(super) writes_left: Option<usize>,
    /// Destinations of the state before and of the desired state, which must not have a gap.
    kept: BTreeSet<Destination>,
    /// Destinations that may be found during the change.
    allowed: BTreeSet<Destination>,
}

impl Model {
    pub(super) fn new(capacities: Capacities) -> Self {
        Self {
            capacities,
            addresses: BTreeMap::new(),
            vips: BTreeMap::new(),
            routes: BTreeMap::new(),
            quic_servers: BTreeMap::new(),
            quic_lengths: BTreeMap::new(),
            tables: BTreeMap::new(),
            backends: BTreeMap::new(),
            next_hops: BTreeMap::new(),
            backend_records: BTreeMap::new(),
            service_records: BTreeMap::new(),
            now: 1,
            writes_left: None,
            kept: BTreeSet::new(),
            allowed: BTreeSet::new(),
        }
    }

    pub(super) fn plan(&self, desired: &Desired) -> Result<Vec<Step>, PlanError> {
        plan(&apply::have(self).unwrap(), desired, self.capacities, self.now)
    }

    /// The entry of a VIP.
    pub(super) fn vip(&self, key: &VipKey) -> Option<VipEntry> {
        self.vips.get(key).copied()
    }

    /// The entry of a VIP address.
    pub(super) fn address(&self, prefix: IpNet) -> Option<VipAddress> {
        self.addresses.get(&prefix).copied()
    }

    /// Writes the entry of a VIP address without a plan.
    pub(super) fn overwrite_address(&mut self, prefix: IpNet, entry: VipAddress) {
        self.addresses.insert(prefix, entry);
    }

    /// Starts the change from the present state to `desired`.
    pub(super) fn start_change(&mut self, desired: &Desired) {
        let found = self.found();
        let wanted = destinations(desired);
        self.kept = found.intersection(&wanted).copied().collect();
        self.allowed = found.union(&wanted).copied().collect();
    }

    pub(super) fn apply(&mut self, step: &Step) -> Result<(), Interrupted> {
        let now = self.now;
        apply::apply(self, step, &|_| NextHop::new(1, 1520), now)
    }

    /// All destinations that a packet finds: the address first, then the port.
    fn found(&self) -> BTreeSet<Destination> {
        let vips = self.vips.keys().flat_map(|key| {
            let addresses = self.addresses.iter().filter(|(_, has)| has.id == key.address);
            addresses.map(|(address, _)| (*address, key.port.number(), key.protocol))
        });
        vips.collect()
    }

    /// Performs one write and checks the result, unless the daemon died before it.
    fn write(&mut self, write: impl FnOnce(&mut Self)) -> Result<(), Interrupted> {
        match &mut self.writes_left {
            Some(0) => {
                return Err(Interrupted);
            }
            Some(left) => *left -= 1,
            None => {}
        }
        write(self);
        self.check();
        Ok(())
    }

    fn check(&self) {
        let found = self.found();
        assert!(
            self.kept.is_subset(&found),
            "a VIP of both states is missing: {:?} of {found:?}",
            self.kept
        );
        assert!(
            found.is_subset(&self.allowed),
            "{found:?} are VIPs, only {:?} are allowed",
            self.allowed
        );
        let mut numbers: Vec<_> = self.addresses.values().map(|has| has.id).collect();
        numbers.sort();
        numbers.dedup();
        assert_eq!(
            numbers.len(),
            self.addresses.len(),
            "two addresses share a number: {:?}",
            self.addresses
        );
        for (prefix, has) in self.addresses.iter().filter(|(_, has)| has.cached_key().is_some()) {
            let key = has.cached_key().expect("the filter keeps entries with a cached VIP");
            assert_eq!(
                self.vips.get(&key).copied(),
                has.cached.vip(),
                "the cached VIP of {prefix} differs from {key:?}"
            );
        }
        let live: BTreeSet<u32> = self.addresses.values().map(|has| has.id).collect();
        let vips =
            self.vips.iter().filter(|(key, _)| live.contains(&key.address)).map(|(_, vip)| vip);
        for vip in vips.chain(self.routes.values()) {
            let table =
                self.tables.get(&vip.service).unwrap_or_else(|| panic!("{vip:?} has no table"));
            assert!(!table.slots.is_empty() && table.slots.len() == table.head.slots as usize);
            for slot in &table.slots {
                let entry = self.backends.get(&slot.first).unwrap_or(&FREE);
                let record = self.backend_records.get(&slot.first).unwrap_or(&NO_BACKEND);
                assert!(entry.epoch != 0, "a slot refers to index {}, which is free", slot.first);
                assert_eq!(entry.epoch, record.epoch, "epochs of index {} differ", slot.first);
                assert!(
                    !record.name.as_str().is_empty(),
                    "index {} is in use without a name",
                    slot.first
                );
                assert!(
                    self.next_hops
                        .contains_key(&NextHop::index(slot.first, sluice_datapath::Family::V4))
                );
            }
        }
        // A server ID refers to the backend that it was written for.
        for (key, server) in &self.quic_servers {
            let entry = self.backends.get(&(server.backend as u16)).unwrap_or(&FREE);
            assert_eq!(entry.epoch, server.epoch, "{key:?} refers to a removed backend");
        }
        assert!(self.quic_servers.len() <= 2 * (self.capacities.backends as usize + 1));
        assert!(self.vips.len() <= self.capacities.vips as usize);
        assert!(self.addresses.len() <= self.capacities.vips as usize);
    }

    /// The name and IPv4 address of the backend at an index.
    fn identity(&self, index: u16) -> (String, Address) {
        let name = self.backend_records.get(&index).unwrap_or(&NO_BACKEND).name;
        (name.as_str().to_owned(), self.backends.get(&index).unwrap_or(&FREE).v4)
    }

    /// Checks that the maps hold exactly `desired`.
    pub(super) fn check_reached(&self, desired: &Desired) {
        assert_eq!(self.plan(desired), Ok(vec![]), "no step is left");
        assert_eq!(self.found(), destinations(desired));
        assert_eq!(self.vips.len(), destinations(desired).len());
        let addresses: BTreeSet<_> =
            destinations(desired).into_iter().map(|(address, _, _)| address).collect();
        assert_eq!(self.addresses.keys().copied().collect::<BTreeSet<_>>(), addresses);
        for service in &desired.services {
            let records = self
                .service_records
                .iter()
                .filter(|(_, record)| record.name.as_str() == service.name);
            let [(index, _)] = records.collect::<Vec<_>>()[..] else {
                panic!("{} does not occur exactly once", service.name)
            };
            let table = &self.tables[index];
            let owners: Vec<_> = table.slots.iter().map(|slot| self.identity(slot.first)).collect();
            let wanted = service.owners.iter().map(|owner| {
                let backend = &desired.backends[*owner];
                (backend.name.clone(), backend.v4.map_or(Address::NONE, Address::from))
            });
            assert_eq!(owners, wanted.collect::<Vec<_>>());
            assert_eq!((table.head.tracked, table.digest), (service.tracked, service.digest));
            for vip in &service.vips {
                let key = VipKey::new(
                    self.addresses[&vip.prefix()].id,
                    Port::new(vip.port()),
                    vip.protocol().number(),
                );
                let entry = VipEntry { service: *index, options: service.options };
                assert_eq!(self.vips[&key], entry, "{vip} refers to its service");
            }
            let routes = self.routes.iter().filter(|(key, _)| key.service == *index);
            let routes: Vec<_> = routes
                .map(|(key, to)| (key.clients(), self.service_record(to.service).name, to.options))
                .collect();
            let wanted = service.routes.iter().map(|(clients, to)| {
                let to = &desired.services[*to];
                (prefix_key(*clients), Name::new(&to.name).unwrap(), to.options)
            });
            let mut wanted: Vec<_> = wanted.collect();
            wanted.sort_by_key(|(clients, ..)| *clients);
            assert_eq!(routes, wanted);
            let mut lengths = QuicIdLengths::NONE;
            for (rotation, id, backend) in &service.server_ids {
                let server = self.quic_servers[&QuicServerKey::new(*index, *rotation, id).unwrap()];
                assert_eq!(self.identity(server.backend as u16).0, desired.backends[*backend].name);
                lengths = lengths.with(*rotation, id.len() as u8);
            }
            assert_eq!(
                self.quic_lengths.get(index).copied().unwrap_or(QuicIdLengths::NONE),
                lengths
            );
            for vip in service.vips.iter().filter(|vip| vip.port() != 0) {
                assert!(
                    self.addresses[&vip.prefix()].cached_key().is_some(),
                    "{vip} has an address without a cached VIP"
                );
            }
        }
        let routes: usize = desired.services.iter().map(|service| service.routes.len()).sum();
        assert_eq!(self.routes.len(), routes, "routes of retired services are removed");
        let ids: usize = desired.services.iter().map(|service| service.server_ids.len()).sum();
        assert_eq!(self.quic_servers.len(), ids, "server IDs of retired services are removed");
        assert_eq!(
            self.tables.len(),
            desired.services.len(),
            "tables of retired services are removed"
        );
        let live: BTreeMap<_, _> =
            self.backends.iter().filter(|(_, entry)| **entry != FREE).collect();
        let mut found: Vec<_> = live
            .keys()
            .map(|index| (self.identity(**index), self.backend_records[index].draining != 0))
            .collect();
        let mut wanted: Vec<_> = desired
            .backends
            .iter()
            .map(|b| ((b.name.clone(), b.v4.map_or(Address::NONE, Address::from)), b.draining))
            .collect();
        found.sort_by(|a, b| a.0.0.cmp(&b.0.0));
        wanted.sort_by(|a, b| a.0.0.cmp(&b.0.0));
        assert_eq!(found, wanted);
    }

    fn backend(&self, index: u16) -> Backend {
        self.backends.get(&index).copied().unwrap_or(FREE)
    }

    fn set_backend(&mut self, index: u16, backend: &Backend) -> Result<(), Interrupted> {
        assert!((1..=self.capacities.backends).contains(&u32::from(index)));
        let named =
            self.tables.values().flat_map(|table| &table.slots).any(|slot| slot.first == index);
        assert!(!named, "index {index} is written while a slot refers to it");
        let live = self.backend(index).epoch != 0;
        assert!(!live || *backend == FREE, "the live entry at {index} is rewritten");
        self.write(|model| _ = model.backends.insert(index, *backend))
    }

    fn backend_record(&self, index: u16) -> BackendRecord {
        self.backend_records.get(&index).copied().unwrap_or(NO_BACKEND)
    }

    fn set_backend_record(
        &mut self,
        index: u16,
        record: &BackendRecord,
    ) -> Result<(), Interrupted> {
        let before = self.backend_record(index);
        assert!(record.epoch >= before.epoch, "epochs never decrease");
        if record.epoch != before.epoch {
            assert!(before.reusable_after <= self.now, "index {index} is in quarantine");
            assert!(before.name.as_str().is_empty(), "index {index} is taken");
        }
        self.write(|model| _ = model.backend_records.insert(index, *record))
    }

    fn service_record(&self, index: u32) -> ServiceRecord {
        self.service_records.get(&index).copied().unwrap_or(NO_SERVICE)
    }

    fn set_service_record(
        &mut self,
        index: u32,
        record: &ServiceRecord,
    ) -> Result<(), Interrupted> {
        let before = self.service_record(index);
        if before.name != record.name && !record.name.as_str().is_empty() {
            assert!(before.reusable_after <= self.now, "index {index} is in quarantine");
            assert!(!self.tables.contains_key(&index), "index {index} still has a table");
        }
        self.write(|model| _ = model.service_records.insert(index, *record))
    }
}

fn destinations(desired: &Desired) -> BTreeSet<Destination> {
    let vips = || desired.services.iter().flat_map(|service| &service.vips);
    let options = |prefix: &IpNet| desired.addresses.get(prefix).copied().unwrap_or_default();
    let forwarding =
        vips().map(Vip::prefix).filter(|prefix| options(prefix).has(AddressOptions::PING_FORWARD));
    let pings = forwarding.map(|prefix| (prefix, 0, ICMP));
    vips().map(|vip| (vip.prefix(), vip.port(), vip.protocol().number())).chain(pings).collect()
}

impl MapStore for Model {
    type Error = Interrupted;

    fn vip_addresses(&self) -> Result<BTreeMap<IpNet, VipAddress>, Interrupted> {
        Ok(self.addresses.clone())
    }

    fn put_vip_addresses(&mut self, addresses: &[(IpNet, VipAddress)]) -> Result<(), Interrupted> {
        addresses.iter().try_for_each(|(address, value)| {
            assert_ne!(value.id, 0, "0 means none");
            self.write(|model| _ = model.addresses.insert(*address, *value))
        })
    }

    fn remove_vip_addresses(&mut self, addresses: &[IpNet]) -> Result<(), Interrupted> {
        addresses
            .iter()
            .try_for_each(|address| self.write(|model| _ = model.addresses.remove(address)))
    }

    fn vips(&self) -> Result<BTreeMap<VipKey, VipEntry>, Interrupted> {
        Ok(self.vips.clone())
    }

    fn put_vips(&mut self, vips: &[(VipKey, VipEntry)]) -> Result<(), Interrupted> {
        vips.iter().try_for_each(|(key, vip)| {
            assert_ne!(vip.service, 0, "0 means none");
            self.write(|model| _ = model.vips.insert(*key, *vip))
        })
    }

    fn remove_vips(&mut self, keys: &[VipKey]) -> Result<(), Interrupted> {
        keys.iter().try_for_each(|key| self.write(|model| _ = model.vips.remove(key)))
    }

    fn routes(&self) -> Result<BTreeMap<RouteKey, VipEntry>, Interrupted> {
        Ok(self.routes.clone())
    }

    fn put_routes(&mut self, routes: &[(RouteKey, VipEntry)]) -> Result<(), Interrupted> {
        routes.iter().try_for_each(|(key, vip)| {
            assert!(key.service != 0 && vip.service != 0, "0 means none");
            self.write(|model| _ = model.routes.insert(*key, *vip))
        })
    }

    fn remove_routes(&mut self, keys: &[RouteKey]) -> Result<(), Interrupted> {
        keys.iter().try_for_each(|key| self.write(|model| _ = model.routes.remove(key)))
    }

    fn quic_lengths(&self) -> Result<Vec<QuicIdLengths>, Interrupted> {
        let of = |index| self.quic_lengths.get(&index).copied().unwrap_or(QuicIdLengths::NONE);
        Ok((0..=self.capacities.services).map(of).collect())
    }

    fn set_quic_lengths(&mut self, lengths: &[(u32, QuicIdLengths)]) -> Result<(), Interrupted> {
        lengths.iter().try_for_each(|(index, lengths)| {
            assert!((1..=self.capacities.services).contains(index));
            self.write(|model| _ = model.quic_lengths.insert(*index, *lengths))
        })
    }

    fn quic_servers(&self) -> Result<BTreeMap<QuicServerKey, Connection>, Interrupted> {
        Ok(self.quic_servers.clone())
    }

    fn put_quic_servers(
        &mut self,
        servers: &[(QuicServerKey, Connection)],
    ) -> Result<(), Interrupted> {
        servers.iter().try_for_each(|(key, server)| {
            self.write(|model| _ = model.quic_servers.insert(*key, *server))
        })
    }

    fn remove_quic_servers(&mut self, keys: &[QuicServerKey]) -> Result<(), Interrupted> {
        keys.iter().try_for_each(|key| self.write(|model| _ = model.quic_servers.remove(key)))
    }

    fn tables(&self, services: &[u32]) -> Result<BTreeMap<u32, ServiceTable>, Interrupted> {
        let has = |service: &u32| Some((*service, self.tables.get(service)?.clone()));
        Ok(services.iter().filter_map(has).collect())
    }

    /// A batch is not atomic: each replacement is a write of its own.
    fn replace_tables(&mut self, tables: &[(u32, &ServiceTable)]) -> Result<(), Interrupted> {
        for (service, table) in tables {
            assert!((1..=self.capacities.services).contains(service));
            if let Some(old) = self.tables.get(service) {
                assert_eq!(
                    table.generation,
                    old.generation.wrapping_add(1),
                    "generations count up"
                );
                for (before, after) in old.slots.iter().zip(&table.slots) {
                    if self.identity(before.first) == self.identity(after.first) {
                        assert_eq!(before, after, "a slot of an untouched backend moved");
                    }
                }
            }
            self.write(|model| _ = model.tables.insert(*service, (*table).clone()))?;
        }
        Ok(())
    }

    fn remove_table(&mut self, service: u32) -> Result<(), Interrupted> {
        assert!(
            !self.vips.values().any(|used| used.service == service),
            "a VIP refers to the removed table"
        );
        assert!(
            !self.routes.values().any(|to| to.service == service),
            "a route refers to the removed table"
        );
        assert!(
            !self.routes.keys().any(|key| key.service == service),
            "the removed service has routes"
        );
        assert!(
            !self.quic_servers.keys().any(|key| key.service == service),
            "the removed service has server IDs"
        );
        self.write(|model| _ = model.tables.remove(&service))
    }

    fn remove_acl(&mut self, index: u32) -> Result<(), Interrupted> {
        assert!(
            !self.vips.values().any(|used| used.service == index),
            "a VIP refers to the removed source ACL"
        );
        self.write(|_| ())
    }

    fn backends(&self) -> Result<Vec<Backend>, Interrupted> {
        Ok((0..=self.capacities.backends as u16).map(|index| self.backend(index)).collect())
    }

    fn set_backends(&mut self, backends: &[(u16, Backend)]) -> Result<(), Interrupted> {
        backends.iter().try_for_each(|(index, backend)| self.set_backend(*index, backend))
    }

    fn set_next_hops(&mut self, next_hops: &[(u32, NextHop)]) -> Result<(), Interrupted> {
        next_hops.iter().try_for_each(|(index, next_hop)| {
            self.write(|model| _ = model.next_hops.insert(*index, *next_hop))
        })
    }

    fn backend_records(&self) -> Result<Vec<BackendRecord>, Interrupted> {
        Ok((0..=self.capacities.backends as u16).map(|index| self.backend_record(index)).collect())
    }

    fn set_backend_records(&mut self, records: &[(u16, BackendRecord)]) -> Result<(), Interrupted> {
        records.iter().try_for_each(|(index, record)| self.set_backend_record(*index, record))
    }

    fn service_records(&self) -> Result<Vec<ServiceRecord>, Interrupted> {
        Ok((0..=self.capacities.services).map(|index| self.service_record(index)).collect())
    }

    fn set_service_records(&mut self, records: &[(u32, ServiceRecord)]) -> Result<(), Interrupted> {
        records.iter().try_for_each(|(index, record)| self.set_service_record(*index, record))
    }

    fn reset_service_counters(&mut self, indexes: &[u32]) -> Result<(), Interrupted> {
        indexes.iter().try_for_each(|index| {
            let free = self.service_record(*index).name.as_str().is_empty();
            assert!(free, "counters of a service in use are reset");
            self.write(|_| {})
        })
    }

    fn reset_backend_counters(&mut self, indexes: &[u16]) -> Result<(), Interrupted> {
        indexes.iter().try_for_each(|index| {
            let free = self.backend_record(*index).name.as_str().is_empty();
            assert!(free, "counters of a backend in use are reset");
            self.write(|_| {})
        })
    }

    fn capacities(&self) -> Capacities {
        self.capacities
    }
}
