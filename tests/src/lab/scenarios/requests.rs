//! Many requests from all clients, and the check of their distribution over the backends.

use anyhow::{Result, anyhow};

use crate::lab::client::{self, RequestKind, Responses};
use crate::lab::config::LabConfig;
use crate::lab::instance::Lab;
use crate::lab::reporter::{Reporter, Statement};
use crate::lab::statistics::{ChiSquareTest, SIGNIFICANCE};
use crate::lab::topology::{IpVersion, Topology};

/// Sends at least `count` requests, the same number from each client over each IP version, all
/// clients at once. Returns the results of each version.
pub(super) fn send(lab: &Lab, kind: RequestKind, count: usize) -> Result<[Responses; 2]> {
    let clients = lab.topology.clients();
    let share = count.div_ceil(clients.len() * IpVersion::BOTH.len());
    let limit = lab.scale.timeout;
    std::thread::scope(|scope| {
        let spawn = |sender| {
            scope.spawn(move || {
                client::run_in(&lab.namespaces, sender, || async move {
                    let mut results = [Responses::default(), Responses::default()];
                    for (result, version) in results.iter_mut().zip(IpVersion::BOTH) {
                        *result = client::send_many(kind, kind.vip(version), share, limit).await?;
                    }
                    Ok(results)
                })
            })
        };
        let threads: Vec<_> = clients.iter().map(spawn).collect();
        let mut totals = [Responses::default(), Responses::default()];
        for thread in threads {
            let results = thread.join().map_err(|_| anyhow!("a client's thread panicked"))??;
            for (total, result) in totals.iter_mut().zip(results) {
                total.merge(result);
            }
        }
        Ok(totals)
    })
}

/// The sum of several results.
pub(super) fn total<'a>(results: impl IntoIterator<Item = &'a Responses>) -> Responses {
    let mut total = Responses::default();
    for result in results {
        total.merge(result.clone());
    }
    total
}

/// Prints a table of replies by backend, and checks that all requests are answered and that the
/// distribution follows the weights.
pub(super) fn check_distribution(
    reporter: &mut Reporter,
    topology: &Topology,
    config: LabConfig,
    columns: &[(&str, &Responses)],
) {
    let total = total(columns.iter().map(|(_, responses)| *responses));
    let mut head = vec!["backend", "weight", "expected"];
    head.extend(columns.iter().map(|(name, _)| *name));
    head.extend(["all", "measured"]);
    let answered = total.answered().max(1) as f64;
    let mut rows = Vec::new();
    for host in topology.backends() {
        let share = config.share(topology, host);
        let replies = total.from(&host.name);
        if share == 0.0 && replies == 0 {
            continue;
        }
        let takes_new_flows = config.takes_new_flows(host);
        let weight = if takes_new_flows { host.weight().to_string() } else { "-".into() };
        let mut row = vec![host.name.clone(), weight, format!("{:.1} %", share * 100.0)];
        row.extend(columns.iter().map(|(_, responses)| responses.from(&host.name).to_string()));
        row.push(replies.to_string());
        row.push(format!("{:.1} %", replies as f64 / answered * 100.0));
        rows.push(row);
    }
    reporter.table(&head, rows);
    check_all_answered(reporter, topology, &total);
    let tests = columns.iter().map(|(name, responses)| {
        let backends = topology.backends().iter();
        let counts: Vec<_> = backends
            .map(|host| (responses.from(&host.name), config.share(topology, host)))
            .collect();
        let test = ChiSquareTest::new(&counts);
        Statement::measured(
            test.passes(),
            format!(
                "{name}: chi-square {:.1}, {} degrees of freedom",
                test.statistic, test.degrees
            ),
            format!("p = {:.4}", test.p_value),
            format!("at least {SIGNIFICANCE:e}"),
        )
    });
    reporter.check_group("the replies of each column follow the weights (chi-square test)", tests);
}

/// Checks that every request got a reply, and from a backend of the topology.
pub(super) fn check_all_answered(
    reporter: &mut Reporter,
    topology: &Topology,
    responses: &Responses,
) {
    let unknown = responses.by_backend.keys().filter(|name| !topology.has_backend(name));
    let unknown: Vec<_> = unknown.map(|name| format!("unknown backend `{name}` replied")).collect();
    reporter.check(Statement::measured(
        responses.failed == 0 && responses.answered() > 0 && unknown.is_empty(),
        "requests answered",
        responses.answered(),
        responses.sent(),
    ));
    reporter.details(&responses.failures);
    reporter.details(&unknown);
}
