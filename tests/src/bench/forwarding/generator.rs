//! The packet generator: live-frame runs of an XDP program transmit frames like a network card's
//! driver, without socket buffers.

use std::net::Ipv4Addr;

use anyhow::Context as _;
use etherparse::PacketBuilder;

use super::network::{BALANCER_MAC, PORT, SOURCE, VIP, enter, index};
use crate::bench::baseline::{Baseline, BaselineSettings, LoadedBaseline};
use crate::kernel::run_live;

/// Bytes of each frame, from the Ethernet header to the end of the payload.
pub(super) const FRAME: usize = 128;

/// Sends UDP datagrams to the VIP from a number of source ports in turn.
pub(super) struct PacketGenerator {
    program: LoadedBaseline,
    frame: Vec<u8>,
}

impl PacketGenerator {
    pub(super) fn new(flows: u16) -> anyhow::Result<Self> {
        const HEADERS: usize = 14 + 20 + 8;

        let client = Ipv4Addr::new(198, 51, 100, 1);
        let builder = PacketBuilder::ethernet2([0x02, 0, 0, 0, 0xbb, 0], BALANCER_MAC);
        let builder = builder.ipv4(client.octets(), VIP.octets(), 64).udp(0, PORT);
        let mut frame = Vec::new();
        builder.write(&mut frame, &[0; FRAME - HEADERS])?;
        // No UDP checksum (RFC 768), because the program changes the port only.
        frame[HEADERS - 2..HEADERS].fill(0);
        let headers = frame.first_chunk().copied().context("the frame contains its headers")?;
        let settings = BaselineSettings {
            interface: index(SOURCE, "out")?,
            headers,
            flows: flows.into(),
            ..BaselineSettings::default()
        };
        Ok(Self { program: LoadedBaseline::new(Baseline::SendXdp, &settings)?, frame })
    }

    /// Sends packets; returns nanoseconds per packet. On a machine with one CPU they include all
    /// processing until the packet is dropped.
    pub(super) fn send(&self, packets: u32) -> anyhow::Result<u32> {
        enter(SOURCE, || {
            run_live(self.program.descriptor(), &self.frame, packets)
                .context("the live-frame run failed")
        })
    }
}
