//! The maps of the balancer's program.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::AsFd as _;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, ArrayOfMaps, HashMap, IterableMap as _, Map, MapData, MapError, PerCpuArray, PerCpuValues};
use ipnet::IpNet;
use sluice_datapath::entries::{
    Backend, BackendCounters, NextHop, PrefixKey, ServiceCounters, Slot, TableHead, Vip, VipAddress, VipKey,
};
use sluice_datapath::rates::Rate;
use sluice_datapath::records::{BackendRecord, InstanceRecord, ServiceRecord};
use sluice_datapath::{Address, Plain, Reason};

use super::batch::{Memory, delete, has_inner_map, put_inner_maps};
use super::{Error, Pins, Raw, Trie};

/// The names of the maps.
pub(super) const MAPS: [&str; 18] = [
    "VIP_ADDRESSES",
    "VIP_PREFIXES",
    "VIPS",
    "LISTS",
    "TABLES",
    "BACKENDS",
    "NEXT_HOPS",
    "CONNECTIONS",
    "RATES",
    "BUCKETS",
    "SOURCES",
    "FRAGMENTS",
    "SERVICE_COUNTERS",
    "BACKEND_COUNTERS",
    "REASONS",
    "BACKEND_RECORDS",
    "SERVICE_RECORDS",
    "INSTANCE",
];

/// `BPF_F_MMAPABLE` and `BPF_F_INNER_MAP`, as the program's prototype of a table has them.
pub(super) const TABLE_FLAGS: u32 = 1 << 10 | 1 << 12;

/// How much the maps can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacities {
    /// Services.
    pub services: u32,
    /// Backends, at most 65,535.
    pub backends: u32,
    /// VIPs, and VIP addresses.
    pub vips: u32,
    /// Entries of the connection table.
    pub connections: u32,
}

/// A lookup table as it is in its inner map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Number of slots, and whether flows are tracked.
    pub head: TableHead,
    /// Counts up with every table of the service.
    pub generation: u32,
    /// Digest of the owners' names, slot by slot: equal on balancers that agree.
    pub digest: u64,
    /// The slots.
    pub slots: Vec<Slot>,
}

impl Table {
    /// The elements of the inner map: two words each.
    fn elements(&self) -> Vec<u64> {
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let mut elements = Vec::with_capacity(self.slots.len() / 2 + 3);
        elements.push(pair(self.head.to_word(), self.generation));
        elements.push(self.digest);
        elements.extend(
            self.slots.chunks(2).map(|two| pair(two[0].to_word(), two.get(1).map_or(0, |slot| slot.to_word()))),
        );
        elements
    }

    fn from_elements(elements: &[u64]) -> Option<Self> {
        let [first, digest, slots @ ..] = elements else { return None };
        let head = TableHead::from_word(*first as u32);
        let slots: Vec<Slot> = slots
            .iter()
            .flat_map(|pair| [*pair as u32, (pair >> 32) as u32])
            .take(head.slots as usize)
            .map(Slot::from_word)
            .collect();
        (slots.len() == head.slots as usize).then_some(Self {
            head,
            generation: (first >> 32) as u32,
            digest: *digest,
            slots,
        })
    }
}

/// The maps of the balancer's program, opened from their pins.
pub struct BalancerMaps {
    vip_addresses: HashMap<MapData, Raw<Address>, Raw<VipAddress>>,
    vip_prefixes: LpmTrie<MapData, [u32; 4], Raw<VipAddress>>,
    vips: HashMap<MapData, Raw<VipKey>, Raw<Vip>>,
    lists: MapData,
    tables: ArrayOfMaps<MapData, Array<MapData, u64>>,
    tables_fd: MapData,
    backends: Array<MapData, Raw<Backend>>,
    next_hops: Array<MapData, Raw<NextHop>>,
    rates: Array<MapData, Raw<Rate>>,
    service_counters: PerCpuArray<MapData, Raw<ServiceCounters>>,
    backend_counters: PerCpuArray<MapData, Raw<BackendCounters>>,
    reasons: PerCpuArray<MapData, u64>,
    backend_records: Array<MapData, Raw<BackendRecord>>,
    service_records: Array<MapData, Raw<ServiceRecord>>,
    instance: Array<MapData, Raw<InstanceRecord>>,
    capacities: Capacities,
}

