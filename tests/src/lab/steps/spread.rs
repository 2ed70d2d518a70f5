//! Many requests, each a connection of its own: who answered how many, beside what the weights
//! promise.

use super::Examination;
use crate::lab::capture::Capture;
use crate::lab::client::{self, Connection, Tally, Transport};
use crate::lab::config::Wanted;
use crate::lab::lab::Lab;
use crate::lab::show::Show;
use crate::lab::statistics::Fit;
use crate::lab::topology::{ECHO, Family, Host, WEB, backends, balancers, clients};
use anyhow::{Context, Result, anyhow, ensure};
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// Sends about `count` requests, evenly from all clients over both IP versions, all clients at
/// once. One tally for each version.
pub(super) fn send(lab: &Lab, transport: Transport, count: usize) -> Result<[Tally; 2]> {
    let share = count.div_ceil(clients().count() * Family::BOTH.len());
    let limit = lab.scale.patience;
    std::thread::scope(|scope| {
        let threads: Vec<_> = clients()
            .map(|sender| {
                scope.spawn(move || {
                    client::on(&lab.namespaces, sender, || async move {
                        let mut tallies = [Tally::default(), Tally::default()];
                        for (tally, family) in tallies.iter_mut().zip(Family::BOTH) {
                            let target = if transport == Transport::Tcp {
                                family.web()
                            } else {
                                family.echo()
                            };
                            *tally = client::many(transport, target, share, limit).await?;
                        }
                        Ok(tallies)
                    })
                })
            })
            .collect();
        let mut totals = [Tally::default(), Tally::default()];
        for thread in threads {
            let tallies = thread.join().map_err(|_| anyhow!("a client's thread panicked"))??;
            for (total, tally) in totals.iter_mut().zip(tallies) {
                total.merge(tally);
            }
        }
        Ok(totals)
    })
}

/// Shows a table of answers, and checks that all requests were answered, and by whom they should
/// have been.
pub(super) fn judge(show: &mut Show, wanted: Wanted, columns: &[(&str, &Tally)]) {
    let mut total = Tally::default();
    for (_, tally) in columns {
        total.merge((*tally).clone());
    }
    let mut head = vec!["backend", "weight", "expected"];
    head.extend(columns.iter().map(|(name, _)| *name));
    head.extend(["all", "share"]);
    let answered = total.answered().max(1) as f64;
    show.table(
        &head,
        backends().filter(|host| wanted.share(host.name) > 0.0 || total.of(host.name) > 0).map(
            |host| {
                let weight = if wanted.takes_new_flows(host.name) {
                    host.weight().to_string()
                } else {
                    "-".into()
                };
                let mut row = vec![
                    host.name.to_owned(),
                    weight,
                    format!("{:.1} %", wanted.share(host.name) * 100.0),
                ];
                row.extend(columns.iter().map(|(_, tally)| tally.of(host.name).to_string()));
                row.push(total.of(host.name).to_string());
                row.push(format!("{:.1} %", total.of(host.name) as f64 / answered * 100.0));
                row
            },
        ),
    );
    let unknown = total.answers.keys().filter(|name| !backends().any(|host| host.name == **name));
    let strangers: Vec<_> =
        unknown.map(|name| format!("an answer came from `{name}`, which is no backend")).collect();
    let all = total.answered() + total.failed;
    let held = total.failed == 0 && total.answered() > 0 && strangers.is_empty();
    show.check(held, format!("all {all} requests are answered"));
    show.explain(&total.failures);
    show.explain(&strangers);
    for (name, tally) in columns {
        let counts: Vec<_> =
            backends().map(|host| (tally.of(host.name), wanted.share(host.name))).collect();
        let fit = Fit::test(&counts);
        show.check(
            fit.plausible(),
            format!(
                "{name} follows the weights: chi-square {:.1} with {} degrees of freedom, p = {:.2}",
                fit.chi_square, fit.freedom, fit.probability
            ),
        );
    }
}

