//! The lab's scenarios as tests, one test for each. The first test runs the lab once for all.
//!
//! `LAB_SCALE` selects the scale (default: `small`), `SLUICE` the binary under test.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::OnceLock;

use libtest_mimic::{Arguments, Failed, Trial};
use sluice_tests::lab::instance::LabBinaries;
use sluice_tests::lab::reporter::{CheckResult, Reporter};
use sluice_tests::lab::scale::Scale;
use sluice_tests::lab::scenarios::{SCENARIOS, run_all};
use sluice_tests::lab::state::DEFAULT_STATE;

struct LabResults {
    checks: Vec<CheckResult>,
    transcript: String,
}

fn results() -> &'static Result<LabResults, String> {
    static RESULTS: OnceLock<Result<LabResults, String>> = OnceLock::new();
    RESULTS.get_or_init(|| {
        let scale = match std::env::var_os("LAB_SCALE") {
            None => Ok(Scale::SMALL),
            Some(_) => Scale::from_environment(),
        };
        let binaries = LabBinaries::find(PathBuf::from(env!("CARGO_BIN_EXE_sluice-lab")));
        let (scale, binaries) =
            scale.and_then(|scale| Ok((scale, binaries?))).map_err(|error| format!("{error:#}"))?;
        let mut reporter = Reporter::silent();
        if !run_all(Path::new(DEFAULT_STATE), scale, binaries, &mut reporter) {
            reporter.summary();
            eprintln!("{}", reporter.transcript());
        }
        Ok(LabResults { checks: reporter.results().to_vec(), transcript: reporter.transcript() })
    })
}

fn scenario_result(title: &str) -> Result<(), Failed> {
    let results = results().as_ref()?;
    let mut own = results.checks.iter().filter(|check| check.scenario == title).peekable();
    if own.peek().is_none() {
        let first = results.checks.iter().find(|check| !check.statement.holds);
        let reason = first.map_or_else(
            || results.transcript.clone(),
            |check| format!("{}: {}", check.scenario, check.statement.text),
        );
        return Err(format!("not run, because an earlier check failed: {reason}").into());
    }
    let failed: Vec<_> = own
        .filter(|check| !check.statement.holds)
        .map(|check| check.statement.text.as_str())
        .collect();
    if failed.is_empty() { Ok(()) } else { Err(failed.join("\n").into()) }
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let root = nix::unistd::geteuid().is_root();
    let trials = SCENARIOS.iter().map(|scenario| {
        let trial = Trial::test(scenario.name, move || scenario_result(scenario.title));
        // The kind is printed with the name and gives the reason for the skipped test.
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
