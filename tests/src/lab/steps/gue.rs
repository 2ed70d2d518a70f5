//! Packets that travel in UDP (GUE), by reload: small ones, merged ones, and merged ones that are
//! cut smaller.

use super::Examination;
use super::reject::set_mtu;
use super::size::{say, try_out};
use super::spread::send;
use crate::lab::capture::{Capture, Captured};
use crate::lab::client::{Tally, Transport};
use crate::lab::config::TooBig;
use crate::lab::topology::{UNDERLAY_MTU, backends, balancers, clients};
use anyhow::{Context, Result};
use std::collections::BTreeSet;

pub(super) fn run(examination: &mut Examination<'_>) -> Result<()> {
    let lab = examination.lab;
    // Backends first: they go on taking IP-in-IP. On the way back they go last.
    examination.wanted.in_udp = true;
    lab.configure(examination.wanted)?;
    examination.wanted.listed().chain(balancers()).try_for_each(|host| lab.reload_sluice(host))?;
    requests(examination)?;
    // The merged packets of an earlier step stay merged.
    let sender = clients().last().context("the lab has no client")?;
    for policy in [TooBig::Resegment, TooBig::Jumbo] {
        try_out(examination, policy, sender)?;
    }
    set_mtu(examination, UNDERLAY_MTU)?;
    examination.wanted.in_udp = false;
    say(examination, TooBig::default())?;
    examination.wanted.listed().try_for_each(|host| lab.reload_sluice(host))
}

/// Many flows over TCP and UDP, while every backend's packets are captured.
fn requests(examination: &mut Examination<'_>) -> Result<()> {
    let lab = examination.lab;
    let mut captures = Vec::new();
    for host in examination.wanted.listed() {
        captures.push(Capture::start(&lab.namespaces, host)?);
    }
    let mut total = Tally::default();
    for (transport, count) in
        [(Transport::Tcp, lab.scale.requests / 4), (Transport::Udp, lab.scale.datagrams / 4)]
    {
        send(lab, transport, count)?.into_iter().for_each(|tally| total.merge(tally));
    }
    let captured = captures.into_iter().map(Capture::stop).collect::<Result<Vec<_>>>()?;
    let flows = total.answered();
    let strangers =
        total.answers.keys().filter(|name| !backends().any(|host| host.name == **name)).count();
    let held = total.failed == 0 && flows > 0 && strangers == 0;
    examination.check(held, format!("all {} requests are answered", flows + total.failed));
    examination.show.explain(&total.failures);

    let sum = |count: fn(&Captured) -> u64| captured.iter().map(count).sum::<u64>();
    let (came, good, without, bad) = (
        sum(|captured| captured.counts.encapsulated_in),
        sum(|captured| captured.counts.good_outer_checksums),
        sum(|captured| captured.counts.no_outer_checksums),
        sum(|captured| captured.counts.bad_outer_checksums),
    );
    let what = format!(
        "{came} packets came in UDP: {good} with a right checksum, {without} without one, {bad} with a bad one"
    );
    examination.check(came > flows && good + without == came && bad == 0 && good > without, what);

    let ports: Vec<_> = captured.iter().flat_map(Captured::gue_flows).collect();
    let mixed = ports.iter().filter(|(_, ports)| ports.len() != 1).count();
    let what = format!("each of {} flows keeps one source port: {mixed} do not", ports.len());
    // Datagrams of two requests may be of one flow: senders' ports are drawn.
    examination.check(ports.len() as u64 * 2 > flows && mixed == 0, what);
    let distinct: BTreeSet<_> = ports.iter().flat_map(|(_, ports)| ports.iter().copied()).collect();
    let dynamic = distinct.iter().all(|port| *port >= 49_152);
    // By chance some flows share one of 16,384 ports; 1,000 flows have some 970.
    let what = format!("they have {} source ports, all dynamic ones", distinct.len());
    examination.check(dynamic && distinct.len() * 10 > ports.len() * 9, what);
    Ok(())
}
