//! Reads the state of the maps, and executes the steps of a plan.
//!
//! Functions return the error of [`MapStore`].

use std::collections::BTreeMap;
use std::net::IpAddr;

use sluice_datapath::abi::{Backend, BackendRecord, Name, NextHop, QuicIdLengths, ServiceRecord};
use sluice_datapath::{Address, Family};

use crate::have::{Have, HaveBackend, HaveService, QUARANTINE_SECONDS};
use crate::step::{NewBackend, NewTable, Step};

mod maps;

pub use maps::MapStore;

/// The entry of an unused index.
const FREE: Backend = Backend { v4: Address::NONE, v6: Address::NONE, epoch: 0 };

/// Reads the state of the maps.
pub fn have<M: MapStore>(maps: &M) -> Result<Have, M::Error> {
    let mut have = Have { backends: backends(maps)?, ..Have::default() };
    for (index, record) in (0..).zip(maps.service_records()?).skip(1) {
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
    have.addresses = maps.vip_addresses()?;
    have.vips = maps.vips()?;
    have.routes = maps.routes()?;
    have.quic_servers = maps.quic_servers()?;
    have.quic_lengths = (0..)
        .zip(maps.quic_lengths()?)
        .filter(|(_, lengths)| *lengths != QuicIdLengths::NONE)
        .collect();
    Ok(have)
}

/// Reads [`Have::backends`].
pub fn backends<M: MapStore>(maps: &M) -> Result<BTreeMap<u16, HaveBackend>, M::Error> {
    let mut backends = BTreeMap::new();
    let entries = maps.backends()?;
    for ((index, record), entry) in (0_u32..).zip(maps.backend_records()?).zip(entries) {
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
        Step::PutRoutes(routes) => maps.put_routes(routes),
        Step::RemoveRoutes(keys) => maps.remove_routes(keys),
        Step::PutServerIds { servers, lengths } => {
            maps.put_quic_servers(servers)?;
            maps.set_quic_lengths(lengths)
        }
        Step::RemoveServerIds { servers, services } => {
            let lengths: Vec<_> =
                services.iter().map(|index| (*index, QuicIdLengths::NONE)).collect();
            maps.set_quic_lengths(&lengths)?;
            maps.remove_quic_servers(servers)
        }
        Step::ClearCachedVips(addresses) => maps.put_vip_addresses(addresses),
        Step::PutVips { addresses, vips } => {
            maps.put_vips(vips)?;
            // After the VIPs, so that an address is a VIP address only when its VIPs exist, and its
            // cached VIP is equal to one of them.
            maps.put_vip_addresses(addresses)
        }
        Step::RemoveVips { vips, addresses } => {
            maps.remove_vip_addresses(addresses)?;
            maps.remove_vips(vips)
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
    maps.reset_backend_counters(&new.iter().map(|backend| backend.index).collect::<Vec<_>>())?;
    // The records precede the entries: after a crash the next daemon does not reuse the epochs.
    let records = new.iter().map(|backend| {
        let record = BackendRecord {
            name: name(&backend.name),
            reusable_after: 0,
            epoch: backend.entry.epoch,
            draining: u32::from(backend.draining),
        };
        (backend.index, record)
    });
    maps.set_backend_records(&records.collect::<Vec<_>>())?;
    let next_hops = new.iter().flat_map(|backend| {
        let addresses = [(Family::V4, backend.entry.v4), (Family::V6, backend.entry.v6)];
        let addresses = addresses.into_iter().filter(|(_, address)| !address.is_none());
        addresses.map(|(family, address)| {
            (NextHop::index(backend.index, family), next_hop(address.into()))
        })
    });
    maps.set_next_hops(&next_hops.collect::<Vec<_>>())?;
    maps.set_backends(&new.iter().map(|backend| (backend.index, backend.entry)).collect::<Vec<_>>())
}

fn set_draining<M: MapStore>(maps: &mut M, changed: &[(u16, bool)]) -> Result<(), M::Error> {
    let records = maps.backend_records()?;
    let changed = changed.iter().filter_map(|(index, draining)| {
        let record = records.get(usize::from(*index))?;
        Some((*index, BackendRecord { draining: u32::from(*draining), ..*record }))
    });
    maps.set_backend_records(&changed.collect::<Vec<_>>())
}

fn replace_tables<M: MapStore>(maps: &mut M, new: &[NewTable]) -> Result<(), M::Error> {
    let created = new.iter().filter(|table| table.created);
    let indexes: Vec<_> = created.clone().map(|table| table.service).collect();
    maps.reset_service_counters(&indexes)?;
    let records = created
        .map(|table| (table.service, ServiceRecord { name: name(&table.name), reusable_after: 0 }));
    maps.set_service_records(&records.collect::<Vec<_>>())?;
    let tables: Vec<_> = new.iter().map(|table| (table.service, &table.table)).collect();
    maps.replace_tables(&tables)
}

fn retire_services<M: MapStore>(maps: &mut M, indexes: &[u32], now: u64) -> Result<(), M::Error> {
    indexes.iter().try_for_each(|index| maps.remove_table(*index))?;
    indexes.iter().try_for_each(|index| maps.remove_acl(*index))?;
    // The records are written last: while a record has the service's name, the next daemon repeats
    // the step.
    let record = ServiceRecord { name: Name::NONE, reusable_after: reusable_after(now) };
    maps.set_service_records(&indexes.iter().map(|index| (*index, record)).collect::<Vec<_>>())
}

fn retire_backends<M: MapStore>(maps: &mut M, indexes: &[u16], now: u64) -> Result<(), M::Error> {
    // The entries, with their epochs, are cleared first: entries of the connection table for these
    // indexes no longer match.
    maps.set_backends(&indexes.iter().map(|index| (*index, FREE)).collect::<Vec<_>>())?;
    let next_hops = indexes.iter().flat_map(|index| {
        [Family::V4, Family::V6].map(|family| (NextHop::index(*index, family), NextHop::NONE))
    });
    maps.set_next_hops(&next_hops.collect::<Vec<_>>())?;
    // The records are written last, as in `retire_services`.
    let records = maps.backend_records()?;
    let reusable_after = reusable_after(now);
    let retired = indexes.iter().filter_map(|index| {
        let record = records.get(usize::from(*index))?;
        Some((*index, BackendRecord { name: Name::NONE, draining: 0, reusable_after, ..*record }))
    });
    maps.set_backend_records(&retired.collect::<Vec<_>>())
}

/// The end of the quarantine of an index that is freed at `now`.
fn reusable_after(now: u64) -> u64 {
    now.saturating_add(QUARANTINE_SECONDS * 1_000_000_000)
}

/// The name in a record. The configuration has no name that is too long for it.
fn name(text: &str) -> Name {
    Name::new(text).unwrap_or(Name::NONE)
}
