//! The maps of the backend's decapsulation program.

use std::collections::BTreeSet;
use std::net::IpAddr;

use sluice_datapath::entries::{BackendCounters, LocalAddress, VipAddress};
use sluice_datapath::options::AddressOptions;
use sluice_datapath::{Address, Plain, Reason};

use super::balancer::occurred;
use super::pins::Set;
use super::raw::{bytes, value};
use super::shape::BACKEND;
use super::tally::Tally;
use super::typed::Keys;
use super::usage::{self, Usage};
use super::{Error, Pins};

/// The maps of the backend's program, opened from their pins.
pub struct BackendMaps {
    local_addresses: Keys<Address, LocalAddress>,
    vip_addresses: Keys<Address, VipAddress>,
    decapsulated: Tally,
    reasons: Tally,
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
            local_addresses: Keys::open(set, "LOCAL_ADDRESSES")?,
            vip_addresses: Keys::open(set, "VIP_ADDRESSES")?,
            decapsulated: Tally::open(set, "DECAPSULATED")?,
            reasons: Tally::open(set, "REASONS")?,
        })
    }

    /// How many VIP addresses there is room for.
    pub fn vip_addresses(&self) -> u32 {
        self.vip_addresses.map().entries()
    }

    /// What the maps of an instance take.
    ///
    /// # Errors
    ///
    /// [`Error::Absent`], [`Error::Open`], [`Error::System`].
    pub fn usage(pins: &Pins) -> Result<Vec<Usage>, Error> {
        pins.open(|set| usage::of(BACKEND, set))
    }

    /// Makes the program accept encapsulated packets to `local` that carry packets to `vips`, and to nothing else.
    ///
    /// What is wanted is added before the rest is removed, so that nothing that stays is ever missing.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn set(&mut self, local: &[IpAddr], vips: &[IpAddr]) -> Result<(), Error> {
        put(&self.local_addresses, local, |_| LocalAddress { present: 1 })?;
        put(&self.vip_addresses, vips, |id| VipAddress { id, options: AddressOptions::NONE })
    }

    /// What was decapsulated.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn decapsulated(&self) -> Result<BackendCounters, Error> {
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

fn put<V: Plain>(map: &Keys<Address, V>, wanted: &[IpAddr], value: impl Fn(u32) -> V) -> Result<(), Error> {
    let entries: Vec<_> = (1..).zip(wanted).map(|(id, address)| (Address::from(*address), value(id))).collect();
    map.put(&entries)?;
    let wanted: BTreeSet<IpAddr> = wanted.iter().copied().collect();
    let present = map.all()?.into_iter().map(|(address, _)| address);
    let unwanted: Vec<_> = present.filter(|address| !wanted.contains(&IpAddr::from(*address))).collect();
    map.remove(&unwanted)
}
