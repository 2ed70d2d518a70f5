//! Instructions that a whole kernel takes to forward a packet: on a balancer between a source and a sink, in network namespaces of a
//! virtual machine with one CPU, whose clock counts instructions (QEMU's `-icount shift=0`: one nanosecond each).
//!
//! A figure is the time that the generator takes for a number of packets divided by that number. It is all that happens to a packet on
//! that CPU: it is made and sent, received by the balancer, forwarded, received by the sink, dropped there. Only what the balancer
//! does differs, and [`Balancer::Nothing`] tells what the rest is. There are no caches and no mispredicted branches in such a figure.

mod balancers;
mod generator;
mod site;

use std::path::Path;

use anyhow::{Context as _, ensure};

pub use self::balancers::Balancer;
use self::balancers::Filter;
use self::generator::FRAME;
use self::site::{BALANCER, SINK, SOURCE, Site, enter, run};

/// Source ports in turn.
pub const FLOWS: [u16; 2] = [1, 10_000];

/// A figure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figure {
    /// What forwarded.
    pub balancer: Balancer,
    /// How many flows the packets belonged to.
    pub flows: u16,
    /// Nanoseconds of the machine's clock, from the generator to the sink.
    pub nanoseconds: f64,
}

/// Measures each balancer with each number of flows; `told` gets each figure as soon as it is known.
///
/// # Errors
///
/// What the kernel refused, and packets that did not arrive as they should.
pub fn measure(
    balancers: &[Balancer],
    packets: u64,
    sluice: &Path,
    mut told: impl FnMut(Figure),
) -> anyhow::Result<()> {
    run("modprobe", &["pktgen"])?;
    let _site = Site::new()?;
    let _sink = Filter::sink()?;
    for balancer in balancers {
        let place = || format!("with {}", balancer.name());
        let _forwarding = balancer.start(sluice).with_context(place)?;
        for flows in FLOWS {
            // Each flow is seen before, and all memory was used before.
            forward(*balancer, u64::from(flows).max(1000), flows).with_context(place)?;
            let microseconds = forward(*balancer, packets, flows).with_context(place)?;
            told(Figure { balancer: *balancer, flows, nanoseconds: microseconds as f64 * 1000.0 / packets as f64 });
        }
    }
    Ok(())
}

/// Sends packets, which must arrive; the microseconds that took.
fn forward(balancer: Balancer, packets: u64, flows: u16) -> anyhow::Result<u64> {
    let arrived = || enter(SINK, || site::received("in"));
    let (packets_before, bytes_before) = arrived()?;
    let reached_before = enter(BALANCER, || site::received("in"))?.0;
    let microseconds = enter(SOURCE, || generator::send(packets, flows))?;
    let (packets_after, bytes_after) = arrived()?;
    let (came, bytes) = (packets_after - packets_before, bytes_after - bytes_before);
    let reached = enter(BALANCER, || site::received("in"))?.0 - reached_before;
    ensure!(reached >= packets, "only {reached} of {packets} packets reached the balancer");
    let (expected, size) = balancer.growth().map_or((0, 0), |growth| (packets, FRAME + growth));
    // A stray packet of the hosts' own is no error, and would be seen among the bytes if there were many.
    ensure!(
        came.abs_diff(expected) <= 5 && bytes.abs_diff(expected * size) <= 5 * 200,
        "{came} packets with {bytes} bytes arrived instead of {expected} with {size} each"
    );
    Ok(microseconds)
}
