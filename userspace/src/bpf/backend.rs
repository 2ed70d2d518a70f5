//! The maps of the backend's decapsulation program.

use std::net::IpAddr;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap, Map, MapData, PerCpuArray};
use ipnet::IpNet;
use sluice_datapath::entries::{BackendCounters, LocalAddress, VipAddress};
use sluice_datapath::options::AddressOptions;
use sluice_datapath::{Address, Reason};

use super::balancer::{key_of, open, prefix_of, sum};
use super::{Error, Pins, Raw};

/// The names of the maps.
pub(super) const MAPS: [&str; 4] = ["LOCAL_ADDRESSES", "VIP_PREFIXES", "DECAPSULATED", "REASONS"];

/// The maps of the backend's program, opened from their pins.
pub struct BackendMaps {
    local_addresses: HashMap<MapData, Raw<Address>, Raw<LocalAddress>>,
    vip_prefixes: LpmTrie<MapData, [u32; 4], Raw<VipAddress>>,
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
            vip_prefixes: open(pins, "VIP_PREFIXES", Map::LpmTrie)?,
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
    pub fn set(&mut self, local: &[IpAddr], vips: &[IpNet]) -> Result<(), Error> {
        let (name, map) = ("LOCAL_ADDRESSES", &mut self.local_addresses);
        for address in local {
            let written = map.insert(Raw(Address::from(*address)), Raw(LocalAddress { present: 1 }), 0);
            written.map_err(|source| Error::Write { map: name, source })?;
        }
        let present: Result<Vec<Raw<Address>>, _> = map.keys().collect();
        for Raw(address) in present.map_err(|source| Error::Read { map: name, source })? {
            if !local.contains(&IpAddr::from(address)) {
                map.remove(&Raw(address)).map_err(|source| Error::Write { map: name, source })?;
            }
        }
        let (name, map) = ("VIP_PREFIXES", &mut self.vip_prefixes);
        for (id, vip) in (1..).zip(vips) {
            let written = map.insert(&key_of(*vip), Raw(VipAddress { id, options: AddressOptions::NONE }), 0);
            written.map_err(|source| Error::Write { map: name, source })?;
        }
        let present: Result<Vec<Key<[u32; 4]>>, _> = map.keys().collect();
        for key in present.map_err(|source| Error::Read { map: name, source })? {
            if !vips.contains(&prefix_of(&key)) {
                map.remove(&key).map_err(|source| Error::Write { map: name, source })?;
            }
        }
        Ok(())
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
