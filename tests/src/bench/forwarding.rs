//! Instructions per forwarded packet of a whole kernel: source, balancer and sink in network
//! namespaces of a virtual machine with one CPU, whose clock counts instructions (QEMU's
//! `-icount shift=0`: one nanosecond each).
//!
//! A figure is the run time of the generator divided by the number of packets. It includes
//! everything that happens to a packet on that CPU: the source creates and sends it, the balancer
//! forwards it, the sink receives and drops it. Only the balancer differs between figures;
//! [`Forwarder::Nothing`] measures the rest. Caches and branch prediction have no effect.

mod figure;
mod forwarders;
mod generator;
mod network;
mod table;

use std::path::Path;

use anyhow::{Context as _, ensure};

pub use self::figure::{FLOWS, Figure};
pub use self::forwarders::Forwarder;
use self::forwarders::TcBaseline;
use self::generator::{FRAME, PacketGenerator};
use self::network::{BALANCER, BenchNetwork, SINK, enter, received};
pub use self::table::table;

/// Packets that may arrive at the sink besides the generator's, such as IPv6 neighbour discovery.
const STRAY_PACKETS: u64 = 5;
/// Bytes of the largest such packet.
const STRAY_BYTES: u64 = 200;

/// Measures each forwarder with each number of flows. `report` receives each figure immediately.
pub fn measure(
    forwarders: &[Forwarder],
    packets: u32,
    sluice: &Path,
    mut report: impl FnMut(Figure),
) -> anyhow::Result<()> {
    let _network = BenchNetwork::new()?;
    let _sink = TcBaseline::sink()?;
    for forwarder in forwarders {
        let context = || format!("with {}", forwarder.name());
        let _running = forwarder.start(sluice).with_context(context)?;
        for flows in FLOWS {
            let generator = PacketGenerator::new(flows)?;
            // Warm-up: each flow is known, and all memory is allocated.
            forward(*forwarder, &generator, u32::from(flows).max(1000)).with_context(context)?;
            let nanoseconds = forward(*forwarder, &generator, packets).with_context(context)?;
            report(Figure { forwarder: *forwarder, flows, nanoseconds });
        }
    }
    Ok(())
}

/// Sends packets and checks that they arrive; returns nanoseconds per packet.
fn forward(forwarder: Forwarder, generator: &PacketGenerator, packets: u32) -> anyhow::Result<u32> {
    let count = |host| enter(host, || received("in"));
    let balancer_before = count(BALANCER)?;
    let sink_before = count(SINK)?;
    let nanoseconds = generator.send(packets)?;
    let reached = count(BALANCER)?.packets - balancer_before.packets;
    let sink = count(SINK)?;
    let arrived = sink.packets - sink_before.packets;
    let bytes = sink.bytes - sink_before.bytes;
    let packets = u64::from(packets);
    ensure!(reached >= packets, "only {reached} of {packets} packets reached the balancer");
    let (expected, size) =
        forwarder.overhead().map_or((0, 0), |overhead| (packets, (FRAME + overhead) as u64));
    ensure!(
        arrived.abs_diff(expected) <= STRAY_PACKETS
            && bytes.abs_diff(expected * size) <= STRAY_PACKETS * STRAY_BYTES,
        "{arrived} packets with {bytes} bytes arrived instead of {expected} with {size} each"
    );
    Ok(nanoseconds)
}
