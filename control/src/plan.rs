//! From what is there to what is wanted: a pure function that returns the steps in between.
//!
//! The order is make-before-break. Backends come before the tables that name them, tables before
//! the VIPs that use them; VIPs go before the tables that they used, tables before the backends
//! that they named. Routes are like VIPs, and their own service's VIPs come behind them: no packet
//! of a new service goes to a backend that is not its client's. After each step every packet still
//! finds a whole table of known backends, so it does no harm to stop between two steps, or to start
//! again from what is then there. A VIP address's copy of a VIP ([`CachedVip`]) is cleared before
//! anything else happens to the VIP.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ipnet::IpNet;
use sluice_datapath::abi::{
    AddressOptions, Backend, CachedVip, Connection, Port, QuicIdLengths, QuicServerKey, RouteKey,
    Slot, TableHead, VipAddress, VipKey,
};
use sluice_datapath::{Address, abi};

use crate::capacities::{Capacities, ROUTES};
use crate::config::Vip;
use crate::desired::{Desired, DesiredService};
use crate::have::{Have, REST_SECONDS};
use crate::lookup_table::LookupTable;
use crate::prefix::prefix_key;
use crate::step::{NewBackend, NewTable, Step};

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

/// The steps from `have` to `want` at `now` (nanoseconds since boot); none when nothing differs.
///
/// # Errors
///
/// [`PlanError`].
pub fn plan(
    have: &Have,
    want: &Desired,
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
    let together = have.routes.len() + routes.len() <= ROUTES as usize;
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
    /// Index of each, in the order of [`Desired::backends`].
    indexes: Vec<u16>,
    /// Those that have to be written.
    new: Vec<NewBackend>,
}

/// A backend keeps its index as long as its name and addresses stay; a backend with another address
/// is written at a new index, since a live entry is never rewritten.
fn place_backends(
    have: &Have,
    want: &Desired,
    capacity: u32,
    now: u64,
) -> Result<Placed, PlanError> {
    let mut free = (1..=u16::try_from(capacity).unwrap_or(u16::MAX)).filter(|index| {
        have.backends.get(index).is_none_or(|has| has.name.is_none() && has.reusable_after <= now)
    });
    // An interrupted change leaves a name at two indexes, or at one whose entry is not written:
    // only a whole one counts.
    let whole = have.backends.iter().filter(|(_, has)| has.entry.epoch != 0);
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
        let before = have.backends.get(&index).map_or(0, |has| has.epoch);
        // Zero means free, so the count skips it.
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

/// The index of each wanted service, in the order of [`Desired::services`].
fn place_services(
    have: &Have,
    want: &Desired,
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
    want.services.iter().map(place).collect()
}

fn changed_draining(have: &Have, want: &Desired, placed: &Placed) -> Vec<(u16, bool)> {
    let wanted = placed.indexes.iter().zip(&want.backends);
    let new: BTreeSet<u16> = placed.new.iter().map(|backend| backend.index).collect();
    wanted
        .filter(|(index, _)| !new.contains(index))
        .filter(|(index, backend)| have.backends[index].draining != backend.draining)
        .map(|(index, backend)| (*index, backend.draining))
        .collect()
}

fn changed_tables(
    have: &Have,
    want: &Desired,
    backends: &Placed,
    services: &[u32],
) -> Vec<NewTable> {
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
            table: LookupTable { head, generation, digest: wanted.digest, slots },
        });
    }
    changed
}

/// The steps that add or change QUIC server IDs, and that remove those that are not wanted.
fn changed_server_ids(
    have: &Have,
    want: &Desired,
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
    let (mut servers, mut lengths) = (BTreeMap::new(), BTreeMap::new());
    for (service, wanted) in services.iter().zip(&want.services) {
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

/// Routes to be written, and routes to be removed.
fn changed_routes(
    have: &Have,
    want: &Desired,
    services: &[u32],
) -> (Vec<(RouteKey, abi::ServiceRef)>, Vec<RouteKey>) {
    let mut wanted = BTreeMap::new();
    for (service, from) in services.iter().zip(&want.services) {
        for (prefix, to) in &from.routes {
            let entry =
                abi::ServiceRef { service: services[*to], options: want.services[*to].options };
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
    want: &Desired,
    services: &[u32],
    capacity: u32,
    steps: &mut Vec<Step>,
) -> Result<(), PlanError> {
    let wanted: Vec<(Vip, abi::ServiceRef)> = services
        .iter()
        .zip(&want.services)
        .flat_map(|(index, service)| {
            let entry = abi::ServiceRef { service: *index, options: service.options };
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
        if address.cached == CachedVip::NONE && port != VipKey::ANY_PORT {
            address.cached = CachedVip::new(port, protocol, *entry);
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
        let stays = has.cached_key().is_none_or(|key| keys.get(&key).copied() == has.cached.vip());
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
