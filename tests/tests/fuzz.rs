//! The corpus and millions of random frames through each program in memory and in the kernel,
//! compared with the program's oracle. `FUZZ_FRAMES` sets the number of frames, `FUZZ_MINUTES` a
//! time instead, `FUZZ_SEED` the seed.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use sluice_tests::packets::bindings::namespace::{in_namespace, missing};
use sluice_tests::packets::fuzz::{
    DifferentialHarness, Run, Totals, Until, corpus, coverage, fixtures,
};

/// Frames of a run of the balancer's programs, unless the environment sets another number.
const FRAMES: u64 = 1_000_000;
/// Frames of a run of the backend's programs, which handle fewer kinds of frames.
const BACKEND_FRAMES: u64 = 500_000;
/// Frames of a run in memory alone.
const MEMORY_FRAMES: u64 = 300_000;
/// This many frames reach every outcome.
const ALL_OUTCOMES: u64 = 300_000;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let missing = missing();
    let kernel = |name: &str, test: fn(bool) -> anyhow::Result<()>| {
        let trial = Trial::test(name, move || in_namespace(move || test(true)));
        match &missing {
            None => trial,
            // The kind is printed with the name and contains the reason for skipping.
            Some(why) => trial.with_kind(why).with_ignored_flag(true),
        }
    };
    let memory = |name: &str, test: fn(bool) -> anyhow::Result<()>| {
        Trial::test(name, move || test(false).map_err(|error| Failed::from(format!("{error:#}"))))
    };
    let trials = vec![
        kernel("memory, tc, xdp and the oracle agree on the corpus", replay),
        kernel("memory, tc, xdp and the oracle agree on random frames", balanced_frames),
        kernel(
            "memory, the backend's programs and their oracles agree on random frames",
            backend_frames,
        ),
        memory("memory and the oracle agree on the corpus", replay),
        memory("memory and the oracle agree on random frames", balanced_frames),
        memory("memory and its oracles agree on random frames of a backend", backend_frames),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// A number in an environment variable.
fn number(name: &str) -> anyhow::Result<Option<u64>> {
    match std::env::var(name) {
        Ok(text) => Ok(Some(
            text.parse().with_context(|| format!("{name} is `{text}`; it must be a number"))?,
        )),
        Err(_) => Ok(None),
    }
}

fn replay(kernel: bool) -> anyhow::Result<()> {
    let entries = corpus::read(&corpus::directory())?;
    ensure!(!entries.is_empty(), "there are no files in {}", corpus::directory().display());
    let of = |harness: &mut DifferentialHarness, name: &str| -> anyhow::Result<()> {
        for (file, entry) in entries.iter().filter(|(_, entry)| entry.fixture == name) {
            for (number, frame) in (1..).zip(&entry.frames) {
                let judged = harness.check(frame).and_then(|_| harness.check_counters());
                judged.with_context(|| format!("{file}, frame {number}: {}", entry.comment))?;
            }
        }
        Ok(())
    };
    // The balancer's fixtures share the programs, because loading takes long.
    let mut balancers =
        DifferentialHarness::new(&fixtures::Subject::Balancer(fixtures::FIXTURES[0].1), kernel)?;
    for (name, make) in fixtures::FIXTURES {
        balancers.configure(&make())?;
        of(&mut balancers, name)?;
    }
    fixtures::backend()
        .iter()
        .try_for_each(|(name, subject)| of(&mut DifferentialHarness::new(subject, kernel)?, name))
}

fn balanced_frames(kernel: bool) -> anyhow::Result<()> {
    let frames = if kernel { FRAMES } else { MEMORY_FRAMES };
    let (frames, totals) = random_frames(fixtures::balancer(), frames, kernel)?;
    if frames < ALL_OUTCOMES { Ok(()) } else { coverage::check_balancer(&totals) }
}

fn backend_frames(kernel: bool) -> anyhow::Result<()> {
    let frames = if kernel { BACKEND_FRAMES } else { MEMORY_FRAMES };
    let (frames, totals) = random_frames(fixtures::backend(), frames, kernel)?;
    if frames < ALL_OUTCOMES { Ok(()) } else { coverage::check_backend(&totals, frames) }
}

/// Compares random frames. Returns the number that all bindings accepted, and the counters.
fn random_frames(
    subjects: Vec<fixtures::NamedSubject>,
    frames: u64,
    kernel: bool,
) -> anyhow::Result<(u64, Totals)> {
    let seed = number("FUZZ_SEED")?.unwrap_or_else(|| fastrand::u64(..));
    let until = match number("FUZZ_MINUTES")? {
        Some(minutes) => Until::Over(Duration::from_secs(60 * minutes)),
        None => Until::Frames(number("FUZZ_FRAMES")?.unwrap_or(frames)),
    };
    let (summary, found) = Run { subjects, seed, until, kernel }.run()?;
    if let Some(found) = found {
        let kept =
            match corpus::write(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("fuzz"), &found.entry)
            {
                Ok(path) => {
                    format!(
                        "\nWritten to {}; move it to tests/corpus under a name that describes it.",
                        path.display()
                    )
                }
                Err(error) => format!(
                    "\nNot written: {error:#}. The file for tests/corpus:\n{}",
                    found.entry.to_text()
                ),
            };
        bail!("{}{kept}", found.report);
    }
    let seconds = summary.time.as_secs_f64();
    let each: Vec<_> =
        summary.frames.iter().map(|(name, frames)| format!("{frames} {name}")).collect();
    println!(
        "fuzz: {} frames without a difference ({}), {seconds:.0} s, {:.0} per second, FUZZ_SEED={seed}",
        summary.everywhere,
        each.join(", "),
        summary.everywhere as f64 / seconds
    );
    Ok((summary.everywhere, summary.totals))
}
