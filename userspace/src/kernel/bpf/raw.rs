//! Maps as bytes. Reads and writes use batch operations where the kernel supports them, and single
//! operations elsewhere.
#![expect(unsafe_code, reason = "reads and writes maps by bpf(2)")]

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::thread;

use aya::maps::{MapData, MapInfo, MapType};
use sluice_datapath::Pod;

use super::Error;
use super::syscall::{self, Batch, NO_EXIST};

/// `ENOTSUPP`, which the kernel returns for map types without batch operations; libc has no name
/// for it.
const ENOTSUPP: i32 = 524;

/// Entries per batch call, at first.
const BATCH: usize = 4_096;

/// The number of threads for calls that block.
const AT_ONCE: usize = 64;

/// The error of a map that the kernel does not create.
fn create_failed(name: &str, source: impl Into<io::Error>) -> Error {
    Error::System { what: format!("create the map {name}"), source: source.into() }
}

/// Waits until every program that runs at the time of the call has ended, by an update of an array
/// of maps (`maybe_wait_bpf_programs` in the kernel).
pub(super) fn wait_for_running_programs() -> Result<(), Error> {
    let wait = || -> io::Result<()> {
        let inner = syscall::create_array(8, 1, 0)?;
        let outer = syscall::create_array_of_maps(inner.as_fd())?;
        let key = 0_u32;
        let value = inner.as_raw_fd() as u32;
        let (key, value) = (bytes(std::slice::from_ref(&key)), bytes(std::slice::from_ref(&value)));
        // SAFETY: keys and values of an array of maps have four bytes each.
        unsafe { syscall::update(outer.as_fd(), key.as_ptr(), value.as_ptr(), 0) }
    };
    wait().map_err(|source| Error::System {
        what: "wait for running programs to end".to_owned(),
        source,
    })
}

/// Whether this error means that the map's type has no batch operations.
fn is_no_batch(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(ENOTSUPP | libc::EINVAL | libc::EOPNOTSUPP))
}

fn is(error: &io::Error, number: i32) -> bool {
    error.raw_os_error() == Some(number)
}

/// A map of any type.
pub(super) struct RawMap {
    data: MapData,
    name: String,
    kind: MapType,
    key: usize,
    /// Bytes of a value, of one CPU where every CPU has its own.
    each: usize,
    cpus: usize,
    entries: u32,
    id: u32,
}

impl RawMap {
    /// Opens a pinned map; `None` if nothing is pinned there.
    pub(super) fn open(pin: &Path) -> Result<Option<Self>, Error> {
        if !pin.exists() {
            return Ok(None);
        }
        let failed = |source| Error::Open { path: pin.to_owned(), source };
        let data = MapData::from_pin(pin).map_err(failed)?;
        let name = pin.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Self::of(data, name).map(Some).map_err(failed)
    }

    /// The map with an ID, which an outer map contains.
    pub(super) fn by_id(id: u32, name: &str) -> Result<Self, Error> {
        let failed =
            |source| Error::System { what: format!("open an inner map of {name}"), source };
        let data = MapData::from_id(id).map_err(|error| failed(io::Error::other(error)))?;
        Self::of(data, name.to_owned()).map_err(|error| failed(io::Error::other(error)))
    }

    /// Creates an array of `entries` values of `value` bytes each.
    pub(super) fn array(name: &str, value: usize, entries: u32, flags: u32) -> Result<Self, Error> {
        let descriptor = syscall::create_array(value as u32, entries, flags)
            .map_err(|source| create_failed(name, source))?;
        Self::created(name, descriptor)
    }

    /// Creates an LPM trie with keys of `key` bytes, the prefix length first. It allocates memory
    /// on insertion.
    pub(super) fn trie(name: &str, key: usize, value: usize, entries: u32) -> Result<Self, Error> {
        let descriptor = syscall::create_lpm_trie(key as u32, value as u32, entries)
            .map_err(|source| create_failed(name, source))?;
        Self::created(name, descriptor)
    }

