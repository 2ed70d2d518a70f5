//! The table of packet cases on the packet path in memory. Needs no privilege.

use std::collections::BTreeMap;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use sluice_datapath::Reason;
use sluice_tests::packets::bindings::memory::{InMemoryBackend, InMemoryBalancer};
use sluice_tests::packets::bindings::{BalancerBinding, DecapBinding};
use sluice_tests::packets::cases;
use sluice_tests::packets::checks::{capture, echo_checksums, regressions, source_spreading};
use sluice_tests::packets::expectation::Action;
use sluice_tests::packets::fixture::Fixture;
use sluice_tests::packets::frames::{Client, Frame, SHORTEST};
use sluice_tests::packets::fuzz::fixtures;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    for case in cases::balancing() {
        let name = format!("balancer: {}", case.name);
        trials.push(Trial::test(name, move || report(case.run(&mut InMemoryBalancer::default()))));
    }
    for case in cases::decapsulation() {
        let name = format!("backend: {}", case.name);
        trials.push(Trial::test(name, move || report(case.run(&mut InMemoryBackend::default()))));
    }
    for case in cases::mss_clamp() {
        let name = format!("clamp: {}", case.name);
        trials.push(Trial::test(name, move || report(case.run(&mut InMemoryBackend::default()))));
    }
    for case in cases::balancing() {
        let name = format!("capture: {}", case.name);
        trials.push(Trial::test(name, move || {
            report(capture::case(&case, &mut InMemoryBalancer::default()))
        }));
    }
    for &(name, check) in capture::CHECKS {
        trials.push(Trial::test(format!("capture: {name}"), move || {
            report(check(&mut InMemoryBalancer::default()))
        }));
    }
    trials.push(Trial::test("the oracle agrees with every case", || {
        cases::balancing().iter().try_for_each(|case| report(case.agrees_with_oracle()))?;
        cases::decapsulation().iter().try_for_each(|case| report(case.agrees_with_oracle()))?;
        cases::mss_clamp().iter().try_for_each(|case| report(case.agrees_with_oracle()))
    }));
    let name = "every echo reply has a valid checksum";
    trials.push(Trial::test(name, || {
        report(echo_checksums::every_answer_is_valid(&mut InMemoryBalancer::default()))
    }));
    for fault in regressions::REGRESSIONS {
        let name = format!("regression: {}", fault.0);
        trials.push(Trial::test(name, || {
            report(regressions::check(fault, InMemoryBalancer::default))
        }));
    }
    trials.push(Trial::test("a frame shorter than an Ethernet header passes", shortest_frames));
    trials.push(Trial::test("with spread sources the outer source depends on the flow", || {
        report(source_spreading::check(&mut InMemoryBalancer::with(source_spreading::spread())))
    }));
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn report(outcome: anyhow::Result<()>) -> Result<(), Failed> {
    outcome.map_err(|error| format!("{error:#}").into())
}

/// Frames too short for a test run in the kernel.
fn shortest_frames() -> Result<(), Failed> {
    let whole = Client::tcp4().frame();
    let (mut balancer, mut host) = (InMemoryBalancer::default(), InMemoryBackend::default());
    balancer.configure(&Fixture::new())?;
    host.configure(&fixtures::host())?;
    for length in 0..SHORTEST {
        let frame = Frame::from(whole[..length].to_vec());
        if (balancer.send(&frame)?, host.send(&frame)?)
            != ((Action::Pass, frame.bytes.clone()), (Action::Pass, frame.bytes))
        {
            return Err(format!("a frame of {length} bytes does not pass unchanged").into());
        }
    }
    let expected = BTreeMap::from([(Reason::Truncated, SHORTEST as u64)]);
    let reasons = (balancer.counters()?.reasons, host.counters()?.1);
    if reasons != (expected.clone(), expected) {
        Err(format!("reasons are {reasons:?}").into())
    } else {
        Ok(())
    }
}
