//! Replaces a role's maps by maps of other sizes, under traffic.
//!
//! 1. [`stage`] creates a new set: it shares maps of unchanged size, creates the others and copies
//!    the content of the old ones. The program is loaded over the new set. One rename then puts the
//!    set in force, for daemons and for readers.
//! 2. The caller replaces the attached program. Each packet uses the old maps or the new ones,
//!    which have the same content.
//! 3. [`PendingResize::finish`] waits until no running program uses the old maps, copies the
//!    entries that the old program wrote since the first copy, and removes the old set.
//!
//! After a crash before the rename, the old set is in force, and the next daemon removes the
//! incomplete one. After a crash later, both sets exist, from which the next daemon sees that it
//! has to attach and finish.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};
use std::os::fd::AsRawFd as _;
use std::path::Path;

use sluice_control::capacities::{Capacities, Limit};

use super::percpu::{PerCpuCounters, missing};
use super::pins::{self, COUNTED_BEFORE, Set};
use super::raw::{RawMap, bytes, value, wait_for_running_programs};
use super::spec::{self, MapSpec, Transfer};
use super::syscall::NO_EXIST;
use super::{Error, Pins};

/// The maximum number of inner maps open at the same time, because descriptors are limited.
pub(super) const INNER_MAPS: usize = 256;

/// A set of maps that is in force while the set that it replaces still exists.
pub struct PendingResize {
    pins: Pins,
    specs: &'static [MapSpec],
    /// The copied entries by map name; `None` if an earlier daemon copied them.
    copied: Option<HashMap<&'static str, Copied>>,
}

/// The copied entries, as hashes of 8 bytes to save memory.
#[derive(Default)]
struct Copied {
    seen: HashSet<u64>,
    hasher: RandomState,
}

impl Copied {
    fn hash(&self, key: &[u8], value: &[u8]) -> u64 {
        self.hasher.hash_one((key, value))
    }

    fn add(&mut self, key: &[u8], value: &[u8]) {
        let hash = self.hash(key, value);
        self.seen.insert(hash);
    }

    fn has(&self, key: &[u8], value: &[u8]) -> bool {
        self.seen.contains(&self.hash(key, value))
    }
}

/// Whether the maps in force have the sizes for these capacities.
pub(super) fn fits(pins: &Pins, specs: &[MapSpec], capacities: &Capacities) -> Result<bool, Error> {
    pins.open(|set| {
        for spec in specs.iter().filter(|spec| spec.pinned) {
            let map = RawMap::open(&set.directory.join(spec.name))?;
            if map.is_some_and(|map| {
                spec::entries(spec, capacities).is_some_and(|entries| entries != map.entries())
            }) {
                return Ok(false);
            }
        }
        Ok(true)
    })
}

/// Creates a new set of maps with these capacities, calls `load` with the directory of their pins
/// to load programs, and puts the set in force. Attaches nothing.
///
/// # Errors
///
/// [`Error::InUse`] if a capacity is less than the number of elements that are or were in use;
/// errors of the kernel. The old set then stays in force.
pub(super) fn stage<P>(
    pins: &Pins,
    specs: &'static [MapSpec],
    capacities: &Capacities,
    load: impl FnOnce(&Path) -> Result<P, Error>,
) -> Result<(P, PendingResize), Error> {
    let staged = fill(pins, specs, capacities, load).and_then(|(program, copied)| {
        pins::rename(&pins.new_set(), &pins.next())?;
        Ok((program, PendingResize { pins: pins.clone(), specs, copied: Some(copied) }))
    });
    if staged.is_err() {
        // On failure, the next attempt removes it.
        let _ = pins::remove(&pins.new_set());
    }
    staged
}

