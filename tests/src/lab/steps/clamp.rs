//! An underlay that carries no more than clients send: their segments fit with an outer header all
//! the same, because the backends' SYN-ACKs say how large they may be.

use super::Examination;
use super::reject::{set_mtu, told};
use super::transfer::Transfer;
use crate::lab::lab::Lab;
use crate::lab::offload::{merge, set_checksumming};
use crate::lab::topology::{CLIENT_MTU, Family, Host, INTERFACE, UNDERLAY_MTU, clients};
use anyhow::{Context, Result};

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
    let (told_before, clamped_before) = (told(lab)?, clamped(examination)?);
    let moved = Transfer::run(lab, sender, examination.wanted.listed(), family, bytes)?;
    let (told, clamped) = (told(lab)? - told_before, clamped(examination)? - clamped_before);
    let which = format!("{}, {how}", family.name());
    let what = format!("{bytes} bytes go up and down over an underlay of {CLIENT_MTU} bytes");
    moved.judge(examination, &which, what);
    let what = format!(
        "{which}: {clamped} SYN-ACKs were clamped, and nobody had to be told what fits: {told}"
    );
    examination.check(clamped > 0 && told == 0, what);
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
    hosts.try_for_each(|host| {
        examination.lab.namespaces.within(host, || set_checksumming(INTERFACE, on))
    })
}

/// How many SYN-ACKs the backends have clamped so far.
fn clamped(examination: &Examination<'_>) -> Result<u64> {
    let lab: &Lab = examination.lab;
    examination
        .wanted
        .listed()
        .map(|host| lab.backend_counters(host).map(|counters| counters.mss_clamped))
        .sum()
}
