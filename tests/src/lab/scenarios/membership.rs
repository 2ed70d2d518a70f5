//! A backend is added and another is drained while connections are open. No connection may break.

use anyhow::{Context as _, Result};

use super::requests::{check_distribution, send};
use crate::lab::client::RequestKind;
use crate::lab::config::{ADDED, DRAINED, ECHO, WEB, added_is_v4_only};
use crate::lab::connections::{Connections, ConnectionsSnapshot};
use crate::lab::reporter::Statement;
use crate::lab::run::LabRun;

/// Checks that no connection is broken and that each has exchanged data since the earlier snapshot.
pub(super) fn check_connections(
    run: &mut LabRun<'_>,
    when: &str,
    earlier: &ConnectionsSnapshot,
) -> Result<ConnectionsSnapshot> {
    let now = run.connections()?.wait_exchanges(run.lab.scale.timeout)?;
    let all = now.exchanges.len();
    let broken = now.broken.len();
    let idle = now.idle_since(earlier);
    let exchanged = now.total() - earlier.total();
    run.check(Statement::measured(
        broken == 0 && idle == 0,
        format!("{when}: broken connections, of {all} that exchanged {exchanged} messages"),
        broken,
        0,
    ));
    if broken > earlier.broken.len() {
        run.reporter.details(&now.broken);
    }
    Ok(now)
}

pub(super) fn run(run: &mut LabRun<'_>) -> Result<()> {
    let lab = run.lab;
    run.connections = Some(Connections::open(
        &lab.namespaces,
        lab.topology.clients(),
        lab.scale.connections,
        lab.scale.exchange_interval,
        lab.scale.timeout,
    )?);
    let start = run.connections()?.snapshot();
    let by_backend: Vec<_> =
        start.by_backend.iter().map(|(name, count)| format!("{name} {count}")).collect();
    run.check(Statement::new(
        start.broken.is_empty() && start.by_backend.contains_key(DRAINED),
        format!(
            "{} connections are open, each with a message every {} ms: {}",
            start.exchanges.len(),
            lab.scale.exchange_interval.as_millis(),
            by_backend.join(", ")
        ),
    ));

    run.reporter.info(format!("{ADDED} is added: new configuration, SIGHUP to every daemon"));
    run.config.added = true;
    lab.configure(run.config)?;
    lab.start_sluice(lab.topology.host(ADDED)?)?;
    run.reload_all()?;
    run.wait_for_status(&format!("{ADDED} has slots in each service"), |status| {
        let has_slots =
            |name: &&str| status.service(name).is_some_and(|service| service.slots_of(ADDED) > 0);
        [WEB, ECHO].iter().all(has_slots)
    })?;
    let added = check_connections(run, &format!("after {ADDED} was added"), &start)?;

    run.reporter.info(format!("{DRAINED} is drained: new configuration, SIGHUP to every daemon"));
    run.config.drained = true;
    run.reload_all()?;
    run.wait_for_status(&format!("{DRAINED} is draining"), |status| {
        let mut services = status.services.iter();
        status.is_draining(DRAINED) && services.all(|service| service.slots_of(DRAINED) == 0)
    })?;
    let drained = check_connections(run, &format!("after {DRAINED} was drained"), &added)?;
    run.check(Statement::equal(
        format!("connections to {DRAINED}, which keeps those that it had"),
        drained.by_backend.get(DRAINED).copied().unwrap_or(0),
        start.by_backend.get(DRAINED).copied().unwrap_or(0),
    ));
    run.check(Statement::new(
        drained.by_backend == start.by_backend,
        "every other connection also has the same backend as before",
    ));
    check_new_connections(run)?;
    let end = check_connections(run, "after these requests", &drained)?;
    let longest = end.exchanges.iter().max().context("no connections are open")?;
    run.reporter
        .info(format!("{} messages so far, up to {longest} on one connection", end.total()));
    Ok(())
}

/// New connections follow the changed weights.
fn check_new_connections(run: &mut LabRun<'_>) -> Result<()> {
    let lab = run.lab;
    let [v4, v6] = send(lab, RequestKind::Http, lab.scale.requests / 4)?;
    let columns = [("HTTP IPv4", &v4), ("HTTP IPv6", &v6)];
    run.reporter.info("new connections after both changes; replies by backend:");
    check_distribution(run.reporter, &lab.topology, run.config, &columns);
    run.check(Statement::measured(
        v4.from(ADDED) > 0,
        format!("new IPv4 connections to {ADDED}"),
        v4.from(ADDED),
        "at least 1",
    ));
    let outer = if added_is_v4_only() { "IPv4, its only address" } else { "IPv6" };
    run.check(Statement::measured(
        v6.from(ADDED) > 0,
        format!("new IPv6 connections to {ADDED}, encapsulated in {outer}"),
        v6.from(ADDED),
        "at least 1",
    ));
    run.check(Statement::equal(
        format!("new connections to {DRAINED}"),
        v4.from(DRAINED) + v6.from(DRAINED),
        0,
    ));
    Ok(())
}
