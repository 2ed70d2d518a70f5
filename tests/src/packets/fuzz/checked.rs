//! Bindings of the programs, each with its oracle.

use anyhow::{Context as _, bail, ensure};
use ipnet::IpNet;
use sluice::kernel::bpf;

use super::totals::Totals;
use crate::packets::bindings::memory::{InMemoryBackend, InMemoryBalancer};
use crate::packets::bindings::test_run::{self, BalancerHook, TestRunBackend, TestRunBalancer};
use crate::packets::bindings::{BalancerBinding, ClampBinding, DecapBinding};
use crate::packets::compare;
use crate::packets::expectation::{BalancerCounters, DecapCounters};
use crate::packets::fixture::{Fixture, HostFixture};
use crate::packets::frames::Frame;
use crate::packets::oracle::Oracle;
use crate::packets::oracle::clamp::clamped;
use crate::packets::oracle::decapsulate::decapsulated;

/// A binding with its oracle.
pub(super) trait CheckedBinding {
    /// Whether the binding accepts a frame.
    fn accepts(&self, frame: &Frame) -> bool;

    /// Sends a frame. Verdict and bytes other than the oracle's are an error.
    fn check(&mut self, frame: &Frame) -> anyhow::Result<()>;

    /// Compares the counters with the sum of the oracle's expectations.
    fn check_counters(&mut self) -> anyhow::Result<()>;

    /// Replaces the fixture. Connection table and counters stay.
    fn configure(&mut self, _: &Fixture) -> anyhow::Result<()> {
        bail!("a backend's program has no balancer fixture")
    }

    /// Adds the counters to totals.
    fn add_to(&self, totals: &mut Totals);
}

