//! Snapshots of a running instance.
//!
//! A snapshot contains the names of services and backends. Each further part is read by a method.
//! Lookup tables, which are megabytes, are only copied by [`LbSnapshot::tables`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use sluice_control::apply::{self, MapStore as _};
use sluice_control::config::{Protocol, Vip};
use sluice_control::have::HaveBackend;
use sluice_control::prefix::key_prefix;
use sluice_control::step_text::unnamed;
use sluice_datapath::abi::maps::{backend, balancer};
use sluice_datapath::abi::{
    BackendCounters, ICMP, InstanceRecord, Neighbour, NextHop, PathMtuRecord, ServiceCounters,
    VipKey,
};
use sluice_datapath::{Address, Family, Reason};

use super::instance;
use crate::clock;
use crate::error::CliError;
use crate::kernel::bpf::{BackendMaps, BalancerMaps, Pins, Usage, programs_over};
use crate::kernel::routing::path_mtu::PathErrorOutcome;
use crate::lock::Lock;
use crate::role::Role;

/// An instance on this host. At least one role is present.
pub(crate) struct Snapshot {
    /// The balancer.
    pub(crate) lb: Option<LbSnapshot>,
    /// The backend.
    pub(crate) backend: Option<BackendSnapshot>,
}

impl Snapshot {
    /// Opens the maps of an instance, and reads the names. Fails if the instance is not on this
    /// host.
    pub(crate) fn read(instance: &str) -> Result<Self, CliError> {
        let (lb, backend) = instance::open(instance)?;
        let has_backend = backend.is_some() || Lock::state_exists(instance, Role::Backend);
        if lb.is_none() && !has_backend {
            return Err(instance::absent(instance));
        }
        Ok(Self {
            lb: lb.map(|maps| LbSnapshot::read(instance, maps)).transpose()?,
            backend: has_backend
                .then(|| BackendSnapshot { instance: instance.to_owned(), maps: backend }),
        })
    }
}

/// A balancer.
pub(crate) struct LbSnapshot {
    instance: String,
    maps: BalancerMaps,
    /// The names of services, by index.
    services: BTreeMap<u32, String>,
    /// The backends that are in use, by index.
    backends: BTreeMap<u16, HaveBackend>,
}

/// A service's lookup table.
pub(crate) struct TableSummary {
    /// Whether flows are kept in the connection table.
    pub(crate) tracked: bool,
    /// Incremented with every table of the service.
    pub(crate) generation: u32,
    /// Digest of the slots' owners.
    pub(crate) digest: u64,
    /// The number of slots.
    pub(crate) slots: u32,
    /// The number of slots of each backend, by name.
    pub(crate) owners: BTreeMap<String, u32>,
}

/// The paths to a backend.
#[derive(Default)]
pub(crate) struct BackendPaths {
    /// The next hops in the maps, by address of the backend. Absent without a route.
    pub(crate) next_hops: BTreeMap<IpAddr, PresentHop>,
    /// The remaining lifetime of path MTUs that are in force, by address of the backend.
    pub(crate) path_mtus: BTreeMap<IpAddr, Duration>,
}

/// A next hop that packets use.
pub(crate) struct PresentHop {
    /// The index of the egress interface.
    pub(crate) interface: u32,
    /// The MTU of the path, in bytes.
    pub(crate) mtu: u32,
    /// The gateway; `None` if the backend is on the link.
    pub(crate) gateway: Option<IpAddr>,
}

impl LbSnapshot {
    fn read(instance: &str, maps: BalancerMaps) -> Result<Self, CliError> {
        let records = maps.elements(balancer::SERVICE_RECORDS).map_err(CliError::operation)?;
        let named = (0..).zip(records).filter(|(_, record)| !record.name.as_str().is_empty());
        let services =
            named.map(|(index, record)| (index, record.name.as_str().to_owned())).collect();
        let mut backends = apply::backends(&maps).map_err(CliError::operation)?;
        backends.retain(|_, backend| backend.name.is_some());
        Ok(Self { instance: instance.to_owned(), maps, services, backends })
    }

    /// The record of the configuration that was applied last.
    pub(crate) fn record(&self) -> Result<InstanceRecord, CliError> {
        self.maps.element(balancer::INSTANCE, 0).map_err(CliError::operation)
    }

    /// The services: index and name.
    pub(crate) fn services(&self) -> impl Iterator<Item = (u32, &str)> {
        self.services.iter().map(|(index, name)| (*index, name.as_str()))
    }

    /// The backends that are in use: index, name and entry.
    pub(crate) fn backends(&self) -> impl Iterator<Item = (u16, &str, &HaveBackend)> {
        self.backends.iter().filter_map(|(index, has)| Some((*index, has.name.as_deref()?, has)))
    }

    /// The name of a service, or its index if it has none.
    pub(crate) fn service_name(&self, index: u32) -> String {
        self.services.get(&index).cloned().unwrap_or_else(|| unnamed(index))
    }