impl BalancerMaps {
    /// Opens the maps of an instance.
    ///
    /// # Errors
    ///
    /// [`Error::Absent`], [`Error::Open`], [`Error::Shape`].
    pub fn open(pins: &Pins) -> Result<Self, Error> {
        pins.require()?;
        let entries = |name: &'static str| -> Result<u32, Error> {
            let path = pins.map(name);
            let info = aya::maps::MapInfo::from_pin(&path).map_err(|source| Error::Open { path, source })?;
            Ok(info.max_entries())
        };
        let capacities = Capacities {
            services: entries("TABLES")?.min(entries("SERVICE_COUNTERS")?).min(entries("SERVICE_RECORDS")?) - 1,
            backends: (entries("BACKENDS")?.min(entries("NEXT_HOPS")? / 2))
                .min(entries("BACKEND_COUNTERS")?)
                .min(entries("BACKEND_RECORDS")?)
                - 1,
            vips: entries("VIPS")?.min(entries("VIP_ADDRESSES")?),
            connections: entries("CONNECTIONS")?,
        };
        Ok(Self {
            vip_addresses: open(pins, "VIP_ADDRESSES", Map::HashMap)?,
            vip_prefixes: open(pins, "VIP_PREFIXES", Map::LpmTrie)?,
            vips: open(pins, "VIPS", Map::HashMap)?,
            lists: data(pins, "LISTS")?,
            tables: open(pins, "TABLES", Map::ArrayOfMaps)?,
            tables_fd: data(pins, "TABLES")?,
            backends: open(pins, "BACKENDS", Map::Array)?,
            next_hops: open(pins, "NEXT_HOPS", Map::Array)?,
            rates: open(pins, "RATES", Map::Array)?,
            service_counters: open(pins, "SERVICE_COUNTERS", Map::PerCpuArray)?,
            backend_counters: open(pins, "BACKEND_COUNTERS", Map::PerCpuArray)?,
            reasons: open(pins, "REASONS", Map::PerCpuArray)?,
            backend_records: open(pins, "BACKEND_RECORDS", Map::Array)?,
            service_records: open(pins, "SERVICE_RECORDS", Map::Array)?,
            instance: open(pins, "INSTANCE", Map::Array)?,
            capacities,
        })
    }

    /// How much the maps can hold.
    pub fn capacities(&self) -> Capacities {
        self.capacities
    }

    /// What was applied last.
    ///
    /// # Errors
    ///
    /// [`Error::Read`].
    pub fn instance(&self) -> Result<InstanceRecord, Error> {
        at(&self.instance, "INSTANCE", 0)
    }

    /// Writes down what is applied.
    ///
    /// # Errors
    ///
    /// [`Error::Write`].
    pub fn set_instance(&mut self, record: &InstanceRecord) -> Result<(), Error> {
        set(&mut self.instance, "INSTANCE", 0, *record)
    }

    /// VIP addresses and their numbers.
    ///
    /// # Errors
    ///
    /// [`Error::Read`].
    pub fn vip_addresses(&self) -> Result<BTreeMap<IpNet, VipAddress>, Error> {
        let single = self.vip_addresses.iter().map(|entry| entry.map(|(Raw(a), Raw(v))| (IpAddr::from(a).into(), v)));
        let mut all: BTreeMap<_, _> =
            single.collect::<Result<_, _>>().map_err(|source| Error::Read { map: "VIP_ADDRESSES", source })?;
        for entry in self.vip_prefixes.iter() {
            let (key, Raw(value)) = entry.map_err(|source| Error::Read { map: "VIP_PREFIXES", source })?;
            all.insert(prefix_of(&key), value);
        }
        Ok(all)
    }

    /// Adds a VIP address, or changes its number.
    ///
    /// # Errors
    ///
    /// [`Error::Write`].
    pub fn put_vip_address(&mut self, prefix: IpNet, value: VipAddress) -> Result<(), Error> {
        if is_single(prefix) {
            let written = self.vip_addresses.insert(Raw(Address::from(prefix.addr())), Raw(value), 0);
            written.map_err(|source| Error::Write { map: "VIP_ADDRESSES", source })
        } else {
            let written = self.vip_prefixes.insert(&key_of(prefix), Raw(value), 0);
            written.map_err(|source| Error::Write { map: "VIP_PREFIXES", source })
        }
    }

    /// Removes a VIP address, if it is there.
    ///
    /// # Errors
    ///
    /// [`Error::Write`].
    pub fn remove_vip_address(&mut self, prefix: IpNet) -> Result<(), Error> {
        if is_single(prefix) {
            absent_is_fine(self.vip_addresses.remove(&Raw(Address::from(prefix.addr()))))
                .map_err(|source| Error::Write { map: "VIP_ADDRESSES", source })
        } else {
            absent_is_fine(self.vip_prefixes.remove(&key_of(prefix)))
                .map_err(|source| Error::Write { map: "VIP_PREFIXES", source })
        }
    }

    /// VIPs and their services.
    ///
    /// # Errors
    ///
    /// [`Error::Read`].
    pub fn vips(&self) -> Result<BTreeMap<VipKey, Vip>, Error> {
        let entries = self.vips.iter().map(|entry| entry.map(|(Raw(key), Raw(vip))| (key, vip)));
        entries.collect::<Result<_, _>>().map_err(|source| Error::Read { map: "VIPS", source })
    }

    /// Adds a VIP, or moves it to another service.
    ///
    /// # Errors
    ///
    /// [`Error::Write`].
    pub fn put_vip(&mut self, key: VipKey, vip: Vip) -> Result<(), Error> {
        self.vips.insert(Raw(key), Raw(vip), 0).map_err(|source| Error::Write { map: "VIPS", source })
    }

    /// Removes a VIP, if it is there.
    ///
    /// # Errors
    ///
    /// [`Error::Write`].
    pub fn remove_vip(&mut self, key: VipKey) -> Result<(), Error> {
        absent_is_fine(self.vips.remove(&Raw(key))).map_err(|source| Error::Write { map: "VIPS", source })
    }

    /// Swaps lists of sources in, all in one batch: each packet meets a list as it was, or as it is, whole.
    ///
    /// The index is a service's, or `Listing::OF_ALL`.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn put_lists(&mut self, lists: &[(u32, &Trie)]) -> Result<(), Error> {
        let entries: Vec<_> = lists.iter().map(|(index, trie)| (*index, trie.descriptor())).collect();
        if entries.is_empty() { Ok(()) } else { put_inner_maps(self.lists.fd().as_fd(), "list", &entries) }
    }

    /// Whether there is a list of sources at an index.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn has_list(&self, index: u32) -> Result<bool, Error> {
        has_inner_map(self.lists.fd().as_fd(), index)
            .map_err(|source| Error::System { what: format!("look for list {index}"), source })
    }

    /// Removes the list of sources at an index that no packet is to meet any more, if there is one.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn remove_list(&mut self, index: u32) -> Result<(), Error> {
        delete(self.lists.fd().as_fd(), "list", index)
    }

    /// The lookup table of a service, if it has one.
    ///
    /// # Errors
    ///
    /// [`Error::Read`], [`Error::System`].
    pub fn table(&self, service: u32) -> Result<Option<Table>, Error> {
        let inner = match self.tables.get(&service, 0) {
            Ok(inner) => inner,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(source) => return Err(Error::Read { map: "TABLES", source }),
        };
        let length = inner.len();
        let data = inner_data(&inner);
        let memory = Memory::map(data, length, false)?;
        Ok(Table::from_elements(&memory.read()))
    }

    /// Builds new inner maps, fills them whole, and swaps them in, all in one batch: no packet sees half a table.
    ///
    /// # Errors
    ///
    /// [`Error::System`], [`Error::Write`].
    pub fn replace_tables(&mut self, tables: &[(u32, &Table)]) -> Result<(), Error> {
        let mut inner = Vec::with_capacity(tables.len());
        for (service, table) in tables {
            let elements = table.elements();
            let length = elements.len() as u32;
            let map = Array::<MapData, u64>::create(length, TABLE_FLAGS)
                .map_err(|source| Error::Write { map: "TABLES", source })?;
            Memory::map(inner_data(&map), length, true)?.fill(&elements);
            inner.push((*service, map));
        }
        let entries: Vec<_> = inner.iter().map(|(service, map)| (*service, inner_data(map))).collect();
        if entries.is_empty() { Ok(()) } else { put_inner_maps(self.tables_fd.fd().as_fd(), "lookup table", &entries) }
    }

    /// Removes the lookup table of a service that no VIP leads to, if it has one.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn remove_table(&mut self, service: u32) -> Result<(), Error> {
        delete(self.tables_fd.fd().as_fd(), "lookup table", service)
    }

    /// The rate at a [`Rate::index`].
    ///
    /// # Errors
    ///
    /// [`Error::Read`].
    pub fn rate(&self, index: u32) -> Result<Rate, Error> {
        at(&self.rates, "RATES", index)
    }

    /// Changes a rate under traffic.
    ///
    /// # Errors
    ///
    /// [`Error::Write`].
    pub fn set_rate(&mut self, index: u32, rate: Rate) -> Result<(), Error> {
        set(&mut self.rates, "RATES", index, rate)
    }

    /// The backend at an index.
    ///
    /// # Errors
    ///
    /// [`Error::Read`].
    pub fn backend(&self, index: u16) -> Result<Backend, Error> {
        at(&self.backends, "BACKENDS", u32::from(index))
    }

    /// Writes the backend at an index that no slot refers to.
    ///
    /// # Errors
    ///
    /// [`Error::Write`].
    pub fn set_backend(&mut self, index: u16, backend: &Backend) -> Result<(), Error> {
        set(&mut self.backends, "BACKENDS", u32::from(index), *backend)
    }

    /// The next hop at a [`NextHop::index`].
    ///
    /// # Errors
    ///
    /// [`Error::Read`].
    pub fn next_hop(&self, index: u32) -> Result<NextHop, Error> {
        at(&self.next_hops, "NEXT_HOPS", index)
    }

    /// Changes a next hop under traffic.
    ///
    /// # Errors
    ///
    /// [`Error::Write`].
    pub fn set_next_hop(&mut self, index: u32, next_hop: NextHop) -> Result<(), Error> {
        set(&mut self.next_hops, "NEXT_HOPS", index, next_hop)
    }

    /// The record of the backend at an index.
    ///
    /// # Errors
    ///
    /// [`Error::Read`].
    pub fn backend_record(&self, index: u16) -> Result<BackendRecord, Error> {
        at(&self.backend_records, "BACKEND_RECORDS", u32::from(index))
    }

    /// Writes the record of the backend at an index.
    ///
    /// # Errors
    ///
    /// [`Error::Write`].
    pub fn set_backend_record(&mut self, index: u16, record: &BackendRecord) -> Result<(), Error> {
        set(&mut self.backend_records, "BACKEND_RECORDS", u32::from(index), *record)
    }

    /// The record of the service at an index.
    ///
    /// # Errors
    ///
    /// [`Error::Read`].
    pub fn service_record(&self, index: u32) -> Result<ServiceRecord, Error> {
        at(&self.service_records, "SERVICE_RECORDS", index)
    }

    /// Writes the record of the service at an index.
    ///
    /// # Errors
    ///
    /// [`Error::Write`].
    pub fn set_service_record(&mut self, index: u32, record: &ServiceRecord) -> Result<(), Error> {
        set(&mut self.service_records, "SERVICE_RECORDS", index, *record)
    }

    /// What a service forwarded, over all CPUs.
    ///
    /// # Errors
    ///
    /// [`Error::Read`].
    pub fn service_counters(&self, index: u32) -> Result<ServiceCounters, Error> {
        let values =
            self.service_counters.get(&index, 0).map_err(|source| Error::Read { map: "SERVICE_COUNTERS", source })?;
        Ok(values.iter().fold(ServiceCounters::default(), |total, Raw(cpu)| ServiceCounters {
            packets: total.packets.wrapping_add(cpu.packets),
            bytes: total.bytes.wrapping_add(cpu.bytes),
            new_flows: total.new_flows.wrapping_add(cpu.new_flows),
        }))
    }

    /// What was forwarded to a backend, over all CPUs.
    ///
    /// # Errors
    ///
    /// [`Error::Read`].
    pub fn backend_counters(&self, index: u16) -> Result<BackendCounters, Error> {
        let values = self
            .backend_counters
            .get(&u32::from(index), 0)
            .map_err(|source| Error::Read { map: "BACKEND_COUNTERS", source })?;
        Ok(values.iter().fold(BackendCounters::default(), |total, Raw(cpu)| BackendCounters {
            packets: total.packets.wrapping_add(cpu.packets),
            bytes: total.bytes.wrapping_add(cpu.bytes),
        }))
    }

    /// Sets the counters of a service's index to zero, before the index gets a new service.
    ///
    /// # Errors
    ///
    /// [`Error::Write`].
    pub fn reset_service_counters(&mut self, index: u32) -> Result<(), Error> {
        reset(&mut self.service_counters, "SERVICE_COUNTERS", index)
    }

    /// Sets the counters of a backend's index to zero, before the index gets a new backend.
    ///
    /// # Errors
    ///
    /// [`Error::Write`].
    pub fn reset_backend_counters(&mut self, index: u16) -> Result<(), Error> {
        reset(&mut self.backend_counters, "BACKEND_COUNTERS", u32::from(index))
    }

    /// How many packets were not forwarded, by reason; only reasons that occurred.
    ///
    /// # Errors
    ///
    /// [`Error::Read`].
    pub fn reasons(&self) -> Result<Vec<(Reason, u64)>, Error> {
        sum(&self.reasons)
    }
}

