//! Nanoseconds a packet of the balancer's programs by themselves, by `BPF_PROG_TEST_RUN`, beside a
//! program that does nothing and one that only encapsulates.
//!
//! Machines are shared and their clocks change speed, so the three programs take turns on the same
//! frames, and what is told is the median over many batches of what each batch found. The kernel
//! restores no frame before it repeats a run, so each run is one call, and what it costs to read
//! the clock is what the empty program shows: it is subtracted from both others.

pub mod cases;

use crate::packets::bindings::BalancerBinding as _;
use crate::packets::bindings::entries::settings;
use crate::packets::bindings::test_run::{BalancerHook, TestRunBalancer};
use crate::packets::expectation::Action;
use crate::packets::fixture::BackendSpec;
use crate::packets::frames::{self, Client};
use std::os::fd::BorrowedFd;

use anyhow::{Context as _, ensure};
use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, unshare};
use nix::unistd::Pid;
use sluice_datapath::abi::Settings;

use self::cases::{CASES, Case, Flows, Frames};
use super::baseline::{self, Baseline, Way};
use crate::kernel::run_timed;
use crate::packets::bindings::route;

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effort {
    /// Batches of a case.
    pub batches: usize,
    /// Runs of each program in a batch.
    pub runs: usize,
    /// The most flows that are sent before a case; cases of more have as many.
    pub flows: u32,
}

impl Effort {
    /// Enough for figures that repeat within some percent.
    pub const FIGURES: Self = Self { batches: 100, runs: 1000, flows: u32::MAX };
    /// Enough where a nanosecond is an instruction.
    pub const COUNTED: Self = Self { batches: 5, runs: 100, flows: 1 << 12 };
    /// Enough to see that every case does what it says.
    pub const TRIAL: Self = Self { batches: 2, runs: 50, flows: 1 << 10 };
}

/// What a case costs at a hook.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// Nanoseconds above the empty program.
    pub nanoseconds: f64,
    /// Nanoseconds of the encapsulating program above the empty one, on the same frames in the same
    /// turns.
    pub encapsulating: f64,
    /// Median of the batches' ratios of the first to the second.
    pub ratio: f64,
}

