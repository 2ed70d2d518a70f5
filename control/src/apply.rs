//! Reads what the maps hold, and applies a plan's steps to them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use sluice_datapath::abi::{Backend, BackendRecord, Name, NextHop, QuicIdLengths, ServiceRecord};
use sluice_datapath::{Address, Family};

use crate::have::{Have, HaveBackend, HaveService, REST_SECONDS};
use crate::step::{NewBackend, Step};

mod maps;

pub use maps::Maps;

const FREE: Backend = Backend { v4: Address::NONE, v6: Address::NONE, epoch: 0 };

/// What the maps hold, from the maps alone.
///
/// # Errors
///
/// The error of [`Maps`].
pub fn have<M: Maps>(maps: &M) -> Result<Have, M::Error> {
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

/// The backends and resting indexes that the maps hold, by index: a part of [`have`].
///
/// # Errors
///
/// The error of [`Maps`].
pub fn backends<M: Maps>(maps: &M) -> Result<BTreeMap<u16, HaveBackend>, M::Error> {
    let mut backends = BTreeMap::new();
    let entries = maps.backends()?;
    for ((index, record), entry) in (0_u32..).zip(maps.backend_records()?).zip(entries) {
        // An index is 16 bits wide, and index 0 means nothing.
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

/// Applies one step at `now` (nanoseconds since boot).
///
/// `next_hop` tells how packets leave towards an address; new backends get theirs before anything
/// names them.
///
/// # Errors
///
/// The error of [`Maps`]. The maps then hold a part of the step, which does no harm: the next [`have`] shows
/// it.
pub fn apply<M: Maps>(
    maps: &mut M,
    step: &Step,
    next_hop: &dyn Fn(IpAddr) -> NextHop,
    now: u64,
) -> Result<(), M::Error> {
    match step {
        Step::AddBackends(new) => add_backends(maps, new, next_hop),
        Step::SetDraining(changed) => {
            let records = maps.backend_records()?;
            let draining: Vec<_> = changed
                .iter()
                .filter_map(|(index, draining)| {
                    let record = records.get(usize::from(*index))?;
                    Some((*index, BackendRecord { draining: u32::from(*draining), ..*record }))
                })
                .collect();
            maps.set_backend_records(&draining)
        }
        Step::ReplaceTables(new) => {
            let created = new.iter().filter(|table| table.created);
            let indexes: Vec<_> = created.clone().map(|table| table.service).collect();
            maps.reset_service_counters(&indexes)?;
            let records: Vec<_> = created
                .map(|table| {
                    (table.service, ServiceRecord { name: name(&table.name), reusable_after: 0 })
                })
                .collect();
            maps.set_service_records(&records)?;
            let tables: Vec<_> = new.iter().map(|table| (table.service, &table.table)).collect();
            maps.replace_tables(&tables)
        }
        Step::PutRoutes(routes) => maps.put_routes(routes),
        Step::RemoveRoutes(keys) => maps.remove_routes(keys),
        Step::PutServerIds { servers, lengths } => {
            maps.put_quic_servers(servers)?;
            maps.set_quic_lengths(lengths)
        }
        Step::RemoveServerIds { servers, services } => {
            maps.set_quic_lengths(
                &services.iter().map(|index| (*index, QuicIdLengths::NONE)).collect::<Vec<_>>(),
            )?;
            maps.remove_quic_servers(servers)
        }
        Step::ClearCopies(addresses) => maps.put_vip_addresses(addresses),
        Step::PutVips { addresses, vips } => {
            maps.put_vips(vips)?;
            // Last, so that an address is a VIP address only once its VIPs are there, and holds
            // copies of no others.
            maps.put_vip_addresses(addresses)
        }
        Step::RemoveVips { vips, addresses } => {
            maps.remove_vip_addresses(addresses)?;
            maps.remove_vips(vips)
        }
        Step::RetireServices(indexes) => {
            // The records go last: as long as one names the service, the next daemon knows that
            // this is not done.
            indexes.iter().try_for_each(|index| maps.remove_table(*index))?;
            indexes.iter().try_for_each(|index| maps.remove_list(*index))?;
            let rests = ServiceRecord { name: Name::NONE, reusable_after: reusable_after(now) };
            maps.set_service_records(
                &indexes.iter().map(|index| (*index, rests)).collect::<Vec<_>>(),
            )
        }
        Step::RetireBackends(indexes) => {
            // The incarnations go first with the entries: what the connection table says of these
            // indexes counts no more.
            maps.set_backends(&indexes.iter().map(|index| (*index, FREE)).collect::<Vec<_>>())?;
            let next_hops = indexes.iter().flat_map(|index| {
                [Family::V4, Family::V6]
                    .map(|family| (NextHop::index(*index, family), NextHop::NONE))
            });
            maps.set_next_hops(&next_hops.collect::<Vec<_>>())?;
            // The records go last, as above.
            let records = maps.backend_records()?;
            let rests: Vec<_> = indexes
                .iter()
                .filter_map(|index| {
                    let record = records.get(usize::from(*index))?;
                    let reusable_after = reusable_after(now);
                    Some((
                        *index,
                        BackendRecord { name: Name::NONE, draining: 0, reusable_after, ..*record },
                    ))
                })
                .collect();
            maps.set_backend_records(&rests)
        }
    }
}

/// When an index that is freed now may be used again.
fn reusable_after(now: u64) -> u64 {
    now.saturating_add(REST_SECONDS * 1_000_000_000)
}

/// The records come first: if the daemon dies behind them, the next one knows that these
/// incarnations are taken.
fn add_backends<M: Maps>(
    maps: &mut M,
    new: &[NewBackend],
    next_hop: &dyn Fn(IpAddr) -> NextHop,
) -> Result<(), M::Error> {
    maps.reset_backend_counters(&new.iter().map(|backend| backend.index).collect::<Vec<_>>())?;
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

/// A name as records hold it. The configuration holds no name that does not fit.
fn name(text: &str) -> Name {
    Name::new(text).unwrap_or(Name::NONE)
}
