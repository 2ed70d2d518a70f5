//! Counters that outlive their maps.

use super::Error;
use super::pins::Set;
use super::raw::{RawMap, bytes, value};

/// Counters: a per-CPU array that a program counts up, and beside it what was counted before that
/// array was there.
///
/// Userspace never adds to what a program counts up: it could overwrite what was counted meanwhile.
/// So a larger array starts at zero, and the sum of all is what was counted. None of them is taken
/// away while somebody has it open: readers see no step back.
pub(super) struct PerCpuCounters {
    /// The array that is counted up first.
    maps: Vec<RawMap>,
}

impl PerCpuCounters {
    /// Opens the counters of a set of maps.
    ///
    /// # Errors
    ///
    /// [`Error::Open`], [`Error::Shape`].
    pub(super) fn open(set: &Set, name: &str) -> Result<Self, Error> {
        let path = set.directory.join(name);
        let mut maps = vec![RawMap::open(&path)?.ok_or_else(|| missing(&path))?];
        for directory in &set.earlier {
            if let Some(map) = RawMap::open(&directory.join(name))?
                // One array may be in two sets.
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
                what: "it does not hold counters of 64 bits".to_owned(),
            });
        }
        Ok(Self { maps })
    }

    /// What was counted at an index: 64-bit words, over all CPUs.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub(super) fn at(&self, index: u32) -> Result<Vec<u64>, Error> {
        let mut total = vec![0_u64; self.maps[0].each() / 8];
        for map in &self.maps {
            if let Some(counted) = map.lookup(&index.to_ne_bytes())? {
                add(&mut total, &counted);
            }
        }
        Ok(total)
    }

    /// What was counted at each index from 0, one after the other.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
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

    /// Sets indexes to zero, before they get somebody new to count for.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
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

/// Adds up words, of each CPU in turn.
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
