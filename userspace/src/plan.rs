//! From what is there to what is wanted: a pure function that returns the steps in between.
//!
//! The order is make-before-break. Backends come before the tables that name them, tables before
//! the VIPs that use them; VIPs go before the tables that they used, tables before the backends
//! that they named. Routes are like VIPs, and their own service's VIPs come behind them: no packet
//! of a new service goes to a backend that is not its client's. After each step every packet still
//! finds a whole table of known backends, so it does no harm to stop between two steps, or to start
//! again from what is then there. A VIP address's copy of a VIP ([`FirstVip`]) is cleared before
//! anything else happens to the VIP.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use ipnet::IpNet;
use sluice_datapath::Address;
use sluice_datapath::entries::{
    self, Backend, Connection, FirstVip, RouteKey, Slot, TableHead, VipAddress, VipKey,
};
use sluice_datapath::flow::Port;
use sluice_datapath::options::AddressOptions;
use sluice_datapath::quic::{IdLengths, ServerKey};

use crate::config::Vip;
use crate::kernel::bpf::{self, Capacities, Table, key_of};
use crate::want::{Want, WantService};

/// What the maps hold. Indexes that were never used are not listed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Have {
    /// Backends and resting indexes, by index.
    pub backends: BTreeMap<u16, HaveBackend>,
    /// Services and resting indexes, by index.
    pub services: BTreeMap<u32, HaveService>,
    /// VIP addresses and prefixes.
    pub addresses: BTreeMap<IpNet, VipAddress>,
    /// VIPs.
    pub vips: BTreeMap<VipKey, entries::Vip>,
    /// Routes.
    pub routes: BTreeMap<RouteKey, entries::Vip>,
    /// QUIC server IDs and their backends.
    pub quic_servers: BTreeMap<ServerKey, Connection>,
    /// How long the QUIC server IDs of services are, of those that have any.
    pub quic_lengths: BTreeMap<u32, IdLengths>,
}

/// What a backend's index holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HaveBackend {
    /// The backend's name; `None` when the index is free, or rests.
    pub name: Option<String>,
    /// Its entry.
    pub entry: Backend,
    /// The incarnation that the index had last.
    pub incarnation: u32,
    /// Whether it is draining.
    pub draining: bool,
    /// Until when the index rests, nanoseconds since boot.
    pub rests_until: u64,
}

/// What a service's index holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HaveService {
    /// The service's name; `None` when the index is free, or rests.
    pub name: Option<String>,
    /// Its lookup table.
    pub table: Option<Table>,
    /// Until when the index rests, nanoseconds since boot.
    pub rests_until: u64,
}

/// A backend to be written at an index that nothing refers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewBackend {
    /// Where.
    pub index: u16,
    /// Its name.
    pub name: String,
    /// What packets read.
    pub entry: Backend,
    /// Whether it is draining.
    pub draining: bool,
}

/// A lookup table to be put in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTable {
    /// Index of the service.
    pub service: u32,
    /// The service's name.
    pub name: String,
    /// Whether the index had no service before.
    pub created: bool,
    /// The table.
    pub table: Table,
}

