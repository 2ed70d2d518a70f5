//! The differential harness: several bindings get the same frames, and each is compared with its
//! oracle.

use anyhow::Context as _;

use super::checked::{self, CheckedBinding};
use super::fixtures::Subject;
use super::totals::Totals;
#[cfg(test)]
use crate::packets::bindings::BalancerBinding;
use crate::packets::fixture::Fixture;
use crate::packets::frames::Frame;

/// A binding and the number of frames it got.
struct Participant {
    name: &'static str,
    binding: Box<dyn CheckedBinding>,
    frames: u64,
}

/// Bindings of one program with the same fixture.
pub struct DifferentialHarness {
    participants: Vec<Participant>,
}

impl DifferentialHarness {
    /// The subject's program in memory and, if `kernel`, in the kernel, with new maps that hold its
    /// fixture.
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

    /// Replaces the fixture of balancers. Connection tables and counters stay.
    pub fn configure(&mut self, fixture: &Fixture) -> anyhow::Result<()> {
        self.participants.iter_mut().try_for_each(|participant| {
            participant.binding.configure(fixture).context(participant.name)
        })
    }

    /// A harness with one binding, for tests.
    #[cfg(test)]
    pub(super) fn of(
        fixture: &Fixture,
        balancer: Box<dyn BalancerBinding>,
    ) -> anyhow::Result<Self> {
        let binding = checked::balancing(fixture, balancer)?;
        Ok(Self { participants: vec![Participant { name: "tested", binding, frames: 0 }] })
    }

    /// Sends a frame through each binding that accepts it and compares verdict and bytes with the
    /// oracle. Returns whether all accepted it; the error is the first difference.
    pub fn check(&mut self, frame: &Frame) -> anyhow::Result<bool> {
        let mut all = true;
        for Participant { name, binding, frames } in &mut self.participants {
            if binding.accepts(frame) {
                *frames += 1;
                binding.check(frame).context(*name)?;
            } else {
                all = false;
            }
        }
        Ok(all)
    }

    /// Compares the counters of each binding with the sum of the oracle's expectations.
    pub fn check_counters(&mut self) -> anyhow::Result<()> {
        self.participants.iter_mut().try_for_each(|participant| {
            participant.binding.check_counters().context(participant.name)
        })
    }

    /// The number of frames of each binding.
    pub fn frames(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.participants.iter().map(|participant| (participant.name, participant.frames))
    }

    /// Adds the counters of the program in memory.
    pub fn add_to(&self, totals: &mut Totals) {
        if let Some(participant) = self.participants.first() {
            participant.binding.add_to(totals);
        }
    }
}
