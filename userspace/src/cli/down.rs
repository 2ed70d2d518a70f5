//! `sluice down`: detaches, removes the maps, and restores the host, also after a crash.

use anyhow::anyhow;

use crate::args::DownArgs;
use crate::cli::output::print;
use crate::daemon::preflight;
use crate::daemon::teardown::{self, Scope};
use crate::error::CliError;
use crate::lock::Lock;
use crate::roles::ROLES;
use crate::runtime;

/// Runs `sluice down`. Fails if a daemon runs. If a change cannot be undone, all others are undone,
/// and a second call tries the failed one again.
pub(super) fn run(args: &DownArgs) -> Result<(), CliError> {
    preflight::check_undoing()?;
    for role in ROLES.map(|spec| spec.role) {
        if let Some(process) = Lock::holder(&args.instance, role) {
            return Err(CliError::operation(anyhow!(
                "`sluice {role}` still runs for the instance {:?} (process {process}); end it \
                 first",
                args.instance
            )));
        }
    }
    let mut found = false;
    let mut outcome = Ok(());
    for role in ROLES.map(|spec| spec.role) {
        match runtime::block_on(teardown::undo(&args.instance, role, None, Scope::Host)) {
            Ok(None) => {}
            Ok(Some(report)) => {
                found = true;
                let done = match report.is_complete() {
                    true => "detached and removed",
                    false => "undone in part",
                };
                let lines = report.to_string();
                let lines = lines.lines().map(|line| format!("  {line}\n"));
                let printed = print(&format!("{role}: {done}\n{}", lines.collect::<String>()));
                outcome = outcome.and(teardown::check(&args.instance, &report)).and(printed);
            }
            Err(error) => {
                found = true;
                // Reports the first error; a second call reports the other.
                outcome = outcome.and(Err(error));
            }
        }
    }
    if !found {
        print(&format!("nothing to do: the instance {:?} is not on this host\n", args.instance))?;
    }
    outcome
}