fn fill<P>(
    pins: &Pins,
    specs: &'static [MapSpec],
    capacities: &Capacities,
    load: impl FnOnce(&Path) -> Result<P, Error>,
) -> Result<(P, HashMap<&'static str, Copied>), Error> {
    let (from, to) = (pins.settled(), pins.new_set());
    pins::remove(&to)?;
    pins::make(&to)?;
    let mut replaced = Vec::new();
    for spec in specs.iter().filter(|spec| spec.pinned) {
        let Some(map) = RawMap::open(&from.join(spec.name))? else { continue };
        match spec::entries(spec, capacities) {
            Some(entries) if entries != map.entries() => replaced.push((spec, map)),
            _ => map.pin(&to.join(spec.name))?,
        }
    }
    let program = load(&to)?;
    let mut copied = HashMap::new();
    for (spec, old) in replaced {
        let path = to.join(spec.name);
        let new = RawMap::open(&path)?.ok_or_else(|| missing(&path))?;
        let limit = spec.size.limit();
        let refused = |used: String| match limit.map(|limit| (limit, smallest(&from, specs, limit)))
        {
            Some((limit, Ok(smallest))) => Error::InUse {
                limit: limit.name(),
                capacity: capacities.get(limit),
                used,
                smallest,
            },
            Some((_, Err(error))) => error,
            None => unreachable!("a map without a limit has one size"),
        };
        match Transfer::of(spec) {
            Transfer::Entries => copy(&old, &new, &refused, |_, _| {})?,
            Transfer::Elements => copy_elements(&old, &new, &refused)?,
            Transfer::InnerMaps => copy_tables(&old, &new, &spec::outer_indexes(&from)?, &refused)?,
            Transfer::LiveEntries => {
                let mut entries = Copied::default();
                copy(&old, &new, &refused, |key, value| entries.add(key, value))?;
                copied.insert(spec.name, entries);
            }
            // The counts of the old map are kept next to it.
            Transfer::Counts | Transfer::None => {}
        }
    }
    Ok((program, copied))
}

/// The smallest capacity for which the maps of a limit have room for what they hold.
fn smallest(from: &Path, specs: &[MapSpec], limit: Limit) -> Result<u32, Error> {
    let mut smallest = 1;
    for spec in specs.iter().filter(|spec| spec.size.limit() == Some(limit)) {
        let Some(map) = RawMap::open(&from.join(spec.name))? else { continue };
        let used = used(&map, spec, from)?;
        let entries = |capacity| spec.size.entries(|_| capacity);
        while entries(smallest).is_some_and(|entries| entries < used) {
            smallest += 1;
        }
    }
    Ok(smallest)
}

/// The number of entries that a map needs for its content; 0 for content that is not kept.
fn used(map: &RawMap, spec: &MapSpec, from: &Path) -> Result<u32, Error> {
    let mut used = 0;
    match Transfer::of(spec) {
        Transfer::Entries | Transfer::LiveEntries => map.read(|keys, _| {
            used += (keys.len() / map.key()) as u32;
            Ok(())
        })?,
        Transfer::Elements => map.read(|keys, values| {
            for (key, element) in keys.chunks(4).zip(values.chunks(map.value())) {
                if element.iter().any(|byte| *byte != 0) {
                    used = used.max(value::<u32>(key) + 1);
                }
            }
            Ok(())
        })?,
        Transfer::InnerMaps => {
            let held = map.inner_maps(&spec::outer_indexes(from)?)?;
            used = held.iter().map(|(index, _)| index + 1).max().unwrap_or(0);
        }
        Transfer::Counts | Transfer::None => {}
    }
    Ok(used)
}

/// Copies a hash map or trie.
fn copy(
    old: &RawMap,
    new: &RawMap,
    refused: &impl Fn(String) -> Error,
    mut each: impl FnMut(&[u8], &[u8]),
) -> Result<(), Error> {
    let mut count = 0;
    old.read(|keys, values| {
        count += keys.len() / old.key();
        if count > new.entries() as usize {
            return Err(refused(format!("the map {} has more entries", old.name())));
        }
        for (key, value) in keys.chunks(old.key()).zip(values.chunks(old.value())) {
            each(key, value);
        }
        new.write(keys, values)
    })
}

/// Copies the elements of an array that fit into the new one. Further elements must never have been
/// written.
fn copy_elements(
    old: &RawMap,
    new: &RawMap,
    refused: &impl Fn(String) -> Error,
) -> Result<(), Error> {
    old.read(|keys, values| {
        // Keys are in ascending order.
        let beyond = |key: &[u8]| value::<u32>(key) >= new.entries();
        let stay = keys.chunks(4).take_while(|key| !beyond(key)).count();
        let rest = keys[stay * 4..].chunks(4).zip(values[stay * old.value()..].chunks(old.value()));
        for (key, element) in rest {
            if element.iter().any(|byte| *byte != 0) {
                return Err(refused(format!(
                    "the map {} has used its element {}",
                    old.name(),
                    value::<u32>(key)
                )));
            }
        }
        if stay > 0 { new.write(&keys[..stay * 4], &values[..stay * old.value()]) } else { Ok(()) }
    })
}

