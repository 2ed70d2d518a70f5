//! Many requests, each a new flow: replies by backend compared with the weights.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context as _, Result};
use tokio::time::timeout;

use super::requests::{check_distribution, send};
use crate::lab::capture::PacketCapture;
use crate::lab::client::{self, HttpConnection, RequestKind};
use crate::lab::config::{ECHO, WEB};
use crate::lab::reporter::Statement;
use crate::lab::run::LabRun;
use crate::lab::topology::IpVersion;

/// HTTP and UDP requests, then large bodies in both directions. The packets of every balancer and
/// backend are captured during the requests.
pub(super) fn run(run: &mut LabRun<'_>) -> Result<()> {
    let lab = run.lab;
    let hosts: Vec<_> = run.balancers().iter().chain(run.members()).collect();
    let captures = PacketCapture::start_all(&lab.namespaces, hosts.iter().copied())?;
    let before = lab.forwarded()?;
    let start = Instant::now();
    let [http4, http6] = send(lab, RequestKind::Http, lab.scale.requests)?;
    let [udp4, udp6] = send(lab, RequestKind::Echo, lab.scale.datagrams)?;
    let seconds = start.elapsed().as_secs_f64();
    run.forwarded = difference(lab.forwarded_settled()?, &before);
    for (host, capture) in hosts.iter().zip(PacketCapture::stop_all(captures)?) {
        run.captures.insert(host.name.clone(), capture);
    }
    let columns =
        [("HTTP IPv4", &http4), ("HTTP IPv6", &http6), ("UDP IPv4", &udp4), ("UDP IPv6", &udp6)];
    run.answered = columns.iter().map(|(_, responses)| responses.answered()).sum();
    let clients = lab.topology.clients().len();
    run.reporter.info(format!(
        "{} flows from {clients} clients to the VIPs in {seconds:.1} s; replies by backend:",
        run.answered
    ));
    check_distribution(run.reporter, &lab.topology, run.config, &columns);
    check_slots(run)?;
    transfer_bodies(run)
}

fn difference(now: BTreeMap<String, u64>, before: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    now.into_iter()
        .map(|(name, count)| {
            let earlier = before.get(&name).copied().unwrap_or(0);
            (name, count - earlier)
        })
        .collect()
}

/// The slots of each lookup table follow the weights to within one.
fn check_slots(run: &mut LabRun<'_>) -> Result<()> {
    let lab = run.lab;
    let mut statements = Vec::new();
    for balancer in run.balancers() {
        let status = lab.status(balancer)?;
        for name in [WEB, ECHO] {
            let service = status
                .service(name)
                .with_context(|| format!("{} has no service {name}", balancer.name))?;
            let exact = |host| run.config.share(&lab.topology, host) * service.table_size as f64;
            let within_one = run
                .members()
                .all(|host| (service.slots_of(&host.name) as f64 - exact(host)).abs() <= 1.0);
            let expected: Vec<_> =
                run.members().map(|host| format!("{} {:.1}", host.name, exact(host))).collect();
            statements.push(Statement::measured(
                within_one,
                format!("{}: slots of `{name}`", balancer.name),
                service.slots_text(),
                expected.join(", "),
            ));
        }
    }
    let summary = "the slots of each lookup table follow the weights to within one";
    run.reporter.check_group(summary, statements);
    Ok(())
}

fn transfer_bodies(run: &mut LabRun<'_>) -> Result<()> {
    let lab = run.lab;
    let bytes = lab.scale.body_bytes;
    let limit = lab.scale.timeout;
    for version in IpVersion::BOTH {
        let mut rates = Vec::new();
        for sender in lab.topology.clients() {
            let start = Instant::now();
            client::run_in(&lab.namespaces, sender, || async move {
                let mut connection = HttpConnection::open(version.web()).await?;
                timeout(limit, connection.download(bytes)).await.context("download timeout")??;
                timeout(limit, connection.upload(bytes)).await.context("upload timeout")?
            })
            .with_context(|| {
                format!("large bodies over {} from {}", version.name(), sender.name)
            })?;
            let megabytes = 2.0 * bytes as f64 / 1e6;
            rates.push(format!("{:.0} MB/s", megabytes / start.elapsed().as_secs_f64()));
        }
        let text = format!(
            "{}: {} MB down and up from each client arrive intact, each byte verified ({})",
            version.name(),
            bytes / 1_000_000,
            rates.join(", ")
        );
        run.check(Statement::new(true, text));
    }
    Ok(())
}
