//! Balancers that do not communicate have equal lookup tables.

use anyhow::{Context as _, Result};

use crate::lab::config::{ECHO, WEB};
use crate::lab::reporter::Statement;
use crate::lab::run::LabRun;
use crate::lab::status::ServiceJson;
use crate::lab::topology::LabHost;

pub(super) fn run(run: &mut LabRun<'_>) -> Result<()> {
    let lab = run.lab;
    let balancers = run.balancers();
    let statuses: Vec<_> =
        balancers.iter().map(|balancer| lab.status(balancer)).collect::<Result<_>>()?;
    for name in [WEB, ECHO] {
        let services: Vec<_> = statuses.iter().filter_map(|status| status.service(name)).collect();
        let first =
            services.first().with_context(|| format!("no balancer has the service {name}"))?;
        let equal = services.len() == statuses.len()
            && services.iter().all(|other| {
                other.table_size == first.table_size
                    && other.slots == first.slots
                    && other.table_digest == first.table_digest
            });
        let digest = |(balancer, service): (&LabHost, &&ServiceJson)| {
            format!("{} on {}", service.table_digest, balancer.name)
        };
        let digests: Vec<_> = balancers.iter().zip(&services).map(digest).collect();
        run.check(Statement::measured(
            equal,
            format!("digest of the {} slots of `{name}`", first.table_size),
            digests.join(", "),
            "equal",
        ));
        run.reporter.details(&[format!("slots by backend: {}", first.slots_text())]);
    }
    for balancer in balancers {
        let counters = lab.counters(balancer)?;
        let reasons = counters.reasons.iter().filter(|(_, count)| **count > 0);
        let reasons: Vec<_> = reasons.map(|(name, count)| format!("{name} {count}")).collect();
        run.check(Statement::measured(
            counters.forwarded() > 0,
            format!("{}: packets forwarded", balancer.name),
            counters.forwarded(),
            "at least 1",
        ));
        run.reporter.details(&[format!("not forwarded, by reason: {}", reasons.join(", "))]);
    }
    Ok(())
}