/// Runs `measure` in a network namespace with a way to the backends, on one CPU; it gets the
/// interface.
///
/// The calling thread stays in that namespace.
///
/// # Errors
///
/// What the kernel refused, and those of `measure`.
pub fn isolated<T>(measure: impl FnOnce(u32) -> anyhow::Result<T>) -> anyhow::Result<T> {
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    // The last one: interrupts tend to go to the first.
    let last = (0..CpuSet::count()).rev().find(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    let mut one = CpuSet::new();
    one.set(last.context("this process may run on no CPU")?)?;
    sched_setaffinity(Pid::from_raw(0), &one)?;
    measure(route::route_out()?)
}

/// Measures a case at a hook.
///
/// # Errors
///
/// What the kernel refused, and a packet that does not become what the case says.
pub fn measure(
    case: &Case,
    v6: bool,
    hook: BalancerHook,
    interface: u32,
    effort: Effort,
) -> anyhow::Result<Cost> {
    let place = || format!("{} at {hook:?}, {}", case.name, family(v6));
    let mut balancer = TestRunBalancer::with(
        hook,
        case.connections,
        &Settings { features: case.features, ..settings() },
    )?;
    balancer.configure(&case.fixture_with_interface(interface))?;
    let way = way(&(case.client)(v6), interface);
    let (empty, encapsulate) = match hook {
        BalancerHook::Tc => (Baseline::EmptyTc, Baseline::EncapsulateTc),
        BalancerHook::Xdp => (Baseline::EmptyXdp, Baseline::EncapsulateXdp),
    };
    let (empty, encapsulate) =
        (baseline::Loaded::new(empty, &way)?, baseline::Loaded::new(encapsulate, &way)?);
    let programs = [
        (empty.descriptor(), Action::Pass),
        (encapsulate.descriptor(), Action::Redirect),
        (balancer.program().descriptor(), case.action),
    ];

    let case = &Case { flows: limited(case.flows, effort.flows), ..*case };
    let (mut frames, count) = Frames::before(case, v6);
    for _ in 0..count {
        run(programs[2], hook, frames.frame()).with_context(place)?;
    }
    let mut frames = Frames::new(case, v6);
    let batches = (0..effort.batches).map(|_| batch(&programs, hook, &mut frames, effort.runs));
    let batches = batches.collect::<anyhow::Result<Vec<_>>>().with_context(place)?;
    let of = |figure: fn(&[f64; 3]) -> f64| median(batches.iter().map(figure).collect());
    Ok(Cost {
        nanoseconds: of(|[empty, _, sluice]| sluice - empty),
        encapsulating: of(|[empty, encapsulate, _]| encapsulate - empty),
        ratio: of(|[empty, encapsulate, sluice]| (sluice - empty) / (encapsulate - empty)),
    })
}

/// The way of the encapsulating programs: to the first backend, for packets as long as this one.
fn way(client: &Client, interface: u32) -> Way {
    let backend = BackendSpec::new(1);
    let length = client.packet().len();
    let outer_v4 =
        backend.v4.and_then(|address| frames::outer_v4(address, 0, 0, length).try_into().ok());
    let outer_v6 =
        backend.v6.and_then(|address| frames::outer_v6(address, 0, 0, length).try_into().ok());
    match (outer_v4, outer_v6) {
        (Some(outer_v4), Some(outer_v6)) => Way { interface, outer_v4, outer_v6, ..Way::default() },
        _ => unreachable!("a backend has both addresses, and the headers have their lengths"),
    }
}

fn limited(flows: Flows, most: u32) -> Flows {
    match flows {
        Flows::Known(flows) => Flows::Known(flows.min(most)),
        Flows::New(seen) => Flows::New(seen.min(most)),
    }
}

/// Medians of the programs' times when they take turns.
fn batch(
    programs: &[(BorrowedFd<'_>, Action); 3],
    hook: BalancerHook,
    frames: &mut Frames,
    runs: usize,
) -> anyhow::Result<[f64; 3]> {
    let mut times = [const { Vec::new() }; 3];
    for round in 0..runs {
        let frame = frames.frame();
        // Who comes first changes: a run finds the caches as the one before it left them.
        for turn in 0..programs.len() {
            let program = (round + turn) % programs.len();
            times[program].push(f64::from(run(programs[program], hook, frame)?));
        }
    }
    Ok(times.map(median))
}

/// Nanoseconds of a run, which must end as it should.
fn run(
    (program, action): (BorrowedFd<'_>, Action),
    hook: BalancerHook,
    frame: &[u8],
) -> anyhow::Result<u32> {
    let (value, nanoseconds) =
        run_timed(program, frame).context("the kernel refuses a test run")?;
    let found = hook.action(value)?;
    ensure!(found == action, "a packet met with {found:?} instead of {action:?}");
    Ok(nanoseconds)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    }
}

fn family(v6: bool) -> &'static str {
    if v6 { "IPv6" } else { "IPv4" }
}

/// Measures every case, telling `progress` each line as it is known, and returns the table of
/// figures.
///
/// # Errors
///
/// Those of [`measure`].
pub fn table(
    interface: u32,
    effort: Effort,
    mut progress: impl FnMut(&str),
) -> anyhow::Result<String> {
    const HOOKS: [BalancerHook; 2] = [BalancerHook::Tc, BalancerHook::Xdp];

    let mut lines = vec![
        "| packet | | TC | times encapsulating | XDP | times encapsulating |".to_owned(),
        "| --- | --- | ---: | ---: | ---: | ---: |".to_owned(),
    ];
    lines.iter().for_each(|line| progress(line));
    let mut encapsulating = Vec::new();
    for case in CASES {
        for v6 in [false, true] {
            let mut line = format!("| {} | {} |", case.name, family(v6));
            for hook in HOOKS {
                let cost = measure(&case, v6, hook, interface, effort)?;
                let ratio = if case.action == Action::Redirect {
                    format!("{:.2}", cost.ratio)
                } else {
                    String::new()
                };
                line.push_str(&format!(" {:.0} | {ratio} |", cost.nanoseconds));
                encapsulating.push((v6, hook, cost.encapsulating));
            }
            progress(&line);
            lines.push(line);
        }
    }
    for v6 in [false, true] {
        let mut line = format!("| encapsulating only | {} |", family(v6));
        for hook in HOOKS {
            let of_hook =
                encapsulating.iter().filter(|(family, at, _)| (*family, *at) == (v6, hook));
            line.push_str(&format!(
                " {:.0} | 1 |",
                median(of_hook.map(|(.., cost)| *cost).collect())
            ));
        }
        progress(&line);
        lines.push(line);
    }
    Ok(lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(Vec::new()).is_nan());
    }
}
