//! Random frames by the million through each program in memory and in the kernel, judged by the
//! program's oracle; before them the corpus, every frame of which was once wrong or is likely to
//! be.
//!
//! `FUZZ_FRAMES` says how many frames, `FUZZ_MINUTES` how long instead, `FUZZ_SEED` which.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use sluice_tests::packets::fuzz::{Bench, Campaign, Seen, Until, corpus, worlds};
use sluice_tests::packets::isolation::{in_namespace, missing};
use sluice_tests::packets::random;

/// Frames of a run that nobody gave a number for.
const FRAMES: u64 = 1_000_000;
/// Of the backend's programs, which do less with them.
const BACKEND_FRAMES: u64 = 500_000;
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
        kernel("memory, tc, xdp and the oracle agree on random frames", balanced_frames),
        kernel(
            "memory, the backend's programs and their oracles agree on random frames",
            backend_frames,
        ),
        memory("memory and the oracle agree on the corpus", replay),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// A number in an environment variable.
fn number(name: &str) -> anyhow::Result<Option<u64>> {
    match std::env::var(name) {
        Ok(text) => {
            Ok(Some(text.parse().with_context(|| format!("{name} is `{text}`; it is a number"))?))
        }
        Err(_) => Ok(None),
    }
}

fn replay(kernel: bool) -> anyhow::Result<()> {
    let entries = corpus::read(&corpus::directory())?;
    ensure!(!entries.is_empty(), "there is no file in {}", corpus::directory().display());
    let of = |bench: &mut Bench, name: &str| -> anyhow::Result<()> {
        for (file, entry) in entries.iter().filter(|(_, entry)| entry.world == name) {
            for (number, frame) in (1..).zip(&entry.frames) {
                let judged = bench.judge(frame).and_then(|_| bench.settle());
                judged.with_context(|| format!("{file}, frame {number}: {}", entry.comment))?;
            }
        }
        Ok(())
    };
    // Loading programs takes long: the worlds of the balancer share them.
    let mut balancers = Bench::new(&worlds::Subject::Balancer(worlds::WORLDS[0].1), kernel)?;
    for (name, make) in worlds::WORLDS {
        balancers.configure(&make())?;
        of(&mut balancers, name)?;
    }
    worlds::backend()
        .iter()
        .try_for_each(|(name, subject)| of(&mut Bench::new(subject, kernel)?, name))
}

fn balanced_frames(kernel: bool) -> anyhow::Result<()> {
    let (frames, seen) = random_frames(worlds::balancer(), FRAMES, kernel)?;
    if frames >= ALL_REASONS {
        random::reached(&seen.balanced).map_err(anyhow::Error::msg)
    } else {
        Ok(())
    }
}

fn backend_frames(kernel: bool) -> anyhow::Result<()> {
    let (frames, seen) = random_frames(worlds::backend(), BACKEND_FRAMES, kernel)?;
    if frames < ALL_REASONS {
        return Ok(());
    }
    random::reached_by_backend(&seen.decapsulated).map_err(anyhow::Error::msg)?;
    let ((taken, _), clamped) = (seen.decapsulated.0, seen.clamped);
    ensure!(
        taken > frames / 20 && clamped > frames / 20,
        "of {frames} frames only {taken} were decapsulated and {clamped} clamped: they are too dull"
    );
    Ok(())
}

/// Tries random frames on programs: how many all bindings took, and what became of them.
fn random_frames(
    subjects: Vec<worlds::Named>,
    frames: u64,
    kernel: bool,
) -> anyhow::Result<(u64, Seen)> {
    let seed = number("FUZZ_SEED")?.unwrap_or_else(|| fastrand::u64(..));
    let until = match number("FUZZ_MINUTES")? {
        Some(minutes) => Until::Over(Duration::from_secs(60 * minutes)),
        None => Until::Frames(number("FUZZ_FRAMES")?.unwrap_or(frames)),
    };
    let (summary, found) = Campaign { subjects, seed, until, kernel }.run()?;
    if let Some(found) = found {
        let kept = match corpus::write(
            &Path::new(env!("CARGO_TARGET_TMPDIR")).join("fuzz"),
            &found.entry,
        ) {
            Ok(path) => {
                format!(
                    "\nKept as {}; move it to tests/corpus under a name that says what it shows.",
                    path.display()
                )
            }
            Err(error) => format!(
                "\nNot kept: {error:#}. As a file of tests/corpus it is:\n{}",
                found.entry.to_text()
            ),
        };
        bail!("{}{kept}", found.report);
    }
    let seconds = summary.time.as_secs_f64();
    let each: Vec<_> =
        summary.frames.iter().map(|(name, frames)| format!("{frames} {name}")).collect();
    println!(
        "fuzz: {} frames on which all agree ({}), {seconds:.0} s, {:.0} a second, FUZZ_SEED={seed}",
        summary.everywhere,
        each.join(", "),
        summary.everywhere as f64 / seconds
    );
    Ok((summary.everywhere, summary.seen))
}
