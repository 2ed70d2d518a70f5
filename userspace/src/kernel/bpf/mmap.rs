//! MappedArray-mapped arrays, which aya does not support.
#![expect(unsafe_code, reason = "maps arrays into memory")]

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::Error;

/// The memory of an array map with `BPF_F_MMAPABLE`, as 8-byte elements.
pub(super) struct MappedArray {
    start: NonNull<u64>,
    length: usize,
    bytes: NonZeroUsize,
}

impl MappedArray {
    /// Maps the first `length` elements of an array of 8-byte elements.
    pub(super) fn map(array: BorrowedFd<'_>, length: u32, writable: bool) -> Result<Self, Error> {
        let failed =
            |source| Error::System { what: "map a lookup table's memory".to_owned(), source };
        let length = length as usize;
        let bytes = NonZeroUsize::new(length * size_of::<u64>())
            .ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
        let protection = if writable {
            ProtFlags::PROT_READ | ProtFlags::PROT_WRITE
        } else {
            ProtFlags::PROT_READ
        };
        // SAFETY: a new mapping; the kernel checks its length against the map.
        let start = unsafe { mmap(None, bytes, protection, MapFlags::MAP_SHARED, array, 0) }
            .map_err(|errno| failed(errno.into()))?;
        Ok(Self { start: start.cast(), length, bytes })
    }

    /// Writes the elements from index 0. No program may use this map yet.
    pub(super) fn fill(&mut self, elements: &[u64]) {
        assert!(elements.len() <= self.length, "the table fits into its map");
        // SAFETY: the mapping holds `length` elements, and no program reaches the map before an
        // outer map refers to it.
        unsafe {
            std::ptr::copy_nonoverlapping(elements.as_ptr(), self.start.as_ptr(), elements.len())
        };
    }

    /// The elements, copied.
    pub(super) fn read(&self) -> Vec<u64> {
        // SAFETY: the mapping holds `length` elements, each read once; a table in use is never
        // written again.
        (0..self.length).map(|i| unsafe { self.start.add(i).read_volatile() }).collect()
    }
}

impl Drop for MappedArray {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made in `map`, and no reference into it exists.
        let _ = unsafe { munmap(self.start.cast(), self.bytes.get()) };
    }
}
