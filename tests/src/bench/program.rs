//! Nanoseconds per packet of the balancer's programs alone, by `BPF_PROG_TEST_RUN`, in comparison
//! with an empty program and one that only encapsulates.
//!
//! Machines are shared and change their clock speed. Therefore the three programs run in turn on
//! the same frames, and a figure is the median of many batches. The kernel does not restore a frame
//! before it repeats a run, so each run is its own system call. The time of the empty program,
//! which is that of reading the clock, is subtracted from both others.

pub mod cases;

use std::os::fd::BorrowedFd;

use anyhow::{Context as _, ensure};
use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, unshare};
use nix::unistd::Pid;
use sluice_datapath::abi::{Settings, VipSources};

use self::cases::{BenchCase, CASES, Flows, Frames};
use super::baseline::{Baseline, BaselineSettings, LoadedBaseline};
use crate::kernel::run_timed;
use crate::packets::addresses::{VIP_V4, VIP_V6};
use crate::packets::bindings::BalancerBinding as _;
use crate::packets::bindings::entries::settings;
use crate::packets::bindings::route;
use crate::packets::bindings::test_run::{BalancerHook, TestRunBalancer};
use crate::packets::expectation::Action;
use crate::packets::fixture::BackendSpec;
use crate::packets::frames::{self, Client};

/// The number of runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effort {
    /// Batches per case.
    pub batches: usize,
    /// Runs of each program per batch.
    pub runs: usize,
    /// Limit of the flows of a case.
    pub flows: u32,
}

impl Effort {
    /// For figures that repeat within some percent.
    pub const FIGURES: Self = Self { batches: 100, runs: 1000, flows: u32::MAX };
    /// For machines on which one instruction takes one nanosecond.
    pub const COUNTED: Self = Self { batches: 5, runs: 100, flows: 1 << 12 };
    /// For a test of the cases.
    pub const TRIAL: Self = Self { batches: 2, runs: 50, flows: 1 << 10 };
}

/// The cost of a case at a hook.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// Nanoseconds above the empty program.
    pub nanoseconds: f64,
    /// Nanoseconds of the encapsulating program above the empty one, on the same frames.
    pub encapsulating: f64,
    /// Median of the batches' ratios of `nanoseconds` to `encapsulating`.
    pub ratio: f64,
}

