//! A model of the maps that checks after each write that packets find consistent entries.

use std::any::Any;

use sluice_datapath::abi::maps::balancer::{
    BACKEND_RECORDS, BACKENDS, NEXT_HOPS, QUIC_ID_LENGTHS, QUIC_SERVERS, ROUTES, SERVICE_RECORDS,
    VIP_ADDRESSES, VIPS,
};
use sluice_datapath::abi::maps::{Counting, Indexed, Keyed, MapSize, MapType};
use sluice_datapath::abi::*;

use super::*;
use crate::apply::{self, BalancerMap, MapStore};

const FREE: Backend = Backend { v4: Address::NONE, v6: Address::NONE, epoch: 0 };

/// The destination of a packet: address, port and protocol number.
type Destination = (IpNet, u16, u8);

/// The daemon died before a write.
#[derive(Debug)]
pub(super) struct Interrupted;

/// The maps, and the conditions during the change to one desired state.
pub(super) struct Model {
    capacities: Capacities,
    /// Each map of the list as a `BTreeMap` of its keys and values. In that of an array are the
    /// elements that were written.
    maps: Vec<Box<dyn Any>>,
    tables: BTreeMap<u32, ServiceTable>,
    /// The time in nanoseconds since boot.
    pub(super) now: u64,
    /// The number of writes before the daemon dies; `None` if it does not.
    pub(super) writes_left: Option<usize>,
    /// Destinations of the state before and of the desired state, which must not have a gap.
    kept: BTreeSet<Destination>,
    /// Destinations that may be found during the change.
    allowed: BTreeSet<Destination>,
}

