//! Instructions that a whole kernel takes to forward a packet: on a balancer between a source and a
//! sink, in network namespaces of a virtual machine with one CPU, whose clock counts instructions
//! (QEMU's `-icount shift=0`: one nanosecond each).
//!
//! A figure is the time that the generator takes for a number of packets divided by that number. It
//! is all that happens to a packet on that CPU: it is made and sent, received by the balancer,
//! forwarded, received by the sink, dropped there. Only what the balancer does differs, and
//! [`Balancer::Nothing`] tells what the rest is. There are no caches and no mispredicted branches
//! in such a figure.

mod balancers;
mod generator;
mod site;
mod table;

use std::path::Path;

use anyhow::{Context as _, ensure};

pub use self::balancers::Balancer;
use self::balancers::Filter;
use self::generator::{FRAME, Generator};
use self::site::{BALANCER, SINK, Site, enter};
pub use self::table::table;

/// Source ports in turn.
pub const FLOWS: [u16; 2] = [1, 10_000];

/// A figure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figure {
    /// What forwarded.
    pub balancer: Balancer,
    /// How many flows the packets belonged to.
    pub flows: u16,
    /// Nanoseconds of the machine's clock for a packet, from the generator to the sink.
    pub nanoseconds: u32,
}

/// Measures each balancer with each number of flows; `told` gets each figure as soon as it is
/// known.
///
/// # Errors
///
/// What the kernel refused, and packets that did not arrive as they should.
pub fn measure(
    balancers: &[Balancer],
    packets: u32,
    sluice: &Path,
    mut told: impl FnMut(Figure),
) -> anyhow::Result<()> {
    let _site = Site::new()?;
    let _sink = Filter::sink()?;
    for balancer in balancers {
        let place = || format!("with {}", balancer.name());
        let _forwarding = balancer.start(sluice).with_context(place)?;
        for flows in FLOWS {
            let generator = Generator::new(flows)?;
            // Each flow is seen before, and all memory was used before.
            forward(*balancer, &generator, u32::from(flows).max(1000)).with_context(place)?;
            let nanoseconds = forward(*balancer, &generator, packets).with_context(place)?;
            told(Figure { balancer: *balancer, flows, nanoseconds });
        }
    }
    Ok(())
}

/// Sends packets, which must arrive; nanoseconds of each.
fn forward(balancer: Balancer, generator: &Generator, packets: u32) -> anyhow::Result<u32> {
    let count = || -> anyhow::Result<_> {
        Ok((enter(BALANCER, || site::received("in"))?, enter(SINK, || site::received("in"))?))
    };
    let ((reached, _), (arrived, bytes)) = count()?;
    let nanoseconds = generator.send(packets)?;
    let ((reached_after, _), (arrived_after, bytes_after)) = count()?;
    let (reached, arrived, bytes) =
        (reached_after - reached, arrived_after - arrived, bytes_after - bytes);
    let packets = u64::from(packets);
    ensure!(reached >= packets, "only {reached} of {packets} packets reached the balancer");
    let (expected, size) =
        balancer.growth().map_or((0, 0), |growth| (packets, (FRAME + growth) as u64));
    // A stray packet of the hosts' own is no error.
    ensure!(
        arrived.abs_diff(expected) <= 5 && bytes.abs_diff(expected * size) <= 5 * 200,
        "{arrived} packets with {bytes} bytes arrived instead of {expected} with {size} each"
    );
    Ok(nanoseconds)
}
