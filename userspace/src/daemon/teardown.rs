//! Restores the host, for `sluice down`, `--ephemeral` and a failed start.

use std::path::Path;

use anyhow::anyhow;

use super::lock::Lock;
use crate::error::CliError;
use crate::kernel::bpf::Pins;
use crate::kernel::host::journal::{Journal, STATE_DIRECTORY, UndoReport};
use crate::kernel::netlink::Netlink;
use crate::role::Role;

/// Undoes the changes of a role of an instance whose lock this process holds. Fails unless all
/// changes were undone or left alone.
pub(crate) async fn role(instance: &str, role: Role, lock: Lock) -> Result<(), CliError> {
    match undo(instance, role, Some(lock)).await? {
        Some(report) => check(instance, &report),
        None => Ok(()),
    }
}

/// Fails unless all changes were undone or left alone.
pub(crate) fn check(instance: &str, report: &UndoReport) -> Result<(), CliError> {
    if report.is_complete() {
        return Ok(());
    }
    Err(CliError::operation(anyhow!(
        "not everything could be undone; remove the cause and run `sluice down --instance \
         {instance}` again: {}",
        report.problems().join("; ")
    )))
}

/// Undoes the changes of a role of an instance; `None` if it is not on this host. Programs are
/// detached before the pins are removed, which stay if a change could not be undone.
pub(crate) async fn undo(
    instance: &str,
    role: Role,
    lock: Option<Lock>,
) -> Result<Option<UndoReport>, CliError> {
    let pins = Pins::find(instance, role).map_err(CliError::operation)?;
    let pinned = pins.as_ref().is_some_and(Pins::exist);
    // A crash, also of `sluice down`, can leave any one of these.
    if lock.is_none()
        && !pinned
        && !Lock::state_exists(instance, role)
        && !Lock::exists(instance, role)
    {
        return Ok(None);
    }
    let lock = match lock {
        Some(lock) => lock,
        None => Lock::take(instance, role)?,
    };
    let journal = Journal::open_existing(Path::new(STATE_DIRECTORY), instance, role)
        .map_err(CliError::operation)?;
    let mut report = UndoReport::default();
    if let Some(journal) = journal {
        let netlink = Netlink::connect().map_err(CliError::operation)?;
        report = journal.undo_all(&netlink).await.map_err(CliError::operation)?;
    }
    if !report.failed.is_empty() {
        return Ok(Some(report));
    }
    if let Some(pins) = pins {
        pins.remove().map_err(CliError::operation)?;
    }
    if report.is_complete() {
        lock.remove(instance, role);
    }
    Ok(Some(report))
}
