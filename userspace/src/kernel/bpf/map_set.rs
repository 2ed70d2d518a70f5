//! The pinned maps of a role, with reads and writes typed by the list of maps.
//!
//! Reads and writes take a [`MapId`] from [`sluice_datapath::abi::maps`], which has the types of
//! keys and values. Many entries go into one call where the kernel can; each entry is written
//! atomically nevertheless. Unless stated otherwise, functions return [`Error::System`].

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;

use sluice_control::capacities::Capacities;
use sluice_datapath::abi::maps::{
    Counting, Indexed, Keyed, MapId, MapKind, MapList, MapSpec, MapType, Nested,
};

use super::percpu::{PerCpuCounters, missing};
use super::pins::Set;
use super::raw::{RawMap, bytes, value};
use super::spec;
use super::usage::{self, Usage};
use super::{Error, Pins};

/// The maps of a list, opened from their pins.
pub struct MapSet<L> {
    /// In the order of the list; `None` for a map that is not pinned.
    maps: Vec<Option<OpenMap>>,
    capacities: Capacities,
    /// Indexes of `ACLS` that refer to a trie, once they were read. Only this process writes them.
    pub(super) acl_indexes: OnceCell<BTreeSet<u32>>,
    list: PhantomData<fn() -> L>,
}

enum OpenMap {
    Map(RawMap),
    Counters(PerCpuCounters),
}

impl<L: MapList> MapSet<L> {
    /// Opens the maps of an instance.
    ///
    /// # Errors
    ///
    /// [`Error::Absent`], [`Error::Layout`], [`Error::Open`], or [`Error::Shape`] when a map is
    /// missing or its keys and values have other sizes.
    pub fn open(pins: &Pins) -> Result<Self, Error> {
        pins.open(Self::open_set)
    }

    fn open_set(set: &Set) -> Result<Self, Error> {
        let mut sizes = Vec::new();
        let mut maps = Vec::with_capacity(L::SPECS.len());
        for spec in L::SPECS {
            maps.push(if spec.pinned {
                let map = open(spec, set)?;
                sizes.push((spec, map.entries()));
                Some(if spec.kind == MapKind::Counters {
                    OpenMap::Counters(PerCpuCounters::open(set, spec.name)?)
                } else {
                    OpenMap::Map(map)
                })
            } else {
                None
            });
        }
        Ok(Self {
            maps,
            capacities: spec::capacities(sizes),
            acl_indexes: OnceCell::new(),
            list: PhantomData,
        })
    }

    /// Returns memory and entries of each map of an instance.
    pub fn usage(pins: &Pins) -> Result<Vec<Usage>, Error> {
        pins.open(|set| usage::of(L::SPECS, set))
    }

    /// The capacities of the maps.
    pub fn capacities(&self) -> Capacities {
        self.capacities
    }

    /// The entries of a map.
    pub fn entries<T: Keyed>(&self, map: MapId<L, T>) -> Result<BTreeMap<T::Key, T::Value>, Error> {
        let map = self.raw(map);
        let mut entries = BTreeMap::new();
        map.read(|keys, values| {
            let keys = keys.chunks(map.key()).map(value::<T::Key>);
            entries.extend(keys.zip(values.chunks(map.value()).map(value::<T::Value>)));
            Ok(())
        })?;
        Ok(entries)
    }

    /// The entry of a key, in an LPM trie of its longest prefix.
    pub fn entry<T: Keyed>(
        &self,
        map: MapId<L, T>,
        key: &T::Key,
    ) -> Result<Option<T::Value>, Error> {
        let found = self.raw(map).lookup(bytes(std::slice::from_ref(key)))?;
        Ok(found.map(|found| value(&found)))
    }

    /// Adds or changes entries.
    pub fn put<T: Keyed>(
        &mut self,
        map: MapId<L, T>,
        entries: &[(T::Key, T::Value)],
    ) -> Result<(), Error> {
        let (keys, values): (Vec<_>, Vec<_>) = entries.iter().copied().unzip();
        self.raw(map).write(bytes(&keys), bytes(&values))
    }