fn data(pins: &Pins, name: &'static str) -> Result<MapData, Error> {
    let path = pins.map(name);
    MapData::from_pin(&path).map_err(|source| Error::Open { path, source })
}

/// Opens a pinned map as the type that it should have.
pub(super) fn open<T>(pins: &Pins, name: &'static str, variant: impl Fn(MapData) -> Map) -> Result<T, Error>
where
    T: TryFrom<Map, Error = MapError>,
{
    variant(data(pins, name)?)
        .try_into()
        .map_err(|error: MapError| Error::Shape { path: pins.map(name), what: error.to_string() })
}

fn inner_data(map: &Array<MapData, u64>) -> std::os::fd::BorrowedFd<'_> {
    map.map().fd().as_fd()
}

fn at<T: Plain>(array: &Array<MapData, Raw<T>>, map: &'static str, index: u32) -> Result<T, Error> {
    array.get(&index, 0).map(|Raw(value)| value).map_err(|source| Error::Read { map, source })
}

fn set<T: Plain>(array: &mut Array<MapData, Raw<T>>, map: &'static str, index: u32, value: T) -> Result<(), Error> {
    array.set(index, Raw(value), 0).map_err(|source| Error::Write { map, source })
}

fn reset<T: Plain + Default>(
    array: &mut PerCpuArray<MapData, Raw<T>>,
    map: &'static str,
    index: u32,
) -> Result<(), Error> {
    let failed = |source| Error::Write { map, source };
    let cpus = array.get(&index, 0).map_err(failed)?.len();
    let zeros = PerCpuValues::try_from(vec![Raw(T::default()); cpus])
        .map_err(|source| Error::System { what: format!("reset {map}"), source })?;
    array.set(index, zeros, 0).map_err(failed)
}

