//! A backend joins and another is drained while connections are open: none may notice.

use super::{Examination, spread};
use crate::lab::client::{Tally, Transport};
use crate::lab::connections::{Connections, Snapshot};
use crate::lab::topology::{DRAINED, ECHO, JOINING, WEB, balancers, host, joining_is_v4_only};
use anyhow::{Context, Result};

/// Shows who serves the open connections, and checks that each has exchanged data since the earlier
/// snapshot.
pub(super) fn judge(
    examination: &mut Examination<'_>,
    what: &str,
    earlier: &Snapshot,
) -> Result<Snapshot> {
    let now = examination.connections()?.all_exchange_again(examination.lab.scale.patience)?;
    let open = now.exchanges.len() - now.broken.len();
    let silent = now.silent_since(earlier);
    let exchanged = now.total() - earlier.total();
    let (all, broken) = (now.exchanges.len(), now.broken.len());
    examination.check(
        broken == 0 && silent == 0,
        format!("{what}: {broken} of {all} connections broke, {open} stayed and exchanged {exchanged} messages"),
    );
    if broken > earlier.broken.len() {
        examination.show.explain(&now.broken);
    }
    Ok(now)
}

fn apply(examination: &mut Examination<'_>) -> Result<()> {
    let lab = examination.lab;
    lab.configure(examination.wanted)?;
    // Backends first: whatever a balancer sends, somebody unwraps it.
    for daemon in examination.wanted.listed().chain(balancers()) {
        lab.reload_sluice(daemon)?;
    }
    Ok(())
}

pub(super) fn run(examination: &mut Examination<'_>) -> Result<()> {
    let lab = examination.lab;
    let patience = lab.scale.patience;
    examination.connections =
        Some(Connections::open(&lab.namespaces, lab.scale.connections, lab.scale.pause, patience)?);
    let start = examination.connections()?.snapshot();
    let serving: Vec<_> =
        start.by_backend.iter().map(|(name, count)| format!("{name} {count}")).collect();
    examination.check(
        start.broken.is_empty() && start.by_backend.get(DRAINED).is_some_and(|count| *count > 0),
        format!(
            "{} connections are open, one message each every {} ms: {}",
            start.exchanges.len(),
            lab.scale.pause.as_millis(),
            serving.join(", ")
        ),
    );

    examination.show.say(format!("{JOINING} joins: new configuration, SIGHUP to every daemon"));
    examination.wanted.joined = true;
    lab.configure(examination.wanted)?;
    lab.start_sluice(host(JOINING)?)?;
    apply(examination)?;
    examination.wait_status(&format!("{JOINING} has joined"), |status| {
        [WEB, ECHO]
            .iter()
            .all(|name| status.service(name).is_some_and(|service| service.slots_of(JOINING) > 0))
    })?;
    let joined = judge(examination, &format!("after {JOINING} joined"), &start)?;

    examination.show.say(format!("{DRAINED} drains: new configuration, SIGHUP to every daemon"));
    examination.wanted.drained = true;
    apply(examination)?;
    examination.wait_status(&format!("{DRAINED} drains"), |status| {
        status.drains(DRAINED)
            && status.services.iter().all(|service| service.slots_of(DRAINED) == 0)
    })?;
    let drained = judge(examination, &format!("after {DRAINED} drained"), &joined)?;
    let kept = drained.by_backend.get(DRAINED).copied().unwrap_or(0);
    examination.check(
        drained.by_backend == start.by_backend,
        format!("every connection is where it was; {DRAINED} still serves its {kept}"),
    );

    let [tcp4, tcp6] = spread::send(lab, Transport::Tcp, lab.scale.requests / 4)?;
    let mut all = Tally::default();
    all.merge(tcp4.clone());
    all.merge(tcp6.clone());
    spread::judge(
        examination.show,
        examination.wanted,
        &[("HTTP IPv4", &tcp4), ("HTTP IPv6", &tcp6)],
    );
    let (v4, v6) = (tcp4.of(JOINING), tcp6.of(JOINING));
    let way =
        if joining_is_v4_only() { "in IPv4 packets, its only address" } else { "in IPv6 packets" };
    examination.check(v4 > 0, format!("{JOINING} answers new connections over IPv4: {v4}"));
    examination.check(
        v6 > 0,
        format!("{JOINING} answers new connections over IPv6, which reach it {way}: {v6}"),
    );
    examination.check(
        all.of(DRAINED) == 0,
        format!("{DRAINED} gets no new connections: {}", all.of(DRAINED)),
    );
    let end = judge(examination, "after these requests", &drained)?;
    let last = examination.connections()?.snapshot();
    let longest = last.exchanges.iter().max().context("there are no connections")?;
    examination
        .show
        .say(format!("{} messages so far, up to {longest} on one connection", end.total()));
    Ok(())
}
