//! Direct server return, measured on the wire during the distribution of requests.

use anyhow::Result;

use crate::lab::reporter::Statement;
use crate::lab::run::LabRun;

pub(super) fn run(run: &mut LabRun<'_>) -> Result<()> {
    let reporter = &mut *run.reporter;
    let topology = &run.lab.topology;
    reporter.info("packets on the wire during the requests above, counted in each host:");
    let head = [
        "host",
        "to the VIPs, in",
        "encapsulated, out",
        "encapsulated, in",
        "from the VIPs, out",
        "from the VIPs, in",
    ];
    let rows = run.captures.iter().map(|(host, capture)| {
        let counts = &capture.counts;
        let columns = [
            counts.to_vip_in,
            counts.encapsulated_out,
            counts.encapsulated_in,
            counts.from_vip_out,
            counts.from_vip_in,
        ];
        std::iter::once(host.clone()).chain(columns.map(|count| count.to_string())).collect()
    });
    reporter.table(&head, rows);
    let counts =
        |name: &str| run.captures.get(name).map(|capture| capture.counts).unwrap_or_default();
    let mut statements = Vec::new();
    for balancer in topology.balancers() {
        let name = &balancer.name;
        let seen = counts(name);
        let replies = seen.from_vip_in + seen.from_vip_out;
        statements.push(Statement::equal(format!("{name}: packets from a VIP"), replies, 0));
        // Excludes a capture that has no packets at all.
        statements.push(Statement::measured(
            seen.encapsulated_out == seen.to_vip_in && seen.to_vip_in > 0,
            format!("{name}: packets sent encapsulated"),
            seen.encapsulated_out,
            format!("{}, as many as arrived for the VIPs", seen.to_vip_in),
        ));
        let counted = run.forwarded.get(name).copied().unwrap_or(0);
        statements.push(Statement::equal(
            format!("{name}: packets forwarded according to sluice counters"),
            counted,
            seen.encapsulated_out,
        ));
    }
    let summary = "the balancers forward each packet to a VIP, and no packet from a VIP";
    reporter.check_group(summary, statements);
    let backends = topology.backends().iter().map(|backend| counts(&backend.name));
    let (sent, plain) = backends.fold((0, 0), |(sent, plain), counts| {
        (sent + counts.from_vip_out, plain + counts.to_vip_in)
    });
    reporter.check(Statement::measured(
        sent >= run.answered && run.answered > 0,
        "packets sent by the backends with a VIP as source",
        sent,
        format!("at least {}, one for each reply", run.answered),
    ));
    reporter.check(Statement::equal(
        "packets to a VIP that reached a backend without encapsulation",
        plain,
        0,
    ));
    Ok(())
}
