//! What aya cannot do: several entries of a map in one call, entries of a map of any maps, and an array's memory.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use sluice_datapath::Plain;

use super::Error;

/// Commands of the `bpf` system call (`enum bpf_cmd` in the kernel's `uapi/linux/bpf.h`).
const LOOKUP_ELEM: libc::c_long = 1;
const UPDATE_ELEM: libc::c_long = 2;
const DELETE_ELEM: libc::c_long = 3;
const UPDATE_BATCH: libc::c_long = 26;

/// `ENOTSUPP`, which the kernel returns for map types that know no batches; libc has no name for it.
const ENOTSUPP: i32 = 524;

/// The `batch` member of `union bpf_attr`.
#[repr(C)]
struct BatchAttributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    element_flags: u64,
    flags: u64,
}

/// The member of `union bpf_attr` for single elements.
#[repr(C)]
struct ElementAttributes {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Puts inner maps, each called `what`, into an array of maps, all in one call where the kernel can.
///
/// Each single update waits for an RCU grace period (milliseconds); a batch waits once. A kernel that knows no batches for this
/// map type gets single updates.
///
/// # Errors
///
/// [`Error::System`]; some entries may have been written.
pub(super) fn put_inner_maps(
    outer: BorrowedFd<'_>,
    what: &str,
    entries: &[(u32, BorrowedFd<'_>)],
) -> Result<(), Error> {
    let keys: Vec<u32> = entries.iter().map(|(key, _)| *key).collect();
    let values: Vec<i32> = entries.iter().map(|(_, map)| map.as_raw_fd()).collect();
    let attributes = BatchAttributes {
        in_batch: 0,
        out_batch: 0,
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count: keys.len() as u32,
        map_fd: outer.as_raw_fd() as u32,
        element_flags: 0,
        flags: 0,
    };
    match bpf(UPDATE_BATCH, &attributes) {
        Err(error) if matches!(error.raw_os_error(), Some(ENOTSUPP | libc::EINVAL | libc::EOPNOTSUPP)) => {
            for (key, value) in keys.iter().zip(&values) {
                put_entry(outer, key, &(*value as u32))
                    .map_err(|source| Error::System { what: format!("put {what} {key} in place"), source })?;
            }
            Ok(())
        }
        outcome => {
            outcome.map_err(|source| Error::System { what: format!("put {} {what}s in place", keys.len()), source })
        }
    }
}

/// Writes entries of any map, many in one call where the kernel can.
///
/// # Errors
///
/// What the kernel said; some entries may have been written.
pub(super) fn put_entries<K: Plain, V: Plain>(map: BorrowedFd<'_>, keys: &[K], values: &[V]) -> io::Result<()> {
    /// Entries in one call: few enough that a call is short.
    const AT_ONCE: usize = 16_384;

    assert_eq!(keys.len(), values.len(), "each key has a value");
    let map_fd = map.as_raw_fd() as u32;
    for (keys, values) in keys.chunks(AT_ONCE).zip(values.chunks(AT_ONCE)) {
        let attributes = BatchAttributes {
            in_batch: 0,
            out_batch: 0,
            keys: keys.as_ptr() as u64,
            values: values.as_ptr() as u64,
            count: keys.len() as u32,
            map_fd,
            element_flags: 0,
            flags: 0,
        };
        match bpf(UPDATE_BATCH, &attributes) {
            // Tries know batches since Linux 5.16.
            Err(error) if matches!(error.raw_os_error(), Some(ENOTSUPP | libc::EINVAL | libc::EOPNOTSUPP)) => {
                for (key, value) in keys.iter().zip(values) {
                    put_entry(map, key, value)?;
                }
            }
            outcome => outcome?,
        }
    }
    Ok(())
}

/// Writes one entry of any map.
///
/// # Errors
///
/// What the kernel said.
pub(super) fn put_entry<K: Plain, V: Plain>(map: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<()> {
    bpf(UPDATE_ELEM, &element(map, key, std::ptr::from_ref(value) as u64))
}

/// Removes one entry of any map, if it is there.
///
/// # Errors
///
/// What the kernel said.
pub(super) fn delete_entry<K: Plain>(map: BorrowedFd<'_>, key: &K) -> io::Result<()> {
    match bpf(DELETE_ELEM, &element(map, key, 0)) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        outcome => outcome,
    }
}

/// Whether an array of maps has an inner map at an index.
///
/// # Errors
///
/// What the kernel said.
pub(super) fn has_inner_map(outer: BorrowedFd<'_>, key: u32) -> io::Result<bool> {
    let mut id = 0u32;
    match bpf(LOOKUP_ELEM, &element(outer, &key, std::ptr::from_mut(&mut id) as u64)) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        outcome => outcome.map(|()| true),
    }
}

fn element<K: Plain>(map: BorrowedFd<'_>, key: &K, value: u64) -> ElementAttributes {
    ElementAttributes { map_fd: map.as_raw_fd() as u32, pad: 0, key: std::ptr::from_ref(key) as u64, value, flags: 0 }
}

/// Takes an inner map, called `what`, out of an array of maps, if there is one.
///
/// # Errors
///
/// [`Error::System`].
pub(super) fn delete(outer: BorrowedFd<'_>, what: &str, key: u32) -> Result<(), Error> {
    delete_entry(outer, &key).map_err(|source| Error::System { what: format!("remove {what} {key}"), source })
}

/// The `bpf` system call.
fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<()> {
    // SAFETY: the attributes are the command's member of `union bpf_attr`, and what they point to outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The memory of an array map made with `BPF_F_MMAPABLE`, as 8-byte elements.
pub(super) struct Memory {
    start: NonNull<u64>,
    length: usize,
    bytes: NonZeroUsize,
}

impl Memory {
    /// Maps the first `length` elements of an array of 8-byte elements.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub(super) fn map(array: BorrowedFd<'_>, length: u32, writable: bool) -> Result<Self, Error> {
        let failed = |source| Error::System { what: "map a lookup table's memory".to_owned(), source };
        let length = length as usize;
        let bytes =
            NonZeroUsize::new(length * size_of::<u64>()).ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
        let protection = if writable { ProtFlags::PROT_READ | ProtFlags::PROT_WRITE } else { ProtFlags::PROT_READ };
        // SAFETY: a new mapping; the kernel checks its length against the map.
        let start = unsafe { mmap(None, bytes, protection, MapFlags::MAP_SHARED, array, 0) }
            .map_err(|errno| failed(errno.into()))?;
        Ok(Self { start: start.cast(), length, bytes })
    }

    /// Writes the elements from the start. Nothing else may read or write this map yet.
    pub(super) fn fill(&mut self, elements: &[u64]) {
        assert!(elements.len() <= self.length, "a table is written to a map of its own size");
        // SAFETY: the mapping holds `length` elements; the map is in no program's reach before it is put in place.
        unsafe { std::ptr::copy_nonoverlapping(elements.as_ptr(), self.start.as_ptr(), elements.len()) };
    }

    /// The elements, copied.
    pub(super) fn read(&self) -> Vec<u64> {
        // SAFETY: the mapping holds `length` elements, each read once; a table in place is never written again.
        (0..self.length).map(|i| unsafe { self.start.add(i).read_volatile() }).collect()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made in `map`, and no reference into it exists.
        let _ = unsafe { munmap(self.start.cast(), self.bytes.get()) };
    }
}
