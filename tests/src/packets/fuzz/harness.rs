//! Bindings of the packet path side by side: each gets the same frames, and each must do with them
//! what its oracle says.

use anyhow::Context as _;

use super::checked::{self, CheckedBinding};
use super::fixtures::Subject;
use super::totals::Totals;
#[cfg(test)]
use crate::packets::bindings::BalancerBinding;
use crate::packets::fixture::Fixture;
use crate::packets::frames::Frame;

/// A binding, and how many frames it was given.
struct Participant {
    name: &'static str,
    binding: Box<dyn CheckedBinding>,
    frames: u64,
}

/// The bindings, their maps holding one fixture.
pub struct DifferentialHarness {
    participants: Vec<Participant>,
}

impl DifferentialHarness {
    /// A program in memory, and as it is loaded if `kernel`, with maps that hold what the subject
    /// says and nothing else.
    ///
    /// # Errors
    ///
    /// What the kernel refused.
    pub fn new(subject: &Subject, kernel: bool) -> anyhow::Result<Self> {
        let bindings = match subject {
            Subject::Balancer(fixture) => checked::of_balancer(&fixture(), kernel)?,
            Subject::Backend(host) => checked::of_backend(&host(), kernel)?,
            Subject::Clamp(vips) => checked::of_clamp(vips(), kernel)?,
        };
        let participants = bindings
            .into_iter()
            .map(|(name, binding)| Participant { name, binding, frames: 0 })
            .collect();
        Ok(Self { participants })
    }

    /// Makes the maps of balancers hold another fixture; connections and counters stay.
    ///
    /// # Errors
    ///
    /// What the kernel refused, or that these are no balancers.
    pub fn configure(&mut self, fixture: &Fixture) -> anyhow::Result<()> {
        self.participants.iter_mut().try_for_each(|participant| {
            participant.binding.configure(fixture).context(participant.name)
        })
    }

    /// A binding of a test's own.
    #[cfg(test)]
    pub(super) fn of(
        fixture: &Fixture,
        balancer: Box<dyn BalancerBinding>,
    ) -> anyhow::Result<Self> {
        let binding = checked::balancing(fixture, balancer)?;
        Ok(Self { participants: vec![Participant { name: "tested", binding, frames: 0 }] })
    }

    /// Gives a frame to each binding that takes it: verdict and bytes must be the oracle's. Whether
    /// all took it.
    ///
    /// # Errors
    ///
    /// The first difference, or what the kernel refused.
    pub fn judge(&mut self, frame: &Frame) -> anyhow::Result<bool> {
        let mut all = true;
        for Participant { name, binding, frames } in &mut self.participants {
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
        self.participants
            .iter_mut()
            .try_for_each(|participant| participant.binding.settle().context(participant.name))
    }

    /// How many frames each binding was given.
    pub fn frames(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.participants.iter().map(|participant| (participant.name, participant.frames))
    }

    /// Adds what the program in memory counted.
    pub fn add_to(&self, totals: &mut Totals) {
        if let Some(participant) = self.participants.first() {
            participant.binding.add_to(totals);
        }
    }
}
