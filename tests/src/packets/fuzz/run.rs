//! A run of many rounds. A round has a fixture, new maps and a generator; its number and the seed
//! reproduce it.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sched::{CloneFlags, unshare};

use super::corpus::CorpusEntry;
use super::fixtures::NamedSubject;
use super::generate::Generator;
use super::harness::DifferentialHarness;
use super::minimise::{fails, minimise};
use super::totals::Totals;

/// Maximum frames of a round: enough to make the time of loading programs (a second or more)
/// negligible, few enough that no connection table overflows, because the oracle does not model
/// eviction.
const ROUND: u64 = 200_000;
/// Frames between two comparisons of counters.
const BATCH: u64 = 1_000;

/// The end of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// After this many frames on every binding.
    Frames(u64),
    /// After this time.
    Over(Duration),
}

/// A run.
#[derive(Debug, Clone)]
pub struct Run {
    /// Programs with fixtures; rounds take turns.
    pub subjects: Vec<NamedSubject>,
    /// Seed of the frames.
    pub seed: u64,
    /// The end of the run.
    pub until: Until,
    /// Whether programs in the kernel are included.
    pub kernel: bool,
}

/// The result of a run without differences.
#[derive(Debug, Default)]
pub struct Summary {
    /// Frames that every binding accepted.
    pub everywhere: u64,
    /// Frames by binding.
    pub frames: BTreeMap<&'static str, u64>,
    /// Counters of the programs.
    pub totals: Totals,
    /// Duration.
    pub time: Duration,
}

/// A difference between a binding and its oracle.
#[derive(Debug)]
pub struct Disagreement {
    /// The minimised frames and the difference.
    pub entry: CorpusEntry,
    /// The message of the test.
    pub report: String,
}

impl Run {
    /// Runs on every CPU, each with its own programs and maps.
    ///
    /// # Errors
    /// The kernel's error. A disagreement is not an error but the second part of the result.
    pub fn run(&self) -> anyhow::Result<(Summary, Option<Disagreement>)> {
        let begun = Instant::now();
        let (next, everywhere, stop) =
            (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
        let summary = Mutex::new(Summary::default());
        let enough = || match self.until {
            Until::Frames(frames) => everywhere.load(Ordering::Relaxed) >= frames,
            Until::Over(time) => begun.elapsed() >= time,
        };
        let worker = || -> anyhow::Result<Option<Disagreement>> {
            if self.kernel {
                unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
            }
            while !enough() && !stop.load(Ordering::Relaxed) {
                let round = Round { run: self, number: next.fetch_add(1, Ordering::Relaxed) };
                let mut harness = round.harness()?;
                let mut generator = round.generator();
                let mut sent = 0;
                while sent < self.round_length() && !enough() && !stop.load(Ordering::Relaxed) {
                    let mut all = 0;
                    let mut outcome = Ok(());
                    for _ in 0..BATCH.min(self.round_length()) {
                        sent += 1;
                        match harness.check(&generator.frame()) {
                            Ok(took) => all += u64::from(took),
                            Err(error) => {
                                outcome = Err(error);
                                break;
                            }
                        }
                    }
                    everywhere.fetch_add(all, Ordering::Relaxed);
                    if let Err(error) = outcome.and_then(|()| harness.check_counters()) {
                        stop.store(true, Ordering::Relaxed);
                        return round.investigate(sent, &error).map(Some);
                    }
                }
                summary.lock().expect("no worker panics while it adds").add(&harness);
            }
            Ok(None)
        };
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..cpus).map(|_| scope.spawn(worker)).collect();
            workers.into_iter().map(|worker| worker.join()).collect()
        });
        let mut found = None;
        for outcome in outcomes {
            match outcome {
                Ok(outcome) => found = outcome?.or(found),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        let mut summary = summary.into_inner().expect("no worker panicked while it added");
        summary.everywhere = everywhere.into_inner();
        summary.time = begun.elapsed();
        Ok((summary, found))
    }

    /// Frames of a round: every fixture gets some, even in a short run.
    fn round_length(&self) -> u64 {
        match self.until {
            Until::Frames(frames) => frames.div_ceil(self.subjects.len() as u64).clamp(1, ROUND),
            Until::Over(_) => ROUND,
        }
    }
}

impl Summary {
    fn add(&mut self, harness: &DifferentialHarness) {
        for (name, frames) in harness.frames() {
            *self.frames.entry(name).or_default() += frames;
        }
        harness.add_to(&mut self.totals);
    }
}

/// A round of a run.
struct Round<'a> {
    run: &'a Run,
    number: u64,
}

impl Round<'_> {
    fn subject(&self) -> &NamedSubject {
        let subjects = &self.run.subjects;
        &subjects[(self.number % subjects.len() as u64) as usize]
    }

    fn harness(&self) -> anyhow::Result<DifferentialHarness> {
        DifferentialHarness::new(&self.subject().1, self.run.kernel)
    }

    fn generator(&self) -> Generator {
        // Distinct from the seeds of other rounds and runs; the multiplier is that of SplitMix64.
        let seed = self.run.seed ^ (self.number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Generator::of(self.subject().1.traffic(), seed)
    }

    /// Finds the failing frame among the first `sent` frames and minimises it.
    fn investigate(&self, sent: u64, error: &anyhow::Error) -> anyhow::Result<Disagreement> {
        let seed = self.run.seed;
        let mut generator = self.generator();
        let mut frames: Vec<_> = (0..sent).map(|_| generator.frame()).collect();
        let mut harness = self.harness()?;
        let Some(last) =
            frames.iter().position(|frame| fails(&mut harness, std::slice::from_ref(frame)))
        else {
            bail!(
                "{error:#}; sending the same frames again did not reproduce it (FUZZ_SEED={seed})"
            );
        };
        frames.truncate(last + 1);
        let make = || self.harness();
        let frames = minimise(&make, frames)?;
        let mut harness = self.harness()?;
        let difference = frames
            .iter()
            .find_map(|frame| harness.check(frame).and_then(|_| harness.check_counters()).err())
            .map_or_else(|| format!("{error:#}"), |error| format!("{error:#}"));
        let fixture = self.subject().0.to_owned();
        let report =
            format!("{difference}\n(FUZZ_SEED={seed}, round {}, frame {last})", self.number);
        let comment = format!("Found by random frames; state here what they test.\n{difference}");
        Ok(Disagreement { entry: CorpusEntry { comment, fixture, frames }, report })
    }
}