/// The reasons that occurred.
pub(super) fn sum(reasons: &PerCpuArray<MapData, u64>) -> Result<Vec<(Reason, u64)>, Error> {
    let mut occurred = Vec::new();
    for reason in Reason::ALL {
        let values = reasons.get(&reason.index(), 0).map_err(|source| Error::Read { map: "REASONS", source })?;
        let count = values.iter().fold(0u64, |total, cpu| total.wrapping_add(*cpu));
        if count != 0 {
            occurred.push((*reason, count));
        }
    }
    Ok(occurred)
}

/// Whether a prefix is one address, which a hash finds faster than a trie.
fn is_single(prefix: IpNet) -> bool {
    prefix.prefix_len() == prefix.max_prefix_len()
}

fn key_of(prefix: IpNet) -> Key<[u32; 4]> {
    let key = PrefixKey::prefix(prefix.addr().into(), prefix.prefix_len().into());
    Key::new(key.length, key.words())
}

fn prefix_of(key: &Key<[u32; 4]>) -> IpNet {
    let (address, length) = PrefixKey::new(key.prefix_len(), key.data()).to_prefix();
    let address = IpAddr::from(address);
    // The daemon writes no longer prefixes than there are bits.
    IpNet::new(address, length as u8).unwrap_or(address.into())
}

fn is_absent(error: &MapError) -> bool {
    matches!(error, MapError::KeyNotFound | MapError::ElementNotFound)
        || matches!(error, MapError::SyscallError(error) if error.io_error.raw_os_error() == Some(libc::ENOENT))
}

fn absent_is_fine(outcome: Result<(), MapError>) -> Result<(), MapError> {
    match outcome {
        Err(error) if is_absent(&error) => Ok(()),
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_table_survives_the_round_trip(words in prop::collection::vec(any::<u32>(), 0..20), tracked: bool, generation: u32, digest: u64) {
            let slots: Vec<Slot> = words.into_iter().map(Slot::from_word).collect();
            let head = TableHead { slots: slots.len() as u32, tracked };
            let table = Table { head, generation, digest, slots };
            prop_assert_eq!(Table::from_elements(&table.elements()), Some(table));
        }
    }
}