/// One change of the maps: a batch, applied whole before the next one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Write backends that no table names yet.
    AddBackends(Vec<NewBackend>),
    /// Write down which backends are draining. Packets do not read it: the tables say the same.
    SetDraining(Vec<(u16, bool)>),
    /// Swap lookup tables, all in one batch.
    ReplaceTables(Vec<NewTable>),
    /// Add routes or change where they lead, before any VIP leads to them.
    PutRoutes(Vec<(RouteKey, entries::Vip)>),
    /// Remove routes that are not wanted.
    RemoveRoutes(Vec<RouteKey>),
    /// Give QUIC server IDs to backends, then change how long services' server IDs are.
    PutServerIds {
        /// New or changed IDs.
        servers: Vec<(ServerKey, Connection)>,
        /// New or changed lengths.
        lengths: Vec<(u32, IdLengths)>,
    },
    /// End QUIC server IDs of services, then remove those that are not wanted.
    RemoveServerIds {
        /// IDs that are not wanted.
        servers: Vec<ServerKey>,
        /// Services that have none any more.
        services: Vec<u32>,
    },
    /// Clear the VIPs that these addresses' entries hold copies of, since they are about to change
    /// or to go.
    ClearCopies(Vec<(IpNet, VipAddress)>),
    /// Add VIPs or change their service or options, then add VIP addresses or change their options
    /// and copies.
    PutVips {
        /// New or changed addresses.
        addresses: Vec<(IpNet, VipAddress)>,
        /// New or changed VIPs.
        vips: Vec<(VipKey, entries::Vip)>,
    },
    /// Remove VIPs, then the addresses that have none left.
    RemoveVips {
        /// VIPs that are not wanted.
        vips: Vec<VipKey>,
        /// Addresses that are not wanted.
        addresses: Vec<IpNet>,
    },
    /// Forget services; their indexes rest.
    RetireServices(Vec<u32>),
    /// Forget backends; their indexes rest.
    RetireBackends(Vec<u16>),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddBackends(new) => {
                write!(f, "add backends {}", list(new.iter().map(|backend| backend.name.as_str())))
            }
            Self::SetDraining(changed) => {
                write!(f, "change the draining mark of {} backends", changed.len())
            }
            Self::ReplaceTables(new) => {
                write!(
                    f,
                    "replace the lookup tables of {}",
                    list(new.iter().map(|table| table.name.as_str()))
                )
            }
            Self::PutRoutes(routes) => write!(f, "add or change {} routes", routes.len()),
            Self::RemoveRoutes(keys) => write!(f, "remove {} routes", keys.len()),
            Self::PutServerIds { servers, .. } => {
                write!(f, "add or change {} QUIC server IDs", servers.len())
            }
            Self::RemoveServerIds { servers, .. } => {
                write!(f, "remove {} QUIC server IDs", servers.len())
            }
            Self::ClearCopies(addresses) => {
                write!(f, "clear the copies of VIPs at {} VIP addresses", addresses.len())
            }
            Self::PutVips { addresses, vips } => {
                write!(f, "add or change {} VIP addresses and {} VIPs", addresses.len(), vips.len())
            }
            Self::RemoveVips { vips, addresses } => {
                write!(f, "remove {} VIPs and {} VIP addresses", vips.len(), addresses.len())
            }
            Self::RetireServices(indexes) => write!(f, "retire {} services", indexes.len()),
            Self::RetireBackends(indexes) => write!(f, "retire {} backends", indexes.len()),
        }
    }
}

/// Names as a sentence has room for: some, and how many more there are.
fn list<'a>(mut names: impl Iterator<Item = &'a str>) -> String {
    const SHOWN: usize = 10;
    let shown = names.by_ref().take(SHOWN).collect::<Vec<_>>().join(", ");
    match names.count() {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// There is no room.
    #[error(
        "there is room for {capacity} {what}, which is not enough now (indexes that were freed within the last {} seconds still \
         rest); raise limits.{what}, or reload again when they have rested",
        REST_SECONDS
    )]
    Full {
        /// Services, backends or vips.
        what: &'static str,
        /// How many there may be.
        capacity: u32,
    },
}

/// How long a freed index rests before it may be used again, in seconds.
///
/// A packet that read the index before it was freed has long been forwarded by then, and so have
/// the counters been read that belong to the one who had it.
pub const REST_SECONDS: u64 = 30;

