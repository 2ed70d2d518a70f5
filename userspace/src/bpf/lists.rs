//! Lists of sources as tries in the kernel.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};

use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{IterableMap as _, MapData};
use sluice_datapath::entries::{Listing, PrefixKey};

use super::batch::{delete_entry, put_entries, put_entry};
use super::{Error, Raw};

/// `BPF_F_NO_PREALLOC`, which the kernel asks of every trie.
const FLAGS: u32 = 1;

/// A list of sources: an inner map of `LISTS`, in place or not yet.
pub struct Trie {
    map: LpmTrie<MapData, [u32; 4], Raw<Listing>>,
}

impl Trie {
    /// A trie that holds these entries, with room for some more. Entries in the order of their keys are written faster.
    ///
    /// # Errors
    ///
    /// [`Error::Write`], [`Error::System`] when memory runs out.
    pub fn new(entries: &[(PrefixKey, Listing)]) -> Result<Self, Error> {
        // A trie takes memory for what it holds; the room is a bound alone (but counted against RLIMIT_MEMLOCK before Linux 5.11).
        let room = entries.len() + entries.len() / 8 + 1024;
        let room = u32::try_from(room).unwrap_or(u32::MAX);
        let map = LpmTrie::create(room, FLAGS).map_err(|source| Error::Write { map: "LISTS", source })?;
        let trie = Self { map };
        let (keys, values): (Vec<_>, Vec<_>) = entries.iter().copied().unzip();
        put_entries(trie.descriptor(), &keys, &values)
            .map_err(|source| failed(format!("fill a list with {} prefixes", entries.len()), source))?;
        Ok(trie)
    }

    /// Adds a prefix, or changes what the list says of it, in place.
    ///
    /// # Errors
    ///
    /// [`Error::System`], also when there is no room left.
    pub fn put(&mut self, key: &PrefixKey, listing: Listing) -> Result<(), Error> {
        put_entry(self.descriptor(), key, &listing).map_err(|source| failed("change a list".to_owned(), source))
    }

    /// Removes a prefix, if it is there, in place.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn remove(&mut self, key: &PrefixKey) -> Result<(), Error> {
        delete_entry(self.descriptor(), key).map_err(|source| failed("change a list".to_owned(), source))
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.map.map().fd().as_fd()
    }
}

fn failed(what: String, source: io::Error) -> Error {
    Error::System { what, source }
}
