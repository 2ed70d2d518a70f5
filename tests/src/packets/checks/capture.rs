//! Captures on any binding.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use sluice::kernel::bpf::CaptureFilter;
use sluice_datapath::abi::{CAPTURE_BURST, CAPTURE_LEN, CaptureEvent};
use sluice_datapath::{Reason, Verdict};

use crate::packets::bindings::CaptureBinding;
use crate::packets::cases::{Case, CaseStep};
use crate::packets::compare;
use crate::packets::expectation::{Expectation, Forwarded};
use crate::packets::fixture::{DNS, Fixture, LARGEST_INDEX, WEB};
use crate::packets::frames::{Client, Frame};

/// Every packet, at any rate.
pub const EVERYTHING: CaptureFilter =
    CaptureFilter { service: None, one_in: 1, new_connections: false, per_second: u32::MAX };

/// A sentence and the check that verifies it.
pub type Check = (&'static str, fn(&mut dyn CaptureBinding) -> anyhow::Result<()>);

/// Checks of captures, in addition to the table of cases.
pub const CHECKS: &[Check] = &[
    ("nothing is captured without a capture", nothing_unasked),
    ("a capture of drops contains no forwarded packets", drops_only),
    ("a capture of one service contains no packets of others", one_service),
    ("a capture of new connections contains only SYNs among forwarded packets", new_flows),
    (
        "events beyond the capture's rate are suppressed and counted, and packets are handled as usual",
        limited,
    ),
    ("a drop is counted by service and by reason", drops_by_service),
];

/// Runs a case during a capture of everything: each forwarded or dropped packet causes one event
/// with its received bytes, other packets none.
pub fn case(case: &Case, balancer: &mut dyn CaptureBinding) -> anyhow::Result<()> {
    balancer.start_capture(&EVERYTHING)?;
    let (mut fixture, mut last, mut drops) = (Fixture::new(), 0, BTreeMap::new());
    for service in 1..=u32::from(LARGEST_INDEX) {
        for reason in Reason::ALL.iter().filter(|reason| reason.drop_index().is_some()) {
            drops.insert((service, *reason), balancer.drop_count(service, *reason)?);
        }
    }
    for (number, step) in case.steps.iter().enumerate() {
        match step {
            CaseStep::Configure(new) => {
                fixture = new.clone();
                balancer.configure(new)?;
            }
            CaseStep::Send(frame, outcome) => {
                balancer.send(frame)?;
                let events = balancer.events();
                let refused = balancer.rejects_merged() && frame.segment_size != 0;
                let outcome = match outcome {
                    Expectation::Forward(_) if refused => {
                        Expectation::Drop(Reason::AdjustRoomFailed)
                    }
                    // The event holds the received packet, not a reply.
                    Expectation::Reply(Reason::IcmpTooBigSent, _) => {
                        Expectation::Drop(Reason::TooBig)
                    }
                    Expectation::Reply(reason, _) => Expectation::Pass(*reason),
                    outcome => outcome.clone(),
                };
                judge(&events, frame, &outcome, &fixture)
                    .with_context(|| format!("step {number}: {events:02x?}"))?;
                if let Some(event) = events.first() {
                    if let Expectation::Drop(reason) = outcome
                        && event.service != 0
                    {
                        let dropped = drops.entry((event.service, reason)).or_insert(0);
                        *dropped += 1;
                        let counted = balancer.drop_count(event.service, reason)?;
                        ensure!(
                            counted == *dropped,
                            "the service counts {counted} {reason}, not {dropped}"
                        );
                    }
                    ensure!(event.time >= last, "the time decreases from {last} to {}", event.time);
                    last = event.time;
                }
            }
        }
    }
    Ok(())
}

fn judge(
    events: &[CaptureEvent],
    frame: &Frame,
    outcome: &Expectation,
    fixture: &Fixture,
) -> anyhow::Result<()> {
    if matches!(outcome, Expectation::Pass(_)) {
        ensure!(events.is_empty(), "a passed packet caused an event");
        return Ok(());
    }
    let [event] = events else { anyhow::bail!("the number of events is not one") };
    ensure!(event.time != 0 && event.interface == 1, "time or interface is missing");
    ensure!(event.length as usize == frame.bytes.len(), "the length is {}", event.length);
    ensure!(
        event.bytes() == &frame.bytes[..frame.bytes.len().min(CAPTURE_LEN)],
        "the bytes differ"
    );
    ensure!(event.segments == frame.segments.max(1), "the segments are {}", event.segments);
    match outcome {
        Expectation::Forward(Forwarded { service, backend, .. }) => {
            let leaves = fixture.backends[backend].next_hop.map_or(0, |(interface, _)| interface);
            let found = (event.reason, event.service, event.backend, event.egress_interface);
            ensure!(
                found == (0, *service, u32::from(*backend), leaves),
                "the event is not that of a forwarded packet"
            );
        }
        Expectation::Pass(reason) | Expectation::Drop(reason) | Expectation::Reply(reason, _) => {
            ensure!(reason.verdict() == Verdict::Drop, "{reason} is not a drop");
            ensure!(
                (event.reason, event.backend, event.egress_interface) == (reason.index(), 0, 0),
                "the event is not that of {reason}"
            );
            // Packets that match only a VIP address have no service.
            let to_address = *reason == Reason::NoServiceDropped || is_ping(frame);
            ensure!(event.service != 0 || to_address, "the service is {}", event.service);
            ensure!(
                event.service == 0 || *reason != Reason::NoServiceDropped,
                "the service is {}",
                event.service
            );
        }
    }
    Ok(())
}

/// Whether an untagged frame without options is an echo request.
fn is_ping(frame: &Frame) -> bool {
    let bytes = &frame.bytes;
    let at = |offset: usize| bytes.get(offset).copied();
    match at(14).map(|version| version >> 4) {
        Some(4) => at(14 + 9) == Some(1) && at(14 + 20) == Some(8),
        _ => at(14 + 6) == Some(58) && at(14 + 40) == Some(128),
    }
}

/// Sends one packet of each kind: ACK to WEB, SYN to WEB, datagram to DNS, a drop of WEB, a drop of
/// DNS, a frame without IP.
fn some(balancer: &mut dyn CaptureBinding) -> anyhow::Result<()> {
    let (web, dns) = (Client::tcp4(), Client::udp6());
    let syn = Client { transport: crate::packets::frames::L4Kind::TcpSyn, ..Client::tcp4() };
    let dead = [Client { ttl: 0, ..Client::tcp4() }, Client { ttl: 0, ..Client::udp6() }];
    for client in [&web, &syn, &dns, &dead[0], &dead[1]] {
        balancer.send(&client.frame().into())?;
    }
    balancer.send(&vec![0x55; 60].into())?;
    Ok(())
}

/// Service and reason of the events that [`some`] causes.
fn captured(
    balancer: &mut dyn CaptureBinding,
    selection: CaptureFilter,
) -> anyhow::Result<Vec<(u32, u32)>> {
    balancer.configure(&Fixture::new())?;
    balancer.start_capture(&selection)?;
    some(balancer)?;
    Ok(balancer.events().iter().map(|event| (event.service, event.reason)).collect())
}

fn nothing_unasked(balancer: &mut dyn CaptureBinding) -> anyhow::Result<()> {
    balancer.configure(&Fixture::new())?;
    some(balancer)?;
    ensure!(balancer.events().is_empty(), "there are events");
    let expired = Reason::TtlExpired.index();
    let all = captured(balancer, EVERYTHING)?;
    ensure!(
        all == [(WEB, 0), (WEB, 0), (DNS, 0), (WEB, expired), (DNS, expired)],
        "captured {all:?}"
    );
    Ok(())
}

fn drops_only(balancer: &mut dyn CaptureBinding) -> anyhow::Result<()> {
    let expired = Reason::TtlExpired.index();
    let drops = captured(balancer, CaptureFilter { one_in: 0, ..EVERYTHING })?;
    ensure!(drops == [(WEB, expired), (DNS, expired)], "captured {drops:?}");
    Ok(())
}

fn one_service(balancer: &mut dyn CaptureBinding) -> anyhow::Result<()> {
    let dns = captured(balancer, CaptureFilter { service: Some(DNS), ..EVERYTHING })?;
    ensure!(dns == [(DNS, 0), (DNS, Reason::TtlExpired.index())], "captured {dns:?}");
    Ok(())
}

fn new_flows(balancer: &mut dyn CaptureBinding) -> anyhow::Result<()> {
    let expired = Reason::TtlExpired.index();
    let found = captured(balancer, CaptureFilter { new_connections: true, ..EVERYTHING })?;
    ensure!(found == [(WEB, 0), (WEB, expired), (DNS, expired)], "captured {found:?}");
    Ok(())
}

fn limited(balancer: &mut dyn CaptureBinding) -> anyhow::Result<()> {
    const PACKETS: u64 = 100;

    balancer.configure(&Fixture::new())?;
    balancer.start_capture(&CaptureFilter { per_second: 1, ..EVERYTHING })?;
    let frame = Client { ttl: 0, ..Client::tcp4() }.frame().into();
    let mut total = balancer.counters()?;
    for _ in 0..PACKETS {
        compare::send(balancer, &frame, &Expectation::Drop(Reason::TtlExpired), &mut total)?;
    }
    let events = balancer.events().len() as u64;
    let (suppressed, lost) = balancer.missed_events()?;
    ensure!(
        events + suppressed == PACKETS && lost == 0,
        "{events} events, {suppressed} suppressed, {lost} lost"
    );
    // The bucket gives one more token per second, and a slow machine may take seconds.
    ensure!((CAPTURE_BURST + 1..CAPTURE_BURST + 20).contains(&events), "{events} events");
    Ok(())
}

fn drops_by_service(balancer: &mut dyn CaptureBinding) -> anyhow::Result<()> {
    balancer.configure(&Fixture::new())?;
    some(balancer)?;
    balancer.send(&Client { ttl: 0, ..Client::udp4() }.frame().into())?;
    let drops = |service, reason| balancer.drop_count(service, reason);
    let found = (
        drops(WEB, Reason::TtlExpired)?,
        drops(DNS, Reason::TtlExpired)?,
        drops(WEB, Reason::TooBig)?,
    );
    ensure!(found == (1, 2, 0), "drops are {found:?}");
    let total = balancer.counters()?.reasons.get(&Reason::TtlExpired).copied();
    ensure!(total == Some(3), "the reason's counter is {total:?}");
    Ok(())
}
