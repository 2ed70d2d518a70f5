//! Undoes the changes in a journal, last change first and qdiscs at the end.

use std::fmt;

use super::{Change, Journal, JournalError};
use crate::kernel::bpf::remove_pinned_link;
use crate::kernel::host::sysctl::{Sysctl, SysctlError};
use crate::kernel::netlink::{
    AddressRemoved, Clsact, Detached, Direction, FilterSpec, Netlink, TunnelError,
};

/// The outcome of undoing a journal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UndoReport {
    /// Changes that were undone.
    pub undone: Vec<Change>,
    /// Changes that were gone already: not made, or undone by another program.
    pub gone: Vec<Change>,
    /// Changes left alone, each with the reason: another program has replaced it, or needs it.
    pub left: Vec<(Change, String)>,
    /// Changes that could not be undone, each with the error. They stay in the journal.
    pub failed: Vec<(Change, String)>,
    /// Other state that was not undone, with the reason, such as lines of the journal that cannot
    /// be used. They stay in the journal.
    pub not_undone: Vec<String>,
    /// Changes that only the journal could show, if there are any.
    pub unknown: Vec<String>,
}

impl UndoReport {
    /// Whether all changes were undone or left alone.
    pub fn is_complete(&self) -> bool {
        self.failed.is_empty() && self.not_undone.is_empty()
    }

    /// The failures, a line each.
    pub fn problems(&self) -> Vec<String> {
        let failed = self.failed.iter().map(|(change, why)| format!("failed: {change}: {why}"));
        failed.chain(self.not_undone.iter().map(|why| format!("not undone: {why}"))).collect()
    }
}

impl fmt::Display for UndoReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let undone = self.undone.iter().map(|change| match change {
            Change::Sysctl { key, old, .. } => format!("undone: {key} set back to {old}"),
            _ => format!("undone: {change}"),
        });
        let gone = self.gone.iter().map(|change| format!("already gone: {change}"));
        let left = self.left.iter().map(|(change, why)| format!("left alone: {change}: {why}"));
        let unknown = self.unknown.iter().map(|what| format!("not known: {what}"));
        let lines: Vec<_> =
            undone.chain(gone).chain(left).chain(unknown).chain(self.problems()).collect();
        f.write_str(&lines.join("\n"))
    }
}

/// The outcome of undoing one change.
enum UndoOutcome {
    Undone,
    Gone,
    Left(String),
}

impl UndoOutcome {
    fn left(why: impl Into<String>) -> Result<Self, String> {
        Ok(Self::Left(why.into()))
    }
}

impl Journal {
    /// Undoes all recorded changes, last change first and qdiscs at the end, and removes the
    /// journal once it is empty.
    ///
    /// A change that another program has replaced, or that another journal lists, is left alone. A
    /// change that fails and a line that cannot be used stay in the journal, the others are undone,
    /// and this can be called again.
    ///
    /// # Errors
    /// [`JournalError`] if the journal itself cannot be written.
    pub async fn undo_all(mut self, netlink: &Netlink) -> Result<UndoReport, JournalError> {
        /// Addresses and routes that are forgotten with one write. Undoing them again after a crash
        /// has no effect.
        const BATCH: usize = 256;

        let others = self.others();
        let not_undone = self.problems.iter().map(ToString::to_string).collect();
        let mut report = UndoReport { not_undone, ..UndoReport::default() };
        let mut undone = Vec::new();
        // A qdisc that was removed by another program and added again is listed after its filters.
        let is_qdisc = |change: &Change| matches!(change, Change::Clsact { .. });
        let reversed = self.changes.iter().rev().cloned();
        let (qdiscs, rest): (Vec<_>, Vec<_>) = reversed.partition(is_qdisc);
        for change in rest.into_iter().chain(qdiscs) {
            let outcome = match others.holder(&change) {
                Some(holder) => UndoOutcome::left(format!("the instance {holder} uses it, too")),
                None => undo(&change, netlink).await,
            };
            match outcome {
                Err(why) => report.failed.push((change, why)),
                Ok(outcome) => {
                    undone.push(change.clone());
                    let is_repeatable =
                        matches!(change, Change::Address { .. } | Change::LocalRoute { .. });
                    if !is_repeatable || undone.len() >= BATCH {
                        self.forget_all(&std::mem::take(&mut undone))?;
                    }
                    match outcome {
                        UndoOutcome::Undone => report.undone.push(change),
                        UndoOutcome::Gone => report.gone.push(change),
                        UndoOutcome::Left(why) => report.left.push((change, why)),
                    }
                }
            }
        }
        self.forget_all(&undone)?;
        if report.is_complete() {
            self.remove()?;
        }
        Ok(report)
    }
}