/// The steps from `have` to `want` at `now` (nanoseconds since boot); none when nothing differs.
///
/// # Errors
///
/// [`PlanError`].
pub fn plan(
    have: &Have,
    want: &Want,
    capacities: Capacities,
    now: u64,
) -> Result<Vec<Step>, PlanError> {
    let mut steps = Vec::new();
    let backends = place_backends(have, want, capacities.backends, now)?;
    let services = place_services(have, want, capacities.services, now)?;

    push(&mut steps, backends.new.clone(), Step::AddBackends);
    push(&mut steps, changed_draining(have, want, &backends), Step::SetDraining);
    push(&mut steps, changed_tables(have, want, &backends, &services), Step::ReplaceTables);
    let (ids, mut unwanted_ids) = changed_server_ids(have, want, &backends, &services);
    // The map has room for old and new ones, but for what interrupted changes have left.
    let added = if let Some(Step::PutServerIds { servers, .. }) = &ids { servers.len() } else { 0 };
    if have.quic_servers.len() + added > 2 * capacities.backends as usize {
        steps.extend(unwanted_ids.take());
    }
    steps.extend(ids);
    let (routes, unwanted) = changed_routes(have, want, &services);
    // As above.
    let together = have.routes.len() + routes.len() <= bpf::ROUTES as usize;
    let (early, late) = if together { (Vec::new(), unwanted) } else { (unwanted, Vec::new()) };
    push(&mut steps, early, Step::RemoveRoutes);
    push(&mut steps, routes, Step::PutRoutes);
    put_and_remove_vips(have, want, &services, capacities.vips, &mut steps)?;
    push(&mut steps, late, Step::RemoveRoutes);
    steps.extend(unwanted_ids);
    let kept: BTreeSet<u32> = services.iter().copied().collect();
    let retired =
        have.services.iter().filter(|(index, has)| has.name.is_some() && !kept.contains(index));
    push(&mut steps, retired.map(|(index, _)| *index).collect(), Step::RetireServices);
    let kept: BTreeSet<u16> = backends.indexes.iter().copied().collect();
    let retired =
        have.backends.iter().filter(|(index, has)| has.name.is_some() && !kept.contains(index));
    push(&mut steps, retired.map(|(index, _)| *index).collect(), Step::RetireBackends);
    Ok(steps)
}

fn push<T>(steps: &mut Vec<Step>, batch: Vec<T>, step: impl Fn(Vec<T>) -> Step) {
    if !batch.is_empty() {
        steps.push(step(batch));
    }
}

/// Where the wanted backends are or will be.
struct Placed {
    /// Index of each, in the order of [`Want::backends`].
    indexes: Vec<u16>,
    /// Those that have to be written.
    new: Vec<NewBackend>,
}

/// A backend keeps its index as long as its name and addresses stay; a backend with another address
/// is written at a new index, since a live entry is never rewritten.
fn place_backends(have: &Have, want: &Want, capacity: u32, now: u64) -> Result<Placed, PlanError> {
    let mut free = (1..=u16::try_from(capacity).unwrap_or(u16::MAX)).filter(|index| {
        have.backends.get(index).is_none_or(|has| has.name.is_none() && has.rests_until <= now)
    });
    // An interrupted change leaves a name at two indexes, or at one whose entry is not written:
    // only a whole one counts.
    let whole = have.backends.iter().filter(|(_, has)| has.entry.incarnation != 0);
    let whole: HashMap<(&str, Address, Address), u16> = whole
        .filter_map(|(index, has)| {
            Some(((has.name.as_deref()?, has.entry.v4, has.entry.v6), *index))
        })
        .collect();
    let mut placed = Placed { indexes: Vec::with_capacity(want.backends.len()), new: Vec::new() };
    for backend in &want.backends {
        let v4 = backend.v4.map_or(Address::NONE, Address::from);
        let v6 = backend.v6.map_or(Address::NONE, Address::from);
        if let Some(index) = whole.get(&(&*backend.name, v4, v6)) {
            placed.indexes.push(*index);
            continue;
        }
        let index = free.next().ok_or(PlanError::Full { what: "backends", capacity })?;
        let before = have.backends.get(&index).map_or(0, |has| has.incarnation);
        // Zero means free, so the count skips it.
        let incarnation = before.checked_add(1).unwrap_or(1);
        placed.indexes.push(index);
        placed.new.push(NewBackend {
            index,
            name: backend.name.clone(),
            entry: Backend { v4, v6, incarnation },
            draining: backend.draining,
        });
    }
    Ok(placed)
}

/// The index of each wanted service, in the order of [`Want::services`].
fn place_services(
    have: &Have,
    want: &Want,
    capacity: u32,
    now: u64,
) -> Result<Vec<u32>, PlanError> {
    let known: BTreeMap<&str, u32> = have
        .services
        .iter()
        .filter_map(|(index, has)| Some((has.name.as_deref()?, *index)))
        .collect();
    let mut free = (1..=capacity).filter(|index| {
        have.services.get(index).is_none_or(|has| has.name.is_none() && has.rests_until <= now)
    });
    let place = |service: &WantService| match known.get(&*service.name) {
        Some(index) => Ok(*index),
        None => free.next().ok_or(PlanError::Full { what: "services", capacity }),
    };
    want.services.iter().map(place).collect()
}