/// A binding with its name.
pub(super) type NamedBinding = (&'static str, Box<dyn CheckedBinding>);

/// The balancer's program in memory and, if `kernel`, at both hooks.
pub(super) fn of_balancer(fixture: &Fixture, kernel: bool) -> anyhow::Result<Vec<NamedBinding>> {
    let mut balancers: Vec<(_, Box<dyn BalancerBinding>)> =
        vec![("memory", Box::<InMemoryBalancer>::default())];
    if kernel {
        balancers.push(("tc", Box::new(TestRunBalancer::new(BalancerHook::Tc)?)));
        balancers.push(("xdp", Box::new(TestRunBalancer::new(BalancerHook::Xdp)?)));
    }
    balancers
        .into_iter()
        .map(|(name, balancer)| Ok((name, balancing(fixture, balancer).context(name)?)))
        .collect()
}

/// A binding of the balancer.
pub(super) fn balancing(
    fixture: &Fixture,
    balancer: Box<dyn BalancerBinding>,
) -> anyhow::Result<Box<dyn CheckedBinding>> {
    let mut binding =
        CheckedBalancer { balancer, oracle: Oracle::default(), total: BalancerCounters::default() };
    binding.configure(fixture)?;
    Ok(Box::new(binding))
}

/// The backend's program that decapsulates.
pub(super) fn of_backend(host: &HostFixture, kernel: bool) -> anyhow::Result<Vec<NamedBinding>> {
    let mut hosts: Vec<(_, Box<dyn DecapBinding>, _)> = vec![
        ("memory", Box::new(InMemoryBackend::new(true)), true),
        ("memory without cross-family", Box::new(InMemoryBackend::new(false)), false),
    ];
    if kernel {
        let cross_family = bpf::decapsulates_across_families();
        hosts.push(("backend", Box::new(TestRunBackend::new()?), cross_family));
    }
    let mut bindings: Vec<NamedBinding> = Vec::new();
    for (name, mut decapsulator, cross_family) in hosts {
        decapsulator.configure(host).context(name)?;
        let (host, total) = (host.clone(), DecapCounters::default());
        bindings.push((name, Box::new(CheckedDecap { decapsulator, host, cross_family, total })));
    }
    Ok(bindings)
}

/// The backend's program that clamps.
pub(super) fn of_clamp(
    (vips, largest): (Vec<IpNet>, [u32; 2]),
    kernel: bool,
) -> anyhow::Result<Vec<NamedBinding>> {
    let mut clampers: Vec<(_, Box<dyn ClampBinding>)> =
        vec![("memory", Box::<InMemoryBackend>::default())];
    if kernel {
        clampers.push(("clamp", Box::new(TestRunBackend::new()?)));
    }
    let binding =
        |(name, mut clamper): (_, Box<dyn ClampBinding>)| -> anyhow::Result<NamedBinding> {
            clamper.configure(&vips, largest).context(name)?;
            Ok((name, Box::new(CheckedClamp { clamper, vips: vips.clone(), largest, total: 0 })))
        };
    clampers.into_iter().map(binding).collect()
}

struct CheckedBalancer {
    balancer: Box<dyn BalancerBinding>,
    /// Each binding has its own oracle, because each accepts other frames: flows and first
    /// fragments differ.
    oracle: Oracle,
    /// The expected counters.
    total: BalancerCounters,
}

impl CheckedBinding for CheckedBalancer {
    fn accepts(&self, frame: &Frame) -> bool {
        self.balancer.accepts(frame) && !self.oracle.depends_on_time(frame)
    }

    fn check(&mut self, frame: &Frame) -> anyhow::Result<()> {
        let outcome = self.oracle.judge(frame);
        compare::exchange(self.balancer.as_mut(), frame, &outcome, &mut self.total)
    }

    fn check_counters(&mut self) -> anyhow::Result<()> {
        let counters = self.balancer.counters()?;
        // A difference must not affect the next comparison.
        let expected = std::mem::replace(&mut self.total, counters);
        ensure!(expected == self.total, "counters are {:?} instead of {expected:?}", self.total);
        Ok(())
    }

    fn configure(&mut self, fixture: &Fixture) -> anyhow::Result<()> {
        self.oracle.configure(fixture);
        self.balancer.configure(fixture)
    }

    fn add_to(&self, totals: &mut Totals) {
        totals.balanced.add_all(&self.total);
    }
}

struct CheckedDecap {
    decapsulator: Box<dyn DecapBinding>,
    host: HostFixture,
    cross_family: bool,
    total: DecapCounters,
}

impl CheckedBinding for CheckedDecap {
    fn accepts(&self, frame: &Frame) -> bool {
        // Only a test run does not accept merged packets.
        !self.decapsulator.rejects_merged() || test_run::accepts_at_tc(frame)
    }

    fn check(&mut self, frame: &Frame) -> anyhow::Result<()> {
        let expected = decapsulated(frame, &self.host, self.cross_family);
        compare::exchange_with_backend(
            self.decapsulator.as_mut(),
            frame,
            &expected,
            &mut self.total,
        )
    }

    fn check_counters(&mut self) -> anyhow::Result<()> {
        let counters = self.decapsulator.counters()?;
        let expected = std::mem::replace(&mut self.total, counters);
        ensure!(expected == self.total, "counters are {:?} instead of {expected:?}", self.total);
        Ok(())
    }

    fn add_to(&self, totals: &mut Totals) {
        let ((packets, bytes), reasons) = &mut totals.decapsulated;
        *packets += self.total.0.0;
        *bytes += self.total.0.1;
        for (reason, count) in &self.total.1 {
            *reasons.entry(*reason).or_default() += count;
        }
    }
}

struct CheckedClamp {
    clamper: Box<dyn ClampBinding>,
    vips: Vec<IpNet>,
    largest: [u32; 2],
    total: u64,
}

impl CheckedBinding for CheckedClamp {
    fn accepts(&self, frame: &Frame) -> bool {
        // The program reads no metadata, so both bindings get the same frames.
        test_run::accepts_at_tc(frame)
    }

    fn check(&mut self, frame: &Frame) -> anyhow::Result<()> {
        let judged = clamped(frame, &self.vips, self.largest);
        self.total += u64::from(judged.is_some());
        let left = self.clamper.send(frame)?;
        let expected = judged.as_ref().unwrap_or(&frame.bytes);
        ensure!(
            left == *expected,
            "{:02x?} became {left:02x?} instead of {expected:02x?}",
            frame.bytes
        );
        Ok(())
    }

    fn check_counters(&mut self) -> anyhow::Result<()> {
        let counted = self.clamper.clamped()?;
        let expected = std::mem::replace(&mut self.total, counted);
        ensure!(expected == counted, "the counter is {counted} instead of {expected}");
        Ok(())
    }

    fn add_to(&self, totals: &mut Totals) {
        totals.clamped += self.total;
    }
}