    /// Removes entries. Absent ones are ignored.
    pub fn remove<T: Keyed>(&mut self, map: MapId<L, T>, keys: &[T::Key]) -> Result<(), Error> {
        let map = self.raw(map);
        keys.iter().try_for_each(|key| map.delete(bytes(std::slice::from_ref(key))))
    }

    /// The elements of an array, from index 0.
    pub fn elements<T: Indexed>(&self, map: MapId<L, T>) -> Result<Vec<T::Value>, Error> {
        let map = self.raw(map);
        let mut elements = Vec::with_capacity(map.entries() as usize);
        map.read(|_, values| {
            elements.extend(values.chunks(map.value()).map(value::<T::Value>));
            Ok(())
        })?;
        Ok(elements)
    }

    /// An element of an array.
    ///
    /// # Errors
    ///
    /// [`Error::Beyond`] when the array ends before the index; [`Error::System`].
    pub fn element<T: Indexed>(&self, map: MapId<L, T>, index: u32) -> Result<T::Value, Error> {
        let map = self.raw(map);
        match map.lookup(&index.to_ne_bytes())? {
            Some(found) => Ok(value(&found)),
            None => Err(Error::Beyond { map: map.name().to_owned(), index }),
        }
    }

    /// Changes elements of an array.
    pub fn write<T: Indexed>(
        &mut self,
        map: MapId<L, T>,
        elements: &[(u32, T::Value)],
    ) -> Result<(), Error> {
        let (indexes, values): (Vec<_>, Vec<_>) = elements.iter().copied().unzip();
        self.raw(map).write(bytes(&indexes), bytes(&values))
    }

    /// The counters at an index, summed over all CPUs.
    pub fn total<T: Counting>(&self, map: MapId<L, T>, index: u32) -> Result<T::Value, Error> {
        Ok(value(bytes(&self.counters(map).at(index)?)))
    }

    /// The counters at all indexes from 0, summed over all CPUs.
    pub fn totals<T: Counting>(&self, map: MapId<L, T>) -> Result<Vec<T::Value>, Error> {
        let words = size_of::<T::Value>() / size_of::<u64>();
        let totals = self.counters(map).all()?;
        Ok(totals.chunks(words).map(|total| value(bytes(total))).collect())
    }

    /// Sets the counters at indexes to zero.
    pub fn reset<T: Counting>(&mut self, map: MapId<L, T>, indexes: &[u32]) -> Result<(), Error> {
        self.counters(map).reset(indexes)
    }

    /// The number of entries for which a map has room.
    pub(super) fn max_entries<T: Keyed>(&self, map: MapId<L, T>) -> u32 {
        self.raw(map).entries()
    }

    /// An array of maps.
    pub(super) fn outer<T: Nested>(&self, map: MapId<L, T>) -> &RawMap {
        self.raw(map)
    }

    fn raw<T: MapType>(&self, map: MapId<L, T>) -> &RawMap {
        match &self.maps[map.index()] {
            Some(OpenMap::Map(map)) => map,
            _ => unreachable!("the kind of {} decides how it is opened", map.spec().name),
        }
    }

    fn counters<T: Counting>(&self, map: MapId<L, T>) -> &PerCpuCounters {
        match &self.maps[map.index()] {
            Some(OpenMap::Counters(counters)) => counters,
            _ => unreachable!("the kind of {} decides how it is opened", map.spec().name),
        }
    }
}

/// Opens a pinned map, and checks the sizes of its keys and values.
fn open(spec: &MapSpec, set: &Set) -> Result<RawMap, Error> {
    let path = set.directory.join(spec.name);
    let map = RawMap::open(&path)?.ok_or_else(|| missing(&path))?;
    // The values of each CPU are padded to eight bytes.
    let padding = if map.is_per_cpu() { 8 } else { 1 };
    let expected = (spec.key_size as usize, (spec.value_size as usize).next_multiple_of(padding));
    if spec.kind == MapKind::RingBuffer || (map.key(), map.each()) == expected {
        return Ok(map);
    }
    let what = format!(
        "keys and values have {} and {} bytes instead of {} and {}",
        map.key(),
        map.each(),
        expected.0,
        expected.1
    );
    Err(Error::Shape { path, what })
}
