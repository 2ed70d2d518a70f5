//! Lists of sources as tries in the kernel.

use std::os::fd::AsRawFd as _;

use sluice_datapath::abi::{AclVerdict, PrefixKey};

use super::Error;
use super::raw::{RawMap, bytes};
use super::resize::INNER_MAPS;

/// A list of sources: an inner map of `ACLS`, in place or not yet.
pub struct AclTrie {
    map: RawMap,
}

impl AclTrie {
    /// A trie that holds these entries, with room for some more. Entries in the order of addresses
    /// are written faster.
    ///
    /// # Errors
    ///
    /// [`Error::System`], when memory runs out.
    pub fn new(entries: &[(PrefixKey, AclVerdict)]) -> Result<Self, Error> {
        // A trie takes memory for what it holds; the room is a bound alone (but counted against
        // RLIMIT_MEMLOCK before Linux 5.11).
        let room = entries.len() + entries.len() / 8 + 1024;
        let room = u32::try_from(room).unwrap_or(u32::MAX);
        let map =
            RawMap::trie("list of sources", size_of::<PrefixKey>(), size_of::<AclVerdict>(), room)?;
        let (keys, values): (Vec<_>, Vec<_>) = entries.iter().copied().unzip();
        map.write(bytes(&keys), bytes(&values))?;
        Ok(Self { map })
    }

    /// Adds a prefix, or changes what the list says of it, in place.
    ///
    /// # Errors
    ///
    /// [`Error::System`], also when there is no room left.
    pub fn put(&mut self, key: &PrefixKey, listing: AclVerdict) -> Result<(), Error> {
        self.map.write(bytes(&[*key]), bytes(&[listing]))
    }

    /// Removes a prefix, if it is there, in place.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn remove(&mut self, key: &PrefixKey) -> Result<(), Error> {
        self.map.delete(bytes(&[*key]))
    }
}

/// Swaps tries in, many in one call, which waits for the packets that may still meet those of
/// before.
///
/// # Errors
///
/// [`Error::System`]; some may be in place.
pub(super) fn replace(outer: &RawMap, lists: &[(u32, &AclTrie)]) -> Result<(), Error> {
    for lists in lists.chunks(INNER_MAPS) {
        let keys: Vec<u32> = lists.iter().map(|(index, _)| *index).collect();
        let tries: Vec<u32> =
            lists.iter().map(|(_, trie)| trie.map.descriptor().as_raw_fd() as u32).collect();
        outer.write(bytes(&keys), bytes(&tries))?;
    }
    Ok(())
}