    fn created(name: &str, descriptor: OwnedFd) -> Result<Self, Error> {
        let failed = |error: aya::maps::MapError| create_failed(name, io::Error::other(error));
        Self::of(MapData::from_fd(descriptor).map_err(failed)?, name.to_owned()).map_err(failed)
    }

    fn of(data: MapData, name: String) -> Result<Self, aya::maps::MapError> {
        let info: MapInfo = data.info()?;
        let kind = info.map_type()?;
        let per_cpu = is_per_cpu(kind);
        let cpus = if per_cpu {
            aya::util::nr_cpus().map_err(|(_, error)| aya::maps::MapError::IoError(error))?
        } else {
            1
        };
        // The kernel pads the value of each CPU to eight bytes, also in system calls.
        let value = info.value_size() as usize;
        let each = if per_cpu { value.next_multiple_of(8) } else { value };
        Ok(Self {
            data,
            name,
            kind,
            key: info.key_size() as usize,
            each,
            cpus,
            entries: info.max_entries(),
            id: info.id(),
        })
    }

    /// The name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The kernel's map ID.
    pub(super) fn id(&self) -> u32 {
        self.id
    }

    /// The maximum number of entries.
    pub(super) fn entries(&self) -> u32 {
        self.entries
    }

    /// Bytes of a value, of one CPU where every CPU has its own.
    pub(super) fn each(&self) -> usize {
        self.each
    }

    /// Bytes of a key.
    pub(super) fn key(&self) -> usize {
        self.key
    }

    /// Whether every CPU has its own values.
    pub(super) fn is_per_cpu(&self) -> bool {
        is_per_cpu(self.kind)
    }

    /// Bytes of a value in system calls: the values of all CPUs.
    pub(super) fn value(&self) -> usize {
        self.each * self.cpus
    }

