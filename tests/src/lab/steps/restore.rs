//! The end: `sluice down` on every host, then the lab itself.

use super::Examination;
use crate::lab::host_state::HostState;
use crate::lab::topology::{HOSTS, INSTANCE, balancers};
use anyhow::{Context, Result};
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::path::PathBuf;

pub(super) fn run(examination: &mut Examination<'_>) -> Result<()> {
    let lab = examination.lab;
    for host in balancers().chain(examination.wanted.listed()) {
        lab.stop_sluice(host, Signal::TERM)?;
        lab.sluice(host, &["down", "--instance", INSTANCE])?;
        let after = HostState::read(&lab.namespaces, host, lab.state.path())?;
        let before = examination
            .before
            .get(host.name)
            .with_context(|| format!("{} was not written down", host.name))?;
        let difference = before.difference(&after);
        examination
            .show
            .check_none(&difference, format!("{} is as it was before its first daemon", host.name));
    }
    Ok(())
}

/// Every network namespace of the lab, as the name of its inode.
fn lab_namespaces(examination: &Examination<'_>) -> BTreeSet<PathBuf> {
    let holders = examination.lab.namespaces.anchors().holders.values();
    let link = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    holders.filter_map(|holder| link(holder.process.pid)).collect()
}

fn links() -> BTreeSet<String> {
    let entries = std::fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// The lab ends; no process is left in any of its namespaces, no link outside, no file.
pub(super) fn removed(examination: &mut Examination<'_>) -> Result<()> {
    let lab = examination.lab;
    let namespaces = lab_namespaces(examination);
    let links_before = links();
    lab.remove()?;
    let mut inhabitants = Vec::new();
    for entry in std::fs::read_dir("/proc").context("cannot list processes")?.flatten() {
        // Also fails for entries that are no process, and for processes that end meanwhile.
        if std::fs::read_link(entry.path().join("ns/net"))
            .is_ok_and(|link| namespaces.contains(&link))
        {
            inhabitants.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    let count = namespaces.len();
    examination.check(
        count == HOSTS.len(),
        format!("each of {count} hosts had a network namespace of its own"),
    );
    examination.show.check_none(&inhabitants, "no process is left in them");
    let new: Vec<_> = links().difference(&links_before).cloned().collect();
    examination.show.check_none(&new, "no link is left on this machine");
    let state = lab.state.path();
    examination.check(!state.exists(), format!("{} is gone", state.display()));
    Ok(())
}