async fn undo(change: &Change, netlink: &Netlink) -> Result<UndoOutcome, String> {
    if let Change::Clsact { index, .. }
    | Change::Filter { index, .. }
    | Change::Address { index, .. } = change
        && netlink.interface_at(*index).await.map_err(text)?.is_none()
    {
        return Ok(UndoOutcome::Gone);
    }
    match change {
        Change::Clsact { index, .. } => undo_clsact(netlink, *index).await,
        Change::Filter { index, direction, name, priority, .. } => {
            let spec = FilterSpec { name: name.clone(), priority: *priority };
            match netlink.remove_filter(*index, *direction, &spec).await.map_err(text)? {
                Detached::Removed => Ok(UndoOutcome::Undone),
                Detached::Absent => Ok(UndoOutcome::Gone),
            }
        }
        Change::XdpLink { pin, .. } | Change::CgroupLink { pin, .. } => {
            match remove_pinned_link(pin).map_err(text)? {
                true => Ok(UndoOutcome::Undone),
                false => Ok(UndoOutcome::Gone),
            }
        }
        Change::Address { index, address, prefix_len, .. } => {
            match netlink.remove_address(*index, *address, *prefix_len).await.map_err(text)? {
                AddressRemoved::Removed => Ok(UndoOutcome::Undone),
                AddressRemoved::Absent => Ok(UndoOutcome::Gone),
            }
        }
        Change::LocalRoute { prefix } => {
            match netlink.remove_local_route(*prefix).await.map_err(text)? {
                AddressRemoved::Removed => Ok(UndoOutcome::Undone),
                AddressRemoved::Absent => Ok(UndoOutcome::Gone),
            }
        }
        Change::Link { name, kind, local } => match netlink.tunnel(name, *kind, *local).await {
            Ok(None) => Ok(UndoOutcome::Gone),
            Ok(Some(_)) => {
                netlink.remove_link(name).await.map(|()| UndoOutcome::Undone).map_err(text)
            }
            Err(mismatch @ TunnelError::Mismatch { .. }) => UndoOutcome::left(mismatch.to_string()),
            Err(error) => Err(text(error)),
        },
        Change::Sysctl { key, old, new } => undo_sysctl(key, old, new).map_err(text),
    }
}

fn text(error: impl fmt::Display) -> String {
    error.to_string()
}

/// Removing the qdisc removes every filter on it, so it stays while it has filters.
async fn undo_clsact(netlink: &Netlink, index: u32) -> Result<UndoOutcome, String> {
    match netlink.clsact(index).await.map_err(text)? {
        None => return Ok(UndoOutcome::Gone),
        Some(Clsact::IngressOnly) => {
            return UndoOutcome::left("an ingress qdisc has replaced it");
        }
        Some(_) => {}
    }
    let mut others = Vec::new();
    for direction in [Direction::Ingress, Direction::Egress] {
        let filters = netlink.filters(index, direction).await.map_err(text)?;
        others.extend(filters.iter().map(|filter| format!("{direction} {filter}")));
    }
    if !others.is_empty() {
        return UndoOutcome::left(format!("it has other filters: {}", others.join(", ")));
    }
    netlink.remove_clsact(index).await.map(|()| UndoOutcome::Undone).map_err(text)
}

fn undo_sysctl(key: &Sysctl, old: &str, new: &str) -> Result<UndoOutcome, SysctlError> {
    match key.read() {
        Err(SysctlError::Missing(_)) => Ok(UndoOutcome::Gone),
        Err(error) => Err(error),
        Ok(current) if current == old => Ok(UndoOutcome::Left(format!("it is {old} already"))),
        Ok(current) if current != new => {
            Ok(UndoOutcome::Left(format!("it has been set to {current} since")))
        }
        Ok(_) => key.write(old).map(|()| UndoOutcome::Undone),
    }
}
