//! Reads the state of the maps, and executes the steps of a plan.
//!
//! Functions return the error of [`MapStore`].

use std::collections::BTreeMap;
use std::net::IpAddr;

use sluice_datapath::abi::maps::balancer::{
    BACKEND_COUNTERS, BACKEND_RECORDS, BACKENDS, NEXT_HOPS, QUIC_ID_LENGTHS, QUIC_SERVERS, ROUTES,
    SERVICE_COUNTERS, SERVICE_RECORDS, VIPS,
};
use sluice_datapath::abi::{Backend, BackendRecord, Name, NextHop, QuicIdLengths, ServiceRecord};
use sluice_datapath::{Address, Family};

use crate::have::{Have, HaveBackend, HaveService, QUARANTINE_SECONDS};
use crate::step::{NewBackend, NewTable, Step};

mod addresses;
mod maps;

pub use addresses::{put_vip_addresses, remove_vip_addresses, vip_addresses};
pub use maps::{BalancerMap, MapStore};

/// The entry of an unused index.
const FREE: Backend = Backend { v4: Address::NONE, v6: Address::NONE, epoch: 0 };

/// Reads the state of the maps.
pub fn have<M: MapStore>(maps: &M) -> Result<Have, M::Error> {
    let mut have = Have { backends: backends(maps)?, ..Have::default() };
    for (index, record) in (0..).zip(maps.elements(SERVICE_RECORDS)?).skip(1) {
        let name = record.name.as_str();
        if name.is_empty() && record.reusable_after == 0 {
            continue;
        }
        let name = (!name.is_empty()).then(|| name.to_owned());
        have.services.insert(
            index,
            HaveService { name, table: None, reusable_after: record.reusable_after },
        );
    }
    let named: Vec<u32> = have
        .services
        .iter()
        .filter(|(_, has)| has.name.is_some())
        .map(|(index, _)| *index)
        .collect();
    for (index, table) in maps.tables(&named)? {
        if let Some(service) = have.services.get_mut(&index) {
            service.table = Some(table);
        }
    }
    have.addresses = vip_addresses(maps)?;
    have.vips = maps.entries(VIPS)?;
    have.routes = maps.entries(ROUTES)?;
    have.quic_servers = maps.entries(QUIC_SERVERS)?;
    have.quic_lengths = (0..)
        .zip(maps.elements(QUIC_ID_LENGTHS)?)
        .filter(|(_, lengths)| *lengths != QuicIdLengths::NONE)
        .collect();
    Ok(have)
}

/// Reads [`Have::backends`].
pub fn backends<M: MapStore>(maps: &M) -> Result<BTreeMap<u16, HaveBackend>, M::Error> {
    let mut backends = BTreeMap::new();
    let entries = maps.elements(BACKENDS)?;
    for ((index, record), entry) in (0_u32..).zip(maps.elements(BACKEND_RECORDS)?).zip(entries) {
        // Index 0 means none.
        let (Ok(index @ 1..), 1..) = (u16::try_from(index), record.epoch) else { continue };
        let name = record.name.as_str();
        backends.insert(
            index,
            HaveBackend {
                name: (!name.is_empty()).then(|| name.to_owned()),
                entry,
                epoch: record.epoch,
                draining: record.draining != 0,
                reusable_after: record.reusable_after,
            },
        );
    }
    Ok(backends)
}

/// Executes one step at `now` (nanoseconds since boot).
///
/// `next_hop` returns the next hop towards an address. New backends get theirs before a table or
/// server ID refers to them.
///
/// After an error the maps hold a part of the step. That does no harm: the state that [`have`] then
/// returns leads to a plan for the rest.
pub fn apply<M: MapStore>(
    maps: &mut M,
    step: &Step,
    next_hop: &dyn Fn(IpAddr) -> NextHop,
    now: u64,
) -> Result<(), M::Error> {
    match step {
        Step::AddBackends(new) => add_backends(maps, new, next_hop),
        Step::SetDraining(changed) => set_draining(maps, changed),
        Step::ReplaceTables(new) => replace_tables(maps, new),
        Step::PutRoutes(routes) => maps.put(ROUTES, routes),
        Step::RemoveRoutes(keys) => maps.remove(ROUTES, keys),
        Step::PutServerIds { servers, lengths } => {
            maps.put(QUIC_SERVERS, servers)?;
            maps.write(QUIC_ID_LENGTHS, lengths)
        }
        Step::RemoveServerIds { servers, services } => {
            let lengths: Vec<_> =
                services.iter().map(|index| (*index, QuicIdLengths::NONE)).collect();
            maps.write(QUIC_ID_LENGTHS, &lengths)?;
            maps.remove(QUIC_SERVERS, servers)
        }
        Step::ClearCachedVips(addresses) => put_vip_addresses(maps, addresses),
        Step::PutVips { addresses, vips } => {
            maps.put(VIPS, vips)?;
            // After the VIPs, so that an address is a VIP address only when its VIPs exist, and its
            // cached VIP is equal to one of them.
            put_vip_addresses(maps, addresses)
        }
        Step::RemoveVips { vips, addresses } => {
            remove_vip_addresses(maps, addresses)?;
            maps.remove(VIPS, vips)
        }
        Step::RetireServices(indexes) => retire_services(maps, indexes, now),
        Step::RetireBackends(indexes) => retire_backends(maps, indexes, now),
    }
}

