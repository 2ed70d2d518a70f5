//! `sluice down`: detaches, forgets, and restores the host, whatever state the daemon left it in.

use anyhow::anyhow;

use crate::args::DownArgs;
use crate::cli::output::print;
use crate::daemon::lock::Lock;
use crate::daemon::roles::ROLES;
use crate::daemon::{preflight, runtime, teardown};
use crate::error::CliError;

/// Runs `sluice down`.
///
/// # Errors
///
/// [`CliError::Operation`] when a daemon still runs, or when something could not be undone: the rest
/// is undone all the same.
pub(super) fn run(args: &DownArgs) -> Result<(), CliError> {
    preflight::check_undoing()?;
    for role in ROLES.map(|spec| spec.role) {
        if let Some(process) = Lock::holder(&args.instance, role) {
            return Err(CliError::operation(anyhow!(
                "`sluice {role}` still runs for the instance {:?} (process {process}); end it first",
                args.instance
            )));
        }
    }
    let mut found = false;
    let mut outcome = Ok(());
    for role in ROLES.map(|spec| spec.role) {
        match runtime::block_on(teardown::role(&args.instance, role, None)) {
            Ok(None) => {}
            Ok(Some(report)) => {
                found = true;
                print(&format!("{role}: detached and forgotten\n"))?;
                for line in report.to_string().lines() {
                    print(&format!("  {line}\n"))?;
                }
            }
            Err(failure) => {
                found = true;
                // One failure is told; calling it again tells the other.
                outcome = outcome.and(Err(failure));
            }
        }
    }
    if !found {
        print(&format!("nothing to do: the instance {:?} is not on this host\n", args.instance))?;
    }
    outcome
}
