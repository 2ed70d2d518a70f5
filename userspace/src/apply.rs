//! Reads what the maps hold, and applies a plan's steps to them.

use std::net::IpAddr;

use nix::time::{ClockId, clock_gettime};
use sluice_datapath::Address;
use sluice_datapath::Family;
use sluice_datapath::entries::{Backend, NextHop};
use sluice_datapath::records::{BackendRecord, Name, ServiceRecord};

use crate::bpf::Error;
use crate::plan::{Have, HaveBackend, HaveService, NewBackend, REST_SECONDS, Step};

mod maps;

pub use maps::Maps;

const FREE: Backend = Backend { v4: Address::NONE, v6: Address::NONE, incarnation: 0 };

/// Nanoseconds since boot, suspended time included: the clock of everything that rests.
pub fn now() -> u64 {
    // Cannot fail for a clock that the kernel has had since 2.6.39.
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or_else(|_| Default::default(), std::time::Duration::from);
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// What the maps hold, from the maps alone.
///
/// # Errors
///
/// [`Error::Read`], [`Error::System`].
pub fn have(maps: &impl Maps) -> Result<Have, Error> {
    let mut have = Have::default();
    let capacities = maps.capacities();
    for index in 1..=u16::try_from(capacities.backends).unwrap_or(u16::MAX) {
        let record = maps.backend_record(index)?;
        if record.incarnation == 0 {
            continue;
        }
        let name = record.name.as_str();
        have.backends.insert(
            index,
            HaveBackend {
                name: (!name.is_empty()).then(|| name.to_owned()),
                entry: maps.backend(index)?,
                incarnation: record.incarnation,
                draining: record.draining != 0,
                rests_until: record.rests_until,
            },
        );
    }
    for index in 1..=capacities.services {
        let record = maps.service_record(index)?;
        let name = record.name.as_str();
        if name.is_empty() && record.rests_until == 0 {
            continue;
        }
        let name = (!name.is_empty()).then(|| name.to_owned());
        let table = if name.is_some() { maps.table(index)? } else { None };
        have.services.insert(index, HaveService { name, table, rests_until: record.rests_until });
    }
    have.addresses = maps.vip_addresses()?;
    have.vips = maps.vips()?;
    Ok(have)
}

/// Applies one step at `now` (nanoseconds since boot).
///
/// `next_hop` tells how packets leave towards an address; new backends get theirs before anything names them.
///
/// # Errors
///
/// [`Error`]. The maps then hold a part of the step, which does no harm: the next [`have`] shows it.
pub fn apply(maps: &mut impl Maps, step: &Step, next_hop: &dyn Fn(IpAddr) -> NextHop, now: u64) -> Result<(), Error> {
    match step {
        Step::AddBackends(new) => new.iter().try_for_each(|backend| add_backend(maps, backend, next_hop)),
        Step::SetDraining(changed) => changed.iter().try_for_each(|(index, draining)| {
            let record = maps.backend_record(*index)?;
            maps.set_backend_record(*index, &BackendRecord { draining: u32::from(*draining), ..record })
        }),
        Step::ReplaceTables(new) => {
            for table in new.iter().filter(|table| table.created) {
                maps.reset_service_counters(table.service)?;
                maps.set_service_record(table.service, &ServiceRecord { name: name(&table.name), rests_until: 0 })?;
            }
            let tables: Vec<_> = new.iter().map(|table| (table.service, &table.table)).collect();
            maps.replace_tables(&tables)
        }
        Step::PutVips { addresses, vips } => {
            for (key, vip) in vips {
                maps.put_vip(*key, *vip)?;
            }
            // Last, so that an address is a VIP address only once its VIPs are there.
            addresses.iter().try_for_each(|(address, entry)| maps.put_vip_address(*address, *entry))
        }
        Step::RemoveVips { vips, addresses } => {
            for address in addresses {
                maps.remove_vip_address(*address)?;
            }
            vips.iter().try_for_each(|key| maps.remove_vip(*key))
        }
        Step::RetireServices(indexes) => indexes.iter().try_for_each(|index| {
            // The record goes last: as long as it names the service, the next daemon knows that this is not done.
            maps.remove_table(*index)?;
            maps.remove_list(*index)?;
            maps.set_service_record(*index, &ServiceRecord { name: Name::NONE, rests_until: rests_until(now) })
        }),
        Step::RetireBackends(indexes) => indexes.iter().try_for_each(|index| {
            // The incarnation goes first with the entry: what the connection table says of this index counts no more.
            maps.set_backend(*index, &FREE)?;
            for family in [Family::V4, Family::V6] {
                maps.set_next_hop(NextHop::index(*index, family), NextHop { interface: 0, mtu: 0 })?;
            }
            // The record goes last, as above.
            let record = maps.backend_record(*index)?;
            let rests = BackendRecord { name: Name::NONE, draining: 0, rests_until: rests_until(now), ..record };
            maps.set_backend_record(*index, &rests)
        }),
    }
}

/// When an index that is freed now may be used again.
fn rests_until(now: u64) -> u64 {
    now.saturating_add(REST_SECONDS * 1_000_000_000)
}

/// The record comes first: if the daemon dies behind it, the next one knows that this incarnation is taken.
fn add_backend(maps: &mut impl Maps, backend: &NewBackend, next_hop: &dyn Fn(IpAddr) -> NextHop) -> Result<(), Error> {
    maps.reset_backend_counters(backend.index)?;
    let record = BackendRecord {
        name: name(&backend.name),
        rests_until: 0,
        incarnation: backend.entry.incarnation,
        draining: u32::from(backend.draining),
    };
    maps.set_backend_record(backend.index, &record)?;
    for (family, address) in [(Family::V4, backend.entry.v4), (Family::V6, backend.entry.v6)] {
        if !address.is_none() {
            maps.set_next_hop(NextHop::index(backend.index, family), next_hop(address.into()))?;
        }
    }
    maps.set_backend(backend.index, &backend.entry)
}

/// A name as records hold it. The configuration holds no name that does not fit.
fn name(text: &str) -> Name {
    Name::new(text).unwrap_or(Name::NONE)
}
