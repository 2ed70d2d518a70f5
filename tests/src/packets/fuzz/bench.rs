//! Bindings of the packet path side by side: each gets the same frames, and each must do with them
//! what its oracle says.

use anyhow::Context as _;

use super::binding::{self, Binding};
use super::worlds::Subject;
#[cfg(test)]
use crate::packets::world::Balancer;
use crate::packets::world::{Counters, Frame, Unwraps, World};

/// What became of frames: of each program's, what it counted.
#[derive(Debug, Default)]
pub struct Seen {
    /// The balancer's counters.
    pub balanced: Counters,
    /// The counters of the backend's program that decapsulates.
    pub decapsulated: Unwraps,
    /// Segments whose maximum segment size was made smaller.
    pub clamped: u64,
}

/// A binding, and how many frames it was given.
struct Place {
    name: &'static str,
    binding: Box<dyn Binding>,
    frames: u64,
}

/// The bindings, their maps holding one world.
pub struct Bench {
    places: Vec<Place>,
}

impl Bench {
    /// A program in memory, and as it is loaded if `kernel`, with maps that hold what the subject
    /// says and nothing else.
    ///
    /// # Errors
    ///
    /// What the kernel refused.
    pub fn new(subject: &Subject, kernel: bool) -> anyhow::Result<Self> {
        let bindings = match subject {
            Subject::Balancer(world) => binding::of_balancer(&world(), kernel)?,
            Subject::Backend(host) => binding::of_backend(&host(), kernel)?,
            Subject::Clamp(vips) => binding::of_clamp(vips(), kernel)?,
        };
        let places = bindings
            .into_iter()
            .map(|(name, binding)| Place { name, binding, frames: 0 })
            .collect();
        Ok(Self { places })
    }

    /// Makes the maps of balancers hold another world; connections and counters stay.
    ///
    /// # Errors
    ///
    /// What the kernel refused, or that these are no balancers.
    pub fn configure(&mut self, world: &World) -> anyhow::Result<()> {
        self.places
            .iter_mut()
            .try_for_each(|place| place.binding.configure(world).context(place.name))
    }

    /// A binding of a test's own.
    #[cfg(test)]
    pub(super) fn of(world: &World, balancer: Box<dyn Balancer>) -> anyhow::Result<Self> {
        let binding = binding::balancing(world, balancer)?;
        Ok(Self { places: vec![Place { name: "tested", binding, frames: 0 }] })
    }

    /// Gives a frame to each binding that takes it: verdict and bytes must be the oracle's. Whether
    /// all took it.
    ///
    /// # Errors
    ///
    /// The first difference, or what the kernel refused.
    pub fn judge(&mut self, frame: &Frame) -> anyhow::Result<bool> {
        let mut all = true;
        for Place { name, binding, frames } in &mut self.places {
            if binding.accepts(frame) {
                *frames += 1;
                binding.judge(frame).context(*name)?;
            } else {
                all = false;
            }
        }
        Ok(all)
    }

    /// Compares the counters of each binding with what the oracle's outcomes add up to.
    ///
    /// # Errors
    ///
    /// The first difference, or what the kernel refused.
    pub fn settle(&mut self) -> anyhow::Result<()> {
        self.places.iter_mut().try_for_each(|place| place.binding.settle().context(place.name))
    }

    /// How many frames each binding was given.
    pub fn frames(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.places.iter().map(|place| (place.name, place.frames))
    }

    /// Adds what the program in memory counted.
    pub fn add_to(&self, seen: &mut Seen) {
        if let Some(place) = self.places.first() {
            place.binding.add_to(seen);
        }
    }
}
