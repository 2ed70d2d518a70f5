//! Two balancers that never spoke to each other hold the same tables.

use super::Examination;
use crate::lab::topology::{ECHO, WEB, balancers};
use anyhow::{Context, Result};

pub(super) fn run(examination: &mut Examination<'_>) -> Result<()> {
    let lab = examination.lab;
    let statuses: Vec<_> =
        balancers().map(|balancer| lab.status(balancer)).collect::<Result<_>>()?;
    for name in [WEB, ECHO] {
        let services: Vec<_> = statuses.iter().filter_map(|status| status.service(name)).collect();
        let first =
            *services.first().with_context(|| format!("no balancer knows the service {name}"))?;
        let same = services.len() == statuses.len()
            && services.iter().all(|other| {
                other.table_size == first.table_size
                    && other.slots == first.slots
                    && other.table_digest == first.table_digest
            });
        let slots = first.slots_in_words();
        let digest = &first.table_digest;
        let what = format!(
            "`{name}`: {} slots with digest {digest} everywhere: {slots}",
            first.table_size
        );
        examination.check(same, what);
    }
    for balancer in balancers() {
        let counters = lab.counters(balancer)?;
        let packets: u64 = counters.services.values().map(|traffic| traffic.packets).sum();
        let reasons: Vec<_> = counters
            .reasons
            .iter()
            .filter(|(_, count)| **count > 0)
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        let what = format!(
            "{} counts {packets} packets forwarded; not forwarded: {}",
            balancer.name,
            reasons.join(", ")
        );
        examination.check(packets > 0, what);
    }
    Ok(())
}
