//! An underlay that carries no more than clients send: their segments fit with an outer header all the same, because the backends' SYN-ACKs say how large they may be.

use super::Examination;
use super::reject::{set_mtu, told};
use crate::lab::capture::Capture;
use crate::lab::client::{self, Connection};
use crate::lab::lab::Lab;
use crate::lab::offload::{merge, set_checksumming};
use crate::lab::topology::{CLIENT_MTU, Family, Host, INTERFACE, UNDERLAY_MTU, clients};
use anyhow::{Context, Result};
use tokio::time::timeout;

/// Bytes of each transfer whose checksums the kernel computes.
const COMPUTED: u64 = 1_000_000;

pub(super) fn run(examination: &mut Examination<'_>) -> Result<()> {
    let lab = examination.lab;
    let sender = clients().last().context("the lab has no client")?;
    set_mtu(examination, CLIENT_MTU)?;
    underlay(examination, CLIENT_MTU)?;
    for host in examination.wanted.listed().chain([sender]) {
        lab.namespaces.within(host, || merge(INTERFACE))?;
    }
    for family in Family::BOTH {
        transfer(examination, family, sender, lab.scale.bulk, "with TSO and GRO")?;
        // Then the bytes on the wire hold whole checksums, and whoever receives them looks.
        checksumming(examination, sender, false)?;
        transfer(examination, family, sender, COMPUTED, "with checksums computed by the kernel")?;
        checksumming(examination, sender, true)?;
    }
    set_mtu(examination, UNDERLAY_MTU)?;
    underlay(examination, UNDERLAY_MTU)
}

/// Uploads and downloads so many bytes while the client's and the backends' packets are captured.
fn transfer(
    examination: &mut Examination<'_>,
    family: Family,
    sender: &'static Host,
    bytes: u64,
    how: &str,
) -> Result<()> {
    let lab = examination.lab;
    let limit = lab.scale.patience;
    let (told_before, clamped_before) = (told(lab)?, clamped(examination)?);
    let hosts = examination.wanted.listed().chain([sender]);
    let captures = hosts.map(|host| Capture::start(&lab.namespaces, host)).collect::<Result<Vec<_>>>()?;
    let moved = client::on(&lab.namespaces, sender, || async move {
        let mut connection = Connection::open(family.web()).await?;
        timeout(limit, connection.upload(bytes)).await.context("the upload does not end")??;
        timeout(limit, connection.download(bytes)).await.context("the download does not end")?
    });
    let (mut good, mut bad) = (0, 0);
    for capture in captures {
        let counts = capture.stop()?.counts;
        good += counts.good_checksums;
        bad += counts.bad_checksums;
    }
    let (told, clamped) = (told(lab)? - told_before, clamped(examination)? - clamped_before);
    let name = family.name();
    let wrong: Vec<_> = moved.err().map(|error| format!("{error:#}")).into_iter().collect();
    let what = format!("{name}, {how}: {bytes} bytes go up and down over an underlay of {CLIENT_MTU} bytes");
    examination.show.check_none(&wrong, what);
    examination.check(
        clamped > 0 && told == 0,
        format!("{name}, {how}: {clamped} SYN-ACKs were clamped, and nobody had to be told what fits: {told}"),
    );
    let what = format!("{name}, {how}: of {good} captured TCP packets {bad} have a bad checksum");
    examination.check(good > 0 && bad == 0, what);
    Ok(())
}

/// Gives every backend another MTU, and has it look.
fn underlay(examination: &Examination<'_>, mtu: u32) -> Result<()> {
    for backend in examination.wanted.listed() {
        let set = ["link", "set", INTERFACE, "mtu", &mtu.to_string()];
        examination.lab.namespaces.run(backend, "ip", &set, "")?;
        examination.lab.reload_sluice(backend)?;
    }
    Ok(())
}

fn checksumming(examination: &Examination<'_>, sender: &'static Host, on: bool) -> Result<()> {
    let mut hosts = examination.wanted.listed().chain([sender]);
    hosts.try_for_each(|host| examination.lab.namespaces.within(host, || set_checksumming(INTERFACE, on)))
}

/// How many SYN-ACKs the backends have clamped so far.
fn clamped(examination: &Examination<'_>) -> Result<u64> {
    let lab: &Lab = examination.lab;
    examination.wanted.listed().map(|host| lab.backend_counters(host).map(|counters| counters.mss_clamped)).sum()
}