fn changed_draining(have: &Have, want: &Want, placed: &Placed) -> Vec<(u16, bool)> {
    let wanted = placed.indexes.iter().zip(&want.backends);
    let new: BTreeSet<u16> = placed.new.iter().map(|backend| backend.index).collect();
    wanted
        .filter(|(index, _)| !new.contains(index))
        .filter(|(index, backend)| have.backends[index].draining != backend.draining)
        .map(|(index, backend)| (*index, backend.draining))
        .collect()
}

fn changed_tables(have: &Have, want: &Want, backends: &Placed, services: &[u32]) -> Vec<NewTable> {
    let mut changed = Vec::new();
    for (service, wanted) in services.iter().zip(&want.services) {
        let slots: Vec<Slot> = wanted
            .owners
            .iter()
            .map(|owner| Slot { first: backends.indexes[*owner], hint: 0 })
            .collect();
        let head = TableHead { slots: slots.len() as u32, tracked: wanted.tracked };
        let has = have.services.get(service).filter(|has| has.name.is_some());
        let old = has.and_then(|has| has.table.as_ref());
        if old.is_some_and(|old| {
            old.head == head && old.digest == wanted.digest && old.slots == slots
        }) {
            continue;
        }
        let generation = old.map_or(0, |old| old.generation).wrapping_add(1);
        changed.push(NewTable {
            service: *service,
            name: wanted.name.clone(),
            created: has.is_none(),
            table: Table { head, generation, digest: wanted.digest, slots },
        });
    }
    changed
}

/// The steps that add or change QUIC server IDs, and that remove those that are not wanted.
fn changed_server_ids(
    have: &Have,
    want: &Want,
    placed: &Placed,
    services: &[u32],
) -> (Option<Step>, Option<Step>) {
    let new: HashMap<u16, u32> =
        placed.new.iter().map(|new| (new.index, new.entry.incarnation)).collect();
    let connection = |backend: usize| {
        let index = placed.indexes[backend];
        let incarnation =
            new.get(&index).copied().unwrap_or_else(|| have.backends[&index].entry.incarnation);
        Connection { backend: index.into(), incarnation }
    };
    let (mut servers, mut lengths) = (BTreeMap::new(), BTreeMap::new());
    for (service, wanted) in services.iter().zip(&want.services) {
        for (rotation, id, backend) in &wanted.server_ids {
            let Some(key) = ServerKey::new(*service, *rotation, id) else { continue };
            servers.insert(key, connection(*backend));
            let all = lengths.entry(*service).or_insert(IdLengths::NONE);
            *all = all.with(*rotation, id.len() as u8);
        }
    }
    let unwanted: Vec<_> =
        have.quic_servers.keys().filter(|key| !servers.contains_key(key)).copied().collect();
    let without: Vec<_> =
        have.quic_lengths.keys().filter(|index| !lengths.contains_key(index)).copied().collect();
    servers.retain(|key, connection| have.quic_servers.get(key) != Some(connection));
    lengths.retain(|index, lengths| have.quic_lengths.get(index) != Some(lengths));
    let put = (!servers.is_empty() || !lengths.is_empty()).then(|| Step::PutServerIds {
        servers: servers.into_iter().collect(),
        lengths: lengths.into_iter().collect(),
    });
    let remove = (!unwanted.is_empty() || !without.is_empty())
        .then_some(Step::RemoveServerIds { servers: unwanted, services: without });
    (put, remove)
}

/// Routes to be written, and routes to be removed.
fn changed_routes(
    have: &Have,
    want: &Want,
    services: &[u32],
) -> (Vec<(RouteKey, entries::Vip)>, Vec<RouteKey>) {
    let mut wanted = BTreeMap::new();
    for (service, from) in services.iter().zip(&want.services) {
        for (prefix, to) in &from.routes {
            let entry =
                entries::Vip { service: services[*to], options: want.services[*to].options };
            wanted.insert(RouteKey::new(*service, &key_of(*prefix)), entry);
        }
    }
    let unwanted = have.routes.keys().filter(|key| !wanted.contains_key(key)).copied().collect();
    (
        wanted.into_iter().filter(|(key, entry)| have.routes.get(key) != Some(entry)).collect(),
        unwanted,
    )
}

