//! The counts of maps that were replaced, which readers add to those of the maps in force.

use std::fs;
use std::path::PathBuf;

use super::pins::{self, COUNTED_BEFORE};
use super::raw::RawMap;
use super::{Error, Pins};

/// The counts of the set of maps in force, kept open so that they can be pinned again.
#[derive(Default)]
pub struct EarlierCounts(Vec<RawMap>);

impl EarlierCounts {
    /// Opens the counts; there are none before the first resize.
    pub fn open(pins: &Pins) -> Result<Self, Error> {
        let pinned = fs::read_dir(directory(pins)).into_iter().flatten().flatten();
        let maps = pinned.filter_map(|pin| RawMap::open(&pin.path()).transpose());
        Ok(Self(maps.collect::<Result<_, _>>()?))
    }

    /// Pins the counts again where another program has removed their pins; returns the number of
    /// those. There must be no unfinished resize.
    pub fn pin_again(&self, pins: &Pins) -> Result<usize, Error> {
        let directory = directory(pins);
        let pin = |map: &RawMap| directory.join(map.name());
        let missing: Vec<_> = self.0.iter().filter(|map| !pin(map).exists()).collect();
        if !missing.is_empty() {
            pins::make(&directory)?;
        }
        for map in &missing {
            map.pin(&pin(map))?;
        }
        Ok(missing.len())
    }
}

fn directory(pins: &Pins) -> PathBuf {
    pins.directory().join(COUNTED_BEFORE)
}
