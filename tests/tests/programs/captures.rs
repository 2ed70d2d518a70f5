//! Captures with loaded programs: events of every case, a full ring buffer, an expired capture.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use sluice::kernel::bpf::{self, CaptureFilter};
use sluice_datapath::Reason;
use sluice_datapath::abi::Features;
use sluice_tests::packets::bindings::entries::settings;
use sluice_tests::packets::bindings::test_run::pool::with_program;
use sluice_tests::packets::bindings::test_run::{BalancerHook, CONNECTIONS, TestRunBalancer};
use sluice_tests::packets::bindings::{BalancerBinding as _, CaptureBinding};
use sluice_tests::packets::checks::capture::{self, EVERYTHING};
use sluice_tests::packets::expectation::Expectation;
use sluice_tests::packets::fixture::Fixture;
use sluice_tests::packets::frames::{Client, Frame};
use sluice_tests::packets::{cases, compare};

/// A sentence and the test that verifies it at a hook.
type CaptureTest = (&'static str, fn(BalancerHook) -> anyhow::Result<()>);

/// All tests.
pub(crate) const TESTS: &[CaptureTest] = &[
    ("every case causes the same events as in memory", every_case),
    ("events beyond the ring buffer are counted as lost, and packets are handled as usual", full),
    ("sampling one in four captures a quarter of the packets", sampled),
    ("a capture that is not renewed expires and clears its control words", expired),
    ("a program without the feature captures nothing", without_the_feature),
    ("a second capture is refused", alone),
];

fn every_case(hook: BalancerHook) -> anyhow::Result<()> {
    let mut ran = 0;
    for case in cases::balancing() {
        with_program(hook, |balancer| {
            if let Some(case) = case.only(|frame| balancer.accepts(frame)) {
                capture::case(&case, balancer).with_context(|| case.name)?;
                ran += 1;
            }
            Ok(())
        })?;
    }
    ensure!(ran > 40, "only {ran} cases ran");
    Ok(())
}

/// Runs a check of any binding at a hook.
pub(crate) fn check(
    hook: BalancerHook,
    check: fn(&mut dyn CaptureBinding) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    on_one_cpu()?;
    with_program(hook, |balancer| check(balancer))
}

/// Rate limits are per CPU, so the test stays on one.
fn on_one_cpu() -> anyhow::Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(0)?;
    sched_setaffinity(Pid::from_raw(0), &cpus).context("cannot stay on one CPU")
}

fn dead() -> Frame {
    Client { ttl: 0, ..Client::tcp4() }.frame().into()
}

/// Runs a test during a capture.
fn watched(
    hook: BalancerHook,
    selection: &CaptureFilter,
    test: impl FnOnce(&mut TestRunBalancer) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    on_one_cpu()?;
    with_program(hook, |balancer| {
        balancer.configure(&Fixture::new())?;
        balancer.start_capture(selection)?;
        test(balancer)
    })
}

fn full(hook: BalancerHook) -> anyhow::Result<()> {
    const PACKETS: u64 = 3200;

    watched(hook, &EVERYTHING, |balancer| {
        let mut total = balancer.counters()?;
        for _ in 0..PACKETS {
            compare::send(balancer, &dead(), &Expectation::Drop(Reason::TtlExpired), &mut total)?;
        }
        let (suppressed, lost) = balancer.missed_events()?;
        let events = balancer.events().len() as u64;
        ensure!(
            events + lost == PACKETS && suppressed == 0,
            "{events} events, {suppressed} suppressed, {lost} lost"
        );
        ensure!((2900..3000).contains(&events), "{events} events");
        balancer.send(&dead())?;
        ensure!(balancer.events().len() == 1, "there is room again, but no event");
        Ok(())
    })
}

fn sampled(hook: BalancerHook) -> anyhow::Result<()> {
    /// Seven standard deviations on each side: once in 10¹¹ runs.
    const EXPECTED: std::ops::Range<usize> = 364..637;

    watched(hook, &CaptureFilter { one_in: 4, ..EVERYTHING }, |balancer| {
        let frame = Client::udp6().frame().into();
        for _ in 0..2000 {
            balancer.send(&frame)?;
        }
        let events = balancer.events().len();
        ensure!(EXPECTED.contains(&events), "{events} of 2000");
        balancer.send(&dead())?;
        ensure!(balancer.events().len() == 1, "a drop is not captured");
        Ok(())
    })
}

fn expired(hook: BalancerHook) -> anyhow::Result<()> {
    watched(hook, &EVERYTHING, |balancer| {
        balancer.capture().context("no capture")?.renew(Duration::from_secs(2))?;
        balancer.send(&dead())?;
        ensure!(
            balancer.events().len() == 1 && bpf::is_captured(balancer.pins())?,
            "the capture expired too early"
        );
        std::thread::sleep(Duration::from_millis(2100));
        balancer.send(&dead())?;
        ensure!(balancer.events().is_empty(), "there is an event after the end");
        ensure!(!bpf::is_captured(balancer.pins())?, "the capture is still enabled");
        Ok(())
    })
}

fn without_the_feature(hook: BalancerHook) -> anyhow::Result<()> {
    let mut balancer = TestRunBalancer::with(
        hook,
        CONNECTIONS,
        &sluice_datapath::abi::Settings { features: Features::NONE, ..settings() },
    )?;
    balancer.configure(&Fixture::new())?;
    balancer.start_capture(&EVERYTHING)?;
    balancer.send(&dead())?;
    ensure!(balancer.events().is_empty(), "there is an event");
    Ok(())
}

fn alone(hook: BalancerHook) -> anyhow::Result<()> {
    watched(hook, &EVERYTHING, |balancer| {
        let second = bpf::Capture::open(balancer.pins());
        ensure!(matches!(second, Err(bpf::Error::Captured)), "a second capture is not refused");
        Ok(())
    })
}
