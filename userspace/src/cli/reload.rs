//! `sluice reload`: makes the daemons of an instance read their configuration again, and waits for
//! the result.

use std::io;
use std::time::Duration;

use anyhow::anyhow;

use crate::args::ReloadArgs;
use crate::cli::output::{print, report};
use crate::error::CliError;
use crate::lock::Lock;
use crate::role::Role;
use crate::roles::ROLES;
use crate::serve::protocol::{ReloadOutcome, Request, Response};
use crate::serve::{client, socket_path};

/// Runs `sluice reload`. Fails if a daemon refuses the configuration or applies it in part, or if
/// no daemon runs.
pub(super) fn run(args: &ReloadArgs) -> Result<(), CliError> {
    let timeout = Duration::from_secs(args.timeout);
    let mut found = false;
    let mut result = Ok(());
    let wanted = |role: &Role| args.role.is_none_or(|wanted| wanted == *role);
    for role in ROLES.map(|spec| spec.role).into_iter().filter(wanted) {
        let response = match client::call(&args.instance, role, Request::Reload, timeout) {
            Ok(Some(response)) => Ok(response),
            Ok(None) => match Lock::holder(&args.instance, role) {
                Some(process) => Err(CliError::Operation(anyhow!(
                    "`sluice {role}` runs (process {process}) without its control socket {}: it has \
                     just started, is of an older version, or the file was removed; `kill -HUP \
                     {process}` starts a reload",
                    socket_path(&args.instance, role).display()
                ))),
                None => continue,
            },
            // The same for all roles.
            Err(error) if is_denied(&error) => return Err(CliError::Operation(error)),
            Err(error) => Err(CliError::Operation(error)),
        };
        found = true;
        let outcome = match response {
            Ok(Response::Reload(ReloadOutcome::Applied)) => {
                print(&format!("{role}: the configuration is in force\n"))?;
                Ok(())
            }
            Ok(Response::Reload(ReloadOutcome::Refused(error))) => Err(CliError::BadInput(
                anyhow!("{role}: reload refused, nothing was changed: {error}"),
            )),
            Ok(Response::Reload(ReloadOutcome::Incomplete(error))) => {
                Err(CliError::Operation(anyhow!(
                    "{role}: the configuration was applied in part; the daemon tries again: {error}"
                )))
            }
            Ok(Response::Reload(ReloadOutcome::Stale(error))) => Err(CliError::Operation(anyhow!(
                "{role}: the configuration is in force, except for source ACLs, whose earlier \
                 versions stay; mend the files and reload again: {error}"
            ))),
            Ok(other) => Err(CliError::Operation(anyhow!("{role}: {}", other.unexpected()))),
            Err(error) => Err(error),
        };
        if let Err(error) = outcome {
            // The last error is returned; an earlier one is printed now.
            if let Err(earlier) = std::mem::replace(&mut result, Err(error)) {
                report(&format!("sluice: error: {earlier}"));
            }
        }
    }
    if !found {
        return Err(CliError::Operation(anyhow!(
            "no daemon of the instance {:?} runs on this host; start {}, or name another instance \
             with --instance",
            args.instance,
            match args.role {
                Some(role) => format!("`sluice {role}`"),
                None => "`sluice lb` or `sluice backend`".to_owned(),
            }
        )));
    }
    result
}

/// Whether this user cannot reach daemons.
fn is_denied(error: &anyhow::Error) -> bool {
    let cause = error.downcast_ref::<io::Error>();
    cause.is_some_and(|cause| cause.kind() == io::ErrorKind::PermissionDenied)
}
