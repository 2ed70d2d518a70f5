//! `sluice down` on every host, then the removal of the lab.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use rustix::process::Signal;

use crate::lab::config::INSTANCE;
use crate::lab::host_state::HostState;
use crate::lab::reporter::Statement;
use crate::lab::run::LabRun;

/// `sluice down` restores the state that each host had before its first daemon.
pub(super) fn down(run: &mut LabRun<'_>) -> Result<()> {
    let lab = run.lab;
    let mut statements = Vec::new();
    let mut differences = Vec::new();
    for host in run.balancers().iter().chain(run.members()) {
        let name = &host.name;
        lab.stop_sluice(host, Signal::TERM)?;
        lab.sluice(host, &["down", "--instance", INSTANCE])?;
        let after = HostState::read(&lab.namespaces, host, lab.state.path())?;
        let before = run
            .initial_states
            .get(name)
            .with_context(|| format!("the initial state of {name} was not stored"))?;
        let difference = before.difference(&after);
        statements.push(Statement::equal(
            format!("{name}: differences from the state before its first daemon"),
            difference.len(),
            0,
        ));
        differences.extend(difference.into_iter().map(|line| format!("{name}: {line}")));
    }
    let summary = "each host's addresses, routes, qdiscs, filters, sysctls and pins are as before";
    run.reporter.check_group(summary, statements);
    run.reporter.details(&differences);
    Ok(())
}

/// The lab ends without a process in its namespaces, a link outside, or a file.
pub(super) fn remove(run: &mut LabRun<'_>) -> Result<()> {
    let lab = run.lab;
    let namespaces = network_namespaces(run);
    let links_before = links();
    lab.remove()?;
    let mut processes = Vec::new();
    for entry in std::fs::read_dir("/proc").context("cannot list processes")?.flatten() {
        // Fails for entries that are not processes, and for processes that have just ended.
        if std::fs::read_link(entry.path().join("ns/net"))
            .is_ok_and(|link| namespaces.contains(&link))
        {
            processes.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    run.check(Statement::equal(
        "network namespaces, one for each host",
        namespaces.len(),
        lab.topology.hosts().count(),
    ));
    run.reporter.check_none(&processes, "no process is left in these namespaces");
    let new: Vec<_> = links().difference(&links_before).cloned().collect();
    run.reporter.check_none(&new, "no new link is left on this machine");
    let state = lab.state.path();
    run.check(Statement::new(!state.exists(), format!("{} is removed", state.display())));
    Ok(())
}

/// The lab's network namespaces, by the link that contains the inode.
fn network_namespaces(run: &LabRun<'_>) -> BTreeSet<PathBuf> {
    let holders = run.lab.namespaces.processes().holders.values();
    let link = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    holders.filter_map(|holder| link(holder.process.pid)).collect()
}

fn links() -> BTreeSet<String> {
    let entries = std::fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}