    /// The name of a backend, or its index if it has none.
    pub(crate) fn backend_name(&self, index: u16) -> String {
        let name = self.backends.get(&index).and_then(|backend| backend.name.clone());
        name.unwrap_or_else(|| unnamed(index.into()))
    }

    /// The VIPs of each service, as the configuration writes them.
    pub(crate) fn vips(&self) -> Result<BTreeMap<u32, Vec<String>>, CliError> {
        let addresses = apply::vip_addresses(&self.maps).map_err(CliError::operation)?;
        let addresses: BTreeMap<u32, IpNet> =
            addresses.into_iter().map(|(prefix, entry)| (entry.id, prefix)).collect();
        let mut vips: BTreeMap<u32, Vec<String>> = BTreeMap::new();
        for (key, entry) in self.maps.entries(balancer::VIPS).map_err(CliError::operation)? {
            if key.protocol != ICMP {
                vips.entry(entry.index).or_default().push(vip_text(&addresses, &key));
            }
        }
        Ok(vips)
    }

    /// The routes of each service: client prefix and name of the service that handles it.
    pub(crate) fn routes(&self) -> Result<BTreeMap<u32, BTreeMap<String, String>>, CliError> {
        let mut routes: BTreeMap<u32, BTreeMap<String, String>> = BTreeMap::new();
        for (key, target) in self.maps.entries(balancer::ROUTES).map_err(CliError::operation)? {
            let clients = key_prefix(key.clients()).to_string();
            let target = self.service_name(target.index);
            routes.entry(key.service).or_default().insert(clients, target);
        }
        Ok(routes)
    }

    /// The QUIC server IDs of each service, as `0:c4605e` (configuration's rotation and ID), and
    /// the name of the backend.
    pub(crate) fn server_ids(&self) -> Result<BTreeMap<u32, BTreeMap<String, String>>, CliError> {
        let mut ids: BTreeMap<u32, BTreeMap<String, String>> = BTreeMap::new();
        for (key, server) in
            self.maps.entries(balancer::QUIC_SERVERS).map_err(CliError::operation)?
        {
            let (rotation, id, length) = key.server_id();
            let id: String = id[..length].iter().map(|octet| format!("{octet:02x}")).collect();
            let backend = self.backend_name(server.backend as u16);
            ids.entry(key.service).or_default().insert(format!("{rotation}:{id}"), backend);
        }
        Ok(ids)
    }

    /// The lookup tables, by service. Copies all slots.
    pub(crate) fn tables(&self) -> Result<BTreeMap<u32, TableSummary>, CliError> {
        let indexes: Vec<u32> = self.services.keys().copied().collect();
        let tables = self.maps.tables(&indexes).map_err(CliError::operation)?;
        Ok(tables
            .into_iter()
            .map(|(index, table)| {
                let mut slots: BTreeMap<u16, u32> = BTreeMap::new();
                for slot in &table.slots {
                    *slots.entry(slot.backend).or_default() += 1;
                }
                let mut owners: BTreeMap<String, u32> = BTreeMap::new();
                for (owner, count) in slots {
                    *owners.entry(self.backend_name(owner)).or_default() += count;
                }
                let summary = TableSummary {
                    tracked: table.head.tracked,
                    generation: table.generation,
                    digest: table.digest,
                    slots: table.head.slots,
                    owners,
                };
                (index, summary)
            })
            .collect())
    }

    /// The paths to each backend, by index.
    pub(crate) fn paths(&self) -> Result<BTreeMap<u16, BackendPaths>, CliError> {
        let next_hops = self.maps.elements(balancer::NEXT_HOPS).map_err(CliError::operation)?;
        let neighbours = self.maps.elements(balancer::NEIGHBOURS).map_err(CliError::operation)?;
        let path_mtus = self.maps.elements(balancer::PATH_MTUS).map_err(CliError::operation)?;
        let now = clock::now();
        let mut paths = BTreeMap::new();
        for (index, backend) in &self.backends {
            let mut of_backend = BackendPaths::default();
            for (family, address) in addresses(backend) {
                let at = NextHop::index(*index, family) as usize;
                let Some(next_hop) = next_hops.get(at).filter(|next_hop| next_hop.interface != 0)
                else {
                    continue;
                };
                let mtu = u32::from(next_hop.mtu);
                // Without an entry, the kernel looks the neighbour up.
                let neighbour = (next_hop.neighbour != 0)
                    .then(|| neighbours.get(next_hop.neighbour_index(at as u32) as usize))
                    .flatten();
                let gateway = neighbour.and_then(Neighbour::address).filter(|via| *via != address);
                let hop = PresentHop { interface: next_hop.interface, mtu, gateway };
                of_backend.next_hops.insert(address, hop);
                let is_in_force =
                    |record: &&PathMtuRecord| (record.mtu, record.epoch) == (mtu, backend.epoch);
                if let Some(record) = path_mtus.get(at).filter(is_in_force) {
                    let left = Duration::from_nanos(record.until.saturating_sub(now));
                    of_backend.path_mtus.insert(address, left);
                }
            }
            paths.insert(*index, of_backend);
        }
        Ok(paths)
    }

