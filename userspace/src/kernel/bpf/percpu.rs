//! Counters that are kept when their maps are resized.

use super::Error;
use super::pins::Set;
use super::raw::{RawMap, bytes, value};

/// Counters: the per-CPU array that a program increments, and the arrays with the counts from
/// before a resize.
///
/// Userspace never writes to counters that a program increments, because it could overwrite
/// increments. A larger array therefore starts at zero, and a count is the sum over all arrays. An
/// array stays valid while a reader has it open, so counts never decrease.
pub(super) struct PerCpuCounters {
    /// The current array first.
    maps: Vec<RawMap>,
}

impl PerCpuCounters {
    /// Opens the counters of a set of maps.
    pub(super) fn open(set: &Set, name: &str) -> Result<Self, Error> {
        let path = set.directory.join(name);
        let mut maps = vec![RawMap::open(&path)?.ok_or_else(|| missing(&path))?];
        for directory in &set.earlier {
            if let Some(map) = RawMap::open(&directory.join(name))?
                // Two sets may share an array.
                && maps.iter().all(|known| known.id() != map.id())
            {
                maps.push(map);
            }
        }
        let words = |map: &RawMap| {
            map.key() == 4 && map.each() == maps[0].each() && map.each().is_multiple_of(8)
        };
        if !maps.iter().all(words) {
            return Err(Error::Shape {
                path,
                what: "its values are not 64-bit counters".to_owned(),
            });
        }
        Ok(Self { maps })
    }

    /// The counters at an index: 64-bit words, summed over all CPUs.
    pub(super) fn at(&self, index: u32) -> Result<Vec<u64>, Error> {
        let mut total = vec![0_u64; self.maps[0].each() / 8];
        for map in &self.maps {
            if let Some(counted) = map.lookup(&index.to_ne_bytes())? {
                add(&mut total, &counted);
            }
        }
        Ok(total)
    }

    /// The counters at all indexes from 0, concatenated.
    pub(super) fn all(&self) -> Result<Vec<u64>, Error> {
        let words = self.maps[0].each() / 8;
        let mut totals = vec![0_u64; words * self.maps[0].entries() as usize];
        for map in &self.maps {
            map.read(|keys, values| {
                for (key, counted) in keys.chunks(4).zip(values.chunks(map.value())) {
                    let from = value::<u32>(key) as usize * words;
                    if let Some(total) = totals.get_mut(from..from + words) {
                        add(total, counted);
                    }
                }
                Ok(())
            })?;
        }
        Ok(totals)
    }

    /// Sets the counters at indexes to zero, before the indexes are reused.
    pub(super) fn reset(&self, indexes: &[u32]) -> Result<(), Error> {
        for map in &self.maps {
            let within: Vec<u32> =
                indexes.iter().copied().filter(|index| *index < map.entries()).collect();
            map.write(bytes(&within), &vec![0; within.len() * map.value()])?;
        }
        Ok(())
    }
}

/// The error of a map that a set lacks.
pub(super) fn missing(path: &std::path::Path) -> Error {
    Error::Shape { path: path.to_owned(), what: "it is missing".to_owned() }
}

/// Adds the words of all CPUs.
fn add(total: &mut [u64], counted: &[u8]) {
    for cpu in counted.chunks(total.len() * 8) {
        for (total, word) in total.iter_mut().zip(cpu.chunks(8)) {
            *total = total.wrapping_add(value(word));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_all_cpus_add_up() {
        let mut total = [1, 10];
        add(&mut total, bytes(&[2_u64, 20, 3, 30]));
        assert_eq!(total, [6, 60]);
    }
}
