//! Many frames in many rounds: each round is a fixture, fresh maps and a generator, and can be
//! repeated by its number alone.

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

/// The most frames of an round: enough that loading programs, which takes a second or more, does
/// not matter; few enough that no connection table overflows, for what the kernel then forgets the
/// oracle would not.
const ROUND: u64 = 200_000;
/// Frames between two looks at the counters.
const BATCH: u64 = 1_000;

/// When it is enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// When this many frames were compared on every binding.
    Frames(u64),
    /// When this time is over.
    Over(Duration),
}

/// What to try.
#[derive(Debug, Clone)]
pub struct Run {
    /// The programs and what their maps hold, in turn.
    pub subjects: Vec<NamedSubject>,
    /// Says which frames come.
    pub seed: u64,
    /// When it ends.
    pub until: Until,
    /// Whether the programs in the kernel take part.
    pub kernel: bool,
}

/// What was tried, and that all agreed.
#[derive(Debug, Default)]
pub struct Summary {
    /// Frames that every binding took.
    pub everywhere: u64,
    /// Frames by binding.
    pub frames: BTreeMap<&'static str, u64>,
    /// What became of them.
    pub totals: Totals,
    /// Time that it took.
    pub time: Duration,
}

/// A frame on which not all agree.
#[derive(Debug)]
pub struct Disagreement {
    /// The frames, as few and short as they could be made, and what the difference is.
    pub entry: CorpusEntry,
    /// What to say about it.
    pub report: String,
}

impl Run {
    /// Runs on every CPU, each with programs and maps of its own.
    ///
    /// # Errors
    ///
    /// What the kernel refused. A disagreement is no error here: it is the second half of the
    /// result.
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
                        match harness.judge(&generator.frame()) {
                            Ok(took) => all += u64::from(took),
                            Err(error) => {
                                outcome = Err(error);
                                break;
                            }
                        }
                    }
                    everywhere.fetch_add(all, Ordering::Relaxed);
                    if let Err(error) = outcome.and_then(|()| harness.settle()) {
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

    /// Frames of an round: so many that each fixture gets some even of few.
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

/// One of a run's rounds.
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
        // Apart from those of the neighbouring rounds and seeds (the multiplier is that of
        // SplitMix64's sequence).
        let seed = self.run.seed ^ (self.number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Generator::of(self.subject().1.traffic(), seed)
    }

    /// Finds the frame among the first `sent` ones, and makes it small.
    fn investigate(&self, sent: u64, error: &anyhow::Error) -> anyhow::Result<Disagreement> {
        let seed = self.run.seed;
        let mut generator = self.generator();
        let mut frames: Vec<_> = (0..sent).map(|_| generator.frame()).collect();
        let mut harness = self.harness()?;
        let Some(last) =
            frames.iter().position(|frame| fails(&mut harness, std::slice::from_ref(frame)))
        else {
            bail!(
                "{error:#}; it did not happen again when the same frames were sent again (FUZZ_SEED={seed})"
            );
        };
        frames.truncate(last + 1);
        let make = || self.harness();
        let frames = minimise(&make, frames)?;
        let mut harness = self.harness()?;
        let difference = frames
            .iter()
            .find_map(|frame| harness.judge(frame).and_then(|_| harness.settle()).err())
            .map_or_else(|| format!("{error:#}"), |error| format!("{error:#}"));
        let fixture = self.subject().0.to_owned();
        let report =
            format!("{difference}\n(FUZZ_SEED={seed}, round {}, frame {last})", self.number);
        let comment =
            format!("Disagreement by random frames; say here what it shows.\n{difference}");
        Ok(Disagreement { entry: CorpusEntry { comment, fixture, frames }, report })
    }
}
