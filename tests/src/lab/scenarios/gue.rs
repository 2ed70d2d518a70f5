//! Encapsulation in GUE (UDP), enabled by a reload: requests, then the oversize policies again.

use std::collections::BTreeSet;

use anyhow::Result;

use super::oversize::check_policy;
use super::requests::{check_all_answered, send, total};
use crate::lab::capture::{CaptureResult, PacketCapture};
use crate::lab::client::RequestKind;
use crate::lab::config::OversizePolicy;
use crate::lab::reporter::Statement;
use crate::lab::run::LabRun;
use crate::lab::topology::UNDERLAY_MTU;

/// The lowest outer source port: the range is the dynamic ports (RFC 6335), 16,384 of them.
const FIRST_SOURCE_PORT: u16 = 49_152;

pub(super) fn run(run: &mut LabRun<'_>) -> Result<()> {
    let lab = run.lab;
    // Backends are reloaded first and still accept IP-in-IP. At the end they are reloaded last.
    run.config.gue = true;
    run.reload_all()?;
    run.reporter.info("a reload changes the encapsulation of all services to GUE");
    check_requests(run)?;
    // GSO and GRO were enabled by an earlier scenario.
    let sender = lab.topology.last_client()?;
    for policy in [OversizePolicy::Resegment, OversizePolicy::Jumbo] {
        check_policy(run, policy, sender)?;
    }
    run.set_balancer_mtu(UNDERLAY_MTU)?;
    run.config.gue = false;
    run.set_oversize_policy(OversizePolicy::default())?;
    lab.reload_all(run.members())
}

/// Many flows over TCP and UDP while every backend's packets are captured.
fn check_requests(run: &mut LabRun<'_>) -> Result<()> {
    let lab = run.lab;
    let captures = PacketCapture::start_all(&lab.namespaces, run.members())?;
    let http = send(lab, RequestKind::Http, lab.scale.requests / 4)?;
    let udp = send(lab, RequestKind::Echo, lab.scale.datagrams / 4)?;
    let captures = PacketCapture::stop_all(captures)?;
    let responses = total(http.iter().chain(&udp));
    check_all_answered(run.reporter, &lab.topology, &responses);

    let sum = |count: fn(&CaptureResult) -> u64| captures.iter().map(count).sum::<u64>();
    let flows = responses.answered();
    let packets = sum(|capture| capture.counts.encapsulated_in);
    let good = sum(|capture| capture.counts.outer_checksum_good);
    let zero = sum(|capture| capture.counts.outer_checksum_zero);
    let bad = sum(|capture| capture.counts.outer_checksum_bad);
    run.check(Statement::measured(
        packets > flows && good + zero == packets && bad == 0 && good > zero,
        format!("outer UDP checksums of {packets} GUE packets"),
        format!("{good} correct, {zero} zero, {bad} wrong"),
        "none wrong, zero only for GSO packets",
    ));

    let ports: Vec<_> = captures.iter().flat_map(CaptureResult::gue_source_ports).collect();
    let several = ports.iter().filter(|(_, ports)| ports.len() != 1).count();
    // Two datagrams may have the same flow, because the clients' source ports are random.
    run.check(Statement::measured(
        several == 0 && ports.len() as u64 * 2 > flows,
        format!("flows with more than one outer source port, of {}", ports.len()),
        several,
        0,
    ));
    let distinct: BTreeSet<_> = ports.iter().flat_map(|(_, ports)| ports.iter().copied()).collect();
    let dynamic = distinct.iter().all(|port| *port >= FIRST_SOURCE_PORT);
    // 1,000 flows have about 970 of the 16,384 ports.
    run.check(Statement::measured(
        dynamic && distinct.len() * 10 > ports.len() * 9,
        format!("distinct outer source ports of {} flows", ports.len()),
        distinct.len(),
        format!("more than 90 %, all at least {FIRST_SOURCE_PORT}"),
    ));
    Ok(())
}