fn add_backends<M: MapStore>(
    maps: &mut M,
    new: &[NewBackend],
    next_hop: &dyn Fn(IpAddr) -> NextHop,
) -> Result<(), M::Error> {
    let indexes: Vec<_> = new.iter().map(|backend| u32::from(backend.index)).collect();
    maps.reset(BACKEND_COUNTERS, &indexes)?;
    // The records precede the entries: after a crash the next daemon does not reuse the epochs.
    let records = new.iter().map(|backend| {
        let record = BackendRecord {
            name: name(&backend.name),
            reusable_after: 0,
            epoch: backend.entry.epoch,
            draining: u32::from(backend.draining),
        };
        (u32::from(backend.index), record)
    });
    maps.write(BACKEND_RECORDS, &records.collect::<Vec<_>>())?;
    let next_hops = new.iter().flat_map(|backend| {
        let addresses = [(Family::V4, backend.entry.v4), (Family::V6, backend.entry.v6)];
        let addresses = addresses.into_iter().filter(|(_, address)| !address.is_none());
        addresses.map(|(family, address)| {
            (NextHop::index(backend.index, family), next_hop(address.into()))
        })
    });
    maps.write(NEXT_HOPS, &next_hops.collect::<Vec<_>>())?;
    let entries = new.iter().map(|backend| (u32::from(backend.index), backend.entry));
    maps.write(BACKENDS, &entries.collect::<Vec<_>>())
}

fn set_draining<M: MapStore>(maps: &mut M, changed: &[(u16, bool)]) -> Result<(), M::Error> {
    let records = maps.elements(BACKEND_RECORDS)?;
    let changed = changed.iter().filter_map(|(index, draining)| {
        let record = records.get(usize::from(*index))?;
        Some((u32::from(*index), BackendRecord { draining: u32::from(*draining), ..*record }))
    });
    maps.write(BACKEND_RECORDS, &changed.collect::<Vec<_>>())
}

fn replace_tables<M: MapStore>(maps: &mut M, new: &[NewTable]) -> Result<(), M::Error> {
    let created = new.iter().filter(|table| table.created);
    let indexes: Vec<_> = created.clone().map(|table| table.service).collect();
    maps.reset(SERVICE_COUNTERS, &indexes)?;
    let records = created
        .map(|table| (table.service, ServiceRecord { name: name(&table.name), reusable_after: 0 }));
    maps.write(SERVICE_RECORDS, &records.collect::<Vec<_>>())?;
    let tables: Vec<_> = new.iter().map(|table| (table.service, &table.table)).collect();
    maps.replace_tables(&tables)
}

fn retire_services<M: MapStore>(maps: &mut M, indexes: &[u32], now: u64) -> Result<(), M::Error> {
    indexes.iter().try_for_each(|index| maps.remove_table(*index))?;
    indexes.iter().try_for_each(|index| maps.remove_acl(*index))?;
    // The records are written last: while a record has the service's name, the next daemon repeats
    // the step.
    let record = ServiceRecord { name: Name::NONE, reusable_after: reusable_after(now) };
    maps.write(SERVICE_RECORDS, &indexes.iter().map(|index| (*index, record)).collect::<Vec<_>>())
}

fn retire_backends<M: MapStore>(maps: &mut M, indexes: &[u16], now: u64) -> Result<(), M::Error> {
    // The entries, with their epochs, are cleared first: entries of the connection table for these
    // indexes no longer match.
    let free = indexes.iter().map(|index| (u32::from(*index), FREE));
    maps.write(BACKENDS, &free.collect::<Vec<_>>())?;
    let next_hops = indexes.iter().flat_map(|index| {
        [Family::V4, Family::V6].map(|family| (NextHop::index(*index, family), NextHop::NONE))
    });
    maps.write(NEXT_HOPS, &next_hops.collect::<Vec<_>>())?;
    // The records are written last, as in `retire_services`.
    let records = maps.elements(BACKEND_RECORDS)?;
    let reusable_after = reusable_after(now);
    let retired = indexes.iter().filter_map(|index| {
        let record = records.get(usize::from(*index))?;
        Some((
            u32::from(*index),
            BackendRecord { name: Name::NONE, draining: 0, reusable_after, ..*record },
        ))
    });
    maps.write(BACKEND_RECORDS, &retired.collect::<Vec<_>>())
}

/// The end of the quarantine of an index that is freed at `now`.
fn reusable_after(now: u64) -> u64 {
    now.saturating_add(QUARANTINE_SECONDS * 1_000_000_000)
}

/// The name in a record. The configuration has no name that is too long for it.
fn name(text: &str) -> Name {
    Name::new(text).unwrap_or(Name::NONE)
}
