//! Packets that do not fit the underlay with their outer header: the balancer tells the client,
//! from the VIP, and the client sends smaller ones.

use super::Examination;
use crate::lab::client::{self, Connection};
use crate::lab::lab::Lab;
use crate::lab::offload::set_checksumming;
use crate::lab::topology::{CLIENT_MTU, Family, INTERFACE, UNDERLAY_MTU, balancers, clients};
use anyhow::{Context, Result};
use tokio::time::timeout;

/// Bytes of each upload, enough for many full packets.
const BODY: u64 = 2_000_000;

pub(super) fn run(examination: &mut Examination<'_>) -> Result<()> {
    set_mtu(examination, CLIENT_MTU)?;
    // With checksumming on, nobody here would look at a checksum: such packets count as good from
    // end to end. With it off, the kernel fills the quoted packet's checksum in while the answer
    // leaves, and the client's kernel checks that of the answer.
    checksumming(examination.lab, false)?;
    let lab = examination.lab;
    let limit = lab.scale.patience;
    // Not the one behind a router with a smaller MTU: backends remember that, and ask it for
    // segments that fit here, too.
    let sender = clients().last().context("the lab has no client")?;
    for family in Family::BOTH {
        let before = told(lab)?;
        let uploaded = client::on(&lab.namespaces, sender, || async move {
            let mut connection = Connection::open(family.web()).await?;
            timeout(limit, connection.upload(BODY)).await.context("the upload does not end")?
        });
        let told = told(lab)? - before;
        let wrong: Vec<_> = uploaded.err().map(|error| format!("{error:#}")).into_iter().collect();
        let name = family.name();
        let what = format!(
            "{name}: {BODY} bytes are uploaded though packets of {CLIENT_MTU} bytes do not fit"
        );
        examination.show.check_none(&wrong, what);
        // Merged packets are one question and get one answer, and one answer is enough.
        examination
            .check(told > 0 && told < 50, format!("{name}: the client was told {told} times"));
    }
    checksumming(lab, true)?;
    set_mtu(examination, UNDERLAY_MTU)
}

fn checksumming(lab: &Lab, on: bool) -> Result<()> {
    balancers().try_for_each(|balancer| {
        lab.namespaces.within(balancer, || set_checksumming(INTERFACE, on))
    })
}

/// Gives every balancer another MTU, and waits until its maps have it.
pub(super) fn set_mtu(examination: &Examination<'_>, mtu: u32) -> Result<()> {
    for balancer in balancers() {
        let set = ["link", "set", INTERFACE, "mtu", &mtu.to_string()];
        examination.lab.namespaces.run(balancer, "ip", &set, "")?;
    }
    examination.wait_status(&format!("the MTU towards every backend is {mtu}"), |status| {
        status.backends.iter().all(|backend| backend.next_hops.values().all(|(_, has)| *has == mtu))
    })
}

/// How often the balancers have told a client so far.
pub(super) fn told(lab: &Lab) -> Result<u64> {
    let mut told = 0;
    for balancer in balancers() {
        told += lab.counters(balancer)?.reasons.get("mtu_told").copied().unwrap_or(0);
    }
    Ok(told)
}
