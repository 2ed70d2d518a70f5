//! Restores the host, for `sluice down`, `--ephemeral` and a failed start.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::anyhow;
use tokio::time::timeout;

use crate::error::CliError;
use crate::kernel::bpf::{Pins, programs_over};
use crate::kernel::host::journal::{Change, Journal, STATE_DIRECTORY, UndoReport};
use crate::kernel::host::search::{self, Found};
use crate::kernel::netlink::Netlink;
use crate::lock::Lock;
use crate::role::Role;
use crate::roles;

/// How often, and at what interval, programs are awaited that the kernel releases after their
/// filters.
const RELEASE: (u32, Duration) = (20, Duration::from_millis(100));

/// The time that a daemon has to restore the host at its end: less than systemd waits
/// (`TimeoutStopSec=`).
const TIME_LIMIT: Duration = Duration::from_secs(60);

/// The changes to undo.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Those in the journal.
    Journal,
    /// Also those that are found on the host without it.
    Host,
}

/// Undoes the changes of a role of an instance whose lock this process holds. Fails unless all
/// changes were undone or left alone.
pub(crate) async fn role(
    instance: &str,
    role: Role,
    lock: Lock,
    scope: Scope,
) -> Result<(), CliError> {
    let undone = timeout(TIME_LIMIT, undo(instance, role, Some(lock), scope)).await;
    let undone = undone.map_err(|_| {
        CliError::operation(anyhow!(
            "this host was not restored within {} s; run `sluice down --instance {instance}`",
            TIME_LIMIT.as_secs()
        ))
    });
    match undone?? {
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
    scope: Scope,
) -> Result<Option<UndoReport>, CliError> {
    let pins = Pins::find(instance, role).map_err(CliError::operation)?;
    let netlink = Netlink::connect().map_err(CliError::operation)?;
    let mut traces = match scope {
        Scope::Journal => Traces::default(),
        Scope::Host => Traces::find(&netlink, instance, role, pins.as_ref()).await?,
    };
    // A crash, also of `sluice down`, can leave any one of these.
    if lock.is_none()
        && !pins.as_ref().is_some_and(Pins::exist)
        && !Lock::state_exists(instance, role)
        && !Lock::exists(instance, role)
        && !traces.exist()
    {
        return Ok(None);
    }
    let lock = match lock {
        Some(lock) => lock,
        None => Lock::take(instance, role)?,
    };
    let base = Path::new(STATE_DIRECTORY);
    let journal = Journal::open_existing(base, instance, role).map_err(CliError::operation)?;
    let is_lost = journal.is_none() && scope == Scope::Host;
    let journal = match journal {
        // Changes that are found are undone like recorded ones, also after a crash of this process.
        None if is_lost => Some(Journal::open(base, instance, role).map_err(CliError::operation)?),
        journal => journal,
    };
    let mut report = UndoReport::default();
    if let Some(mut journal) = journal {
        let mut found = match is_lost && role == Role::Backend {
            true => traces.search(&netlink, pins.as_ref()).await?,
            false => Found::default(),
        };
        found.changes.extend(traces.filters.iter().cloned());
        let interfaces = search::interfaces_of_unlisted(&journal, &traces.filters);
        journal.record_all(found.changes).map_err(CliError::operation)?;
        report = journal.undo_all(&netlink).await.map_err(CliError::operation)?;
        report.left.extend(found.left);
        report.unknown = found.unknown;
        let qdiscs = search::unused_qdiscs(&netlink, &interfaces).await;
        report.unknown.extend(qdiscs.map_err(CliError::operation)?);
    }
    if is_lost && let Some(pins) = &pins {
        report.not_undone.extend(still_used(pins).await);
    }
    if !report.failed.is_empty() || (is_lost && !report.is_complete()) {
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

/// What a role has left on this host, by name.
#[derive(Default)]
struct Traces {
    /// The filters of the instance.
    filters: Vec<Change>,
    /// Tunnel devices that no journal lists, of a backend.
    tunnels: Vec<Change>,
    /// The other instances with filters or pins.
    others: BTreeSet<String>,
}

impl Traces {
    async fn find(
        netlink: &Netlink,
        instance: &str,
        role: Role,
        pins: Option<&Pins>,
    ) -> Result<Self, CliError> {
        let spec = roles::spec(role);
        let all = search::filters(netlink, |name| spec.instance_of(name).is_some()).await;
        let mut traces = Self::default();
        for change in all.map_err(CliError::operation)? {
            let Change::Filter { name, .. } = &change else { continue };
            match spec.instance_of(name) {
                Some(found) if found == instance => traces.filters.push(change),
                found => traces.others.extend(found.map(str::to_owned)),
            }
        }
        traces.others.extend(pins.map(Pins::other_instances).into_iter().flatten());
        if role == Role::Backend {
            let tunnels = search::unlisted_tunnels(netlink).await;
            traces.tunnels = tunnels.map_err(CliError::operation)?;
        }
        Ok(traces)
    }

    /// Whether there are traces of this instance. Devices are not named after an instance.
    fn exist(&self) -> bool {
        !self.filters.is_empty() || (!self.tunnels.is_empty() && self.others.is_empty())
    }

    /// Finds what else a backend has changed, if it has traces or pins.
    async fn search(&mut self, netlink: &Netlink, pins: Option<&Pins>) -> Result<Found, CliError> {
        if !self.exist() && !pins.is_some_and(Pins::exist) {
            return Ok(Found::default());
        }
        let tunnels = std::mem::take(&mut self.tunnels);
        let found = search::backend(netlink, pins, &self.filters, tunnels, &self.others).await;
        found.map_err(CliError::operation)
    }
}

/// Describes programs that use the maps although no filter in this network namespace does.
async fn still_used(pins: &Pins) -> Option<String> {
    let mut programs = programs_over(pins);
    for _ in 0..RELEASE.0 {
        if programs.is_empty() {
            return None;
        }
        tokio::time::sleep(RELEASE.1).await;
        programs = programs_over(pins);
    }
    let ids: Vec<_> = programs.iter().map(u32::to_string).collect();
    Some(format!(
        "programs that use the maps are still loaded (program IDs {}): they may be attached in \
         another network namespace; run `sluice down` there, by `nsenter --net=/run/netns/NAME` or \
         `nsenter --target PID --net`",
        ids.join(", ")
    ))
}
