//! Daemons end, gently and not, and come back; the programs they loaded go on forwarding.

use super::change::judge;
use super::{Examination, spread};
use crate::lab::client::Transport;
use crate::lab::topology::{ECHO, WEB, balancers};
use anyhow::{Context, Result};
use rustix::process::Signal;

pub(super) fn run(examination: &mut Examination<'_>) -> Result<()> {
    let lab = examination.lab;
    let mut seen = examination.connections()?.snapshot();
    for (signal, name) in [(Signal::TERM, "SIGTERM"), (Signal::KILL, "SIGKILL")] {
        let before: Vec<_> =
            balancers().map(|balancer| lab.status(balancer)).collect::<Result<_>>()?;
        for balancer in balancers() {
            lab.stop_sluice(balancer, signal)?;
        }
        examination.show.say(format!(
            "{name} ended the daemons of both balancers; nobody but the kernel forwards"
        ));
        let tallies = spread::send(lab, Transport::Tcp, lab.scale.requests / 8)?;
        let [answered, failed] = [
            tallies.iter().map(|t| t.answered()).sum::<u64>(),
            tallies.iter().map(|t| t.failed).sum(),
        ];
        examination.check(
            failed == 0 && answered > 0,
            format!("without daemons {answered} new requests are answered, {failed} are not"),
        );
        seen = judge(examination, "without daemons", &seen)?;
        for balancer in balancers() {
            lab.start_sluice(balancer)?;
        }
        seen = judge(examination, &format!("after the restart that followed {name}"), &seen)?;
        for (balancer, before) in balancers().zip(before) {
            let after = lab.status(balancer)?;
            for service in [WEB, ECHO] {
                let (then, now) = (before.service(service), after.service(service));
                let (then, now) =
                    then.zip(now).with_context(|| format!("{} lost {service}", balancer.name))?;
                examination.check(
                    then.generation == now.generation
                        && then.slots == now.slots
                        && then.table_digest == now.table_digest,
                    format!(
                        "{} adopted the table of `{service}` as it was: generation {} then, {} now",
                        balancer.name, then.generation, now.generation
                    ),
                );
            }
        }
    }
    if let Some(connections) = examination.connections.take() {
        let last = connections.close()?;
        let (count, broken) = (last.exchanges.len(), last.broken.len());
        let what = format!(
            "over all changes and restarts {broken} of {count} connections broke, in {} messages",
            last.total()
        );
        examination.check(broken == 0, what);
    }
    Ok(())
}