/// Returns an empty `BTreeMap` for each map of a list.
macro_rules! empty_maps {
    ($(
        $(#[doc = $doc:literal])+
        $field:ident $name:ident: $kind:ident<$($type:ty),+>,
        $size:ident $(($($argument:expr),+))?, $writer:ident $(, $unpinned:ident)?;
    )+) => {
        fn empty_maps() -> Vec<Box<dyn Any>> {
            vec![$(Box::new(BTreeMap::<
                <sluice_datapath::abi::maps::$kind<$($type),+> as MapType>::Key,
                <sluice_datapath::abi::maps::$kind<$($type),+> as MapType>::Value,
            >::new())),+]
        }
    };
}

sluice_datapath::balancer_maps!(empty_maps);

impl Model {
    pub(super) fn new(capacities: Capacities) -> Self {
        Self {
            capacities,
            maps: empty_maps(),
            tables: BTreeMap::new(),
            now: 1,
            writes_left: None,
            kept: BTreeSet::new(),
            allowed: BTreeSet::new(),
        }
    }

    pub(super) fn plan(&self, desired: &Desired) -> Result<Vec<Step>, PlanError> {
        plan(&apply::have(self).unwrap(), desired, self.capacities, self.now)
    }

    /// The content of a map.
    fn map<T: MapType<Key: 'static, Value: 'static>>(
        &self,
        map: BalancerMap<T>,
    ) -> &BTreeMap<T::Key, T::Value> {
        self.maps[map.index()].downcast_ref().expect("the list has the types of the map")
    }

    fn map_mut<T: MapType<Key: 'static, Value: 'static>>(
        &mut self,
        map: BalancerMap<T>,
    ) -> &mut BTreeMap<T::Key, T::Value> {
        self.maps[map.index()].downcast_mut().expect("the list has the types of the map")
    }

    /// An element of an array.
    fn element<T: Indexed>(&self, map: BalancerMap<T>, index: impl Into<u32>) -> T::Value {
        self.map(map).get(&index.into()).copied().unwrap_or_else(Pod::zeroed)
    }

    fn addresses(&self) -> BTreeMap<IpNet, VipAddress> {
        apply::vip_addresses(self).unwrap()
    }

    /// The entry of a VIP.
    pub(super) fn vip(&self, key: &VipKey) -> Option<ServiceRef> {
        self.map(VIPS).get(key).copied()
    }

    /// The entry of a VIP address.
    pub(super) fn address(&self, prefix: IpNet) -> Option<VipAddress> {
        self.addresses().get(&prefix).copied()
    }

    /// Writes the entry of a VIP address without a plan and without checks.
    pub(super) fn overwrite_address(&mut self, prefix: IpNet, entry: VipAddress) {
        self.map_mut(VIP_ADDRESSES).insert(prefix.addr().into(), entry);
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
        let addresses = self.addresses();
        let vips = self.map(VIPS).keys().flat_map(|key| {
            let addresses = addresses.iter().filter(|(_, has)| has.id == key.address);
            addresses.map(|(address, _)| (*address, key.port.number(), key.protocol))
        });
        vips.collect()
    }

    /// Performs one write and checks the result, unless the daemon died before it.
    fn write_once(&mut self, write: impl FnOnce(&mut Self)) -> Result<(), Interrupted> {
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
        let addresses = self.addresses();
        assert!(addresses.values().all(|has| has.id != 0), "0 means none");
        assert!(self.map(VIPS).values().all(|vip| vip.index != 0), "0 means none");
        let routes = self.map(ROUTES);
        assert!(routes.iter().all(|(key, to)| key.service != 0 && to.index != 0), "0 means none");
        let mut numbers: Vec<_> = addresses.values().map(|has| has.id).collect();
        numbers.sort();
        numbers.dedup();
        assert_eq!(numbers.len(), addresses.len(), "two addresses share a number: {addresses:?}");
        for (prefix, has) in addresses.iter().filter(|(_, has)| has.cached_key().is_some()) {
            let key = has.cached_key().expect("the filter keeps entries with a cached VIP");
            assert_eq!(
                self.map(VIPS).get(&key).copied(),
                has.cached.service(),
                "the cached VIP of {prefix} differs from {key:?}"
            );
        }
        let live: BTreeSet<u32> = addresses.values().map(|has| has.id).collect();
        let vips = self
            .map(VIPS)
            .iter()
            .filter(|(key, _)| live.contains(&key.address))
            .map(|(_, vip)| vip);
        for vip in vips.chain(routes.values()) {
            let table =
                self.tables.get(&vip.index).unwrap_or_else(|| panic!("{vip:?} has no table"));
            assert!(!table.slots.is_empty() && table.slots.len() == table.head.slots as usize);
            for slot in &table.slots {
                let entry = self.element(BACKENDS, slot.backend);
                let record = self.element(BACKEND_RECORDS, slot.backend);
                assert!(entry.epoch != 0, "a slot refers to index {}, which is free", slot.backend);
                assert_eq!(entry.epoch, record.epoch, "epochs of index {} differ", slot.backend);
                assert!(
                    !record.name.as_str().is_empty(),
                    "index {} is in use without a name",
                    slot.backend
                );
                assert!(
                    self.map(NEXT_HOPS)
                        .contains_key(&NextHop::index(slot.backend, sluice_datapath::Family::V4))
                );
            }
        }
        // A server ID refers to the backend that it was written for.
        for (key, server) in self.map(QUIC_SERVERS) {
            let entry = self.element(BACKENDS, server.backend);
            assert_eq!(entry.epoch, server.epoch, "{key:?} refers to a removed backend");
        }
        assert!(self.map(QUIC_SERVERS).len() <= 2 * (self.capacities.backends as usize + 1));
        assert!(self.map(VIPS).len() <= self.capacities.vips as usize);
        assert!(addresses.len() <= self.capacities.vips as usize);
    }

    /// The name and IPv4 address of the backend at an index.
    fn identity(&self, index: u16) -> (String, Address) {
        let name = self.element(BACKEND_RECORDS, index).name;
        (name.as_str().to_owned(), self.element(BACKENDS, index).v4)
    }

    /// Checks that the maps hold exactly `desired`.
    pub(super) fn check_reached(&self, desired: &Desired) {
        assert_eq!(self.plan(desired), Ok(vec![]), "no step is left");
        assert_eq!(self.found(), destinations(desired));
        assert_eq!(self.map(VIPS).len(), destinations(desired).len());
        let wanted: BTreeSet<_> =
            destinations(desired).into_iter().map(|(address, _, _)| address).collect();
        let addresses = self.addresses();
        assert_eq!(addresses.keys().copied().collect::<BTreeSet<_>>(), wanted);
        for service in &desired.services {
            let records = self
                .map(SERVICE_RECORDS)
                .iter()
                .filter(|(_, record)| record.name.as_str() == service.name);
            let [(index, _)] = records.collect::<Vec<_>>()[..] else {
                panic!("{} does not occur exactly once", service.name)
            };
            let table = &self.tables[index];
            let owners: Vec<_> =
                table.slots.iter().map(|slot| self.identity(slot.backend)).collect();
            let wanted = service.owners.iter().map(|owner| {
                let backend = &desired.backends[*owner];
                (backend.name.clone(), backend.v4.map_or(Address::NONE, Address::from))
            });
            assert_eq!(owners, wanted.collect::<Vec<_>>());
            assert_eq!((table.head.tracked, table.digest), (service.tracked, service.digest));
            for vip in &service.vips {
                let key = VipKey::new(
                    addresses[&vip.prefix()].id,
                    Port::new(vip.port()),
                    vip.protocol().number(),
                );
                let entry = ServiceRef { index: *index, options: service.options };
                assert_eq!(self.map(VIPS)[&key], entry, "{vip} refers to its service");
            }
            let routes = self.map(ROUTES).iter().filter(|(key, _)| key.service == *index);
            let routes: Vec<_> = routes
                .map(|(key, to)| {
                    (key.clients(), self.element(SERVICE_RECORDS, to.index).name, to.options)
                })
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
                let server =
                    self.map(QUIC_SERVERS)[&QuicServerKey::new(*index, *rotation, id).unwrap()];
                assert_eq!(self.identity(server.backend as u16).0, desired.backends[*backend].name);
                lengths = lengths.with(*rotation, id.len() as u8);
            }
            assert_eq!(self.element(QUIC_ID_LENGTHS, *index), lengths);
            for vip in service.vips.iter().filter(|vip| vip.port() != 0) {
                assert!(
                    addresses[&vip.prefix()].cached_key().is_some(),
                    "{vip} has an address without a cached VIP"
                );
            }
        }
        let routes: usize = desired.services.iter().map(|service| service.routes.len()).sum();
        assert_eq!(self.map(ROUTES).len(), routes, "routes of retired services are removed");
        let ids: usize = desired.services.iter().map(|service| service.server_ids.len()).sum();
        assert_eq!(self.map(QUIC_SERVERS).len(), ids, "server IDs of retired services are removed");
        assert_eq!(
            self.tables.len(),
            desired.services.len(),
            "tables of retired services are removed"
        );
        let live: BTreeMap<_, _> =
            self.map(BACKENDS).iter().filter(|(_, entry)| **entry != FREE).collect();
        let mut found: Vec<_> = live
            .keys()
            .map(|index| {
                let record = self.element(BACKEND_RECORDS, **index);
                (self.identity(**index as u16), record.draining != 0)
            })
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

    /// Checks a write to `BACKENDS`.
    fn check_backend(&self, index: u32, backend: &Backend) {
        let mut slots = self.tables.values().flat_map(|table| &table.slots);
        assert!(
            !slots.any(|slot| u32::from(slot.backend) == index),
            "index {index} is written while a slot refers to it"
        );
        let live = self.element(BACKENDS, index).epoch != 0;
        assert!(!live || *backend == FREE, "the live entry at {index} is rewritten");
    }

    /// Checks a write to `BACKEND_RECORDS`.
    fn check_backend_record(&self, index: u32, record: &BackendRecord) {
        let before = self.element(BACKEND_RECORDS, index);
        assert!(record.epoch >= before.epoch, "epochs never decrease");
        if record.epoch != before.epoch {
            assert!(before.reusable_after <= self.now, "index {index} is in quarantine");
            assert!(before.name.as_str().is_empty(), "index {index} is taken");
        }
    }

    /// Checks a write to `SERVICE_RECORDS`.
    fn check_service_record(&self, index: u32, record: &ServiceRecord) {
        let before = self.element(SERVICE_RECORDS, index);
        if before.name != record.name && !record.name.as_str().is_empty() {
            assert!(before.reusable_after <= self.now, "index {index} is in quarantine");
            assert!(!self.tables.contains_key(&index), "index {index} still has a table");
        }
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

    fn entries<T: Keyed>(
        &self,
        map: BalancerMap<T>,
    ) -> Result<BTreeMap<T::Key, T::Value>, Interrupted> {
        Ok(self.map(map).clone())
    }

    fn put<T: Keyed>(
        &mut self,
        map: BalancerMap<T>,
        entries: &[(T::Key, T::Value)],
    ) -> Result<(), Interrupted> {
        entries.iter().try_for_each(|(key, value)| {
            self.write_once(|model| _ = model.map_mut(map).insert(*key, *value))
        })
    }

    fn remove<T: Keyed>(
        &mut self,
        map: BalancerMap<T>,
        keys: &[T::Key],
    ) -> Result<(), Interrupted> {
        keys.iter().try_for_each(|key| self.write_once(|model| _ = model.map_mut(map).remove(key)))
    }

    fn elements<T: Indexed>(&self, map: BalancerMap<T>) -> Result<Vec<T::Value>, Interrupted> {
        let entries = map.spec().size.entries(|limit| self.capacities.get(limit)).unwrap();
        Ok((0..entries).map(|index| self.element(map, index)).collect())
    }

    fn write<T: Indexed>(
        &mut self,
        map: BalancerMap<T>,
        elements: &[(u32, T::Value)],
    ) -> Result<(), Interrupted> {
        let MapSize::Indexed(limit, each) = map.spec().size else { panic!("a size by a limit") };
        let indexes = each..(self.capacities.get(limit) + 1) * each;
        elements.iter().try_for_each(|(index, element)| {
            assert!(indexes.contains(index), "0 means none, and the map has an end");
            let value: &dyn Any = element;
            if let Some(backend) = value.downcast_ref() {
                self.check_backend(*index, backend);
            } else if let Some(record) = value.downcast_ref() {
                self.check_backend_record(*index, record);
            } else if let Some(record) = value.downcast_ref() {
                self.check_service_record(*index, record);
            }
            self.write_once(|model| _ = model.map_mut(map).insert(*index, *element))
        })
    }

    fn reset<T: Counting>(
        &mut self,
        map: BalancerMap<T>,
        indexes: &[u32],
    ) -> Result<(), Interrupted> {
        indexes.iter().try_for_each(|index| {
            let name = match map.spec().name {
                "SERVICE_COUNTERS" => self.element(SERVICE_RECORDS, *index).name,
                _ => self.element(BACKEND_RECORDS, *index).name,
            };
            assert!(name.as_str().is_empty(), "counters of an index in use are reset");
            self.write_once(|_| {})
        })
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
                    if self.identity(before.backend) == self.identity(after.backend) {
                        assert_eq!(before, after, "a slot of an untouched backend moved");
                    }
                }
            }
            self.write_once(|model| _ = model.tables.insert(*service, (*table).clone()))?;
        }
        Ok(())
    }

    fn remove_table(&mut self, service: u32) -> Result<(), Interrupted> {
        assert!(
            !self.map(VIPS).values().any(|used| used.index == service),
            "a VIP refers to the removed table"
        );
        assert!(
            !self.map(ROUTES).values().any(|to| to.index == service),
            "a route refers to the removed table"
        );
        assert!(
            !self.map(ROUTES).keys().any(|key| key.service == service),
            "the removed service has routes"
        );
        assert!(
            !self.map(QUIC_SERVERS).keys().any(|key| key.service == service),
            "the removed service has server IDs"
        );
        self.write_once(|model| _ = model.tables.remove(&service))
    }

    fn remove_acl(&mut self, service: u32) -> Result<(), Interrupted> {
        assert!(
            !self.map(VIPS).values().any(|used| used.index == service),
            "a VIP refers to the removed source ACL"
        );
        self.write_once(|_| ())
    }

    fn capacities(&self) -> Capacities {
        self.capacities
    }
}
