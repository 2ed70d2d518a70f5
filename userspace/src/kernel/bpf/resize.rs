//! Replaces a role's maps by maps of other sizes, under traffic.
//!
//! 1. [`stage`] makes a new set: maps whose size stays are shared, the others are made anew and
//!    filled from the old ones. The program is loaded over it. Then one rename puts the set in
//!    force, for daemons and for whoever looks.
//! 2. The caller attaches the program in place of the old one. Each packet meets the old maps or
//!    the new ones, which hold the same.
//! 3. [`PendingResize::finish`] waits until no packet reads the old maps, brings over what the old
//!    program wrote since the copy, and removes them.
//!
//! A crash before the rename leaves the old set and rubbish, which the next daemon removes; a crash
//! behind it leaves the new set, and the old one beside it, which tells the next daemon to attach
//! and to finish.

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

/// How many inner maps are open at a time: a process may have only so many descriptors.
pub(super) const INNER_MAPS: usize = 256;

/// A set of maps that is in force, beside the one that it replaces.
pub struct PendingResize {
    pins: Pins,
    specs: &'static [MapSpec],
    /// By the map's name, the entries that were copied; `None` when an earlier daemon copied them.
    copied: Option<HashMap<&'static str, Copied>>,
}

/// The entries that a copy holds, by their hashes: 8 bytes each in place of all of them.
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

/// Whether the maps in force have other sizes than the capacities ask for.
///
/// # Errors
///
/// [`Error::Open`], [`Error::Absent`].
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

/// Makes a new set of maps with these capacities, has `load` load a program over the directory of
/// their pins, and puts the set in force. Nothing is attached.
///
/// # Errors
///
/// [`Error::InUse`] when a capacity is less than what is or was in use, or what the kernel refuses.
/// The old set is then in force.
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
        // What is left is removed by the next attempt.
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
        let refused = |used: String| Error::InUse {
            limit: limit.map_or("", Limit::name),
            capacity: limit.map_or(0, |limit| capacities.get(limit)),
            used,
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

/// Copies a map with keys.
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

/// Copies an array as far as the new one goes; beyond, nothing may ever have been written.
fn copy_elements(
    old: &RawMap,
    new: &RawMap,
    refused: &impl Fn(String) -> Error,
) -> Result<(), Error> {
    old.read(|keys, values| {
        // Keys come in order.
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

/// Puts the inner maps of an outer map into another one: they are the same maps, seen from both.
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
    /// A replacement that an earlier daemon began and did not finish: its maps are in force, and
    /// whether its program is attached everywhere is unknown.
    pub(super) fn unfinished(pins: &Pins, specs: &'static [MapSpec]) -> Option<Self> {
        pins.next().is_dir().then(|| Self { pins: pins.clone(), specs, copied: None })
    }

    /// Brings over what was written to the old maps since they were copied, and removes them. No
    /// filter may run their program any more.
    ///
    /// It can be called again after an error.
    ///
    /// # Errors
    ///
    /// [`Error`]; nothing is lost.
    pub fn finish(&self) -> Result<(), Error> {
        let (old, new) = (self.pins.settled(), self.pins.next());
        if !new.is_dir() {
            return Ok(());
        }
        if !new.join(COUNTED_BEFORE).is_dir() && old.is_dir() {
            wait_for_running_programs()?;
            for spec in self.specs_of(Transfer::LiveEntries) {
                self.carry_flows(spec.name)?;
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

    /// Brings over the entries that the old program wrote behind the copy.
    ///
    /// What the new program wrote is newer and stays. After a crash it is not known what the copy
    /// was, so what the new map has stays.
    fn carry_flows(&self, name: &str) -> Result<(), Error> {
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

    /// Writes down what the old maps counted, for good: they count no more.
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
                // It goes on counting, and so does what was counted before it.
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
