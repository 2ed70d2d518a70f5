//! Datagrams as QUIC has them, each from a port of its own, as of a client that moves: the backend
//! that their connection ID names answers.

use super::Examination;
use crate::lab::client::{self, Tally, datagram};
use crate::lab::config::ROTATION;
use crate::lab::topology::{Family, Host, balancers, clients};
use anyhow::{Context, Result};

/// Datagrams with each connection ID over each IP version.
const DATAGRAMS: usize = 40;

pub(super) fn run(examination: &mut Examination<'_>) -> Result<()> {
    reload(examination, true)?;
    for family in Family::BOTH {
        let (mut right, mut sent, mut failures) = (0, 0, Vec::new());
        for backend in examination.wanted.listed() {
            let tally = send(examination, family, backend.name)?;
            right += tally.of(backend.name);
            sent += tally.answered() + tally.failed;
            failures.extend(tally.failures);
        }
        let what = format!(
            "{}: {right} of {sent} datagrams reach the backend that their connection ID names",
            family.name()
        );
        examination.check(right == sent && sent > 0, what);
        examination.show.explain(&failures);
        // As long as a backend's name, and nobody's.
        let tally = send(examination, family, "nobdy")?;
        let count = tally.answers.len();
        let what = format!(
            "{}: {} whose connection ID names nobody go by the table, to {count} backends",
            family.name(),
            tally.answered()
        );
        examination.check(tally.failed == 0 && count > 1, what);
        examination.show.explain(&tally.failures);
    }
    reload(examination, false)
}

fn reload(examination: &mut Examination<'_>, server_ids: bool) -> Result<()> {
    examination.wanted.server_ids = server_ids;
    examination.lab.configure(examination.wanted)?;
    balancers().try_for_each(|balancer| examination.lab.reload_sluice(balancer))
}

/// Sends datagrams that begin as a QUIC packet with a short header, to a connection ID with this
/// server ID.
fn send(examination: &Examination<'_>, family: Family, id: &str) -> Result<Tally> {
    let lab = examination.lab;
    let sender: &Host = clients().next().context("the lab has no client")?;
    client::on(&lab.namespaces, sender, || async move {
        let mut tally = Tally::default();
        for number in 0..DATAGRAMS {
            // The form bit is 0, the fixed bit 1; then the rotation in three bits.
            let (short, rotation) = (char::from(0x40_u8), char::from(ROTATION << 5 | 1));
            let payload = format!("{short}{rotation}{id} datagram {number:02}");
            tally.add(datagram(family.echo(), &payload, lab.scale.patience).await);
        }
        Ok(tally)
    })
}
