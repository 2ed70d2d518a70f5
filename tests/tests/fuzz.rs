//! Random frames by the million through the packet path in memory and both programs in the kernel, judged by the oracle; before them the
//! corpus, every frame of which was once wrong or is likely to be.
//!
//! `FUZZ_FRAMES` says how many frames, `FUZZ_MINUTES` how long instead, `FUZZ_SEED` which.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use sluice_tests::packets::fuzz::{Bench, Campaign, Until, corpus, worlds};
use sluice_tests::packets::isolation::{in_namespace, missing};
use sluice_tests::packets::random;
use sluice_tests::packets::world::World;

/// Frames of a run that nobody gave a number for.
const FRAMES: u64 = 1_000_000;
/// As many frames meet every outcome that there is.
const ALL_REASONS: u64 = 300_000;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let missing = missing();
    let kernel = |name: &str, test: fn(bool) -> anyhow::Result<()>| {
        let trial = Trial::test(name, move || in_namespace(move || test(true)));
        match &missing {
            None => trial,
            // The kind is printed beside the name: it says why the test does not run.
            Some(why) => trial.with_kind(why).with_ignored_flag(true),
        }
    };
    let memory = |name: &str, test: fn(bool) -> anyhow::Result<()>| {
        Trial::test(name, move || test(false).map_err(|error| Failed::from(format!("{error:#}"))))
    };
    let trials = vec![
        kernel("memory, tc, xdp and the oracle agree on the corpus", replay),
        kernel("memory, tc, xdp and the oracle agree on random frames", random_frames),
        memory("memory and the oracle agree on the corpus", replay),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// A number in an environment variable.
fn number(name: &str) -> anyhow::Result<Option<u64>> {
    match std::env::var(name) {
        Ok(text) => Ok(Some(text.parse().with_context(|| format!("{name} is `{text}`; it is a number"))?)),
        Err(_) => Ok(None),
    }
}

fn replay(kernel: bool) -> anyhow::Result<()> {
    let entries = corpus::read(&corpus::directory())?;
    ensure!(!entries.is_empty(), "there is no file in {}", corpus::directory().display());
    let mut bench = Bench::new(&World::new(), kernel)?;
    for (name, make) in worlds::WORLDS {
        bench.configure(&make())?;
        for (file, entry) in entries.iter().filter(|(_, entry)| entry.world == *name) {
            for (number, frame) in (1..).zip(&entry.frames) {
                let judged = bench.judge(frame).and_then(|_| bench.settle());
                judged.with_context(|| format!("{file}, frame {number}: {}", entry.comment))?;
            }
        }
    }
    Ok(())
}

fn random_frames(kernel: bool) -> anyhow::Result<()> {
    let seed = number("FUZZ_SEED")?.unwrap_or_else(|| fastrand::u64(..));
    let until = match number("FUZZ_MINUTES")? {
        Some(minutes) => Until::Over(Duration::from_secs(60 * minutes)),
        None => Until::Frames(number("FUZZ_FRAMES")?.unwrap_or(FRAMES)),
    };
    let (summary, found) = Campaign { seed, until, kernel }.run()?;
    if let Some(found) = found {
        let kept = match corpus::write(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("fuzz"), &found.entry) {
            Ok(path) => {
                format!("\nKept as {}; move it to tests/corpus under a name that says what it shows.", path.display())
            }
            Err(error) => format!("\nNot kept: {error:#}. As a file of tests/corpus it is:\n{}", found.entry.to_text()),
        };
        bail!("{}{kept}", found.report);
    }
    let seconds = summary.time.as_secs_f64();
    let each: Vec<_> = summary.frames.iter().map(|(name, frames)| format!("{frames} {name}")).collect();
    println!(
        "fuzz: {} frames on which all agree ({}), {seconds:.0} s, {:.0} a second, FUZZ_SEED={seed}",
        summary.everywhere,
        each.join(", "),
        summary.everywhere as f64 / seconds
    );
    if summary.everywhere >= ALL_REASONS {
        random::reached(&summary.counters).map_err(anyhow::Error::msg)?;
    }
    Ok(())
}
