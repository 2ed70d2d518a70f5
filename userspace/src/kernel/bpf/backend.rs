//! The maps of the backend's programs.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use sluice_control::prefix::prefix_key;
use sluice_datapath::abi::{AddressOptions, Decapsulated, LocalAddress, PrefixKey, VipAddress};
use sluice_datapath::{Address, Family, Pod, Reason};

use super::balancer::occurred;
use super::percpu::PerCpuCounters;
use super::pins::Set;
use super::raw::{bytes, value};
use super::spec::BACKEND;
use super::typed_map::{ArrayMap, KeyedMap};
use super::usage::{self, Usage};
use super::{Error, Pins};

/// The maps of the backend's programs, opened from their pins.
pub struct BackendMaps {
    local_addresses: KeyedMap<Address, LocalAddress>,
    vip_prefixes: KeyedMap<PrefixKey, VipAddress>,
    decapsulated: PerCpuCounters,
    largest_segments: ArrayMap<u32>,
    clamped: PerCpuCounters,
    reasons: PerCpuCounters,
}

impl BackendMaps {
    /// Opens the maps of an instance.
    ///
    /// # Errors
    ///
    /// [`Error::Absent`], [`Error::Open`], [`Error::Shape`].
    pub fn open(pins: &Pins) -> Result<Self, Error> {
        pins.open(Self::of)
    }

    fn of(set: &Set) -> Result<Self, Error> {
        Ok(Self {
            local_addresses: KeyedMap::open(set, "LOCAL_ADDRESSES")?,
            vip_prefixes: KeyedMap::open(set, "VIP_PREFIXES")?,
            decapsulated: PerCpuCounters::open(set, "DECAPSULATED")?,
            largest_segments: ArrayMap::open(set, "MAX_SEGMENT_SIZES")?,
            clamped: PerCpuCounters::open(set, "MSS_CLAMPED")?,
            reasons: PerCpuCounters::open(set, "REASONS")?,
        })
    }

    /// How many VIP addresses there is room for.
    pub fn vip_addresses(&self) -> u32 {
        self.vip_prefixes.map().entries()
    }

    /// What the maps of an instance take.
    ///
    /// # Errors
    ///
    /// [`Error::Absent`], [`Error::Open`], [`Error::System`].
    pub fn usage(pins: &Pins) -> Result<Vec<Usage>, Error> {
        pins.open(|set| usage::of(BACKEND, set))
    }

    /// Makes the program accept encapsulated packets to `local` that carry packets to `vips`, and
    /// to nothing else.
    ///
    /// What is wanted is added before the rest is removed, so that nothing that stays is ever
    /// missing.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn set(&mut self, local: &[IpAddr], vips: &[IpNet]) -> Result<(), Error> {
        let local =
            local.iter().map(|address| (Address::from(*address), LocalAddress { present: 1 }));
        replace(&self.local_addresses, local.collect())?;
        let entry = |id| VipAddress::new(id, AddressOptions::NONE);
        replace(
            &self.vip_prefixes,
            (1..).zip(vips).map(|(id, vip)| (prefix_key(*vip), entry(id))).collect(),
        )
    }

    /// Whether the program decapsulates for any address; otherwise tunnel devices do, or nobody.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn decapsulates(&self) -> Result<bool, Error> {
        Ok(!self.local_addresses.all()?.is_empty())
    }

    /// The largest maximum segment size that VIPs of a family may tell, in bytes; 0 where any may
    /// be told.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn largest_segment(&self, family: Family) -> Result<u32, Error> {
        self.largest_segments.at(family.index())
    }

    /// Sets what [`Self::largest_segment`] says, of each family.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn set_largest_segments(&mut self, sizes: &[(Family, u32)]) -> Result<(), Error> {
        self.largest_segments
            .put(&sizes.iter().map(|(family, size)| (family.index(), *size)).collect::<Vec<_>>())
    }

    /// How many SYNs and SYN-ACKs were made to tell a smaller maximum segment size.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn clamped(&self) -> Result<u64, Error> {
        Ok(value(bytes(&self.clamped.at(0)?)))
    }

    /// What was decapsulated.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn decapsulated(&self) -> Result<Decapsulated, Error> {
        Ok(value(bytes(&self.decapsulated.at(0)?)))
    }

    /// How many packets were not decapsulated, by reason; only reasons that occurred.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn reasons(&self) -> Result<Vec<(Reason, u64)>, Error> {
        occurred(&self.reasons)
    }
}

/// Makes a map hold entries with these keys: adds what is missing, then removes what is not wanted;
/// the other way round where there is no room for both. An entry that is there says all that
/// counts, whatever its value is.
fn replace<K: Pod + Ord, V: Pod>(map: &KeyedMap<K, V>, wanted: Vec<(K, V)>) -> Result<(), Error> {
    let keys: BTreeSet<K> = wanted.iter().map(|(key, _)| *key).collect();
    let present: BTreeSet<K> = map.all()?.into_iter().map(|(key, _)| key).collect();
    let missing: Vec<(K, V)> =
        wanted.into_iter().filter(|(key, _)| !present.contains(key)).collect();
    let stale: Vec<K> = present.difference(&keys).copied().collect();
    if present.len() + missing.len() > map.map().entries() as usize {
        map.remove(&stale)?;
        return map.put(&missing);
    }
    map.put(&missing)?;
    map.remove(&stale)
}