/// Moves the calling thread into a new network namespace with a route to the backends and onto one
/// CPU, and calls `measure` with the route's interface.
pub fn isolated<T>(measure: impl FnOnce(u32) -> anyhow::Result<T>) -> anyhow::Result<T> {
    unshare(CloneFlags::CLONE_NEWNET).context("cannot create a network namespace")?;
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    // The last CPU, because the first ones handle more interrupts.
    let last = (0..CpuSet::count()).rev().find(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    let mut one = CpuSet::new();
    one.set(last.context("the CPU affinity of this process is empty")?)?;
    sched_setaffinity(Pid::from_raw(0), &one)?;
    measure(route::route_out()?)
}

/// Measures a case at a hook. A packet with another action than the case's is an error.
pub fn measure(
    case: &BenchCase,
    v6: bool,
    hook: BalancerHook,
    interface: u32,
    effort: Effort,
) -> anyhow::Result<Cost> {
    let context = || format!("{} at {hook:?}, {}", case.name, family(v6));
    let mut balancer = TestRunBalancer::with(
        hook,
        case.connections,
        &Settings { features: case.features, vip_sources: vip_sources(), ..settings() },
    )?;
    balancer.configure(&case.fixture_with_interface(interface))?;
    let baseline = baseline_settings(&(case.client)(v6), interface);
    let (empty, encapsulate) = match hook {
        BalancerHook::Tc => (Baseline::EmptyTc, Baseline::EncapsulateTc),
        BalancerHook::Xdp => (Baseline::EmptyXdp, Baseline::EncapsulateXdp),
    };
    let empty = LoadedBaseline::new(empty, &baseline)?;
    let encapsulate = LoadedBaseline::new(encapsulate, &baseline)?;
    let programs = [
        (empty.descriptor(), Action::Pass),
        (encapsulate.descriptor(), Action::Redirect),
        (balancer.program().descriptor(), case.action),
    ];

    let case = &BenchCase { flows: limited(case.flows, effort.flows), ..*case };
    let (mut frames, count) = Frames::warm_up(case, v6);
    for _ in 0..count {
        run(programs[2], hook, frames.frame()).with_context(context)?;
    }
    let mut frames = Frames::new(case, v6);
    let batches = (0..effort.batches).map(|_| batch(&programs, hook, &mut frames, effort.runs));
    let batches = batches.collect::<anyhow::Result<Vec<_>>>().with_context(context)?;
    let median_of = |figure: fn(&[f64; 3]) -> f64| median(batches.iter().map(figure).collect());
    Ok(Cost {
        nanoseconds: median_of(|[empty, _, sluice]| sluice - empty),
        encapsulating: median_of(|[empty, encapsulate, _]| encapsulate - empty),
        ratio: median_of(|[empty, encapsulate, sluice]| (sluice - empty) / (encapsulate - empty)),
    })
}

/// The constants of the encapsulating programs: the first backend, packets of this length.
/// The filter of the fixtures' VIP addresses. The clients of the cases are not in it.
fn vip_sources() -> VipSources {
    VipSources::NONE.with(VIP_V4.into(), 32).with(VIP_V6.into(), 128)
}

fn baseline_settings(client: &Client, interface: u32) -> BaselineSettings {
    let backend = BackendSpec::new(1);
    let length = client.packet().len();
    let outer_v4 =
        backend.v4.and_then(|address| frames::outer_v4(address, 0, 0, length).try_into().ok());
    let outer_v6 =
        backend.v6.and_then(|address| frames::outer_v6(address, 0, 0, length).try_into().ok());
    match (outer_v4, outer_v6) {
        (Some(outer_v4), Some(outer_v6)) => {
            BaselineSettings { interface, outer_v4, outer_v6, ..BaselineSettings::default() }
        }
        _ => unreachable!("the backend has both addresses, and the headers have fixed lengths"),
    }
}

fn limited(flows: Flows, limit: u32) -> Flows {
    match flows {
        Flows::Known(flows) => Flows::Known(flows.min(limit)),
        Flows::New(known) => Flows::New(known.min(limit)),
    }
}

/// Medians of the programs' run times.
fn batch(
    programs: &[(BorrowedFd<'_>, Action); 3],
    hook: BalancerHook,
    frames: &mut Frames,
    runs: usize,
) -> anyhow::Result<[f64; 3]> {
    let mut times = [const { Vec::new() }; 3];
    for round in 0..runs {
        let frame = frames.frame();
        // The order rotates, because each run uses the caches as the previous one left them.
        for turn in 0..programs.len() {
            let program = (round + turn) % programs.len();
            times[program].push(f64::from(run(programs[program], hook, frame)?));
        }
    }
    Ok(times.map(median))
}

/// Runs a program once and checks its action; returns the run time in nanoseconds.
fn run(
    (program, action): (BorrowedFd<'_>, Action),
    hook: BalancerHook,
    frame: &[u8],
) -> anyhow::Result<u32> {
    let (value, nanoseconds) = run_timed(program, frame).context("the test run failed")?;
    let found = hook.action(value)?;
    ensure!(found == action, "the action is {found:?} instead of {action:?}");
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

/// Measures every case and returns the table of figures. `progress` receives each line immediately.
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
        let mut line = format!("| encapsulation only | {} |", family(v6));
        for hook in HOOKS {
            let same = encapsulating.iter().filter(|(family, at, _)| (*family, *at) == (v6, hook));
            line.push_str(&format!(" {:.0} | 1 |", median(same.map(|(.., cost)| *cost).collect())));
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
    fn the_median_is_the_middle_value_or_the_mean_of_the_two() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(Vec::new()).is_nan());
    }
}