    /// The memory of the maps.
    pub(crate) fn memory(&self) -> Result<Vec<Usage>, CliError> {
        BalancerMaps::usage(&pins(&self.instance, Role::Lb)?).map_err(CliError::operation)
    }

    /// The IDs of the programs that use the maps.
    pub(crate) fn programs(&self) -> Result<BTreeSet<u32>, CliError> {
        Ok(programs_over(&pins(&self.instance, Role::Lb)?))
    }

    /// The counters of a service.
    pub(crate) fn service_counters(&self, index: u32) -> Result<ServiceCounters, CliError> {
        self.maps.total(balancer::SERVICE_COUNTERS, index).map_err(CliError::operation)
    }

    /// The counters of a backend.
    pub(crate) fn backend_counters(&self, index: u16) -> Result<BackendCounters, CliError> {
        self.maps.total(balancer::BACKEND_COUNTERS, (index).into()).map_err(CliError::operation)
    }

    /// Packets that were not forwarded, by reason, if there were any.
    pub(crate) fn reasons(&self) -> Result<Vec<(Reason, u64)>, CliError> {
        self.maps.reasons().map_err(CliError::operation)
    }

    /// ICMP errors about the paths to backends, by outcome, if there were any.
    pub(crate) fn path_errors(&self) -> Result<Vec<(PathErrorOutcome, u64)>, CliError> {
        let counted = self.maps.elements(balancer::PATH_MTU_ERRORS).map_err(CliError::operation)?;
        let counts =
            PathErrorOutcome::ALL.into_iter().zip(counted).filter(|(_, count)| *count != 0);
        Ok(counts.collect())
    }
}

/// A backend.
pub(crate) struct BackendSnapshot {
    instance: String,
    /// The maps of the programs; `None` if tunnel devices do everything.
    maps: Option<BackendMaps>,
}

impl BackendSnapshot {
    /// The maps of the programs, if they are loaded.
    pub(crate) fn maps(&self) -> Option<&BackendMaps> {
        self.maps.as_ref()
    }

    /// Whether the program decapsulates; otherwise tunnel devices do.
    pub(crate) fn is_by_program(&self) -> Result<bool, CliError> {
        let by_program = self.maps.as_ref().map(BackendMaps::decapsulates).transpose();
        Ok(by_program.map_err(CliError::operation)?.unwrap_or(false))
    }

    /// The MSS that is clamped to, by family, where there is one.
    pub(crate) fn largest_segments(&self) -> Result<BTreeMap<&'static str, u32>, CliError> {
        let mut sizes = BTreeMap::new();
        let Some(maps) = &self.maps else { return Ok(sizes) };
        for (family, name) in [(Family::V4, "v4"), (Family::V6, "v6")] {
            let size = maps
                .element(backend::MAX_SEGMENT_SIZES, family.index())
                .map_err(CliError::operation)?;
            if size != 0 {
                sizes.insert(name, size);
            }
        }
        Ok(sizes)
    }

    /// The IDs of the programs that use the maps; none without maps.
    pub(crate) fn programs(&self) -> Result<BTreeSet<u32>, CliError> {
        match &self.maps {
            Some(_) => Ok(programs_over(&pins(&self.instance, Role::Backend)?)),
            None => Ok(BTreeSet::new()),
        }
    }

    /// The memory of the maps, if there are any.
    pub(crate) fn memory(&self) -> Result<Option<Vec<Usage>>, CliError> {
        if self.maps.is_none() {
            return Ok(None);
        }
        let pins = pins(&self.instance, Role::Backend)?;
        BackendMaps::usage(&pins).map(Some).map_err(CliError::operation)
    }
}

fn pins(instance: &str, role: Role) -> Result<Pins, CliError> {
    let pins = Pins::find(instance, role).map_err(CliError::operation)?;
    pins.ok_or_else(|| instance::absent(instance))
}

/// The addresses of a backend.
pub(crate) fn addresses(backend: &HaveBackend) -> impl Iterator<Item = (Family, IpAddr)> {
    let addresses = [(Family::V4, backend.entry.v4), (Family::V6, backend.entry.v6)];
    let present = addresses.into_iter().filter(|(_, address)| *address != Address::NONE);
    present.map(|(family, address)| (family, address.into()))
}

/// A VIP as the configuration writes it.
fn vip_text(addresses: &BTreeMap<u32, IpNet>, key: &VipKey) -> String {
    let protocol =
        if key.protocol == Protocol::Tcp.number() { Protocol::Tcp } else { Protocol::Udp };
    let vip = addresses
        .get(&key.address)
        .and_then(|address| Vip::new(*address, key.port.number(), protocol).ok());
    vip.map_or_else(
        || format!("(address {}):{}/{protocol}", key.address, key.port.number()),
        |vip| vip.to_string(),
    )
}