/// Packets that each balancer says it has forwarded.
pub(super) fn forwarded(lab: &Lab) -> Result<Vec<(&'static str, u64)>> {
    let sum = |balancer: &'static Host| {
        let counters = lab.counters(balancer)?;
        Ok((balancer.name, counters.services.values().map(|traffic| traffic.packets).sum()))
    };
    balancers().map(sum).collect()
}

/// The same, once the last packets of closing connections are through.
pub(super) fn settled(lab: &Lab) -> Result<Vec<(&'static str, u64)>> {
    let deadline = Instant::now() + lab.scale.patience;
    let mut then = forwarded(lab)?;
    loop {
        std::thread::sleep(Duration::from_millis(200));
        let now = forwarded(lab)?;
        if now == then {
            return Ok(now);
        }
        ensure!(
            Instant::now() < deadline,
            "packets go on arriving at the balancers although all requests are over"
        );
        then = now;
    }
}

/// Requests over TCP and UDP, big bodies both ways, while every balancer's and backend's packets
/// are captured.
pub(super) fn run(examination: &mut Examination<'_>) -> Result<()> {
    let lab = examination.lab;
    let wanted = examination.wanted;
    let mut captures = Vec::new();
    for host in balancers().chain(wanted.listed()) {
        captures.push((host.name, Capture::start(&lab.namespaces, host)?));
    }
    let before = forwarded(lab)?;
    let begin = Instant::now();
    let [tcp4, tcp6] = send(lab, Transport::Tcp, lab.scale.requests)?;
    let [udp4, udp6] = send(lab, Transport::Udp, lab.scale.datagrams)?;
    let seconds = begin.elapsed().as_secs_f64();
    let after = settled(lab)?;
    for (name, capture) in captures {
        examination.captured.insert(name, capture.stop()?);
    }
    examination.forwarded =
        before.into_iter().zip(after).map(|((name, then), (_, now))| (name, now - then)).collect();
    let tallies =
        [("HTTP IPv4", &tcp4), ("HTTP IPv6", &tcp6), ("UDP IPv4", &udp4), ("UDP IPv6", &udp6)];
    examination.answered = tallies.iter().map(|(_, tally)| tally.answered()).sum();
    let count = examination.answered;
    examination
        .show
        .say(format!("{count} flows from {} clients in {seconds:.1} s", clients().count()));
    judge(examination.show, wanted, &tallies);

    for balancer in balancers() {
        let status = lab.status(balancer)?;
        for name in [WEB, ECHO] {
            let service = status
                .service(name)
                .with_context(|| format!("{} knows no service {name}", balancer.name))?;
            let exact = wanted.listed().all(|host| {
                let due = wanted.share(host.name) * service.table_size as f64;
                (service.slots_of(host.name) as f64 - due).abs() <= 1.0
            });
            let slots = service.slots_in_words();
            let what = format!(
                "{}: the slots of `{name}` follow the weights to within one ({})",
                balancer.name, slots
            );
            examination.check(exact, what);
        }
    }

    let body = lab.scale.body;
    let limit = lab.scale.patience;
    for family in Family::BOTH {
        let mut rates = Vec::new();
        for sender in clients() {
            let begin = Instant::now();
            client::on(&lab.namespaces, sender, || async move {
                let mut connection = Connection::open(family.web()).await?;
                timeout(limit, connection.download(body))
                    .await
                    .context("the download takes too long")??;
                timeout(limit, connection.upload(body))
                    .await
                    .context("the upload takes too long")?
            })
            .with_context(|| format!("big bodies over {} from {}", family.name(), sender.name))?;
            rates.push(format!(
                "{:.0} MB/s",
                2.0 * body as f64 / 1e6 / begin.elapsed().as_secs_f64()
            ));
        }
        let megabytes = body / 1_000_000;
        let rates = rates.join(", ");
        let what = format!(
            "{megabytes} MB down and up over {} arrive intact, byte for byte ({rates})",
            family.name()
        );
        examination.check(true, what);
    }
    Ok(())
}
