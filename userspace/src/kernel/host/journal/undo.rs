//! Undoing what a journal lists, last change first.

use std::fmt;

use super::{Change, Journal, JournalError};
use crate::kernel::bpf::remove_pinned_link;
use crate::kernel::host::sysctl::{Sysctl, SysctlError};
use crate::kernel::netlink::{
    AddressRemoved, Clsact, Detached, Direction, FilterSpec, Netlink, TunnelError,
};

/// What became of the changes in a journal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UndoReport {
    /// Undone.
    pub undone: Vec<Change>,
    /// Left alone, each with the reason: it was not made after all, or it is somebody else's by
    /// now.
    pub left: Vec<(Change, String)>,
    /// Not undone, each with the error. These stay in the journal.
    pub failed: Vec<(Change, String)>,
}

impl fmt::Display for UndoReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let undone = self.undone.iter().map(|change| format!("undone: {change}"));
        let left = self.left.iter().map(|(change, why)| format!("left alone: {change}: {why}"));
        let failed = self.failed.iter().map(|(change, why)| format!("failed: {change}: {why}"));
        let lines: Vec<_> = undone.chain(left).chain(failed).collect();
        f.write_str(&lines.join("\n"))
    }
}

/// What became of one change.
enum Outcome {
    Undone,
    Left(String),
}

impl Outcome {
    fn left(why: impl Into<String>) -> Result<Self, String> {
        Ok(Self::Left(why.into()))
    }
}

impl Journal {
    /// Undoes everything that is written down, last change first, and removes the journal when
    /// nothing is left in it.
    ///
    /// What somebody else has changed since is left alone. What fails stays in the journal, and the
    /// rest is undone all the same, so this can be called again.
    ///
    /// # Errors
    /// [`JournalError`] when the journal itself cannot be written.
    pub async fn undo_all(mut self, netlink: &Netlink) -> Result<UndoReport, JournalError> {
        let mut report = UndoReport::default();
        for change in self.changes.clone().into_iter().rev() {
            match undo(&change, netlink).await {
                Err(why) => report.failed.push((change, why)),
                Ok(outcome) => {
                    self.forget(&change)?;
                    match outcome {
                        Outcome::Undone => report.undone.push(change),
                        Outcome::Left(why) => report.left.push((change, why)),
                    }
                }
            }
        }
        if report.failed.is_empty() {
            self.remove()?;
        }
        Ok(report)
    }
}

async fn undo(change: &Change, netlink: &Netlink) -> Result<Outcome, String> {
    if let Change::Clsact { index, .. }
    | Change::Filter { index, .. }
    | Change::Address { index, .. } = change
        && netlink.interface_at(*index).await.map_err(text)?.is_none()
    {
        return Outcome::left("its interface is gone, and it with it");
    }
    match change {
        Change::Clsact { index, .. } => undo_clsact(netlink, *index).await,
        Change::Filter { index, direction, name, priority, .. } => {
            let spec = FilterSpec { name: name.clone(), priority: *priority };
            match netlink.remove_filter(*index, *direction, &spec).await.map_err(text)? {
                Detached::Removed => Ok(Outcome::Undone),
                Detached::Absent => Outcome::left("it is not there"),
            }
        }
        Change::XdpLink { pin, .. } | Change::CgroupLink { pin, .. } => {
            match remove_pinned_link(pin).map_err(text)? {
                true => Ok(Outcome::Undone),
                false => Outcome::left("it is not there"),
            }
        }
        Change::Address { index, address, prefix_len, .. } => {
            match netlink.remove_address(*index, *address, *prefix_len).await.map_err(text)? {
                AddressRemoved::Removed => Ok(Outcome::Undone),
                AddressRemoved::Absent => Outcome::left("it is not there"),
            }
        }
        Change::LocalRoute { prefix } => {
            match netlink.remove_local_route(*prefix).await.map_err(text)? {
                AddressRemoved::Removed => Ok(Outcome::Undone),
                AddressRemoved::Absent => Outcome::left("it is not there"),
            }
        }
        Change::Link { name, kind, local } => match netlink.tunnel(name, *kind, *local).await {
            Ok(None) => Outcome::left("it is not there"),
            Ok(Some(_)) => netlink.remove_link(name).await.map(|()| Outcome::Undone).map_err(text),
            Err(mismatch @ TunnelError::Mismatch { .. }) => Outcome::left(mismatch.to_string()),
            Err(error) => Err(text(error)),
        },
        Change::Sysctl { key, old, new } => undo_sysctl(key, old, new).map_err(text),
    }
}

fn text(error: impl fmt::Display) -> String {
    error.to_string()
}

/// Removing the qdisc removes every filter on it, so it stays as long as there is one.
async fn undo_clsact(netlink: &Netlink, index: u32) -> Result<Outcome, String> {
    match netlink.clsact(index).await.map_err(text)? {
        None => return Outcome::left("it is not there"),
        Some(Clsact::IngressOnly) => {
            return Outcome::left("somebody put an ingress qdisc in its place");
        }
        Some(_) => {}
    }
    let mut others = Vec::new();
    for direction in [Direction::Ingress, Direction::Egress] {
        let filters = netlink.filters(index, direction).await.map_err(text)?;
        others.extend(filters.iter().map(|filter| format!("{direction} {filter}")));
    }
    if !others.is_empty() {
        return Outcome::left(format!("others use it: {}", others.join(", ")));
    }
    netlink.remove_clsact(index).await.map(|()| Outcome::Undone).map_err(text)
}

fn undo_sysctl(key: &Sysctl, old: &str, new: &str) -> Result<Outcome, SysctlError> {
    match key.read() {
        Err(SysctlError::Missing(_)) => Ok(Outcome::Left("it does not exist any more".into())),
        Err(error) => Err(error),
        Ok(current) if current == old => Ok(Outcome::Left(format!("it is {old} already"))),
        Ok(current) if current != new => {
            Ok(Outcome::Left(format!("somebody has set it to {current} since")))
        }
        Ok(_) => key.write(old).map(|()| Outcome::Undone),
    }
}
