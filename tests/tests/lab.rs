//! The lab's assertions as tests: one test for each step. The lab comes up once, for whichever test
//! needs it first.
//!
//! `LAB_SCALE` chooses the size (`small` when unset), `SLUICE` the binary under test.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::OnceLock;

use libtest_mimic::{Arguments, Failed, Trial};
use sluice_tests::lab::lab::{Programs, Scale};
use sluice_tests::lab::show::{Check, Show};
use sluice_tests::lab::state::STATE;
use sluice_tests::lab::steps::{STEPS, examine};

struct Report {
    checks: Vec<Check>,
    transcript: String,
}

fn report() -> &'static Result<Report, String> {
    static REPORT: OnceLock<Result<Report, String>> = OnceLock::new();
    REPORT.get_or_init(|| {
        let scale = match std::env::var_os("LAB_SCALE") {
            None => Ok(Scale::SMALL),
            Some(_) => Scale::from_environment(),
        };
        let programs = Programs::find(PathBuf::from(env!("CARGO_BIN_EXE_sluice-lab")));
        let (scale, programs) =
            scale.and_then(|scale| Ok((scale, programs?))).map_err(|error| format!("{error:#}"))?;
        let mut show = Show::silent();
        if !examine(Path::new(STATE), scale, programs, &mut show) {
            show.verdict();
            eprintln!("{}", show.transcript());
        }
        Ok(Report { checks: show.checks().to_vec(), transcript: show.transcript() })
    })
}

fn judge(title: &str) -> Result<(), Failed> {
    let report = report().as_ref()?;
    let mut own = report.checks.iter().filter(|check| check.step == title).peekable();
    if own.peek().is_none() {
        let first = report.checks.iter().find(|check| !check.held);
        let why = first.map_or_else(
            || report.transcript.clone(),
            |check| format!("{}: {}", check.step, check.what),
        );
        return Err(format!("not reached, because before it this failed: {why}").into());
    }
    let failed: Vec<_> = own.filter(|check| !check.held).map(|check| check.what.as_str()).collect();
    if failed.is_empty() { Ok(()) } else { Err(failed.join("\n").into()) }
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let root = nix::unistd::geteuid().is_root();
    let trials = STEPS.iter().map(|step| {
        let trial = Trial::test(step.name, move || judge(step.title));
        // The kind is printed beside the name: it says why the test does not run.
        if root {
            trial
        } else {
            trial
                .with_kind("needs root: CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF")
                .with_ignored_flag(true)
        }
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}