/// Makes an outer map refer to the inner maps of another one.
fn copy_tables(
    old: &RawMap,
    new: &RawMap,
    indexes: &[u32],
    refused: &impl Fn(String) -> Error,
) -> Result<(), Error> {
    let held = old.inner_maps(indexes)?;
    if let Some((index, _)) = held.iter().find(|(index, _)| *index >= new.entries()) {
        return Err(refused(format!("the map {} has used its element {index}", old.name())));
    }
    for held in held.chunks(INNER_MAPS) {
        let keys: Vec<u32> = held.iter().map(|(index, _)| *index).collect();
        let inner = held
            .iter()
            .map(|(_, id)| RawMap::by_id(*id, old.name()))
            .collect::<Result<Vec<_>, Error>>()?;
        let maps: Vec<u32> = inner.iter().map(|map| map.descriptor().as_raw_fd() as u32).collect();
        new.write(bytes(&keys), bytes(&maps))?;
    }
    Ok(())
}

impl PendingResize {
    /// A resize that an earlier daemon did not finish. Its maps are in force; its program may not
    /// be attached everywhere.
    pub(super) fn unfinished(pins: &Pins, specs: &'static [MapSpec]) -> Option<Self> {
        pins.next().is_dir().then(|| Self { pins: pins.clone(), specs, copied: None })
    }

    /// Copies the entries that were written to the old maps since the first copy, and removes the
    /// old maps. Their program must not be attached any more.
    ///
    /// After an error no entry is lost, and the call can be repeated.
    pub fn finish(&self) -> Result<(), Error> {
        let (old, new) = (self.pins.settled(), self.pins.next());
        if !new.is_dir() {
            return Ok(());
        }
        if !new.join(COUNTED_BEFORE).is_dir() && old.is_dir() {
            wait_for_running_programs()?;
            for spec in self.specs_of(Transfer::LiveEntries) {
                self.copy_live_entries(spec.name)?;
            }
            self.keep_counters()?;
        }
        pins::remove(&old)?;
        pins::rename(&new, &old)
    }

    /// The maps whose content is transferred in this way.
    fn specs_of(&self, transfer: Transfer) -> impl Iterator<Item = &'static MapSpec> + use<> {
        self.specs.iter().filter(move |spec| spec.pinned && Transfer::of(spec) == transfer)
    }

    /// Copies the entries that the old program wrote after the first copy.
    ///
    /// Entries of the new program are newer and stay. After a crash the first copy is unknown, so
    /// all entries of the new map stay.
    fn copy_live_entries(&self, name: &str) -> Result<(), Error> {
        let (old, new) = (self.pins.settled().join(name), self.pins.next().join(name));
        let (Some(old), Some(new)) = (RawMap::open(&old)?, RawMap::open(&new)?) else {
            return Ok(());
        };
        if old.id() == new.id() {
            return Ok(());
        }
        let copied = self.copied.as_ref().and_then(|copied| copied.get(name));
        old.read(|keys, values| {
            for (key, value) in keys.chunks(old.key()).zip(values.chunks(old.value())) {
                if copied.is_some_and(|copied| copied.has(key, value))
                    || new.update(key, value, NO_EXIST)?
                {
                    continue;
                }
                if let (Some(copied), Some(found)) = (copied, new.lookup(key)?)
                    && copied.has(key, &found)
                {
                    new.update(key, value, 0)?;
                }
            }
            Ok(())
        })
    }

    /// Stores the final counts of the old maps.
    fn keep_counters(&self) -> Result<(), Error> {
        let (old, new) = (self.pins.settled(), self.pins.next());
        let kept = new.join(format!("{COUNTED_BEFORE}-new"));
        pins::remove(&kept)?;
        pins::make(&kept)?;
        let before = Some(old.join(COUNTED_BEFORE)).filter(|kept| kept.is_dir());
        for spec in self.specs_of(Transfer::Counts) {
            let name = spec.name;
            let (Some(counted), Some(counts)) =
                (RawMap::open(&old.join(name))?, RawMap::open(&new.join(name))?)
            else {
                continue;
            };
            let earlier: Vec<_> = before.iter().cloned().collect();
            if counted.id() == counts.id() {
                // A shared map continues to count, and its earlier counts stay.
                for directory in earlier {
                    if let Some(map) = RawMap::open(&directory.join(name))? {
                        map.pin(&kept.join(name))?;
                    }
                }
                continue;
            }
            let mut totals =
                PerCpuCounters::open(&Set { directory: old.clone(), earlier }, name)?.all()?;
            totals.resize(counts.entries() as usize * counts.each() / 8, 0);
            let array = RawMap::array(name, counts.each(), counts.entries(), 0)?;
            array.write(bytes(&(0..counts.entries()).collect::<Vec<u32>>()), bytes(&totals))?;
            array.pin(&kept.join(name))?;
        }
        pins::rename(&kept, &new.join(COUNTED_BEFORE))
    }
}
