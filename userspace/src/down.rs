//! `sluice down`: detaches, forgets, and restores the host, whatever state the daemon left it in.

use std::path::Path;

use anyhow::anyhow;

use crate::bpf::Pins;
use crate::cli::{Down, print};
use crate::daemon::{self, Lock, STATE};
use crate::failure::Failure;
use crate::journal::{Journal, Role, UndoReport};
use crate::netlink::Netlink;
use crate::preflight;

/// Runs `sluice down`.
///
/// # Errors
///
/// [`Failure::Operation`] when a daemon still runs, or when something could not be undone: the rest
/// is undone all the same.
pub fn run(args: &Down) -> Result<(), Failure> {
    preflight::check_undoing()?;
    for role in [Role::Lb, Role::Backend] {
        if let Some(process) = Lock::holder(&args.instance, role) {
            return Err(Failure::operation(anyhow!(
                "`sluice {role}` still runs for the instance {:?} (process {process}); end it first",
                args.instance
            )));
        }
    }
    let mut found = false;
    let mut outcome = Ok(());
    for role in [Role::Lb, Role::Backend] {
        match daemon::block_on(self::role(&args.instance, role, None)) {
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

/// Restores what one role of an instance changed; `None` when it is not on this host. Detaches
/// first, then removes the pins: no packet meets a program without its maps.
///
/// # Errors
///
/// [`Failure::Operation`].
pub(crate) async fn role(
    instance: &str,
    role: Role,
    lock: Option<Lock>,
) -> Result<Option<UndoReport>, Failure> {
    let pins = daemon::mounted_pins(instance, role)?;
    let pinned = pins.as_ref().is_some_and(Pins::exist);
    // A crash can leave any of these alone, also within `down` itself: each is reason enough to go
    // through all of it.
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
    let journal =
        Journal::open_existing(Path::new(STATE), instance, role).map_err(Failure::operation)?;
    let mut report = UndoReport::default();
    if let Some(journal) = journal {
        let netlink = Netlink::connect().map_err(Failure::operation)?;
        report = journal.undo_all(&netlink).await.map_err(Failure::operation)?;
    }
    if !report.failed.is_empty() {
        return Err(Failure::operation(anyhow!(
            "not everything could be undone; once the cause is gone, `sluice down --instance {instance}` goes on: {}",
            report.to_string().replace('\n', "; ")
        )));
    }
    if let Some(pins) = pins {
        pins.remove().map_err(Failure::operation)?;
    }
    lock.remove(instance, role);
    Ok(Some(report))
}
