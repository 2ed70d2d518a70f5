//! Direct server return, counted on the wire: what the balancers' interfaces carried, and what the
//! backends'.

use super::Examination;
use crate::lab::topology::{backends, balancers};
use anyhow::Result;

pub(super) fn run(examination: &mut Examination<'_>) -> Result<()> {
    let show = &mut *examination.show;
    let captured = &examination.captured;
    show.say(
        "packets on the wire while the requests above ran, counted by a packet socket in each host",
    );
    let head = [
        "host",
        "to the VIP, in",
        "IP-in-IP out",
        "IP-in-IP in",
        "from the VIP, out",
        "from the VIP, in",
    ];
    show.table(
        &head,
        captured.iter().map(|(host, captured)| {
            let counts = &captured.counts;
            let numbers = [
                counts.to_vip_in,
                counts.encapsulated_out,
                counts.encapsulated_in,
                counts.from_vip_out,
                counts.from_vip_in,
            ];
            std::iter::once((*host).to_owned())
                .chain(numbers.map(|number| number.to_string()))
                .collect()
        }),
    );
    let counts =
        |name: &str| captured.get(name).map(|captured| captured.counts).unwrap_or_default();
    for balancer in balancers() {
        let seen = counts(balancer.name);
        let replies = seen.from_vip_in + seen.from_vip_out;
        show.check(replies == 0, format!("{replies} replies crossed {}", balancer.name));
        // Without these the line above would hold for a capture that sees nothing.
        let (arrived, left) = (seen.to_vip_in, seen.encapsulated_out);
        let what = format!(
            "the same capture saw {arrived} packets of clients reach {} and {left} leave encapsulated",
            balancer.name
        );
        show.check(arrived == left && left > 0, what);
        let counted = examination.forwarded.get(balancer.name).copied().unwrap_or(0);
        show.check(
            counted == left,
            format!("sluice counters on {} went up by as many: {counted}", balancer.name),
        );
    }
    let sent: u64 = backends().map(|backend| counts(backend.name).from_vip_out).sum();
    let plain: u64 = backends().map(|backend| counts(backend.name).to_vip_in).sum();
    let answered = examination.answered;
    show.check(
        sent >= answered && answered > 0,
        format!("{sent} packets left the backends with the VIP as source, for {answered} answers"),
    );
    show.check(
        plain == 0,
        format!("{plain} packets for the VIP reached a backend without encapsulation"),
    );
    Ok(())
}
