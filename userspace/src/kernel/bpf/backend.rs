//! The maps of the backend's programs.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use sluice_control::prefix::prefix_key;
use sluice_datapath::abi::maps::backend::{BALANCERS, LOCAL_ADDRESSES, REASONS, VIP_PREFIXES};
use sluice_datapath::abi::maps::{BackendList, Keyed, MapId};
use sluice_datapath::abi::{AcceptedSource, AddressOptions, LocalAddress, PrefixKey, VipAddress};
use sluice_datapath::{Address, Reason};

use super::Error;
use super::balancer::occurred;
use super::map_set::MapSet;

/// The maps of the backend's programs, opened from their pins.
pub type BackendMaps = MapSet<BackendList>;

impl BackendMaps {
    /// Makes the program decapsulate packets to the addresses of `local` that are its own, and no
    /// others. To all addresses of `local`, tunnel packets are accepted from `balancers` only; from
    /// any source if that is empty. Fits into maps of any capacity.
    ///
    /// Missing entries are added before others are removed, so that no entry that stays is ever
    /// missing.
    pub fn set_addresses(
        &mut self,
        local: &[(IpAddr, LocalAddress)],
        balancers: &[IpNet],
    ) -> Result<(), Error> {
        let balancers = match balancers {
            [] => vec![PrefixKey::new(0, [0; 4])],
            balancers => balancers.iter().map(|prefix| prefix_key(*prefix)).collect(),
        };
        let balancers = balancers.into_iter().map(|prefix| (prefix, AcceptedSource::PRESENT));
        self.replace(BALANCERS, balancers.collect())?;
        let local = local.iter().map(|(address, local)| (Address::from(*address), *local));
        self.replace(LOCAL_ADDRESSES, local.collect())
    }

    /// Makes the program decapsulate packets that contain packets to `vips`, and no others; as
    /// [`Self::set_addresses`].
    pub fn set_vips(&mut self, vips: &[IpNet]) -> Result<(), Error> {
        let vips = (1..)
            .zip(vips)
            .map(|(id, vip)| (prefix_key(*vip), VipAddress::new(id, AddressOptions::NONE)));
        self.replace(VIP_PREFIXES, vips.collect())
    }

    /// Makes a map have entries for these keys and no others: adds missing ones, then removes stale
    /// ones, or in the other order where there is no room for both. Equal entries are not written.
    fn replace<T: Keyed<Value: PartialEq>>(
        &mut self,
        map: MapId<BackendList, T>,
        wanted: Vec<(T::Key, T::Value)>,
    ) -> Result<(), Error> {
        let keys: BTreeSet<T::Key> = wanted.iter().map(|(key, _)| *key).collect();
        let present = self.entries(map)?;
        let missing: Vec<_> =
            wanted.into_iter().filter(|(key, value)| present.get(key) != Some(value)).collect();
        let stale: Vec<_> = present.keys().filter(|key| !keys.contains(key)).copied().collect();
        if present.len() + missing.len() > self.max_entries(map) as usize {
            self.remove(map, &stale)?;
            return self.put(map, &missing);
        }
        self.put(map, &missing)?;
        self.remove(map, &stale)
    }

    /// The addresses for which the program decapsulates.
    pub fn local_addresses(&self) -> Result<Vec<IpAddr>, Error> {
        let local = self.entries(LOCAL_ADDRESSES)?.into_iter();
        let own = local.filter(|(_, local)| *local == LocalAddress::BY_PROGRAM);
        Ok(own.map(|(address, _)| address.into()).collect())
    }

    /// Whether the program decapsulates for any address.
    pub fn decapsulates(&self) -> Result<bool, Error> {
        Ok(!self.local_addresses()?.is_empty())
    }

    /// Packets that were not decapsulated, by reason, without those of which there were none.
    pub fn reasons(&self) -> Result<Vec<(Reason, u64)>, Error> {
        Ok(occurred(&self.totals(REASONS)?))
    }
}
