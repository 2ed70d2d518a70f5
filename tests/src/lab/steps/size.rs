//! Each answer to packets that do not fit the underlay: senders are told, merged segments are cut
//! smaller, or the underlay is large enough.

use super::Examination;
use super::reject::{set_mtu, told};
use super::transfer::Transfer;
use crate::lab::config::TooBig;
use crate::lab::lab::Lab;
use crate::lab::offload::{merge, set_checksumming};
use crate::lab::topology::{CLIENT_MTU, Family, Host, INTERFACE, UNDERLAY_MTU, balancers, clients};
use anyhow::{Context, Result};

/// Bytes of each transfer whose segments the balancers' kernels cut.
const CUT: u64 = 1_000_000;

pub(super) fn run(examination: &mut Examination<'_>) -> Result<()> {
    let lab = examination.lab;
    // Not the one behind a router with a smaller MTU: backends remember that, and ask it for
    // segments that fit here, too.
    let sender = clients().last().context("the lab has no client")?;
    for host in balancers().chain(examination.wanted.listed()).chain([sender]) {
        lab.namespaces.within(host, || merge(INTERFACE))?;
    }
    for policy in TooBig::ALL {
        try_out(examination, policy, sender)?;
    }
    say(examination, TooBig::default())
}

/// Large transfers to services that treat packets that do not fit in this way, on an underlay where
/// that matters.
pub(super) fn try_out(
    examination: &mut Examination<'_>,
    policy: TooBig,
    sender: &'static Host,
) -> Result<()> {
    set_mtu(examination, if policy == TooBig::Jumbo { UNDERLAY_MTU } else { CLIENT_MTU })?;
    say(examination, policy)?;
    for family in Family::BOTH {
        with_merging(examination, policy, sender, family)?;
        if policy == TooBig::Resegment {
            with_cutting(examination, sender, family)?;
        }
    }
    Ok(())
}

/// Has both balancers treat packets that do not fit in this way.
pub(super) fn say(examination: &mut Examination<'_>, policy: TooBig) -> Result<()> {
    examination.wanted.too_big = policy;
    examination.lab.configure(examination.wanted)?;
    balancers().try_for_each(|balancer| examination.lab.reload_sluice(balancer))
}

/// Merged packets stay merged from end to end.
fn with_merging(
    examination: &mut Examination<'_>,
    policy: TooBig,
    sender: &'static Host,
    family: Family,
) -> Result<()> {
    let lab = examination.lab;
    forget(lab, sender)?;
    let (told_before, dropped_before) = (told(lab)?, dropped(lab)?);
    let moved = Transfer::run(lab, sender, examination.wanted.listed(), family, lab.scale.bulk)?;
    let (told, dropped) = (told(lab)? - told_before, dropped(lab)? - dropped_before);
    let which = format!("{}, {}", policy.name(), family.name());
    moved.judge(
        examination,
        &which,
        format!("{} bytes go up and down with TSO and GRO", lab.scale.bulk),
    );
    let cut = moved.cut_otherwise();
    let shrank = cut.iter().all(|(came, left)| *came == left + examination.wanted.outer(family));
    let count = cut.len();
    let what = format!(
        "{which}: {dropped} packets did not fit, the client was told {told} times, {count} were cut smaller"
    );
    let held = match policy {
        TooBig::Reject => dropped > 0 && told > 0 && count == 0,
        // A packet that is not merged may come at any time, and its sender is told.
        TooBig::Resegment => count > 0 && shrank,
        TooBig::Jumbo => dropped == 0 && count == 0,
    };
    examination.check(held, what);
    Ok(())
}

/// The balancers' kernels cut merged packets and fill in checksums, and the backends' look at
/// these.
fn with_cutting(
    examination: &mut Examination<'_>,
    sender: &'static Host,
    family: Family,
) -> Result<()> {
    let lab = examination.lab;
    forget(lab, sender)?;
    let computed = |on: bool| {
        balancers()
            .try_for_each(|host| lab.namespaces.within(host, || set_checksumming(INTERFACE, on)))
    };
    computed(false)?;
    let moved = Transfer::run(lab, sender, examination.wanted.listed(), family, CUT)?;
    computed(true)?;
    let which = format!("resegment, {}, cut by the balancer's kernel", family.name());
    moved.judge(examination, &which, format!("{CUT} bytes go up and down"));
    let (came, left) =
        moved.balancers.iter().map(|captured| captured.longest()).max().unwrap_or_default();
    let full = CLIENT_MTU as usize + 14;
    let what = format!(
        "{which}: the longest packet came with {came} bytes, and left as segments of up to {left}"
    );
    examination.check(came > full && left == full, what);
    Ok(())
}

/// Has a client forget which MTUs it was told.
fn forget(lab: &Lab, sender: &'static Host) -> Result<()> {
    for family in ["-4", "-6"] {
        lab.namespaces.run(sender, "ip", &[family, "route", "flush", "cache"], "")?;
    }
    Ok(())
}

/// How many packets did not fit so far.
fn dropped(lab: &Lab) -> Result<u64> {
    balancers()
        .map(|host| Ok(lab.counters(host)?.reasons.get("too_big").copied().unwrap_or(0)))
        .sum()
}
