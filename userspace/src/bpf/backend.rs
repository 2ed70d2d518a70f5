//! The maps of the backend's decapsulation program.

use std::net::IpAddr;

use aya::maps::{HashMap, Map, MapData, PerCpuArray};
use sluice_datapath::entries::{BackendCounters, LocalAddress, VipAddress};
use sluice_datapath::options::AddressOptions;
use sluice_datapath::{Address, Reason};

use super::balancer::{open, sum};
use super::{Error, Pins, Raw};

/// The names of the maps.
pub(super) const MAPS: [&str; 4] = ["LOCAL_ADDRESSES", "VIP_ADDRESSES", "DECAPSULATED", "REASONS"];

/// The maps of the backend's program, opened from their pins.
pub struct BackendMaps {
    local_addresses: HashMap<MapData, Raw<Address>, Raw<LocalAddress>>,
    vip_addresses: HashMap<MapData, Raw<Address>, Raw<VipAddress>>,
    decapsulated: PerCpuArray<MapData, Raw<BackendCounters>>,
    reasons: PerCpuArray<MapData, u64>,
}

impl BackendMaps {
    /// Opens the maps of an instance.
    ///
    /// # Errors
    ///
    /// [`Error::Absent`], [`Error::Open`], [`Error::Shape`].
    pub fn open(pins: &Pins) -> Result<Self, Error> {
        pins.require()?;
        Ok(Self {
            local_addresses: open(pins, "LOCAL_ADDRESSES", Map::HashMap)?,
            vip_addresses: open(pins, "VIP_ADDRESSES", Map::HashMap)?,
            decapsulated: open(pins, "DECAPSULATED", Map::PerCpuArray)?,
            reasons: open(pins, "REASONS", Map::PerCpuArray)?,
        })
    }

    /// Makes the program accept encapsulated packets to `local` that carry packets to `vips`, and to nothing else.
    ///
    /// What is wanted is added before the rest is removed, so that nothing that stays is ever missing.
    ///
    /// # Errors
    ///
    /// [`Error::Read`], [`Error::Write`].
    pub fn set(&mut self, local: &[IpAddr], vips: &[IpAddr]) -> Result<(), Error> {
        put(&mut self.local_addresses, "LOCAL_ADDRESSES", local, |_| LocalAddress { present: 1 })?;
        put(&mut self.vip_addresses, "VIP_ADDRESSES", vips, |id| VipAddress { id, options: AddressOptions::NONE })
    }

    /// What was decapsulated.
    ///
    /// # Errors
    ///
    /// [`Error::Read`].
    pub fn decapsulated(&self) -> Result<BackendCounters, Error> {
        let values = self.decapsulated.get(&0, 0).map_err(|source| Error::Read { map: "DECAPSULATED", source })?;
        Ok(values.iter().fold(BackendCounters::default(), |total, Raw(cpu)| BackendCounters {
            packets: total.packets.wrapping_add(cpu.packets),
            bytes: total.bytes.wrapping_add(cpu.bytes),
        }))
    }

    /// How many packets were not decapsulated, by reason; only reasons that occurred.
    ///
    /// # Errors
    ///
    /// [`Error::Read`].
    pub fn reasons(&self) -> Result<Vec<(Reason, u64)>, Error> {
        sum(&self.reasons)
    }
}

fn put<V: sluice_datapath::Plain>(
    map: &mut HashMap<MapData, Raw<Address>, Raw<V>>,
    name: &'static str,
    wanted: &[IpAddr],
    value: impl Fn(u32) -> V,
) -> Result<(), Error> {
    for (id, address) in (1..).zip(wanted) {
        let entry = Raw(value(id));
        map.insert(Raw(Address::from(*address)), entry, 0).map_err(|source| Error::Write { map: name, source })?;
    }
    let present: Result<Vec<Raw<Address>>, _> = map.keys().collect();
    for Raw(address) in present.map_err(|source| Error::Read { map: name, source })? {
        if !wanted.contains(&IpAddr::from(address)) {
            map.remove(&Raw(address)).map_err(|source| Error::Write { map: name, source })?;
        }
    }
    Ok(())
}
