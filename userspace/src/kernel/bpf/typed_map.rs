//! Maps of plain values, many entries in one call.

use std::marker::PhantomData;

use sluice_datapath::Pod;

use super::Error;
use super::percpu::missing;
use super::pins::Set;
use super::raw::{RawMap, bytes, value};

/// Opens a map of a set, whose keys and values have these sizes.
///
/// # Errors
///
/// [`Error::Open`], [`Error::Shape`].
pub(super) fn open(set: &Set, name: &str, key: usize, each: usize) -> Result<RawMap, Error> {
    let path = set.directory.join(name);
    let map = RawMap::open(&path)?.ok_or_else(|| missing(&path))?;
    if (map.key(), map.each()) == (key, each) {
        return Ok(map);
    }
    let what = format!(
        "its keys and values have {} and {} bytes, not {key} and {each}",
        map.key(),
        map.each()
    );
    Err(Error::Shape { path, what })
}

/// An array.
pub(super) struct ArrayMap<T> {
    map: RawMap,
    marker: PhantomData<T>,
}

impl<T: Pod> ArrayMap<T> {
    pub(super) fn open(set: &Set, name: &str) -> Result<Self, Error> {
        Ok(Self { map: open(set, name, size_of::<u32>(), size_of::<T>())?, marker: PhantomData })
    }

    /// The element at an index.
    pub(super) fn at(&self, index: u32) -> Result<T, Error> {
        match self.map.lookup(&index.to_ne_bytes())? {
            Some(found) => Ok(value(&found)),
            None => Err(Error::Beyond { map: self.map.name().to_owned(), index }),
        }
    }

    /// All elements, from index 0.
    pub(super) fn all(&self) -> Result<Vec<T>, Error> {
        let mut all = Vec::with_capacity(self.map.entries() as usize);
        self.map.read(|_, values| {
            all.extend(values.chunks(self.map.value()).map(value::<T>));
            Ok(())
        })?;
        Ok(all)
    }

    /// Writes elements.
    pub(super) fn put(&self, elements: &[(u32, T)]) -> Result<(), Error> {
        put(&self.map, elements)
    }
}

/// A map with keys.
pub(super) struct KeyedMap<K, V> {
    map: RawMap,
    marker: PhantomData<(K, V)>,
}

impl<K: Pod, V: Pod> KeyedMap<K, V> {
    pub(super) fn open(set: &Set, name: &str) -> Result<Self, Error> {
        Ok(Self { map: open(set, name, size_of::<K>(), size_of::<V>())?, marker: PhantomData })
    }

    pub(super) fn map(&self) -> &RawMap {
        &self.map
    }

    /// All entries, in no order.
    pub(super) fn all(&self) -> Result<Vec<(K, V)>, Error> {
        let mut all = Vec::new();
        self.map.read(|keys, values| {
            let keys = keys.chunks(self.map.key()).map(value::<K>);
            all.extend(keys.zip(values.chunks(self.map.value()).map(value::<V>)));
            Ok(())
        })?;
        Ok(all)
    }

    /// Adds entries, or changes them.
    pub(super) fn put(&self, entries: &[(K, V)]) -> Result<(), Error> {
        put(&self.map, entries)
    }

    /// Removes entries, as far as they are there.
    pub(super) fn remove(&self, keys: &[K]) -> Result<(), Error> {
        keys.iter().try_for_each(|key| self.map.delete(bytes(std::slice::from_ref(key))))
    }
}

fn put<K: Pod, V: Pod>(map: &RawMap, entries: &[(K, V)]) -> Result<(), Error> {
    let keys: Vec<K> = entries.iter().map(|(key, _)| *key).collect();
    let values: Vec<V> = entries.iter().map(|(_, value)| *value).collect();
    map.write(bytes(&keys), bytes(&values))
}