fn put_and_remove_vips(
    have: &Have,
    want: &Want,
    services: &[u32],
    capacity: u32,
    steps: &mut Vec<Step>,
) -> Result<(), PlanError> {
    let wanted: Vec<(Vip, entries::Vip)> = services
        .iter()
        .zip(&want.services)
        .flat_map(|(index, service)| {
            let entry = entries::Vip { service: *index, options: service.options };
            service.vips.iter().map(move |vip| (*vip, entry))
        })
        .collect();
    let mut numbers: BTreeMap<IpNet, u32> =
        have.addresses.iter().map(|(prefix, has)| (*prefix, has.id)).collect();
    // A crash may leave VIPs whose address is gone, or is not there yet: nobody else may inherit
    // them with the number.
    let mut next =
        numbers.values().copied().chain(have.vips.keys().map(|key| key.address)).max().unwrap_or(0);
    let mut entries = BTreeMap::new();
    let mut keys = BTreeMap::new();
    let mut pings = BTreeMap::new();
    for (vip, entry) in &wanted {
        let id = *numbers.entry(vip.prefix()).or_insert_with(|| {
            next += 1;
            next
        });
        let options = want.addresses.get(&vip.prefix()).copied().unwrap_or_default();
        let address = entries.entry(vip.prefix()).or_insert(VipAddress::new(id, options));
        let (port, protocol) = (Port::new(vip.port()), vip.protocol().number());
        // The first one that the configuration names. No packet looks for an any-port VIP first.
        if address.first == FirstVip::NONE && port != VipKey::ANY_PORT {
            address.first = FirstVip::new(port, protocol, *entry);
        }
        keys.insert(VipKey::new(id, port, protocol), *entry);
        if options.has(AddressOptions::PING_FORWARD) {
            // The same service on every balancer, whatever the order in which the services are
            // written.
            let order = (vip.port(), vip.protocol());
            let lowest = pings.entry(id).or_insert((order, *entry));
            if order <= lowest.0 {
                *lowest = (order, *entry);
            }
        }
    }
    keys.extend(pings.into_iter().map(|(id, (_, entry))| (VipKey::pings(id), entry)));
    let changed = keys.iter().filter(|(key, entry)| have.vips.get(key) != Some(entry));
    let put: Vec<_> = changed.map(|(key, entry)| (*key, *entry)).collect();
    let cleared = have.addresses.iter().filter(|(prefix, has)| {
        // Those of addresses that go, go with them.
        let stays = has.first_key().is_none_or(|key| keys.get(&key).copied() == has.first.vip());
        !stays && entries.contains_key(prefix)
    });
    let cleared: Vec<_> =
        cleared.map(|(prefix, has)| (*prefix, VipAddress::new(has.id, has.options))).collect();
    let addresses =
        entries.into_iter().filter(|(prefix, entry)| have.addresses.get(prefix) != Some(entry));
    let addresses: Vec<_> = addresses.collect();
    let vips: Vec<_> = have.vips.keys().filter(|key| !keys.contains_key(key)).copied().collect();
    let wanted: BTreeSet<IpNet> = wanted.iter().map(|(vip, _)| vip.prefix()).collect();
    let unwanted: Vec<_> =
        have.addresses.keys().filter(|address| !wanted.contains(address)).copied().collect();
    let added = put.iter().filter(|(key, _)| !have.vips.contains_key(key)).count();
    let fits = |vips: usize, addresses: usize| vips.max(addresses) <= capacity as usize;
    if !fits(keys.len(), wanted.len()) {
        return Err(PlanError::Full { what: "vips", capacity });
    }
    push(steps, cleared, Step::ClearCopies);
    // No packet needs both the new ones and those that go, so which come first is a matter of room.
    let together = fits(have.vips.len() + added, numbers.len());
    let put = (!addresses.is_empty() || !put.is_empty())
        .then_some(Step::PutVips { addresses, vips: put });
    let remove = (!vips.is_empty() || !unwanted.is_empty())
        .then_some(Step::RemoveVips { vips, addresses: unwanted });
    steps.extend(if together { [put, remove] } else { [remove, put] }.into_iter().flatten());
    Ok(())
}

#[cfg(test)]
mod tests;
