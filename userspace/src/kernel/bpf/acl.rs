//! Source ACLs as LPM tries in the kernel.

use std::os::fd::AsRawFd as _;

use sluice_datapath::abi::{AclVerdict, PrefixKey};

use super::Error;
use super::raw::{RawMap, bytes};
use super::resize::INNER_MAPS;

/// A source ACL: an inner map of `ACLS`, or one that is not yet referenced there.
pub struct AclTrie {
    map: RawMap,
}

impl AclTrie {
    /// Creates a trie with these entries, and with room for some more. Entries sorted by address
    /// are written faster.
    pub fn new(entries: &[(PrefixKey, AclVerdict)]) -> Result<Self, Error> {
        // A trie allocates entries on insertion, so the room is only a limit (which counts against
        // RLIMIT_MEMLOCK before Linux 5.11).
        let room = entries.len() + entries.len() / 8 + 1024;
        let room = u32::try_from(room).unwrap_or(u32::MAX);
        let map =
            RawMap::trie("source ACL", size_of::<PrefixKey>(), size_of::<AclVerdict>(), room)?;
        let (keys, values): (Vec<_>, Vec<_>) = entries.iter().copied().unzip();
        map.write(bytes(&keys), bytes(&values))?;
        Ok(Self { map })
    }

    /// Adds a prefix, or changes its verdict, in place. Fails if there is no room left.
    pub fn put(&mut self, key: &PrefixKey, verdict: AclVerdict) -> Result<(), Error> {
        self.map.write(bytes(&[*key]), bytes(&[verdict]))
    }

    /// Removes a prefix in place, if it exists.
    pub fn remove(&mut self, key: &PrefixKey) -> Result<(), Error> {
        self.map.delete(bytes(&[*key]))
    }
}

/// Replaces inner maps, many in one call. The kernel waits until no running program uses the old
/// ones. After an error, some may have been replaced.
pub(super) fn replace(outer: &RawMap, acls: &[(u32, &AclTrie)]) -> Result<(), Error> {
    for acls in acls.chunks(INNER_MAPS) {
        let keys: Vec<u32> = acls.iter().map(|(index, _)| *index).collect();
        let tries: Vec<u32> =
            acls.iter().map(|(_, trie)| trie.map.descriptor().as_raw_fd() as u32).collect();
        outer.write(bytes(&keys), bytes(&tries))?;
    }
    Ok(())
}
