//! A case: fixtures, frames, and the expectation for each frame.

use anyhow::{Context as _, ensure};
use sluice::kernel::bpf;

use crate::packets::bindings::{BalancerBinding, DecapBinding};
use crate::packets::compare;
use crate::packets::expectation::{BalancerCounters, DecapCounters, DecapExpectation, Expectation};
use crate::packets::fixture::{Fixture, HostFixture};
use crate::packets::frames::Frame;
use crate::packets::oracle::Oracle;
use crate::packets::oracle::decapsulate::decapsulated;

/// One step of a case.
#[derive(Debug, Clone)]
pub enum CaseStep {
    /// Configure the maps.
    Configure(Fixture),
    /// Send a frame and compare with the expectation.
    Send(Frame, Expectation),
}

/// Expected behaviour of the balancer: a sentence, with frames that verify it.
#[derive(Debug, Clone)]
pub struct Case {
    /// A sentence that states the expected behaviour.
    pub name: &'static str,
    /// The steps; the first one is a [`CaseStep::Configure`].
    pub steps: Vec<CaseStep>,
}

/// Expected behaviour of the backend: a sentence, with frames that verify it.
#[derive(Debug, Clone)]
pub struct DecapCase {
    /// A sentence that states the expected behaviour.
    pub name: &'static str,
    /// Contents of the backend's maps.
    pub host: HostFixture,
    /// Frames with the expectation for each.
    pub frames: Vec<(Frame, DecapExpectation)>,
}

impl Case {
    pub(super) fn new(
        name: &'static str,
        fixture: Fixture,
        frames: Vec<(Frame, Expectation)>,
    ) -> Self {
        let sends = frames.into_iter().map(|(frame, outcome)| CaseStep::Send(frame, outcome));
        Self { name, steps: [CaseStep::Configure(fixture)].into_iter().chain(sends).collect() }
    }

    /// All frames of the case.
    pub fn frames(&self) -> impl Iterator<Item = &Frame> {
        self.steps.iter().filter_map(|step| match step {
            CaseStep::Send(frame, _) => Some(frame),
            CaseStep::Configure(_) => None,
        })
    }

    /// The same with only the frames that a binding accepts. `None` if no frame is left, or if a
    /// removed frame would have consumed tokens that other frames need.
    #[must_use]
    pub fn only(mut self, accepts: impl Fn(&Frame) -> bool) -> Option<Self> {
        let limited = self
            .steps
            .iter()
            .any(|step| matches!(step, CaseStep::Configure(fixture) if !fixture.rates.is_empty()));
        let all = self.frames().count();
        self.steps.retain(|step| !matches!(step, CaseStep::Send(frame, _) if !accepts(frame)));
        let left = self.frames().count();
        (left > 0 && (left == all || !limited)).then_some(self)
    }

    /// Runs the case: verdict, bytes and counters after each frame.
    pub fn run(&self, balancer: &mut dyn BalancerBinding) -> anyhow::Result<()> {
        let mut total = BalancerCounters::default();
        let mut sent = 0;
        for step in &self.steps {
            match step {
                CaseStep::Configure(fixture) => balancer.configure(fixture)?,
                CaseStep::Send(frame, expected) => {
                    sent += 1;
                    compare::send(balancer, frame, expected, &mut total)
                        .with_context(|| format!("frame {sent}"))?;
                }
            }
        }
        ensure!(sent > 0, "the case sends no frames");
        Ok(())
    }

    /// Checks that the oracle's expectations equal those of this case.
    pub fn agrees_with_oracle(&self) -> anyhow::Result<()> {
        let mut oracle = Oracle::default();
        for step in &self.steps {
            match step {
                CaseStep::Configure(fixture) => oracle.configure(fixture),
                CaseStep::Send(frame, expected) => {
                    let judged = oracle.judge(frame);
                    ensure!(
                        judged == *expected,
                        "{}: the case expects {expected:02x?}, the oracle {judged:02x?}",
                        self.name
                    );
                }
            }
        }
        Ok(())
    }
}

impl DecapCase {
    /// Whether a frame has an outer header of the other family, which not every kernel can
    /// decapsulate in BPF.
    pub fn cross_family(&self) -> bool {
        self.frames.iter().any(|(frame, _)| match frame.bytes.get(12..14) {
            Some([0x08, 0x00]) => match frame.bytes.get(14 + 9) {
                Some(17) => frame.bytes.get(14 + 28).is_some_and(|first| first >> 4 == 6),
                protocol => protocol == Some(&41),
            },
            Some([0x86, 0xdd]) => match frame.bytes.get(14 + 6) {
                Some(17) => frame.bytes.get(14 + 48).is_some_and(|first| first >> 4 == 4),
                protocol => protocol == Some(&4),
            },
            _ => false,
        })
    }

    /// The reason why this kernel cannot run the case; `None` if it can.
    pub fn unsupported(&self) -> Option<&'static str> {
        let unsupported = self.cross_family() && !bpf::decapsulates_across_families();
        unsupported.then_some("this kernel has no BPF_F_ADJ_ROOM_DECAP_L3_IPV4 (Linux 6.3)")
    }

    /// The same with only the frames that a binding accepts; `None` if no frame is left.
    #[must_use]
    pub fn only(mut self, accepts: impl Fn(&Frame) -> bool) -> Option<Self> {
        self.frames.retain(|(frame, _)| accepts(frame));
        (!self.frames.is_empty()).then_some(self)
    }

    /// Runs the case: verdict, bytes and counters after each frame.
    pub fn run(&self, host: &mut dyn DecapBinding) -> anyhow::Result<()> {
        host.configure(&self.host)?;
        let mut total = DecapCounters::default();
        for (number, (frame, expected)) in self.frames.iter().enumerate() {
            compare::send_to_backend(host, frame, expected, &mut total)
                .with_context(|| format!("frame {number}"))?;
        }
        ensure!(!self.frames.is_empty(), "the case sends no frames");
        Ok(())
    }

    /// Checks that the oracle's expectations equal those of this case.
    pub fn agrees_with_oracle(&self) -> anyhow::Result<()> {
        for (number, (frame, expected)) in self.frames.iter().enumerate() {
            let judged = decapsulated(frame, &self.host, true);
            ensure!(
                judged == *expected,
                "{}: frame {number}: the case expects {expected:02x?}, the oracle {judged:02x?}",
                self.name
            );
        }
        Ok(())
    }
}
