//! The balancers' daemons end by SIGTERM and by SIGKILL and start again. The loaded programs
//! forward packets meanwhile.

use anyhow::{Context as _, Result};
use rustix::process::Signal;

use super::membership::check_connections;
use super::requests::{send, total};
use crate::lab::client::RequestKind;
use crate::lab::config::{ECHO, WEB};
use crate::lab::reporter::Statement;
use crate::lab::run::LabRun;
use crate::lab::status::BalancerJson;

pub(super) fn run(run: &mut LabRun<'_>) -> Result<()> {
    let lab = run.lab;
    let mut snapshot = run.connections()?.snapshot();
    for (signal, name) in [(Signal::TERM, "SIGTERM"), (Signal::KILL, "SIGKILL")] {
        let before = statuses(run)?;
        run.balancers().iter().try_for_each(|balancer| lab.stop_sluice(balancer, signal))?;
        run.reporter.info(format!("{name} has ended the daemons of all balancers"));
        let responses = total(&send(lab, RequestKind::Http, lab.scale.requests / 8)?);
        run.check(Statement::measured(
            responses.failed == 0 && responses.answered() > 0,
            "without daemons: new requests answered",
            responses.answered(),
            responses.sent(),
        ));
        snapshot = check_connections(run, "without daemons", &snapshot)?;
        run.balancers().iter().try_for_each(|balancer| lab.start_sluice(balancer))?;
        let when = format!("after the restart that followed {name}");
        snapshot = check_connections(run, &when, &snapshot)?;
        check_tables_adopted(run, &before)?;
    }
    if let Some(connections) = run.connections.take() {
        let last = connections.close()?;
        let all = last.exchanges.len();
        let messages = last.total();
        run.check(Statement::equal(
            format!(
                "over all changes and restarts: broken connections, of {all} that exchanged \
                 {messages} messages"
            ),
            last.broken.len(),
            0,
        ));
    }
    Ok(())
}

fn statuses(run: &LabRun<'_>) -> Result<Vec<BalancerJson>> {
    run.balancers().iter().map(|balancer| run.lab.status(balancer)).collect()
}

/// The new daemons use the lookup tables that the old ones left.
fn check_tables_adopted(run: &mut LabRun<'_>, before: &[BalancerJson]) -> Result<()> {
    let mut statements = Vec::new();
    for ((balancer, before), after) in run.balancers().iter().zip(before).zip(statuses(run)?) {
        for service in [WEB, ECHO] {
            let services = before.service(service).zip(after.service(service));
            let (old, new) =
                services.with_context(|| format!("{} has no service {service}", balancer.name))?;
            let same = old.generation == new.generation
                && old.slots == new.slots
                && old.table_digest == new.table_digest;
            let describe =
                |generation, digest: &str| format!("generation {generation}, digest {digest}");
            statements.push(Statement::measured(
                same,
                format!("{}: lookup table of `{service}`", balancer.name),
                describe(new.generation, &new.table_digest),
                describe(old.generation, &old.table_digest),
            ));
        }
    }
    run.reporter.check_group("each daemon adopts the lookup tables unchanged", statements);
    Ok(())
}
