//! Computes the steps from the state of the maps to the desired state.
//!
//! The order is make-before-break. Additions: backends, lookup tables, routes, VIPs. Removals:
//! VIPs, routes, services with their tables, backends. A service's routes precede its VIPs, so that
//! no packet of a new service goes to a backend that is not its client's.
//!
//! After each step, each packet finds a complete table of known backends. So the daemon may stop
//! after any step and plan again from the state that it then finds. A VIP address's copy of a VIP
//! ([`CachedVip`]) is cleared before that VIP is changed or removed.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ipnet::IpNet;
use sluice_datapath::Address;
use sluice_datapath::abi::{
    AddressOptions, Backend, CachedVip, Connection, Port, QuicIdLengths, QuicServerKey, RouteKey,
    ServiceRef, Slot, TableHead, VipAddress, VipKey,
};

use crate::capacities::{Capacities, ROUTES};
use crate::config::Vip;
use crate::desired::{Desired, DesiredService};
use crate::have::{Have, QUARANTINE_SECONDS};
use crate::prefix::prefix_key;
use crate::service_table::ServiceTable;
use crate::step::{NewBackend, NewTable, Step};

/// The reason why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A map is full.
    #[error(
        "not enough room for {what}: the capacity is {capacity}, and indexes stay in quarantine for {} seconds after they were \
         freed; raise limits.{what}, or reload again after that time",
        QUARANTINE_SECONDS
    )]
    Full {
        /// `services`, `backends` or `vips`.
        what: &'static str,
        /// The capacity.
        capacity: u32,
    },
}

/// The steps from `have` to `desired` at `now` (nanoseconds since boot): none when nothing differs.
pub fn plan(
    have: &Have,
    desired: &Desired,
    capacities: Capacities,
    now: u64,
) -> Result<Vec<Step>, PlanError> {
    let mut steps = Vec::new();
    let backends = place_backends(have, desired, capacities.backends, now)?;
    let services = place_services(have, desired, capacities.services, now)?;

    push(&mut steps, backends.new.clone(), Step::AddBackends);
    push(&mut steps, changed_draining(have, desired, &backends), Step::SetDraining);
    push(&mut steps, changed_tables(have, desired, &backends, &services), Step::ReplaceTables);
    let (ids, mut unwanted_ids) = changed_server_ids(have, desired, &backends, &services);
    // The map has room for old and new server IDs, except for leftovers of interrupted changes.
    let added = if let Some(Step::PutServerIds { servers, .. }) = &ids { servers.len() } else { 0 };
    if have.quic_servers.len() + added > 2 * capacities.backends as usize {
        steps.extend(unwanted_ids.take());
    }
    steps.extend(ids);
    let (routes, unwanted) = changed_routes(have, desired, &services);
    // The same holds for routes.
    let together = have.routes.len() + routes.len() <= ROUTES as usize;
    let (early, late) = if together { (Vec::new(), unwanted) } else { (unwanted, Vec::new()) };
    push(&mut steps, early, Step::RemoveRoutes);
    push(&mut steps, routes, Step::PutRoutes);
    put_and_remove_vips(have, desired, &services, capacities.vips, &mut steps)?;
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

/// The indexes of the desired backends.
struct Placed {
    /// The index of each backend, in the order of [`Desired::backends`].
    indexes: Vec<u16>,
    /// The backends without an entry.
    new: Vec<NewBackend>,
}

/// Assigns indexes to backends. A backend keeps its index while its name and addresses stay the
/// same. A backend with a changed address gets a new index, because a live entry is never
/// rewritten.
fn place_backends(
    have: &Have,
    desired: &Desired,
    capacity: u32,
    now: u64,
) -> Result<Placed, PlanError> {
    let mut free = (1..=u16::try_from(capacity).unwrap_or(u16::MAX)).filter(|index| {
        have.backends.get(index).is_none_or(|has| has.name.is_none() && has.reusable_after <= now)
    });
    // An interrupted change may leave a name at two indexes, or at an index without an entry. Only
    // an index with an entry counts.
    let complete = have.backends.iter().filter(|(_, has)| has.entry.epoch != 0);
    let complete: HashMap<(&str, Address, Address), u16> = complete
        .filter_map(|(index, has)| {
            Some(((has.name.as_deref()?, has.entry.v4, has.entry.v6), *index))
        })
        .collect();
    let mut placed =
        Placed { indexes: Vec::with_capacity(desired.backends.len()), new: Vec::new() };
    for backend in &desired.backends {
        let v4 = backend.v4.map_or(Address::NONE, Address::from);
        let v6 = backend.v6.map_or(Address::NONE, Address::from);
        if let Some(index) = complete.get(&(&*backend.name, v4, v6)) {
            placed.indexes.push(*index);
            continue;
        }
        let index = free.next().ok_or(PlanError::Full { what: "backends", capacity })?;
        let before = have.backends.get(&index).map_or(0, |has| has.epoch);
        // Epoch 0 marks a free index.
        let epoch = before.checked_add(1).unwrap_or(1);
        placed.indexes.push(index);
        placed.new.push(NewBackend {
            index,
            name: backend.name.clone(),
            entry: Backend { v4, v6, epoch },
            draining: backend.draining,
        });
    }
    Ok(placed)
}

/// The index of each service, in the order of [`Desired::services`].
fn place_services(
    have: &Have,
    desired: &Desired,
    capacity: u32,
    now: u64,
) -> Result<Vec<u32>, PlanError> {
    let known: BTreeMap<&str, u32> = have
        .services
        .iter()
        .filter_map(|(index, has)| Some((has.name.as_deref()?, *index)))
        .collect();
    let mut free = (1..=capacity).filter(|index| {
        have.services.get(index).is_none_or(|has| has.name.is_none() && has.reusable_after <= now)
    });
    let place = |service: &DesiredService| match known.get(&*service.name) {
        Some(index) => Ok(*index),
        None => free.next().ok_or(PlanError::Full { what: "services", capacity }),
    };
    desired.services.iter().map(place).collect()
}

fn changed_draining(have: &Have, desired: &Desired, placed: &Placed) -> Vec<(u16, bool)> {
    let wanted = placed.indexes.iter().zip(&desired.backends);
    let new: BTreeSet<u16> = placed.new.iter().map(|backend| backend.index).collect();
    wanted
        .filter(|(index, _)| !new.contains(index))
        .filter(|(index, backend)| have.backends[index].draining != backend.draining)
        .map(|(index, backend)| (*index, backend.draining))
        .collect()
}

fn changed_tables(
    have: &Have,
    desired: &Desired,
    backends: &Placed,
    services: &[u32],
) -> Vec<NewTable> {
    let mut changed = Vec::new();
    for (service, wanted) in services.iter().zip(&desired.services) {
        let slots: Vec<Slot> = wanted
            .owners
            .iter()
            .map(|owner| Slot { backend: backends.indexes[*owner], hint: 0 })
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
            table: ServiceTable { head, generation, digest: wanted.digest, slots },
        });
    }
    changed
}