    /// The descriptor.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.data.fd().as_fd()
    }

    /// Pins the map at an additional path.
    pub(super) fn pin(&self, path: &Path) -> Result<(), Error> {
        self.data.pin(path).map_err(|error| self.failed("pin", io::Error::other(error)))
    }

    /// Bytes of kernel memory of the map. Linux 5.11 to 6.3 reports the size of the values only,
    /// which is 0 for a ring buffer; its capacity is then the minimum.
    pub(super) fn memory(&self) -> Result<u64, Error> {
        let path = format!("/proc/self/fdinfo/{}", self.descriptor().as_raw_fd());
        let text =
            fs::read_to_string(path).map_err(|source| self.failed("read the size of", source))?;
        let found =
            text.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok());
        let reported: u64 = found
            .ok_or_else(|| self.failed("read the size of", io::ErrorKind::InvalidData.into()))?;
        Ok(if self.kind == MapType::RingBuf { reported.max(self.entries.into()) } else { reported })
    }

    fn failed(&self, what: &str, source: io::Error) -> Error {
        Error::System { what: format!("{what} the map {}", self.name), source }
    }

    /// The value of a key; `None` if the key does not exist.
    pub(super) fn lookup(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        assert_eq!(key.len(), self.key);
        let mut value = vec![0; self.value()];
        // SAFETY: key and value have the map's sizes.
        let found = unsafe { syscall::lookup(self.descriptor(), key.as_ptr(), value.as_mut_ptr()) };
        match found {
            Ok(()) => Ok(Some(value)),
            Err(error) if is(&error, libc::ENOENT) => Ok(None),
            Err(error) => Err(self.failed("read", error)),
        }
    }

    /// The values of elements of an array of maps: the IDs of its inner maps.
    ///
    /// Before Linux 6.8 each of these lookups waits until every running program has ended
    /// (`maybe_wait_bpf_programs`), for 20 milliseconds or more. Concurrent lookups share the wait.
    pub(super) fn inner_maps(&self, indexes: &[u32]) -> Result<Vec<(u32, u32)>, Error> {
        let ids = self.at_once(indexes, |index| {
            Ok(self.lookup(&index.to_ne_bytes())?.map(|id| (*index, value::<u32>(&id))))
        })?;
        Ok(ids.into_iter().flatten().collect())
    }

    /// Processes items in several threads.
    fn at_once<T: Sync, R: Send>(
        &self,
        items: &[T],
        work: impl Fn(&T) -> Result<R, Error> + Sync,
    ) -> Result<Vec<R>, Error> {
        if items.len() < 2 {
            return items.iter().map(work).collect();
        }
        let work = &work;
        thread::scope(|scope| {
            let mut threads = Vec::with_capacity(AT_ONCE);
            for share in items.chunks(items.len().div_ceil(AT_ONCE)) {
                let all = move || share.iter().map(work).collect::<Result<Vec<R>, Error>>();
                let thread = thread::Builder::new().spawn_scoped(scope, all);
                threads.push(thread.map_err(|source| self.failed("start a thread for", source))?);
            }
            let mut results = Vec::with_capacity(items.len());
            for thread in threads {
                results.extend(
                    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?,
                );
            }
            Ok(results)
        })
    }

    /// Writes a value. Returns whether it was written: not with [`NO_EXIST`] if the key exists.
    pub(super) fn update(&self, key: &[u8], value: &[u8], flags: u64) -> Result<bool, Error> {
        assert_eq!((key.len(), value.len()), (self.key, self.value()));
        // SAFETY: key and value have the map's sizes.
        let updated =
            unsafe { syscall::update(self.descriptor(), key.as_ptr(), value.as_ptr(), flags) };
        match updated {
            Ok(()) => Ok(true),
            Err(error) if flags == NO_EXIST && is(&error, libc::EEXIST) => Ok(false),
            Err(error) => Err(self.failed("write", error)),
        }
    }

    /// Removes an entry, if it exists.
    pub(super) fn delete(&self, key: &[u8]) -> Result<(), Error> {
        assert_eq!(key.len(), self.key);
        // SAFETY: the key has the map's size.
        match unsafe { syscall::delete(self.descriptor(), key.as_ptr()) } {
            Err(error) if !is(&error, libc::ENOENT) => {
                Err(self.failed("remove an entry of", error))
            }
            _ => Ok(()),
        }
    }

    /// Writes entries, given as concatenated keys and concatenated values. After an error some
    /// entries may have been written.
    pub(super) fn write(&self, keys: &[u8], values: &[u8]) -> Result<(), Error> {
        let count = keys.len() / self.key;
        assert_eq!((keys.len(), values.len()), (count * self.key, count * self.value()));
        if self.kind != MapType::ArrayOfMaps || count == 0 {
            return self.write_in_turn(keys, values);
        }
        // Before Linux 6.8 each entry waits like a lookup (see `inner_maps`), later each call.
        let share = count.div_ceil(AT_ONCE);
        let shares: Vec<_> =
            keys.chunks(share * self.key).zip(values.chunks(share * self.value())).collect();
        self.at_once(&shares, |(keys, values)| self.write_in_turn(keys, values)).map(drop)
    }

    fn write_in_turn(&self, keys: &[u8], values: &[u8]) -> Result<(), Error> {
        let count = keys.len() / self.key;
        let mut done = 0;
        while done < count {
            let (keys, values) = (&keys[done * self.key..], &values[done * self.value()..]);
            let mut batch = Batch {
                in_batch: 0,
                out_batch: 0,
                keys: keys.as_ptr() as u64,
                values: values.as_ptr() as u64,
                count: (count - done) as u32,
                map_fd: self.descriptor().as_raw_fd() as u32,
                elem_flags: 0,
                flags: 0,
            };
            // SAFETY: the slices hold `count - done` keys and values of the map's sizes; the
            // kernel only reads them.
            match unsafe { syscall::update_batch(&mut batch) } {
                Ok(()) => return Ok(()),
                Err(error) if is_no_batch(&error) => {
                    for (key, value) in keys.chunks(self.key).zip(values.chunks(self.value())) {
                        self.update(key, value, 0)?;
                    }
                    return Ok(());
                }
                // Continues after the entries written so far: a signal may have interrupted the
                // call.
                Err(error) if is(&error, libc::EINTR) || is(&error, libc::EAGAIN) => {
                    done += batch.count as usize
                }
                Err(error) => return Err(self.failed("write", error)),
            }
        }
        Ok(())
    }

    /// Passes all entries to `each`, many per call, as concatenated keys and concatenated values.
    ///
    /// During concurrent writes, entries that are not removed are seen once, because batches read
    /// whole buckets of a hash map. For types without batch operations there must be no concurrent
    /// writes.
    pub(super) fn read(
        &self,
        mut each: impl FnMut(&[u8], &[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut room = BATCH.min(self.entries as usize).max(1);
        // The kernel's position in the map: a bucket number, or a key.
        let mut place = vec![0; self.key.max(8)];
        let mut begun = false;
        let (mut keys, mut values) = (vec![0; room * self.key], vec![0; room * self.value()]);
        loop {
            let mut next = vec![0; place.len()];
            let mut batch = Batch {
                in_batch: if begun { place.as_ptr() as u64 } else { 0 },
                out_batch: next.as_mut_ptr() as u64,
                keys: keys.as_mut_ptr() as u64,
                values: values.as_mut_ptr() as u64,
                count: room as u32,
                map_fd: self.descriptor().as_raw_fd() as u32,
                elem_flags: 0,
                flags: 0,
            };
            // SAFETY: there is room for `room` keys and values of the map's sizes, and for the
            // position, which is a bucket number or a key.
            let last = match unsafe { syscall::lookup_batch(&mut batch) } {
                Ok(()) => false,
                Err(error) if is(&error, libc::ENOENT) => true,
                // A bucket has more entries than the buffers.
                Err(error) if is(&error, libc::ENOSPC) && room < self.entries as usize => {
                    room *= 2;
                    (keys, values) = (vec![0; room * self.key], vec![0; room * self.value()]);
                    continue;
                }
                Err(error) if !begun && is_no_batch(&error) => return self.read_singly(each),
                Err(error) => return Err(self.failed("read", error)),
            };
            let count = (batch.count as usize).min(room);
            if count > 0 {
                each(&keys[..count * self.key], &values[..count * self.value()])?;
            }
            if last {
                return Ok(());
            }
            (place, begun) = (next, true);
        }
    }

    fn read_singly(
        &self,
        mut each: impl FnMut(&[u8], &[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut key: Option<Vec<u8>> = None;
        loop {
            let mut next = vec![0; self.key];
            let from = key.as_ref().map_or(std::ptr::null(), |key| key.as_ptr());
            // SAFETY: both keys have the map's key size; a null key stands for the first one.
            match unsafe { syscall::next_key(self.descriptor(), from, next.as_mut_ptr()) } {
                Ok(()) => {}
                Err(error) if is(&error, libc::ENOENT) => return Ok(()),
                Err(error) => return Err(self.failed("read", error)),
            }
            if let Some(value) = self.lookup(&next)? {
                each(&next, &value)?;
            }
            key = Some(next);
        }
    }
}

fn is_per_cpu(kind: MapType) -> bool {
    matches!(kind, MapType::PerCpuHash | MapType::PerCpuArray | MapType::LruPerCpuHash)
}

/// The bytes of values.
pub(super) fn bytes<T: Pod>(values: &[T]) -> &[u8] {
    // SAFETY: `Pod` has no padding, so every byte is initialised; the slice covers exactly the
    // values.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// The value with these bytes. Bytes beyond its size, with which the kernel pads the values of
/// CPUs, are ignored.
pub(super) fn value<T: Pod>(bytes: &[u8]) -> T {
    assert!(bytes.len() >= size_of::<T>(), "the value has the size of the map's values");
    // SAFETY: there are enough bytes, every bit pattern is a value of a `Pod` type, and an
    // unaligned read needs no alignment.
    unsafe { bytes.as_ptr().cast::<T>().read_unaligned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_the_conversion_to_bytes() {
        let values = [0x0102_0304_u32, u32::MAX];
        assert_eq!(bytes(&values).len(), 8);
        assert_eq!(value::<u32>(&bytes(&values)[4..]), u32::MAX);
        assert_eq!(value::<[u32; 2]>(bytes(&values)), values);
    }
}