/// The step that adds or changes QUIC server IDs, and the step that removes the others.
fn changed_server_ids(
    have: &Have,
    desired: &Desired,
    placed: &Placed,
    services: &[u32],
) -> (Option<Step>, Option<Step>) {
    let new: HashMap<u16, u32> =
        placed.new.iter().map(|new| (new.index, new.entry.epoch)).collect();
    let connection = |backend: usize| {
        let index = placed.indexes[backend];
        let epoch = new.get(&index).copied().unwrap_or_else(|| have.backends[&index].entry.epoch);
        Connection { backend: index.into(), epoch }
    };
    let mut servers = BTreeMap::new();
    let mut lengths = BTreeMap::new();
    for (service, wanted) in services.iter().zip(&desired.services) {
        for (rotation, id, backend) in &wanted.server_ids {
            let Some(key) = QuicServerKey::new(*service, *rotation, id) else { continue };
            servers.insert(key, connection(*backend));
            let all = lengths.entry(*service).or_insert(QuicIdLengths::NONE);
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

/// Routes to write, and routes to remove.
fn changed_routes(
    have: &Have,
    desired: &Desired,
    services: &[u32],
) -> (Vec<(RouteKey, ServiceRef)>, Vec<RouteKey>) {
    let mut wanted = BTreeMap::new();
    for (service, from) in services.iter().zip(&desired.services) {
        for (prefix, to) in &from.routes {
            let entry = ServiceRef { index: services[*to], options: desired.services[*to].options };
            wanted.insert(RouteKey::new(*service, &prefix_key(*prefix)), entry);
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
    desired: &Desired,
    services: &[u32],
    capacity: u32,
    steps: &mut Vec<Step>,
) -> Result<(), PlanError> {
    let wanted: Vec<(Vip, ServiceRef)> = services
        .iter()
        .zip(&desired.services)
        .flat_map(|(index, service)| {
            let entry = ServiceRef { index: *index, options: service.options };
            service.vips.iter().map(move |vip| (*vip, entry))
        })
        .collect();
    let mut numbers: BTreeMap<IpNet, u32> =
        have.addresses.iter().map(|(prefix, has)| (*prefix, has.id)).collect();
    // A crash may leave VIPs without an entry of their address. Their number must not be given to
    // another address.
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
        let options = desired.addresses.get(&vip.prefix()).copied().unwrap_or_default();
        let address = entries.entry(vip.prefix()).or_insert(VipAddress::new(id, options));
        let port = Port::new(vip.port());
        let protocol = vip.protocol().number();
        // The first VIP in the order of the configuration. An any-port VIP in the cache would never
        // match, because no packet has port 0.
        if address.cached == CachedVip::NONE && port != VipKey::ANY_PORT {
            address.cached = CachedVip::new(port, protocol, *entry);
        }
        keys.insert(VipKey::new(id, port, protocol), *entry);
        if options.has(AddressOptions::PING_FORWARD) {
            // Independent of the order of the services, so that all balancers select the same one.
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
        // An address that is removed takes its cached VIP with it.
        let stays =
            has.cached_key().is_none_or(|key| keys.get(&key).copied() == has.cached.service());
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
    push(steps, cleared, Step::ClearCachedVips);
    // No packet needs both added and removed VIPs, so the order depends on the room alone.
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
